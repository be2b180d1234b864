"""File descriptors for appending, of which there are never more than a few whatever the number of streams."""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from outstation.durable import Files

# A process has 1,024 by default, and the application needs most of them.
LIMIT = 64


class Handles:
    """Least recently used first to be closed. Used by one thread at a time.

    A descriptor that has been written to must be synced before :data:`LIMIT` others are asked for: closing it first
    could lose the kernel's report of a failed write.
    """

    def __init__(self, files: Files, limit: int = LIMIT) -> None:
        self._files = files
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()

    def create(self, path: Path) -> int:
        return self._keep(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)

    def get(self, path: Path) -> int:
        fd = self._open.get(path)
        if fd is None:
            return self._keep(path, os.O_WRONLY)
        self._open.move_to_end(path)
        return fd

    def drop(self, path: Path) -> None:
        fd = self._open.pop(path, None)
        if fd is not None:
            self._close(fd)

    def close(self) -> None:
        while self._open:
            self._close(self._open.popitem()[1])

    def _keep(self, path: Path, flags: int) -> int:
        while len(self._open) >= self._limit:
            self._close(self._open.popitem(last=False)[1])
        fd = self._open[path] = self._files.open(path, flags)
        return fd

    def _close(self, fd: int) -> None:
        with suppress(OSError):  # it was synced before; what close() may report was reported there
            self._files.close(fd)
