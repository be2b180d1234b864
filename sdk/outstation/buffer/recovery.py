"""Opening a stream's folder: what is there, what the account is, and what must be mended.

:func:`examine` only reads, so that other processes may look too; :func:`mend` does what it found necessary.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

from outstation.buffer import state as state_file
from outstation.buffer.frames import Balance, Seal
from outstation.buffer.quarantine import keep_bytes, keep_file
from outstation.buffer.salvage import Salvage, UnreadableError
from outstation.buffer.segment import (
    FILE_NAME,
    Access,
    Damage,
    Frame,
    Opener,
    Segment,
    body_of,
    file_name,
    open_for_reading,
    read_seal,
    walk,
)
from outstation.durable import TEMPORARY_SUFFIX, Files
from outstation.errors import CorruptBlockError
from outstation.wire.block import BlockHeader, decode_body, decode_marks

# How many numbers are kept free for a byte that could not be read, beside the density of what could: a record of 150
# bytes takes twenty, and one that only repeats the one before it less than one.
DENSITY_FACTOR = 4


@dataclass(slots=True)
class Found:
    """What a folder holds. ``epoch`` is 0 when nothing in it says."""

    folder: Path
    epoch: int = 0
    segments: list[Segment] = field(default_factory=list)
    balance: Balance = field(default_factory=lambda: Balance(0, 0))
    marks: dict[str, int] = field(default_factory=dict)
    suspects: set[int] = field(default_factory=set)  # serials to be rewritten: damaged, or closed without a seal
    foreign: list[Path] = field(default_factory=list)  # files that do not belong here
    leftovers: list[Path] = field(default_factory=list)  # files that a crash kept from being removed
    cut: Damage | None = None  # the torn tail of the last segment
    rewrites: list[Seal] = field(default_factory=list)  # of segments that a rewrite made
    newest_serial: int = 0
    missing: int = 0  # records that are pending by the account and in no file
    state_damaged: bool = False
    holes: dict[Path, list[tuple[int, int]]] = field(default_factory=dict)  # what could not be read, by file


@dataclass(slots=True)
class _Scan:
    """One segment that was walked."""

    segment: Segment
    opening: Balance | None = None  # the first frame
    newest: Balance | None = None
    newest_offset: int = -1
    damages: list[Damage] = field(default_factory=list)
    seal: Seal | None = None


def examine(folder: Path, files: Files, opener: Opener) -> Found:
    """Read *folder*; what of its files cannot be read is in ``holes``.

    Raises OSError (the folder itself, or not one of its files can be read), UnsupportedVersionError, or
    DecryptionError for marks it has no key for.
    """
    salvage = files = Salvage(files)
    found = Found(folder, holes=salvage.holes)
    known, balance = _read_state(folder, files, found)
    names = sorted(entry.name for entry in folder.iterdir())
    found.leftovers += [folder / name for name in names if name.endswith(TEMPORARY_SUFFIX)]
    serials = [int(hit[1]) for name in names if (hit := FILE_NAME.fullmatch(name))]
    # A position at offset 0 names the segment that was to come next.
    found.newest_serial = max([*serials, known.serial - (known.offset == 0) if known else 0])
    found.epoch = balance.epoch if balance else _epoch_in_segments(folder, serials, files)
    if found.epoch == 0 and found.holes:  # to go on would be to begin the stream anew, over records that are there
        raise UnreadableError(errno.EIO, os.strerror(errno.EIO))
    checkpoint = (known.serial, known.offset) if known else (0, 0)
    found.marks = dict(known.marks) if known else {}
    access = Access(files, found.epoch, opener)
    examination = _Examination(access, found, checkpoint, balance.last_sequence if balance else 0)
    for serial in reversed(serials):
        examination.take(serial, newest=serial == serials[-1])
    newest = balance or Balance(found.epoch, 0)
    for scan in reversed(examination.scans):
        if scan.newest is not None and (scan.segment.serial, scan.newest_offset) >= checkpoint:
            newest, checkpoint = scan.newest, (scan.segment.serial, scan.newest_offset)
    _settle(found, newest, access)
    return found


def mend(found: Found, files: Files) -> None:
    """Cut the torn tail, move what is foreign to quarantine, remove leftovers. Raises OSError."""
    for path in found.leftovers:
        files.unlink(path)
    for path in found.foreign:
        keep_file(found.folder, path, files)
    if found.state_damaged:
        keep_file(found.folder, found.folder / state_file.FILE_NAME, files)
    if found.cut is not None and found.segments:
        _cut(found, found.segments[-1], found.cut, files)
    if found.leftovers or found.foreign or found.state_damaged:
        files.sync_directory(found.folder)


def _cut(found: Found, segment: Segment, cut: Damage, files: Files) -> None:
    """Bytes of a commit that nobody was told of; kept, as far as they are not the zeros of room that was reserved."""
    fd = files.open(segment.path, os.O_RDWR)
    try:
        torn = files.read(fd, cut.end - cut.offset, cut.offset).rstrip(b"\0")
        if torn:
            keep_bytes(found.folder, f"{segment.serial:012d}-{cut.offset}-torn", torn, files)
            found.balance = found.balance._replace(torn_bytes=found.balance.torn_bytes + len(torn))
        files.truncate(fd, cut.offset)
        files.sync(fd)
    finally:
        files.close(fd)


def _read_state(folder: Path, files: Files, found: Found) -> tuple[state_file.State | None, Balance | None]:
    try:
        fd, size = open_for_reading(files, folder / state_file.FILE_NAME)
    except FileNotFoundError:
        return None, None
    try:
        state, balance = state_file.decode(files.read(fd, min(size, state_file.MAX_BYTES), 0))
    except CorruptBlockError:
        found.state_damaged = True
        return None, None
    finally:
        files.close(fd)
    return state, balance


def _epoch_in_segments(folder: Path, serials: list[int], files: Files) -> int:
    """The epoch that the newest readable segment names: without a state file nothing else says it."""
    for serial in reversed(serials):
        fd, size = open_for_reading(files, folder / file_name(serial))
        try:
            seal = read_seal(files, fd, size)
            if seal is not None and seal.serial == serial:
                return seal.epoch
            for piece in walk(files, fd, 0, size, None):
                if isinstance(piece, Frame):
                    return piece.head.epoch
        finally:
            files.close(fd)
    return 0


class _Examination:
    """The walk over the segments, from the newest back to the oldest."""

    def __init__(self, access: Access, found: Found, checkpoint: tuple[int, int], last_sequence: int) -> None:
        self._access = access
        self._found = found
        self._checkpoint = checkpoint
        self._last_sequence = last_sequence  # at the checkpoint
        self._limit: int | None = None  # the last number before the segment that follows
        self.scans: list[_Scan] = []

    def take(self, serial: int, *, newest: bool) -> None:
        """Judge one file, by its seal where that is enough."""
        path = self._found.folder / file_name(serial)
        files = self._access.files
        fd, size = open_for_reading(files, path)
        try:
            seal = read_seal(files, fd, size)
            if seal is not None and (seal.epoch, seal.serial) != (self._access.epoch, serial):
                self._found.foreign.append(path)
                return
            if seal is not None and self._limit is not None and seal.first_sequence > self._limit and seal.count:
                self._found.leftovers.append(path)  # a newer segment stands for it: they were thinned into one
                return
            ordered = seal is not None and (self._limit is None or seal.last_sequence <= self._limit)
            # The newest is walked though sealed if the crash came before the state took note of it.
            if seal is not None and ordered and (serial, seal.length) <= self._checkpoint:
                self._keep(Segment.sealed_by(path, seal), seal, seal.first_sequence - 1)
                return
            scan = _Scan(Segment(path, serial, 1, 0))
            self._walk(scan, fd, size)
        finally:
            files.close(fd)
        if scan.opening is not None and scan.opening.serial != serial:
            self._found.foreign.append(path)
            return
        if path in self._found.holes:
            self._keep_unread(scan, size)
        else:
            self._judge(scan, size, newest)
        self.scans.append(scan)
        before = scan.opening.last_sequence if scan.opening else scan.segment.first_sequence - 1
        self._keep(scan.segment, scan.seal if scan.segment.sealed else None, before)

    def _keep(self, segment: Segment, seal: Seal | None, before: int) -> None:
        if seal is not None and seal.rewrite:
            self._found.rewrites.append(seal)
        if segment.count or before:  # a file of which nothing can be read says nothing of its neighbour
            self._limit = before if self._limit is None else min(self._limit, before)
        self._found.segments.insert(0, segment)

    def _walk(self, scan: _Scan, fd: int, size: int) -> None:
        segment = scan.segment
        for piece in walk(self._access.files, fd, 0, size, self._access.epoch):
            if isinstance(piece, Damage):
                scan.damages.append(piece)
                continue
            head = piece.head
            if isinstance(head, BlockHeader):
                if self._limit is not None and head.last_sequence > self._limit:
                    break  # written, never confirmed, and written again in the next segment
                if (segment.serial, piece.offset) >= self._checkpoint and not self._take_marks(
                    fd, piece, head, segment
                ):
                    scan.damages.append(Damage(piece.offset, piece.offset + piece.size))
                    continue
                segment.add(head)
            elif isinstance(head, Balance):
                scan.opening = head if piece.offset == 0 else scan.opening
                scan.newest, scan.newest_offset = head, piece.offset
            else:
                scan.seal = head
                continue
            segment.length = piece.offset + piece.size
        if segment.count == 0:
            last = scan.newest.last_sequence if scan.newest else self._limit or 0
            segment.first_sequence, segment.last_sequence = last + 1, last

    def _take_marks(self, fd: int, frame: Frame, head: BlockHeader, segment: Segment) -> bool:
        """Marks of a block that the state does not know; False when its body is damaged."""
        body = body_of(self._access.files, fd, frame)
        if body is None:
            return False
        try:
            marks = decode_marks(*self._access.opener(head, body, segment.serial))
        except CorruptBlockError:
            return False
        known = self._found.marks
        for producer, number in marks.items():
            known[producer] = max(number, known.get(producer, 0))
        return True

    def _keep_unread(self, scan: _Scan, size: int) -> None:
        """Leave the file as it is, for whoever can wait for the disk, and keep every number free that it may hold."""
        segment = scan.segment
        unread_bytes, known_bytes = 0, max(segment.length, 1)
        for start, end in self._found.holes[segment.path]:
            last = segment.length if (segment.serial, segment.length) > self._checkpoint else self._checkpoint[1]
            unread_bytes += max(0, end - max(start, last))
        if self._limit is not None:
            segment.last_sequence = self._limit
        elif scan.seal is not None:
            segment.last_sequence = scan.seal.last_sequence
        elif self._checkpoint[0] > segment.serial:
            segment.last_sequence = max(segment.last_sequence, self._last_sequence)
        else:
            density = max(1, DENSITY_FACTOR * segment.count // known_bytes)
            segment.last_sequence = max(segment.last_sequence, self._last_sequence) + unread_bytes * density
        segment.unread = segment.closed = True
        segment.length = max(size, segment.length)
        self._found.suspects.add(segment.serial)

    def _judge(self, scan: _Scan, size: int, newest: bool) -> None:
        """Whether the walked segment is whole, has a torn tail, or must be rewritten."""
        segment, damages = scan.segment, scan.damages
        if scan.seal is not None and scan.seal.length == segment.length:
            segment.sealed = segment.closed = True
            segment.written_unix_nano, segment.rewrite = scan.seal.written_unix_nano, scan.seal.rewrite
        torn = damages and damages[-1].end == size and damages[-1].offset >= segment.length
        if newest and not segment.sealed and torn:
            self._found.cut = Damage(segment.length, size)
            damages = [damage for damage in damages if damage.offset < segment.length]
        if damages or (not newest and not segment.sealed):
            self._found.suspects.add(segment.serial)
            segment.closed = True


def _settle(found: Found, balance: Balance, access: Access) -> None:
    """Bring segments and account together: whatever the account misses is corrupt, never silently gone."""
    kept = []
    reached = 0
    for place, segment in enumerate(found.segments):
        if segment.unread:
            segment.last_sequence = max(reached, segment.last_sequence)
            segment.first_sequence = reached + 1
        elif segment.count == 0:  # it stands between its neighbours, whatever little it says of itself
            segment.last_sequence = max(reached, segment.last_sequence)
            segment.first_sequence = segment.last_sequence + 1
        reached = max(reached, segment.last_sequence)
        idle = segment.last_sequence <= balance.retired or segment.count == 0
        if idle and segment.serial not in found.suspects and place < len(found.segments) - 1:
            found.leftovers.append(segment.path)
        else:
            kept.append(segment)
    found.segments = kept
    for seal in sorted(found.rewrites, key=lambda seal: seal.rewrite):
        if seal.rewrite > balance.rewrites:  # the crash came between the rename and the account
            balance = balance._replace(
                thinned=balance.thinned + seal.rewrite_thinned,
                corrupt=balance.corrupt + seal.rewrite_corrupt,
                rewrites=seal.rewrite,
            )
    last = max([balance.last_sequence, *(segment.last_sequence for segment in kept)])
    balance = balance._replace(epoch=found.epoch, last_sequence=last)
    present = sum(count_after(access, segment, balance.start) for segment in kept)
    for segment in kept:
        if segment.unread:  # whether it holds what is missing is not decided yet
            room = segment.last_sequence - max(segment.first_sequence - 1, balance.start)
            share = min(balance.accounted_pending - present, room - count_after(access, segment, balance.start))
            segment.count += max(0, share)
            present += max(0, share)
    found.missing = max(0, balance.accounted_pending - present)
    found.balance = reconciled(balance, present)


def reconciled(balance: Balance, present: int) -> Balance:
    """*balance* so that exactly *present* records are pending by it.

    What is missing is corrupt. What is there though it was counted as gone is taken back from the counts, which only
    happens to who copies old files back.
    """
    missing = balance.accounted_pending - present
    if missing >= 0:
        return balance._replace(corrupt=balance.corrupt + missing)
    surplus = -missing
    changes = {}
    for name in ("corrupt", "thinned", "evicted", "expired", "acknowledged"):
        take = min(surplus, getattr(balance, name))
        changes[name] = getattr(balance, name) - take
        surplus -= take
    return balance._replace(**changes)


def count_after(access: Access, segment: Segment, sequence: int) -> int:
    """How many records of *segment* have a number greater than *sequence*; reads only where arithmetic fails."""
    if segment.first_sequence > sequence:
        return segment.count
    if segment.last_sequence <= sequence:
        return 0
    if segment.dense:
        return segment.last_sequence - sequence
    total = 0
    fd, _ = open_for_reading(access.files, segment.path)
    try:
        for piece in walk(access.files, fd, 0, segment.length, access.epoch):
            if isinstance(piece, Frame) and isinstance(piece.head, BlockHeader):
                if piece.head.first_sequence > sequence:
                    total += piece.head.count
                elif piece.head.last_sequence > sequence:
                    total += _count_in_block(access, fd, piece, segment.serial, sequence)
    finally:
        access.files.close(fd)
    return total


def _count_in_block(access: Access, fd: int, frame: Frame, serial: int, sequence: int) -> int:
    head = frame.head
    assert isinstance(head, BlockHeader)
    if head.count == head.span:
        return head.last_sequence - sequence
    body = body_of(access.files, fd, frame)
    if body is None:
        return 0
    try:
        return sum(own > sequence for own in decode_body(*access.opener(head, body, serial)).sequences)
    except CorruptBlockError:
        return 0
