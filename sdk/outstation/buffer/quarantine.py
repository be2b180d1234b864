"""Where damaged bytes go: kept for whoever wants to look, bounded so that a dying disk does not fill itself."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from outstation.durable import Files

QUARANTINE = "quarantine"
# Two large segments: enough to study a fault, little beside the stream.
MAX_BYTES = 16 << 20
# A damaged piece may be a byte long: names, and the search for what is oldest, cost more than the bytes.
MAX_FILES = 1000


def keep_bytes(folder: Path, name: str, data: bytes, files: Files) -> None:
    """Write *data* into the quarantine of the stream's *folder*. Best effort: never raises OSError."""
    try:
        place = _place(folder, name, len(data), files)
        fd = files.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            files.write(fd, data[:MAX_BYTES], 0)
        finally:
            files.close(fd)
    except OSError:
        pass  # the damage is counted in the ledger; its bytes are evidence only


def keep_link(folder: Path, path: Path, files: Files) -> None:
    """Keep the file *path* in the quarantine too, though its name is taken over. Best effort: never raises OSError.

    While it is there, nothing else is put on the bad places of the disk under it.
    """
    with suppress(OSError):
        files.link(path, _place(folder, path.name, path.stat().st_size, files))


def keep_file(folder: Path, path: Path, files: Files) -> None:
    """Move the file *path* into the quarantine. Raises OSError, and then the file is where it was."""
    files.rename(path, _place(folder, path.name, 0, files))


def _place(folder: Path, name: str, size: int, files: Files) -> Path:
    quarantine = folder / QUARANTINE
    if not quarantine.is_dir():
        files.make_directory(quarantine)
    kept = sorted(quarantine.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    total = sum(path.stat().st_size for path in kept) + size
    surplus = len(kept) + 1 - MAX_FILES
    for number, path in enumerate(kept):
        if total <= MAX_BYTES and number >= surplus:
            break
        total -= path.stat().st_size
        files.unlink(path)
    place, number = quarantine / name, 1
    while place.exists():
        place, number = quarantine / f"{name}.{number}", number + 1
    return place
