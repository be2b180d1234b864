"""Deltas in a repository: where they lie, and what the publisher signed of them.

A delta is a target of its own beside the version that it makes: ``NAME/VERSION/~deltas/BASE/FILE``, where BASE is the
beginning of the SHA-256 of the file that it starts from. The target of the whole file lists, in its custom field,
which bases there are deltas for; the target of the delta holds the hashes of its chunks. A manifest knows nothing of
it, so an older Outstation reads such a repository as ever.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from outstation.models.chain import SignedFile
from outstation.models.fetch import Expected
from outstation.models.manifest import Sha256
from outstation.shapes import learn

DELTAS = "deltas"  # in the custom field of a file: SHA-256 of a base → path of the delta
FROM_VERSION = "from"  # in the custom field of a delta: the version of the base, for people
FOLDER = "~deltas"  # no path in a bundle begins like that
# Every device reads the metadata of every delta: 64 hashes of 67 bytes are enough to find a wrong piece in.
MIN_CHUNK_BYTES = 1 << 20
MAX_CHUNKS = 64
# Versions back for which publishing makes deltas, and versions that keep theirs when newer ones come.
DEFAULT_BASES = 3
MAX_BASES = 16
# A file below is not worth another request; a delta that saves less than a tenth is not worth the work at the device.
MIN_FILE_BYTES = 16 << 10
WORTHWHILE = 0.9

_SHA256 = re.compile(r"[0-9a-f]{64}")


class _Chunks(msgspec.Struct, frozen=True):
    chunk_bytes: int
    chunks: tuple[Sha256, ...]


def delta_path(name: str, version: str, base_sha256: str, path: str) -> str:
    """The target that makes *path* of *name* *version* from the file with *base_sha256*."""
    return f"{name}/{version}/{FOLDER}/{base_sha256[:16]}/{path}"


def is_delta(path: str) -> bool:
    """Whether the target *path* is a delta."""
    return path.split("/")[2:3] == [FOLDER]


def delta_file(path: str) -> str:
    """Which file of the version the delta *path* makes."""
    return path.split("/", 4)[4]


def offered(custom: Mapping[str, Any]) -> dict[str, str]:
    """The deltas in the custom field of a file: SHA-256 of the base → path. What is no such thing is left out."""
    listed = custom.get(DELTAS)
    if not isinstance(listed, dict):
        return {}
    entries = list(listed.items())[:MAX_BASES]
    return {
        base: path for base, path in entries if _SHA256.fullmatch(base) and isinstance(path, str) and is_delta(path)
    }


def expected_delta(signed: SignedFile) -> Expected:
    """What to hold the download of a delta to; without hashes of chunks when those in its custom field are none."""
    whole = Expected(signed.path, signed.sha256, signed.size_bytes)
    try:
        listed = msgspec.convert(signed.custom, _Chunks)
    except msgspec.ValidationError:
        return whole
    if listed.chunk_bytes <= 0 or len(listed.chunks) != -(-signed.size_bytes // listed.chunk_bytes):
        return whole
    return Expected(signed.path, signed.sha256, signed.size_bytes, listed.chunk_bytes, listed.chunks)


learn(_Chunks)
