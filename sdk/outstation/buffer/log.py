"""The files of one stream, as their owner writes them. One thread at a time.

One commit is: write the balance (if it changed) and the blocks at the end of the newest segment, fdatasync, publish.
Files that a commit makes needless are removed after it, when the balance that explains their absence is on the disk.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from outstation.buffer import state as state_file
from outstation.buffer.frames import Balance
from outstation.buffer.handles import Handles
from outstation.buffer.segment import Segment, file_name
from outstation.durable import Files, write_atomically
from outstation.errors import StorageError
from outstation.wire.block import BlockHeader

# A commit of this size or less reserves room for those after it. Larger ones fill whole pages each time, and gain
# nothing from it.
SMALL_COMMIT_BYTES = 8 << 10
RESERVE_BYTES = 64 << 10

# From a plain block and the serial of its segment to the bytes that are stored.
Protector = Callable[[BlockHeader, bytes, int], bytes]


class Log:
    """Appends to segments. Holds no lock: the stream publishes what :meth:`write` and :meth:`sync` have done."""

    def __init__(
        self, name: str, folder: Path, files: Files, handles: Handles, *, segment_limit: int, newest_serial: int
    ) -> None:
        self.name = name
        self.folder = folder
        self._files = files
        self._handles = handles
        self._segment_limit = segment_limit
        self._newest_serial = newest_serial
        self.active: Segment | None = None  # as committed
        self._reserved = 0  # the active file's length on the disk, if it is longer than its frames
        self._created = False  # the active segment's name is not durable yet
        self._written: Segment | None = None  # the active segment as it will be once synced
        self.synced: Segment | None = None  # what the last :meth:`sync` returned

    @property
    def position(self) -> tuple[int, int]:
        """Serial and offset up to which everything is on the disk."""
        return (self.active.serial, self.active.length) if self.active else (self._newest_serial + 1, 0)

    def write(
        self, balance: Balance, dirty: bool, blocks: list[tuple[BlockHeader, bytes]], protect: Protector, *, now: int
    ) -> None:
        """Write without syncing. *dirty*: the balance differs from the last one written. Raises OSError.

        The balance stands before the blocks: it says what was committed before them and claims nothing of them.
        """
        if self.active is None:
            self._begin(balance)
        before = self.active
        assert before is not None
        after = before.copy()
        parts = []
        if dirty or before.length == 0:
            parts.append(balance._replace(serial=before.serial, time_unix_nano=now).pack())
        for header, body in blocks:
            parts.append(protect(header, body, before.serial))
            after.add(header)
        if blocks:
            after.written_unix_nano = now
        data = b"".join(parts)
        after.length += len(data)
        if after.length >= self._segment_limit:
            data += after.seal(balance.epoch).pack()
            after.sealed = after.closed = True
        fd = self._handles.get(before.path)
        self._reserve(fd, before.length, len(data))
        self._files.write(fd, data, before.length)
        if after.sealed:
            self._trim(fd, before.length + len(data))
        self._written = after

    def sync(self) -> Segment:
        """Bring what was written to the disk and return the segment as it now is. Raises OSError."""
        assert self._written is not None
        segment = self._written
        self._files.sync_data(self._handles.get(segment.path))
        if self._created:
            self._files.sync_directory(self.folder)
            self._created = False
        # At once, without a call between them: a sync that is interrupted has happened, or it has not.
        self._written, self.active, self.synced = None, None if segment.sealed else segment, segment
        if segment.sealed:
            self._handles.drop(segment.path)
        return segment

    def rewind(self) -> bool:
        """After a failed write, before any sync: forget it and keep the segment. False if that is not possible."""
        segment, self._written = self.active, None
        if segment is None:
            return False
        try:
            self._files.truncate(self._handles.get(segment.path), segment.length)
        except OSError:
            return False
        self._reserved = 0
        return True

    def abandon(self) -> Segment | None:
        """Never write to the active segment again: after a failed sync nobody knows what it holds.

        What was confirmed in it stays; returns it, or None if nothing was. Never raises.
        """
        segment = self.active
        self.rewind()  # what it leaves beyond is recognised at opening: the next segment begins with an earlier number
        self.active = None
        if segment is None:
            return None
        self._handles.drop(segment.path)
        if segment.length == 0:
            self.remove([segment.path])
            return None
        return replace(segment, closed=True)

    def close_segment(self, epoch: int) -> Segment | None:
        """Seal the active segment now. Raises OSError."""
        segment = self.active
        if segment is None or self._written is not None:
            return None
        fd = self._handles.get(segment.path)
        seal = segment.seal(epoch).pack()
        self._files.write(fd, seal, segment.length)
        self._trim(fd, segment.length + len(seal))
        self._files.sync_data(fd)
        self.active = None
        self._handles.drop(segment.path)
        return replace(segment, sealed=True, closed=True)

    def checkpoint(self, balance: Balance, marks: Mapping[str, int]) -> None:
        """Write the state file. Raises StorageError."""
        serial, offset = self.position
        data = state_file.encode(self.name, balance._replace(serial=serial), serial, offset, marks)
        write_atomically(self.folder / state_file.FILE_NAME, data, files=self._files)

    def remove(self, paths: list[Path]) -> None:
        """Remove files that no reader needs. Never raises: what stays is removed at the next opening."""
        for path in paths:
            self._handles.drop(path)
            try:
                self._files.unlink(path)
            except OSError:
                continue

    def trim(self) -> None:
        """Give back what was reserved beyond the end. Never raises."""
        if self.active is not None and self._reserved > self.active.length:
            with suppress(OSError):  # opening cuts it too
                self._trim(self._handles.get(self.active.path), self.active.length)

    def _reserve(self, fd: int, offset: int, size: int) -> None:
        """Before a small write at the end of the file, make the file longer than it needs.

        The next small commits then change no length, and their fdatasync writes their page instead of their page
        and the file system's journal: half of the bytes on the flash, and half of the time.
        """
        if offset + size <= self._reserved or size > SMALL_COMMIT_BYTES:
            return
        with suppress(OSError):  # a file system that cannot, or a full disk, which the write itself will report
            self._files.allocate(fd, offset, RESERVE_BYTES)
            self._reserved = offset + RESERVE_BYTES

    def _trim(self, fd: int, length: int) -> None:
        if self._reserved > length:
            self._files.truncate(fd, length)
        self._reserved = 0

    def _begin(self, balance: Balance) -> None:
        serial = self._newest_serial = self._newest_serial + 1
        path = self.folder / file_name(serial)
        try:
            self._handles.create(path)
        except FileExistsError:
            # The stump of a try that failed: nothing in it was ever confirmed.
            self._files.unlink(path)
            self._handles.create(path)
        last = balance.last_sequence
        self.active = Segment(path, serial, last + 1, last)
        self._reserved = 0
        self._created = True


def is_full(exc: BaseException) -> bool:
    """Whether letting old records go can help against *exc*."""
    cause = exc.__cause__ if isinstance(exc, StorageError) else exc
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
