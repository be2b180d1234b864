"""The streams of a delta while it is made: collected plain, then each compressed in the way that suits it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import IO

from outstation import zstd
from outstation.models.delta import (
    ENTRY,
    HEADER,
    MAGIC,
    PLANE_WINDOW_LOG,
    PROGRAM,
    REST,
    REST_WINDOW_LOG,
    VERSION,
    Key,
)

_P = zstd.CompressionParameter
# Matches in planes are short and few, and looking for them spoils how zstd sends single bytes: a tiny table and none
# below seven bytes give more for a tenth of the time. The optimal parser with it comes within 2 % of level 19.
_FEW_MATCHES: Mapping[int, int] = {
    _P.compression_level: 13,
    _P.window_log: PLANE_WINDOW_LOG - 1,
    _P.search_log: 1,
    _P.hash_log: 8,
    _P.chain_log: 8,
}
QUICK: Mapping[int, int] = {**_FEW_MATCHES, _P.strategy: zstd.Strategy.dfast, _P.min_match: 7}
_CAREFUL: Mapping[int, int] = {**_FEW_MATCHES, _P.strategy: zstd.Strategy.btopt, _P.min_match: 5}
_NOISE = 0.8  # what the quick way leaves of a stream that is not worth the careful one
_PATIENCE_BYTES = 16 << 20  # a rest larger than this takes minutes at the best level, and much memory
_SPOOLED_BYTES = 1 << 20  # of one stream in memory; a larger one waits in a temporary file
_READ_BYTES = 1 << 20
# The planes of one width: more threads than these find nothing to do.
_MAX_THREADS = 4


class Streams:
    """What was added, by stream. A context: what it collected is deleted when it ends. Use from one thread."""

    def __init__(self) -> None:
        self._files = ExitStack()
        self._plain: dict[Key, IO[bytes]] = {}

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *exc: object) -> None:
        self._files.close()

    def add(self, data: bytes, kind: int, width: int = 1, plane: int = 0) -> None:
        """Put *data* at the end of a stream."""
        key = (kind, width, plane)
        if key not in self._plain:
            self._plain[key] = self._spool()
        self._plain[key].write(data)

    def size(self, kind: int) -> int:
        """Bytes in the stream *kind* so far."""
        return self._plain[kind, 1, 0].tell() if (kind, 1, 0) in self._plain else 0

    def write(self, file: IO[bytes], head: tuple[int, int, bytes, bytes], prefix: bytes) -> None:
        """Compress all and write the delta: sizes and hashes of base and result are its *head*."""
        keys = sorted(self._plain)
        threads = min(_MAX_THREADS, os.cpu_count() or 1)
        with ThreadPoolExecutor(threads, thread_name_prefix="outstation-delta") as pool:
            packed = list(pool.map(lambda key: self._packed(key, prefix), keys))
        base_size, result_size, base_sha256, result_sha256 = head
        file.write(HEADER.pack(MAGIC, VERSION, len(keys), base_size, result_size, base_sha256, result_sha256))
        for key, stream in zip(keys, packed, strict=True):
            file.write(ENTRY.pack(*key, stream.tell()))
        for stream in packed:
            stream.seek(0)
            shutil.copyfileobj(stream, file, _READ_BYTES)

    def _packed(self, key: Key, prefix: bytes) -> IO[bytes]:
        plain = self._plain[key]
        size = plain.tell()
        if key[0] == PROGRAM:
            return self._compressed(plain, _thorough(size, PLANE_WINDOW_LOG))
        if key[0] == REST:
            dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
            return self._compressed(plain, _thorough(size + len(prefix), REST_WINDOW_LOG), dictionary)
        quick = self._compressed(plain, QUICK)
        if quick.tell() > size * _NOISE:
            return quick
        return min(quick, self._compressed(plain, _CAREFUL), key=lambda stream: stream.tell())

    def _compressed(
        self, plain: IO[bytes], options: Mapping[int, int], dictionary: tuple[zstd.ZstdDict, int] | None = None
    ) -> IO[bytes]:
        packed = self._spool()
        size = plain.tell()
        plain.seek(0)
        if size <= _PATIENCE_BYTES:  # zstd chooses smaller tables when it is told the size, by having it all at once
            packed.write(zstd.compress(plain.read(), options=dict(options), zstd_dict=dictionary))
            return packed
        frame = zstd.ZstdCompressor(options=dict(options), zstd_dict=dictionary)
        while piece := plain.read(_READ_BYTES):
            packed.write(frame.compress(piece))
        packed.write(frame.flush())
        return packed

    def _spool(self) -> IO[bytes]:
        return self._files.enter_context(tempfile.SpooledTemporaryFile(_SPOOLED_BYTES))


def _thorough(size: int, most_window_log: int) -> Mapping[int, int]:
    """The best level, with a window that reaches over all *size* bytes, dictionary included, if that may be."""
    window_log = min(max(size.bit_length(), 10), most_window_log)  # 10 is the least that zstd has
    return {_P.compression_level: 19 if size <= 2 * _PATIENCE_BYTES else 3, _P.window_log: window_log}
