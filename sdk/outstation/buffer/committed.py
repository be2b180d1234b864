"""The committed side of a stream: what is on the disk, read by anyone, changed only by whoever commits."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol

from outstation.buffer.frames import Balance
from outstation.buffer.reading import (
    ALWAYS,
    ChangedError,
    Chunk,
    Period,
    Place,
    StoredBlock,
    find_segment,
    period_of,
    read_chunk,
    records_of,
    segment_place,
)
from outstation.buffer.recovery import Found, count_after
from outstation.buffer.salvage import is_unreadable
from outstation.buffer.segment import Access, Segment
from outstation.clock import Clock
from outstation.errors import DiskError, InvalidInputError, StorageError, from_os_error
from outstation.settings import StreamSettings
from outstation.types import DropReason, Durability, Ledger, Record, StreamReport

# Readers that go on where they stopped; more than this many at once only cost themselves a search.
REMEMBERED_PLACES = 16
# Between the rename of a rewritten segment and its entry in the list lies an fsync of the folder: some milliseconds,
# on a bad card a second.
REWRITE_PAUSE = 0.005
REWRITE_TRIES = 1000
# To write a segment again takes a slow card some seconds. Whoever reads waits no longer than this for it.
MEND_PATIENCE = 10.0


class Host(Protocol):
    """What a stream needs of the buffer that it lives in."""

    clock: Clock
    block_bytes: int

    def note(self, stream: Any, delay: float) -> None:
        """Something waits to be committed within *delay* seconds. Called with the stream's lock held."""
        ...

    def is_full(self, stream: Any, size: int) -> bool:
        """Whether the folder has no room for *size* more bytes, and nothing may go to make some for *stream*."""
        ...

    def resized(self, change_bytes: int) -> None:
        """A stream has grown or shrunk on the disk."""
        ...

    def help_out(self, stream: Any) -> bool:
        """Commit *stream* on this thread, if nobody else is committing now. False if somebody is."""
        ...

    def defer(self, callbacks: list[Callable[[], None]]) -> None:
        """Have *callbacks* called on the commit thread."""
        ...

    def delay_of(self, durability: Durability) -> float:
        """Seconds that an append may wait for its commit."""
        ...


class Committed:
    """Segments, account and cursor; :class:`outstation.buffer.stream.Stream` adds what is not on the disk yet."""

    def __init__(self, name: str, settings: StreamSettings, host: Host, found: Found, access: Access) -> None:
        self.name = name
        self.epoch = found.epoch
        self.settings = settings
        self.clock = host.clock
        # Segments and balance change on the committing thread, under the lock; but the cursor, and what is rejected.
        self.segments = list(found.segments)
        self.balance: Balance = found.balance
        self.balance_dirty = False
        self.suspects = set(found.suspects)
        self.hopeless: set[int] = set()  # of the suspects: those that need not be tried again before they are mended
        self._host = host
        self._access = access
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)  # a commit has ended, well or not
        self._closed = False
        self._places: OrderedDict[int, Place] = OrderedDict()
        self._has_unread = any(segment.unread for segment in self.segments)
        self._owed = 0  # less than 0: records that were found and are still to be taken from a later loss
        self._stored_bytes = 0
        self._measure()

    @property
    def last_sequence(self) -> int:
        """The number of the last committed record; 0 before the first."""
        return self.balance.last_sequence

    @property
    def acknowledged(self) -> int:
        """The cursor: everything through this number was acknowledged."""
        return self.balance.cursor

    @property
    def stored_bytes(self) -> int:
        """What its segments take on the disk."""
        return self._stored_bytes

    def blocks(self, after: int = 0) -> Iterator[StoredBlock]:
        """The committed blocks that end after *after*, in order; ends at the last one committed.

        A block may begin at or before *after*: trim it. Numbers may be missing (evicted, expired, thinned, corrupt):
        the ledger says why. Damaged blocks are passed over, moved to quarantine and counted. Holds no
        file open between two blocks and at most 256 KiB or one block in memory. Raises DiskError, DecryptionError.
        """
        return self._blocks(after, ALWAYS)

    def read(
        self, after: int = 0, *, since_unix_nano: int | None = None, until_unix_nano: int | None = None
    ) -> Iterator[Record]:
        """The committed records with a number greater than *after*, in order of their numbers; as :meth:`blocks`.

        With a time range, both ends included, only those whose time stamp lies in it; blocks and segments outside
        it are not read.
        """
        period = period_of(since_unix_nano, until_unix_nano)
        return records_of(self._blocks(after, period), after, period)

    def tail(self, after: int | None = None, *, timeout: float | None = None) -> Iterator[Record]:
        """As :meth:`read`, and then each record as it is committed.

        Begins after *after*, or (None) with what is committed from now on. Ends when nothing has come for *timeout*
        seconds (None: never), or when the stream is closed. For threads of the reader's own: it waits in between.
        """
        position = self.last_sequence if after is None else after
        while True:
            for record in self.read(position):
                position = record.sequence
                yield record
            if not self._await_more(position, timeout):
                return

    def acknowledge(self, through: int) -> None:
        """Move the cursor to *through*: every record up to it is safe elsewhere and may be removed here.

        Cheap; the cursor is on the disk with the next commit or flush (after a crash before that, records may be
        delivered again). Never goes back: a smaller number is ignored. InvalidInputError beyond the last committed;
        DiskError when what was thinned must be counted and cannot be read.
        """
        try:
            with self._lock:
                self._move_cursor(through)
        except OSError as exc:
            segment = find_segment(self.segments, through)
            assert segment is not None
            raise self._unreadable(segment, exc) from exc

    def ledger(self) -> Ledger:
        """The account now; it balances at every instant. Records on the way to the disk are not in it yet."""
        balance = self.balance
        return Ledger(
            appended=balance.last_sequence + balance.rejected,
            acknowledged=balance.acknowledged,
            pending=balance.accounted_pending,
            dropped=balance.dropped(),
        )

    def report(self) -> StreamReport:
        """The account with the bytes that wait and about when the oldest record that does was made (0 = none)."""
        with self._lock:
            balance = self.balance
            waiting = [segment for segment in self.segments if segment.last_sequence > balance.start]
            pending_bytes = sum(segment.payload_bytes for segment in waiting)
            if waiting and waiting[0].first_sequence <= balance.start:
                oldest = waiting[0]
                share = (oldest.last_sequence - balance.start) / (oldest.last_sequence + 1 - oldest.first_sequence)
                pending_bytes -= round(oldest.payload_bytes * (1 - share))
        # Of the oldest segment that waits: its summary is in memory, and a report must not read the disk.
        oldest_time = waiting[0].earliest_unix_nano if waiting else 0
        return StreamReport(self.name, self.epoch, self.ledger(), pending_bytes, oldest_time)

    # --- for who commits ---------------------------------------------------------------------------------------

    def take_balance(self) -> tuple[Balance, bool]:
        """The account, and whether it differs from the one that was taken last."""
        with self._lock:
            dirty, self.balance_dirty = self.balance_dirty, False
            return self.balance, dirty

    def let_go(self, segments: Sequence[Segment], reason: DropReason | None) -> None:
        """Take closed *segments*, the oldest ones, out of the stream; what was pending in them counts as *reason*."""
        with self._lock:
            balance = self.balance
            through = max(segment.last_sequence for segment in segments)
            gone = {segment.serial for segment in segments}
            self.segments = [segment for segment in self.segments if segment.serial not in gone]
            if reason is not None and through > balance.start:
                # Everything that stays comes after them. So it is counted without reading what may not be readable.
                count = balance.accounted_pending - sum(segment.count for segment in self.segments)
                balance = balance._replace(**{reason.value: getattr(balance, reason.value) + count})
            self.balance = balance._replace(retired=max(through, balance.retired))
            self.balance_dirty = True
            self.suspects -= gone
            self.hopeless -= gone
            self._has_unread = any(segment.unread for segment in self.segments)
            self._measure()

    def give_up(self, segment: Segment) -> None:
        """Nothing more will be written to *segment*."""
        with self._lock:
            self._replace_segment(segment)

    def put_back(self, segment: Segment, reason: DropReason, lost: int, *, start: int) -> None:
        """Replace all segments that *segment* covers; *lost* pending records went (or, less than 0, came) on the way.

        They were counted when those after *start* were pending.
        """
        with self._lock:
            balance = self.balance
            covered = [
                own
                for own in self.segments
                if own.serial <= segment.serial and own.last_sequence >= segment.first_sequence
            ]
            if balance.rewrites < segment.rewrite:  # else it was counted, and interrupted after that
                if balance.start != start:  # the cursor moved meanwhile, and took its share of what was lost with it
                    with suppress(OSError):  # it was written a moment ago
                        left = count_after(self._access, segment, balance.start)
                        lost = sum(self.pending_in(own) for own in covered) - left
                # One unread segment may hold what was thought to be in another, which is not mended yet.
                counted = getattr(balance, reason.value) + lost + self._owed
                balance = balance._replace(**{reason.value: max(0, counted)}, rewrites=segment.rewrite)
                self.balance, self._owed, self.balance_dirty = balance, min(0, counted), True  # at once, as in Log.sync
            self.suspects.discard(segment.serial)
            self.segments = [own for own in self.segments if own not in covered or own.serial == segment.serial]
            self._measure()
            self._replace_segment(segment)
            self._has_unread = any(segment.unread for segment in self.segments)
            self._settled.notify_all()

    def suspect(self, serials: set[int], *, hopeless: bool = False) -> None:
        """Have the segments of these serials read through and written again without what is damaged.

        What cannot be read is tried again for a minute before it counts as damage; *hopeless*: it counts at once.
        """
        with self._lock:
            known = serials & {segment.serial for segment in self.segments}
            self.suspects |= known
            if hopeless:
                self.hopeless |= known
            self._host.note(self, 0.0)

    def pending_in(self, segment: Segment) -> int:
        """How many records of *segment* are pending by the account; reads nothing."""
        balance = self.balance
        if segment.first_sequence > balance.start:
            return segment.count
        if segment.last_sequence <= balance.start or segment.dense:
            return max(0, segment.last_sequence - balance.start)
        return balance.accounted_pending - sum(
            other.count for other in self.segments if other.first_sequence > balance.start
        )

    def look_again(self, delay: float) -> None:
        """Have the commit thread look after the stream in *delay* seconds, whether or not anything is appended."""
        with self._lock:
            self._host.note(self, delay)

    def _room_changed(self) -> None:
        """The stream takes more or less on the disk than before. Called with the lock held."""

    def _await_more(self, after: int, timeout: float | None) -> bool:
        """Wait for a record after *after*; False when none came in time, or none can come."""
        with self._lock:
            self._settled.wait_for(lambda: self._closed or self.last_sequence > after, timeout)
            return self.last_sequence > after

    def _await_mended(self, segment: Segment) -> None:
        self._suspect(segment)
        with self._lock:
            self._settled.wait_for(lambda: self._closed or segment.serial not in self.suspects, MEND_PATIENCE)

    def _blocks(self, after: int, period: Period) -> Iterator[StoredBlock]:
        while True:
            chunk = self._chunk(after, period)
            if chunk is None:
                return
            for block in chunk.blocks:
                after = block.header.last_sequence
                yield block

    def _chunk(self, after: int, period: Period = ALWAYS) -> Chunk | None:
        """The next blocks that end after *after*, or None at the end."""
        missing: Segment | None = None
        tries, mended = 0, -1
        while True:
            with self._lock:
                segment = find_segment(self.segments, after)
                if segment is None:
                    return None
                place = self._places.get(after)
                if place is None or place[:2] != (segment.serial, segment.generation):
                    place = Place(segment.serial, segment.generation, 0)
            if segment.unread:
                self._suspect(segment)
                raise DiskError(f"Not all of {segment.path} could be read; the stream goes on once it is mended.")
            if segment.count == 0 or not period.touches(segment) or segment is missing:
                after = segment.last_sequence
                continue
            try:
                chunk = read_chunk(self._access, segment, place, after, period)
            except FileNotFoundError:
                # Removed meanwhile: the list says what is there now. If it still names the file, somebody else did it,
                # and it is damage as any other.
                if segment is not self._listed(segment.serial):
                    continue
                chunk = Chunk([], place, exhausted=True, damaged=True)
            except ChangedError:
                # It was rewritten, and the list will say so in a moment; if it never does, somebody else did it.
                tries += 1
                if tries > REWRITE_TRIES:
                    missing = segment
                    self._suspect(segment)
                with self._lock:
                    self._settled.wait(REWRITE_PAUSE)
                continue
            except OSError as exc:
                raise self._unreadable(segment, exc) from exc
            if chunk.damaged and mended != segment.serial:
                # What comes after the damage may be acknowledged as soon as it is handed out, and that must not count
                # what was lost as delivered. So it is counted first; if the disk does not let it be, reading goes on.
                mended = segment.serial
                self._await_mended(segment)
                continue
            if chunk.blocks:
                self._remember(chunk.blocks[-1].header.last_sequence, chunk.next_place)
                return chunk
            after = segment.last_sequence

    def _move_cursor(self, through: int) -> None:
        balance = self.balance
        if through > balance.last_sequence:
            raise InvalidInputError(
                f"Record {through} of stream {self.name!r} cannot be acknowledged: the last is {balance.last_sequence}."
            )
        if through <= balance.cursor:
            return
        count = 0
        for segment in islice(self.segments, segment_place(self.segments, balance.start), None):
            if segment.first_sequence > through or through <= balance.start:
                break
            count += self.pending_in(segment) - count_after(self._access, segment, through)
        self.balance = balance._replace(cursor=through, acknowledged=balance.acknowledged + count)
        self.balance_dirty = True
        self._host.note(self, self._host.delay_of(Durability.MEMORY))

    def _listed(self, serial: int) -> Segment | None:
        return next((segment for segment in self.segments if segment.serial == serial), None)

    def _remember(self, after: int, place: Place) -> None:
        with self._lock:
            self._places[after] = place
            if len(self._places) > REMEMBERED_PLACES:
                self._places.popitem(last=False)

    def _suspect(self, segment: Segment) -> None:
        self.suspect({segment.serial})

    def _unreadable(self, segment: Segment, exc: OSError) -> StorageError:
        """The error for who reads; if the place stays bad, the segment is written again without it."""
        if is_unreadable(exc):
            self._suspect(segment)
        return from_os_error(exc, doing="read the stream", path=segment.path)

    def _replace_segment(self, segment: Segment) -> None:
        newest = self.segments[-1] if self.segments else None
        if newest is None or newest.serial < segment.serial:
            self.segments.append(segment)
            self._resize(self._stored_bytes + segment.file_bytes)
        elif newest.serial == segment.serial:
            self.segments[-1] = segment
            self._resize(self._stored_bytes + segment.file_bytes - newest.file_bytes)
        else:
            self.segments = [segment if own.serial == segment.serial else own for own in self.segments]
            self._measure()

    def _measure(self) -> None:
        self._resize(sum(segment.file_bytes for segment in self.segments))

    def _resize(self, stored_bytes: int) -> None:
        self._host.resized(stored_bytes - self._stored_bytes)
        self._stored_bytes = stored_bytes
        self._room_changed()
