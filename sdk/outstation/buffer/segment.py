"""One segment file: its summary in memory, and the walk over its frames that survives damage."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from outstation.buffer.frames import (
    BALANCE_BYTES,
    BALANCE_MAGIC,
    SEAL_BYTES,
    SEAL_MAGIC,
    Balance,
    Seal,
    unpack_balance,
    unpack_seal,
)
from outstation.durable import Files
from outstation.errors import CorruptBlockError
from outstation.wire.block import HEADER_BYTES, MAGIC, BlockHeader

SUFFIX = ".seg"
FILE_NAME = re.compile(r"(\d{12})\.seg")
_LARGEST_HEAD = max(HEADER_BYTES, BALANCE_BYTES, SEAL_BYTES)
# Small enough that hopping over large blocks wastes little, large enough that a run of small ones is one read.
_WINDOW_BYTES = 4 << 10
# While looking for the next whole frame after damage every byte is read, so fewer and larger reads.
_SEARCH_BYTES = 1 << 20
_ANY_MAGIC = re.compile(b"|".join((MAGIC, BALANCE_MAGIC, SEAL_MAGIC)))


def file_name(serial: int) -> str:
    return f"{serial:012d}{SUFFIX}"


@dataclass(slots=True)
class Segment:
    """What the owner remembers of one file; a few dozen bytes whatever the file holds."""

    path: Path
    serial: int
    first_sequence: int  # last_sequence + 1 while it holds no block
    last_sequence: int
    count: int = 0
    blocks: int = 0
    payload_bytes: int = 0
    length: int = 0  # committed bytes of frames, the seal not included
    earliest_unix_nano: int = 0
    latest_unix_nano: int = 0
    written_unix_nano: int = 0  # when the newest record was appended, by the steady clock
    sealed: bool = False
    closed: bool = False  # nothing more will be written to it; sealed, or given up after a fault
    rewrite: int = 0  # the number of the rewrite that made the file, as its seal has it
    generation: int = 0  # grows when the file is rewritten: offsets found before are void
    # Not all of it could be read at opening. Until it is mended, it counts for what the account misses, and its
    # numbers are all that it may hold.
    unread: bool = False

    @property
    def dense(self) -> bool:
        return self.count == self.last_sequence - self.first_sequence + 1

    @property
    def file_bytes(self) -> int:
        return self.length + (SEAL_BYTES if self.sealed else 0)

    def add(self, header: BlockHeader) -> None:
        """Take a block into the summary; the caller moves ``length``."""
        if self.count == 0:
            self.first_sequence = header.first_sequence
            self.earliest_unix_nano, self.latest_unix_nano = header.earliest_unix_nano, header.latest_unix_nano
        else:
            self.earliest_unix_nano = min(self.earliest_unix_nano, header.earliest_unix_nano)
            self.latest_unix_nano = max(self.latest_unix_nano, header.latest_unix_nano)
        self.last_sequence = header.last_sequence
        self.count += header.count
        self.blocks += 1
        self.payload_bytes += header.payload_bytes

    def copy(self) -> Segment:
        """A copy to be changed; several times cheaper than dataclasses.replace, and made for each commit."""
        other = Segment(self.path, self.serial, self.first_sequence, self.last_sequence)
        other.count, other.blocks, other.payload_bytes = self.count, self.blocks, self.payload_bytes
        other.length, other.generation, other.rewrite = self.length, self.generation, self.rewrite
        other.earliest_unix_nano, other.latest_unix_nano = self.earliest_unix_nano, self.latest_unix_nano
        other.written_unix_nano, other.sealed, other.closed = self.written_unix_nano, self.sealed, self.closed
        return other

    def seal(self, epoch: int, *, thinned: int = 0, corrupt: int = 0) -> Seal:
        return Seal(
            epoch=epoch,
            serial=self.serial,
            first_sequence=self.first_sequence,
            last_sequence=self.last_sequence,
            count=self.count,
            blocks=self.blocks,
            payload_bytes=self.payload_bytes,
            length=self.length,
            earliest_unix_nano=self.earliest_unix_nano,
            latest_unix_nano=self.latest_unix_nano,
            written_unix_nano=self.written_unix_nano,
            rewrite=self.rewrite,
            rewrite_thinned=thinned,
            rewrite_corrupt=corrupt,
        )

    @classmethod
    def sealed_by(cls, path: Path, seal: Seal) -> Segment:
        return cls(
            path=path,
            serial=seal.serial,
            first_sequence=seal.first_sequence,
            last_sequence=seal.last_sequence,
            count=seal.count,
            blocks=seal.blocks,
            payload_bytes=seal.payload_bytes,
            length=seal.length,
            earliest_unix_nano=seal.earliest_unix_nano,
            latest_unix_nano=seal.latest_unix_nano,
            written_unix_nano=seal.written_unix_nano,
            rewrite=seal.rewrite,
            sealed=True,
            closed=True,
        )


# From a stored block (header, body as stored, serial of its segment) to the plain one. Raises DecryptionError, or
# CorruptBlockError for what was damaged after it was encrypted.
Opener = Callable[[BlockHeader, bytes, int], tuple[BlockHeader, bytes]]


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to read the segments of one stream."""

    files: Files
    epoch: int
    opener: Opener


class Frame(NamedTuple):
    """One whole frame: where it is and what its head says. Of a block, the body has not been looked at."""

    offset: int
    size: int
    head: BlockHeader | Balance | Seal


class Damage(NamedTuple):
    """Bytes that are no frame of this stream."""

    offset: int
    end: int


def read_seal(files: Files, fd: int, size: int) -> Seal | None:
    """The seal at the end of a file of *size* bytes, or None when there is none that holds."""
    if size < SEAL_BYTES:
        return None
    try:
        seal = unpack_seal(files.read(fd, SEAL_BYTES, size - SEAL_BYTES))
    except CorruptBlockError:
        return None
    return seal if seal.length == size - SEAL_BYTES else None


def walk(files: Files, fd: int, start: int, end: int, epoch: int | None, *, after: int = 0) -> Iterator[Frame | Damage]:
    """The frames between two offsets, in order; what is no frame comes as :class:`Damage`, and the walk goes on.

    A block counts only when its epoch is *epoch* (None: that of the first frame) and its sequence numbers follow
    those before it, the first one *after*. Reads heads only, except beyond damage, where a block must prove its body.
    """
    window = _Window(files, fd, end)
    offset, proving = start, False
    while offset < end:
        frame = _frame_at(window, offset, end, epoch, after)
        if frame is None:
            found = _search(window, offset + 1, end, epoch, after)
            yield Damage(offset, found)
            offset, proving = found, True
            continue
        if proving and isinstance(frame.head, BlockHeader) and not _body_holds(window, frame):
            yield Damage(offset, offset + frame.size)
        else:
            epoch = frame.head.epoch if epoch is None else epoch
            yield frame
        if isinstance(frame.head, BlockHeader):
            after = frame.head.last_sequence
        offset += frame.size


def body_of(files: Files, fd: int, frame: Frame) -> bytes | None:
    """The body of a block's frame as stored, or None when it fails its checksum."""
    assert isinstance(frame.head, BlockHeader)
    body = files.read(fd, frame.head.body_bytes, frame.offset + HEADER_BYTES)
    return body if len(body) == frame.head.body_bytes and zlib.crc32(body) == frame.head.body_crc else None


class _Window:
    """The last stretch that was read of a file, so that small frames share one read."""

    def __init__(self, files: Files, fd: int, end: int) -> None:
        self.files, self.fd, self._end = files, fd, end
        self._base, self._data = 0, b""

    def at(self, offset: int, size: int, read_bytes: int = _WINDOW_BYTES) -> bytes:
        """Up to *size* bytes at *offset*; fewer only at the end."""
        size = min(size, self._end - offset)
        start = offset - self._base
        if start < 0 or start + size > len(self._data):
            self._data = self.files.read(self.fd, min(max(size, read_bytes), self._end - offset), offset)
            self._base, start = offset, 0
        return self._data[start : start + size]


def _frame_at(window: _Window, offset: int, end: int, epoch: int | None, after: int) -> Frame | None:
    data = window.at(offset, _LARGEST_HEAD)
    head: BlockHeader | Balance | Seal
    try:
        magic = data[:4]
        if magic == MAGIC:
            head = BlockHeader.unpack(data)
            size = head.block_bytes
            if head.first_sequence <= after or offset + size > end:
                return None
        elif magic == BALANCE_MAGIC:
            head, size = unpack_balance(data), BALANCE_BYTES
        else:
            head, size = unpack_seal(data), SEAL_BYTES
    except CorruptBlockError:
        return None
    return Frame(offset, size, head) if epoch is None or head.epoch == epoch else None


def _search(window: _Window, offset: int, end: int, epoch: int | None, after: int) -> int:
    """Where the next whole frame begins, or *end*."""
    while offset < end:
        data = window.at(offset, _SEARCH_BYTES, _SEARCH_BYTES)
        for hit in _ANY_MAGIC.finditer(data):
            found = _frame_at(window, offset + hit.start(), end, epoch, after)
            if found is not None and (not isinstance(found.head, BlockHeader) or _body_holds(window, found)):
                return found.offset
        if offset + len(data) >= end or not data:
            break
        offset += len(data) - len(MAGIC) + 1
    return end


def _body_holds(window: _Window, frame: Frame) -> bool:
    return body_of(window.files, window.fd, frame) is not None


def open_for_reading(files: Files, path: Path) -> tuple[int, int]:
    """A file descriptor, which the caller closes, and the file's size. FileNotFoundError, OSError."""
    fd = files.open(path, os.O_RDONLY)
    return fd, os.fstat(fd).st_size
