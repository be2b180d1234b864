"""The file of wishes, DATA/fleet/desired.json: read, converted from the older format, written whole.

Format 2::

    {"format": 2, "revision": 7, "rules": [{"model": "digits", "version": "2.0.0", "where": {"line": "3"}, ...}]}

Format 1 had no number, and one wish a station with all of its models: ``{"revision": 7, "wishes": {"": {"models":
[{"name": "digits", "version": "latest"}], "revision": 3}}}``. It is read, and written as format 2 at the next change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from outstation.durable import write_atomically
from outstation.errors import DiskError, UnsupportedVersionError, mapped_os_errors
from outstation.shapes import learn
from outstation.types import Desired
from outstation_hub.selection import Rule

FORMAT = 2


class DesiredFile(msgspec.Struct, frozen=True, kw_only=True):
    """All wishes. ``revision`` is of the last change."""

    format: int = FORMAT
    revision: int = 0
    rules: tuple[Rule, ...] = ()


class _FormatOne(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    revision: int = 0
    wishes: dict[str, Desired] = {}


def read(path: Path) -> DesiredFile:
    """The wishes in *path*, none if there is no such file. DiskError, UnsupportedVersionError."""
    if not path.exists():
        return DesiredFile()
    with mapped_os_errors(doing="read the desired state", path=path):
        data = path.read_bytes()
    try:
        tree: Any = msgspec.json.decode(data)
        if not isinstance(tree, dict) or "format" not in tree:
            return _converted(msgspec.convert(tree, _FormatOne))
        if tree["format"] != FORMAT:
            raise UnsupportedVersionError(
                f"{path} has format {tree['format']!r}; this hub knows {FORMAT}.", hint="Run the hub that wrote it."
            )
        return msgspec.convert(tree, DesiredFile)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as exc:
        raise DiskError(f"{path} is no desired state: {exc}.", hint="Restore it from a copy, or remove it.") from exc


def write(path: Path, state: DesiredFile) -> None:
    """On the disk when it returns. DiskFullError, DiskError."""
    data = msgspec.json.encode(state, order="deterministic")  # a set in another order is no change
    write_atomically(path, msgspec.json.format(data, indent=2))


def _converted(old: _FormatOne) -> DesiredFile:
    rules = [
        Rule(model=model.name, version=model.version, station=station, revision=wish.revision)
        for station, wish in old.wishes.items()
        for model in wish.models
    ]
    return DesiredFile(revision=old.revision, rules=tuple(rules))


learn(DesiredFile, _FormatOne)
