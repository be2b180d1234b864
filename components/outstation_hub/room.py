"""Whether the disk may take more, asked often and looked up seldom."""

from __future__ import annotations

import os
from pathlib import Path

from outstation.clock import Clock

# Seconds between looks. At 200 MB/s a disk loses 50 MB in one: less than the reserve.
LOOK_INTERVAL = 0.25


class DiskRoom:
    """Free space of the file system under *folder*, at most a quarter of a second old. Thread-safe.

    A full disk must never stop the hub from emptying itself: a cursor and a ledger are written before anything is
    removed. So stations are stopped while there is still room for those.
    """

    def __init__(self, folder: Path, min_free_bytes: int, clock: Clock) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._look_at = clock.monotonic()
        self._enough = True

    def __call__(self) -> bool:
        now = self._clock.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_INTERVAL
            disk = os.statvfs(self._folder)
            self._enough = disk.f_bavail * disk.f_frsize >= self._min_free_bytes
        return self._enough
