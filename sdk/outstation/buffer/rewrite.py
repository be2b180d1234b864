"""Writing a closed segment again: without what is damaged in it, or with fewer records. One thread at a time.

The new file takes the place of the old one by a rename (placing.py). Its seal carries the number of the rewrite and
what was lost in it, so that a crash between the rename and the next balance leaves the account right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from outstation.buffer.frames import Seal
from outstation.buffer.quarantine import keep_bytes, keep_link
from outstation.buffer.recovery import count_after
from outstation.buffer.salvage import Salvage
from outstation.buffer.segment import Access, Damage, Frame, Segment, body_of, open_for_reading, walk
from outstation.durable import TEMPORARY_SUFFIX, Files
from outstation.errors import CorruptBlockError, StorageError
from outstation.wire.block import BlockHeader, decode_body, decode_marks, drafted
from outstation.wire.checks import RECORD_OVERHEAD_BYTES
from outstation.wire.columns import Columns, Meta

# From a plain block and the serial of its segment to the bytes that are stored.
Protect = Callable[[BlockHeader, bytes, int], bytes]


class Taken(NamedTuple):
    """Pending records that rewrites took."""

    thinned: int = 0
    corrupt: int = 0


NOTHING = Taken()


class Rewritten(NamedTuple):
    """The segment as it will be once its file is in place, and how many pending records the rewrite took.

    Less than none when the segment was *unread*, and holds more than was thought; then ``marks`` are those in it.
    ``taken`` is what its seal says.
    """

    segment: Segment
    lost: int
    marks: dict[str, int]
    taken: Taken

    @property
    def temporary(self) -> Path:
        """Where its file is until then."""
        return _temporary(self.segment.path)


class Untold:
    """What rewrites took and no balance on the disk tells of: the seal of each says so, and so must the seal of a
    rewrite that replaces it before there is one.
    """

    def __init__(self) -> None:
        self._taken: dict[int, tuple[int, Taken]] = {}  # by serial, with the number of the rewrite

    def of(self, segments: Sequence[Segment]) -> Taken:
        found = [self._taken[segment.serial][1] for segment in segments if segment.serial in self._taken]
        return Taken(sum(own.thinned for own in found), sum(own.corrupt for own in found))

    def add(self, rewritten: Rewritten) -> None:
        self._taken[rewritten.segment.serial] = rewritten.segment.rewrite, rewritten.taken

    def told(self, rewrites: int) -> None:
        """A balance is on the disk that includes so many rewrites."""
        if self._taken:
            self._taken = {serial: own for serial, own in self._taken.items() if own[0] > rewrites}


def repair(
    access: Access,
    segment: Segment,
    start: int,
    number: int,
    *,
    pending: int,
    untold: Taken = NOTHING,
    insistent: bool = True,
) -> Rewritten:
    """Keep the whole frames of *segment*; the rest goes to quarantine.

    *start*: records up to it are not pending, *pending* of the others are thought to be here. *untold*: what earlier
    rewrites took of it and no balance says yet. Raises OSError, and then nothing is left of it. What cannot be read is
    an UnreadableError or, unless *insistent*, damage.
    """
    rewriting = _Rewriting(access, segment, start, number, Salvage(access.files, insistent=insistent))
    return rewriting.run(rewriting.copy, pending, "corrupt", segment.first_sequence, untold)


def thin(
    access: Access,
    segments: Sequence[Segment],
    start: int,
    number: int,
    *,
    pending: int,
    untold: Taken = NOTHING,
    level: int,
    block_bytes: int,
    protect: Protect,
) -> Rewritten:
    """One segment in the place of neighbouring *segments*, with every second of their records; otherwise as repair.

    It takes the file of the last one. The files of the others are needless once it is in place.
    """
    rewriting = _Rewriting(access, segments[-1], start, number, access.files)
    thinning = _Thinning(level, block_bytes)
    newest = segments[-1]

    def store(target: int, block: tuple[BlockHeader, bytes] | None) -> None:
        if block is not None:
            data = protect(*block, newest.serial)
            access.files.write(target, data, rewriting.after.length)
            rewriting.after.length += len(data)
            rewriting.after.add(block[0])

    def fill(target: int) -> None:
        for segment in segments:
            for header, body in _whole_blocks(access, segment):
                thinning.take(decode_body(*access.opener(header, body, segment.serial)), start)
                if thinning.size >= block_bytes:
                    store(target, thinning.block(header.epoch))
        store(target, thinning.block(access.epoch))

    return rewriting.run(fill, pending, "thinned", segments[0].first_sequence, untold)


class _Thinning:
    """Every second record of what comes, gathered into blocks of the usual size."""

    def __init__(self, level: int, block_bytes: int) -> None:
        self._level = level
        self._block_bytes = block_bytes
        self._seen = 0
        self._clear()

    def _clear(self) -> None:
        self._columns = Columns([], [], [], [], [], {})
        self._places: dict[Meta, int] = {}
        self.size = 0

    def take(self, columns: Columns, start: int) -> None:
        gathered = self._columns
        metas = columns.metas
        index = columns.meta_index
        for row, sequence in enumerate(columns.sequences):
            if sequence <= start:
                continue
            self._seen += 1
            if self._seen % 2:  # of each two the newer stays, so that the newest of all does
                continue
            meta = metas[0 if index is None else index[row]]
            place = self._places.setdefault(meta, len(self._places))
            for column, value in (
                (gathered.sequences, sequence),
                (gathered.times, columns.times[row]),
                (gathered.payloads, columns.payloads[row]),
                (gathered.meta_index, place),
            ):
                assert isinstance(column, list)
                column.append(value)
            self.size += len(columns.payloads[row]) + RECORD_OVERHEAD_BYTES
        marks = dict(gathered.marks)
        for producer, highest in columns.marks.items():
            marks[producer] = max(highest, marks.get(producer, 0))
        gathered.marks = marks

    def block(self, epoch: int) -> tuple[BlockHeader, bytes] | None:
        columns = self._columns
        if not columns.payloads:
            return None
        columns.metas = list(self._places)
        if len(columns.metas) == 1:
            columns.meta_index = None
        self._clear()
        return drafted(columns).pack(epoch=epoch, level=self._level)


def _whole_blocks(access: Access, segment: Segment) -> Iterator[tuple[BlockHeader, bytes]]:
    fd, size = open_for_reading(access.files, segment.path)
    try:
        for piece in walk(access.files, fd, 0, min(size, segment.length), access.epoch):
            if isinstance(piece, Frame) and isinstance(piece.head, BlockHeader):
                body = body_of(access.files, fd, piece)
                if body is None:
                    raise CorruptBlockError("A block fails its checksum.")
                yield piece.head, body
    finally:
        access.files.close(fd)


class _Rewriting:
    def __init__(self, access: Access, segment: Segment, start: int, number: int, reading: Files) -> None:
        self._access = access
        self._reading = reading
        self._marks: dict[str, int] = {}
        self._segment = segment
        self._start = start
        self._number = number
        self.after = replace(
            segment,
            path=_temporary(segment.path),
            count=0,
            blocks=0,
            payload_bytes=0,
            length=0,
            sealed=True,
            closed=True,
            rewrite=number,
            generation=segment.generation + 1,
            unread=False,
        )

    def run(
        self, fill: Callable[[int], None], before: int, reason: str, first_sequence: int, untold: Taken
    ) -> Rewritten:
        segment, after, files = self._segment, self.after, self._access.files
        target = files.open(after.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            fill(target)
            # It stands for the same numbers as before, so that its neighbours and the search still fit.
            after.first_sequence, after.last_sequence = first_sequence, segment.last_sequence
            lost = before - count_after(self._access, after, self._start)
            taken = untold._replace(**{reason: getattr(untold, reason) + max(0, lost)})
            seal = after.seal(self._access.epoch, **taken._asdict())
            files.write(target, seal.pack(), after.length)
            files.sync(target)
        except BaseException:
            with suppress(OSError):
                files.unlink(after.path)
            raise
        finally:
            files.close(target)
        if isinstance(self._reading, Salvage) and self._reading.holes:
            keep_link(segment.path.parent, segment.path, files)
        after.path = segment.path
        return Rewritten(after, lost, self._marks, taken)

    def copy(self, target: int) -> None:
        """Everything that is whole; the rest to quarantine."""
        segment = self._segment
        try:
            source, size = open_for_reading(self._reading, segment.path)
        except FileNotFoundError:  # somebody removed it; the folder is there, for the new file is in it
            return
        # Of a segment that was not read through, nobody knows yet where it ends; but which numbers it may hold.
        length, before = (size, segment.first_sequence - 1) if segment.unread else (min(size, segment.length), 0)
        try:
            for piece in walk(self._reading, source, 0, length, self._access.epoch, after=before):
                data = self._whole(source, piece)
                if data:
                    self._access.files.write(target, data, self.after.length)
                    self.after.length += len(data)
            if not segment.sealed and size > length:
                self._set_aside(source, Damage(length, size))
        finally:
            self._reading.close(source)

    def _whole(self, source: int, piece: Frame | Damage) -> bytes:
        if isinstance(piece, Damage):
            self._set_aside(source, piece)
            return b""
        if isinstance(piece.head, BlockHeader):
            body = body_of(self._reading, source, piece)
            if body is None or piece.head.last_sequence > self._segment.last_sequence:
                self._set_aside(source, Damage(piece.offset, piece.offset + piece.size))
                return b""
            if self._segment.unread:
                self._take_marks(piece.head, body)
            self.after.add(piece.head)
        elif isinstance(piece.head, Seal):
            return b""  # of before; the file gets its own
        return self._reading.read(source, piece.size, piece.offset)

    def _take_marks(self, head: BlockHeader, body: bytes) -> None:
        with suppress(StorageError):  # it does not decode, or its key is not there: as good as no marks
            for producer, number in decode_marks(*self._access.opener(head, body, self._segment.serial)).items():
                self._marks[producer] = max(number, self._marks.get(producer, 0))

    def _set_aside(self, source: int, damage: Damage) -> None:
        data = self._reading.read(source, damage.end - damage.offset, damage.offset)
        if data.strip(b"\0"):
            folder = self._segment.path.parent
            keep_bytes(folder, f"{self._segment.serial:012d}-{damage.offset}", data, self._access.files)


def _temporary(path: Path) -> Path:
    return path.with_name(path.name + TEMPORARY_SUFFIX)
