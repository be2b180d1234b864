"""Reading committed blocks back, by the owner or by another process. Holds no file open between two reads."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from outstation.buffer.segment import Access, Damage, Frame, Segment, body_of, open_for_reading, read_seal, walk
from outstation.errors import CorruptBlockError
from outstation.types import Record
from outstation.wire.block import HEADER_BYTES, BlockHeader, decode_body
from outstation.wire.columns import Columns

# What one read brings into memory, unless a single block is larger: many small blocks, or a few usual ones.
CHUNK_BYTES = 256 << 10


class StoredBlock(NamedTuple):
    """One committed block, whole and decrypted: ``data`` is the header and the body."""

    header: BlockHeader
    data: bytes

    def columns(self) -> Columns:
        """Its records. CorruptBlockError if they do not decode."""
        return decode_body(self.header, memoryview(self.data)[HEADER_BYTES:])


class Place(NamedTuple):
    """Where in a segment the next block may begin."""

    serial: int
    generation: int
    offset: int


class Chunk(NamedTuple):
    """Some blocks in a row, where the next one begins, and whether damage was passed over."""

    blocks: list[StoredBlock]
    next_place: Place
    exhausted: bool  # nothing follows in this segment
    damaged: bool


@dataclass(frozen=True, slots=True)
class Period:
    """A range of time stamps, both ends included."""

    since_unix_nano: int = 0
    until_unix_nano: int = (1 << 63) - 1

    def touches(self, part: BlockHeader | Segment) -> bool:
        """Whether *part* may hold a record of this time."""
        return part.latest_unix_nano >= self.since_unix_nano and part.earliest_unix_nano <= self.until_unix_nano

    def holds(self, record: Record) -> bool:
        return self.since_unix_nano <= record.time_unix_nano <= self.until_unix_nano


ALWAYS = Period()


def period_of(since_unix_nano: int | None, until_unix_nano: int | None) -> Period:
    """The range with the ends that are given."""
    if since_unix_nano is None and until_unix_nano is None:
        return ALWAYS
    return Period(
        ALWAYS.since_unix_nano if since_unix_nano is None else since_unix_nano,
        ALWAYS.until_unix_nano if until_unix_nano is None else until_unix_nano,
    )


def records_of(blocks: Iterable[StoredBlock], after: int, period: Period) -> Iterator[Record]:
    """The records of *blocks* with a number greater than *after* and a time within *period*, in order."""
    for block in blocks:
        columns = block.columns()
        if block.header.first_sequence <= after:
            columns = columns.after(after)
        yield from columns.records() if period is ALWAYS else filter(period.holds, columns.records())


def find_segment(segments: Sequence[Segment], after: int) -> Segment | None:
    """The first segment that holds a record with a number greater than *after*."""
    place = segment_place(segments, after)
    return segments[place] if place < len(segments) else None


def segment_place(segments: Sequence[Segment], after: int) -> int:
    """How many segments end at or before *after*."""
    return bisect_right(segments, after, key=lambda segment: segment.last_sequence)


def read_chunk(access: Access, segment: Segment, place: Place, after: int, period: Period = ALWAYS) -> Chunk:
    """Blocks of *segment* that end after *after*.

    FileNotFoundError when it was removed meanwhile, ChangedError when it was rewritten and *segment* is of before.
    """
    blocks: list[StoredBlock] = []
    size, damaged = 0, False
    offset = place.offset
    fd, size_on_disk = open_for_reading(access.files, segment.path)
    try:
        _check_unchanged(access, segment, fd, size_on_disk)
        for piece in walk(access.files, fd, offset, segment.length, access.epoch):
            if isinstance(piece, Damage):
                damaged, offset = True, piece.end
                continue
            head = piece.head
            if isinstance(head, BlockHeader) and head.last_sequence > after and period.touches(head):
                block = _open_block(access, fd, piece, segment.serial)
                damaged = damaged or block is None
                if block is not None:
                    blocks.append(block)
                    size += len(block.data)
            offset = piece.offset + piece.size
            if size >= CHUNK_BYTES:
                break
    finally:
        access.files.close(fd)
    return Chunk(blocks, Place(segment.serial, segment.generation, offset), offset >= segment.length, damaged)


class ChangedError(Exception):
    """The file is no longer the one that the summary in memory is of: it was thinned or mended meanwhile."""


def _check_unchanged(access: Access, segment: Segment, fd: int, size: int) -> None:
    seal = read_seal(access.files, fd, size)
    if seal is not None and seal.rewrite != segment.rewrite:
        raise ChangedError


def _open_block(access: Access, fd: int, frame: Frame, serial: int) -> StoredBlock | None:
    head = frame.head
    assert isinstance(head, BlockHeader)
    body = body_of(access.files, fd, frame)
    if body is None:
        return None
    try:
        header, plain = access.opener(head, body, serial)
    except CorruptBlockError:
        return None
    return StoredBlock(header, header.pack() + plain)
