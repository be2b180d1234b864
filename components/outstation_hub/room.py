"""Whether the disk may take more: asked for each block, looked up four times a second."""

from __future__ import annotations

import os
from pathlib import Path

from outstation.clock import Clock
from outstation.errors import mapped_os_errors

# Seconds between looks; what comes in between is counted.
LOOK_INTERVAL = 0.25


class DiskRoom:
    """Free space of the file system under *folder*. Used under the inbox's lock.

    A full disk must never stop the hub from emptying itself: a cursor and a ledger are written before anything is
    removed. So stations are stopped while there is still room for those.
    """

    def __init__(self, folder: Path, min_free_bytes: int, clock: Clock) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._look_at = clock.monotonic()
        self._free = 0
        self._coming = 0  # taken since the last look
        self._under_way = 0  # taken in the interval before it: perhaps not on the disk when it was looked at

    def take(self, size_bytes: int) -> bool:
        """Whether *size_bytes* more may come; if so, they are counted. StorageError when the disk does not say."""
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL
            with mapped_os_errors(doing="see how full the disk is", path=self._folder):
                disk = os.statvfs(self._folder)
            self._free = disk.f_bavail * disk.f_frsize
            self._under_way, self._coming = self._coming, 0
        if self._free - self._under_way - self._coming - size_bytes < self._min_free_bytes:
            return False
        self._coming += size_bytes
        return True
