"""One process owns a buffer's folder: a lock that the kernel drops with the process, and the pid for people."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from outstation.errors import BufferLockedError, mapped_os_errors

FILE_NAME = "lock"


class Lock:
    """Held from construction to :meth:`release`. Raises BufferLockedError, DiskError."""

    def __init__(self, folder: Path) -> None:
        path = folder / FILE_NAME
        with mapped_os_errors(doing="lock the buffer", path=folder):
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = holder(folder)
                os.close(self._fd)
                who = "another process" if pid is None else f"process {pid}"
                raise BufferLockedError(f"The buffer in {folder} is held by {who}.", pid=pid) from None
            except OSError:
                os.close(self._fd)
                raise
            try:
                os.ftruncate(self._fd, 0)
                os.pwrite(self._fd, b"%d\n" % os.getpid(), 0)
            except OSError:
                pass  # on a full disk the lock still holds; only its holder stays unnamed

    def release(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def holder(folder: Path) -> int | None:
    """The pid that last locked *folder*, or None if nobody says."""
    try:
        text = (folder / FILE_NAME).read_text()
    except OSError:
        return None
    return int(text) if text.strip().isdigit() else None
