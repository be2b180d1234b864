"""One stream: where applications append and readers read. Thread-safe for any number of either."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from outstation.buffer.checks import (
    MAX_INTEGER,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD_BYTES,
    MetaKey,
    as_bytes,
    check_mark,
    checked_meta,
    checked_time,
    checked_times,
    meta_keys,
    pieces_of,
    record_sizes,
)
from outstation.buffer.frames import Balance
from outstation.buffer.reading import (
    ALWAYS,
    Chunk,
    Period,
    Place,
    StoredBlock,
    find_segment,
    period_of,
    read_chunk,
    records_of,
)
from outstation.buffer.receipt import Batch, Receipt
from outstation.buffer.recovery import Found, count_after
from outstation.buffer.segment import Access, Segment
from outstation.clock import Clock
from outstation.errors import (
    BufferFullError,
    ClosedError,
    DeadlineError,
    DiskError,
    InvalidInputError,
    RecordTooLargeError,
    StorageError,
    from_os_error,
)
from outstation.settings import StreamSettings
from outstation.types import NO_ATTRIBUTES, OCTETS, DropReason, Durability, Ledger, Record, StreamReport, WhenFull
from outstation.wire.block import MAX_METAS, MAX_RECORDS

# Appended and not yet on the disk, in blocks: past this an append waits for the disk instead of filling the memory.
UNCOMMITTED_BLOCKS = 16
# A disk may stall (an SD card erasing, a volume on a network); after this many seconds it has failed.
STALL_TIMEOUT = 60.0
# After the disk refused, appends fail at once for this many seconds; the next one is the try whether it is back.
RETRY_INTERVAL = 0.5
_JUST_BYTES = {bytes}
# So few different attributes in one call that their size needs no thought.
FEW_METAS = 64
# Readers that go on where they stopped; more than this many at once only cost themselves a search.
REMEMBERED_PLACES = 16


class Host(Protocol):
    """What a stream needs of the buffer that it lives in."""

    clock: Clock
    block_bytes: int

    def note(self, stream: Stream, delay: float) -> None:
        """Something waits to be committed within *delay* seconds. Called with the stream's lock held."""
        ...

    def is_full(self, stream: Stream, size: int) -> bool:
        """Whether the folder has no room for *size* more bytes, and nothing may go to make some for *stream*."""
        ...

    def resized(self, change_bytes: int) -> None:
        """A stream has grown or shrunk on the disk."""
        ...

    def help_out(self, stream: Stream) -> bool:
        """Commit *stream* on this thread, if nobody else is committing now. False if somebody is."""
        ...

    def defer(self, callbacks: list[Callable[[], None]]) -> None:
        """Have *callbacks* called on the commit thread."""
        ...

    def delay_of(self, durability: Durability) -> float:
        """Seconds that an append may wait for its commit."""
        ...


class Ticket:
    """A wait for everything that came before it."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.error: StorageError | None = None

    def settle(self, error: StorageError | None) -> None:
        self.error = error
        self.event.set()


@dataclass(frozen=True, slots=True)
class Work:
    """What one commit has to bring to the disk."""

    batches: list[Batch]
    tickets: list[Ticket]

    def settle_tickets(self) -> None:
        for ticket in self.tickets:
            ticket.settle(None)


class Stream:
    """A named row of records, each with a sequence number from 1 on. Made by :meth:`Buffer.stream`."""

    def __init__(self, name: str, settings: StreamSettings, host: Host, found: Found, access: Access) -> None:
        self.name = name
        self.epoch = found.epoch
        self.settings = settings
        self.clock = host.clock
        self._host = host
        self._access = access
        self._now = host.clock.time_unix_nano
        self._durable = settings.durability is Durability.RECORD
        self._lock = threading.Lock()
        self._settled = threading.Condition(self._lock)
        # The committed side. Segments change only on the commit thread, under the lock.
        self.segments = list(found.segments)
        self.balance = found.balance
        self.balance_dirty = False
        self.suspects = set(found.suspects)
        self.committed_marks = dict(found.marks)
        self._places: OrderedDict[int, Place] = OrderedDict()
        self._stored_bytes = sum(segment.file_bytes for segment in self.segments)
        host.resized(self._stored_bytes)
        # The side that is being filled.
        self._next = self.balance.last_sequence + 1
        self._marks = dict(found.marks)
        self._filling: Batch | None = None
        self._filling_bytes = 0
        self._limit = -1  # of _filling_bytes; -1 sends the next append the long way round
        self._queue: list[Batch] = []
        self._queue_bytes = 0
        self._taken_bytes = 0  # under way to the disk
        self._tickets: list[Ticket] = []
        self._failure: StorageError | None = None
        self._retry_at = 0.0
        self._closed = False

    # --- appending ---------------------------------------------------------------------------------------------

    def append(
        self,
        payload: bytes,
        *,
        time_unix_nano: int | None = None,
        content_type: str = OCTETS,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
        mark: tuple[str, int] | None = None,
    ) -> Receipt:
        """Add one record; a few microseconds.

        Returns when the record has its number (durability ``group`` and ``memory``) or is on the disk (``record``).
        *time_unix_nano* defaults to now. *mark* = (producer, number) is stored with the record, atomically; see
        :meth:`mark`. Waits only for a disk that is more than 16 blocks behind. Raises BufferFullError (policy
        ``reject``), RecordTooLargeError, InvalidInputError, DiskFullError or DiskError while the disk refuses, and
        ClosedError; then nothing was appended.
        """
        if type(payload) is not bytes:
            payload = as_bytes(payload)
        size = len(payload) + RECORD_OVERHEAD_BYTES
        if time_unix_nano is None:
            time_unix_nano = self._now()
        elif not 0 <= time_unix_nano <= MAX_INTEGER:
            checked_time(time_unix_nano)
        if mark is not None:
            check_mark(mark)
        key = (content_type, tuple(attributes.items())) if attributes else (content_type, ())
        with self._lock:
            total = self._filling_bytes + size
            if total > self._limit:
                total = self._admit(size, 1)
            self._filling_bytes = total
            batch = self._filling
            assert batch is not None
            meta = batch.keys.get(key)
            if meta is None:
                meta = self._intern(batch, key)
            if mark is not None:
                self._take_mark(batch, mark)
            batch.index.append(meta)
            batch.times.append(time_unix_nano)
            batch.payloads.append(payload)
            sequence = self._next
            self._next = sequence + 1
        receipt = Receipt(batch, sequence, sequence)
        if self._durable:
            receipt.wait()
        return receipt

    def append_many(
        self,
        payloads: Sequence[bytes],
        *,
        times_unix_nano: Sequence[int] | None = None,
        content_type: str = OCTETS,
        attributes: Mapping[str, str] | Sequence[Mapping[str, str]] = NO_ATTRIBUTES,
        mark: tuple[str, int] | None = None,
    ) -> Receipt:
        """Add records that follow each other without a gap; well under a microsecond each.

        *times_unix_nano* has one entry a record, or is None for now; *attributes* is one mapping for all or one a
        record. With *mark* all records go into one block, so that they and the mark are stored together or not at
        all; without it many records fill several blocks. Otherwise as :meth:`append`; an empty *payloads* is an
        InvalidInputError.
        """
        if set(map(type, payloads)) != _JUST_BYTES:
            payloads = [as_bytes(payload) for payload in payloads]
        count = len(payloads)
        times = checked_times(times_unix_nano, count, self._now)
        keys, index = meta_keys(attributes, content_type, count)
        total = sum(map(len, payloads)) + RECORD_OVERHEAD_BYTES * count
        pieces = [(0, count, total)]
        if mark is not None:
            check_mark(mark)
        if len(keys) > FEW_METAS or total > self._host.block_bytes:
            sizes = record_sizes(payloads, keys, index)
            pieces = self._pieces(sizes, len(keys), whole=mark is not None)
        with self._lock:
            self._await_room(total, count)
            first = self._next
            for start, end, size in pieces:
                whole = end - start == count
                self._fill(
                    payloads if whole else payloads[start:end],
                    times if whole else times[start:end],
                    keys,
                    index if whole or index is None else index[start:end],
                    size,
                )
            batch = self._filling
            assert batch is not None
            if mark is not None:
                self._take_mark(batch, mark)
        receipt = Receipt(batch, first, first + count - 1)
        if self._durable:
            receipt.wait()
        return receipt

    def _pieces(self, sizes: list[int], keys: int, *, whole: bool) -> list[tuple[int, int, int]]:
        """How to cut records of *sizes* into blocks: (start, end, bytes), one piece if it must be *whole*."""
        if max(sizes) > MAX_RECORD_BYTES:
            raise RecordTooLargeError(f"A record of {max(sizes)} bytes; the bound is {MAX_RECORD_BYTES}.")
        if not whole:
            pieces = pieces_of(sizes, self._host.block_bytes, keys)
            return [(start, end, sum(sizes[start:end])) for start, end in pieces]
        total = sum(sizes)
        if total > MAX_RECORD_BYTES or len(sizes) > MAX_RECORDS or keys > MAX_METAS // 2:
            raise RecordTooLargeError(
                f"{len(sizes)} records of {total} bytes do not fit one block, as a mark requires."
            )
        return [(0, len(sizes), total)]

    def _fill(
        self, payloads: Sequence[bytes], times: Sequence[int], keys: list[MetaKey], index: list[int] | None, size: int
    ) -> None:
        total = self._filling_bytes + size
        crowded = self._filling is not None and len(self._filling.metas) + min(len(keys), len(payloads)) > MAX_METAS
        if total > self._limit or crowded:
            total = self._open_batch(size)
        self._filling_bytes = total
        batch = self._filling
        assert batch is not None
        used = range(len(keys)) if index is None or len(keys) <= FEW_METAS else sorted(set(index))
        places = {}
        for place in used:
            found = batch.keys.get(keys[place])
            places[place] = self._intern(batch, keys[place]) if found is None else found
        if index is None:
            batch.index += [places[0]] * len(payloads)
        else:
            batch.index += map(places.__getitem__, index)
        batch.payloads += payloads
        batch.times += times
        self._next += len(payloads)

    def _admit(self, size: int, count: int) -> int:
        self._await_room(size, count)
        total = self._filling_bytes + size
        return total if total <= self._limit else self._open_batch(size)

    def _await_room(self, size: int, count: int) -> None:
        """Return when *count* records may come in, or raise. May let go of the lock meanwhile."""
        bound = UNCOMMITTED_BLOCKS * self._host.block_bytes
        while True:
            if self._closed:
                raise ClosedError(f"The stream {self.name!r} was closed.")
            if self._failure is not None and self.clock.monotonic() < self._retry_at:
                self._reject(count)
                raise self._failure
            uncommitted = self._taken_bytes + self._queue_bytes + self._filling_bytes
            if self.settings.when_full is WhenFull.REJECT and self._stored_bytes + uncommitted + size > (
                self.settings.max_bytes
            ):
                self._reject(count)
                raise BufferFullError(f"The stream {self.name!r} holds its {self.settings.max_bytes} bytes.")
            if self._host.is_full(self, size):
                self._reject(count)
                raise BufferFullError(f"The buffer's folder is full, and the stream {self.name!r} may drop nothing.")
            if uncommitted == 0 or uncommitted + size <= bound:
                return
            self._host.note(self, 0.0)
            if not self._settled.wait(STALL_TIMEOUT):
                self._reject(count)
                raise DiskError(f"The disk has taken nothing of the stream {self.name!r} for {STALL_TIMEOUT:.0f} s.")

    def _open_batch(self, size: int) -> int:
        """Close the block that is being filled, begin the next, and return its size with *size* in it."""
        if size > MAX_RECORD_BYTES:
            raise RecordTooLargeError(f"A record of {size} bytes; the bound is {MAX_RECORD_BYTES}.")
        block_bytes = self._host.block_bytes
        waiting = self._filling is not None
        self._close_batch()
        self._host.note(self, 0.0 if waiting else self._host.delay_of(self.settings.durability))
        self._filling = Batch(self, self._next)
        self._limit = max(block_bytes, size)
        if self.settings.when_full is WhenFull.REJECT:
            # The next look at the bound comes no later than here.
            room = self.settings.max_bytes - self._stored_bytes - self._queue_bytes
            self._limit = max(size, min(self._limit, room))
        return size

    def _close_batch(self) -> None:
        if self._filling is not None and self._filling.payloads:
            self._queue.append(self._filling)
            self._queue_bytes += self._filling_bytes
        self._filling, self._filling_bytes, self._limit = None, 0, -1

    def _intern(self, batch: Batch, key: MetaKey) -> int:
        """The place of content type and attributes in the block, where they stand once for all records."""
        meta = checked_meta(key)
        place = len(batch.metas)
        batch.metas.append(meta)
        batch.keys[key] = place
        self._filling_bytes += sum(len(name) + len(value) for name, value in meta[1])
        if place + 2 > MAX_METAS:
            self._limit = -1  # the block is full of attributes: the next append begins another
        return place

    def _take_mark(self, batch: Batch, mark: tuple[str, int]) -> None:
        producer, number = mark
        batch.marks[producer] = max(number, batch.marks.get(producer, 0))
        self._marks[producer] = max(number, self._marks.get(producer, 0))
        self._filling_bytes += len(producer) + 16
        if len(batch.marks) >= MAX_METAS:
            self._limit = -1

    def _reject(self, count: int) -> None:
        self.balance = self.balance._replace(rejected=self.balance.rejected + count)
        self.balance_dirty = True

    def hurry(self, *, help_out: bool = False) -> None:
        """Ask for a commit now; returns at once, or, to *help_out*, when one was made by this thread."""
        if help_out and self._host.help_out(self):
            return
        with self._lock:
            self._host.note(self, 0.0)

    def mark(self, producer: str) -> int:
        """The highest number taken from *producer*: appended, not only committed; 0 if none.

        Survives any crash together with the records that carried it, and stays after they were acknowledged and
        removed. A producer that may send again asks here which of its records are stored already.
        """
        with self._lock:
            return self._marks.get(producer, 0)

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything appended before, and the cursor, is on the disk; asks for a prompt commit.

        *timeout* in seconds. Raises DeadlineError, or the StorageError that the disk answered with.
        """
        ticket = Ticket()
        with self._lock:
            if self._closed:
                return
            self._tickets.append(ticket)
            self._host.note(self, 0.0)
        if timeout is None:
            ticket.event.wait()
        elif not self.clock.wait(ticket.event, timeout):
            raise DeadlineError(f"The stream {self.name!r} was not on the disk within {timeout} s.")
        if ticket.error is not None:
            raise ticket.error

    # --- for the commit thread ---------------------------------------------------------------------------------

    def take(self) -> Work:
        """Everything that waits, in order. The batches belong to the caller until :meth:`publish` or :meth:`fail`."""
        with self._lock:
            self._close_batch()
            work = Work(self._queue, self._tickets)
            self._taken_bytes, self._queue, self._queue_bytes, self._tickets = self._queue_bytes, [], 0, []
        return work

    def take_balance(self) -> tuple[Balance, bool]:
        """The account, and whether it differs from the one that was taken last."""
        with self._lock:
            dirty, self.balance_dirty = self.balance_dirty, False
            return self.balance, dirty

    def publish(self, work: Work, segment: Segment | None) -> None:
        """*work* is on the disk, at the end of *segment* (None: there was nothing to write). Tickets wait on."""
        with self._lock:
            if segment is not None:
                self._replace_segment(segment)
            for batch in work.batches:
                self.balance = self.balance._replace(last_sequence=batch.last_sequence)
                for producer, number in batch.marks.items():
                    self.committed_marks[producer] = max(number, self.committed_marks.get(producer, 0))
            self._taken_bytes, self._failure = 0, None
            self._settled.notify_all()
        self._settle(work.batches, None)

    def fail(self, work: Work, error: StorageError) -> None:
        """The disk refused *work*: it and all that was appended since is refused, and counted as rejected."""
        with self._lock:
            self._close_batch()
            refused = [*work.batches, *self._queue]
            tickets = [*work.tickets, *self._tickets]
            self._taken_bytes, self._queue, self._queue_bytes, self._tickets = 0, [], 0, []
            self._reject(sum(len(batch.payloads) for batch in refused))  # and what the balance said is written again
            self._next = self.balance.last_sequence + 1
            self._marks = dict(self.committed_marks)
            self._failure, self._retry_at = error, self.clock.monotonic() + RETRY_INTERVAL
            self._settled.notify_all()
        self._settle(refused, error)
        for ticket in tickets:
            ticket.settle(error)

    def let_go(self, segments: Sequence[Segment], reason: DropReason | None) -> None:
        """Take closed *segments*, the oldest ones, out of the stream; what was pending in them counts as *reason*."""
        with self._lock:
            balance = self.balance
            through = max(segment.last_sequence for segment in segments)
            if reason is not None and through > balance.start:
                count = self._present(balance.start, through)
                balance = balance._replace(**{reason.value: getattr(balance, reason.value) + count})
            self.balance = balance._replace(retired=max(through, balance.retired))
            self.balance_dirty = True
            gone = {segment.serial for segment in segments}
            self.segments = [segment for segment in self.segments if segment.serial not in gone]
            self.suspects -= gone
            self._measure()

    def give_up(self, segment: Segment) -> None:
        """Nothing more will be written to *segment*."""
        with self._lock:
            self._replace_segment(segment)

    def put_back(self, segment: Segment, *, thinned: int, corrupt: int, rewrite: int) -> None:
        """Replace all segments that *segment* covers; these many pending records were lost on the way."""
        with self._lock:
            balance = self.balance
            self.balance = balance._replace(
                thinned=balance.thinned + thinned, corrupt=balance.corrupt + corrupt, rewrites=rewrite
            )
            self.balance_dirty = True
            self.suspects.discard(segment.serial)
            self.segments = [
                own
                for own in self.segments
                if own.serial >= segment.serial or own.last_sequence < segment.first_sequence
            ]
            self._measure()
            self._replace_segment(segment)

    def suspect(self, serials: set[int]) -> None:
        """Have the segments of these serials read through and written again without what is damaged."""
        with self._lock:
            self.suspects |= serials & {segment.serial for segment in self.segments}
            self._host.note(self, 0.0)

    def look_again(self, delay: float) -> None:
        """Have the commit thread look after the stream in *delay* seconds, whether or not anything is appended."""
        with self._lock:
            self._host.note(self, delay)

    def close(self) -> None:
        """Refuse appends from now on. What was appended is committed by the buffer's last pass."""
        with self._lock:
            self._closed, self._limit = True, -1
            self._settled.notify_all()

    @property
    def stored_bytes(self) -> int:
        """What its segments take on the disk."""
        return self._stored_bytes

    def _settle(self, batches: list[Batch], error: StorageError | None) -> None:
        for batch in batches:
            callbacks = batch.settle(error)
            if callbacks:
                self._host.defer(callbacks)

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
        if self.settings.when_full is WhenFull.REJECT:
            self._limit = -1  # there is more or less room than the running block was told

    # --- reading -----------------------------------------------------------------------------------------------

    @property
    def last_sequence(self) -> int:
        """The number of the last committed record; 0 before the first."""
        return self.balance.last_sequence

    @property
    def acknowledged(self) -> int:
        """The cursor: everything through this number was acknowledged."""
        return self.balance.cursor

    def blocks(self, after: int = 0) -> Iterator[StoredBlock]:
        """The committed blocks that end after *after*, in order; ends at the last one committed.

        A block may begin at or before *after*: trim it. Numbers may be missing (evicted, expired, thinned, corrupt):
        the ledger says why. Damaged blocks are passed over, moved to quarantine and counted soon after. Holds no
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

    def _await_more(self, after: int, timeout: float | None) -> bool:
        """Wait for a record after *after*; False when none came in time, or none can come."""
        with self._lock:
            self._settled.wait_for(lambda: self._closed or self.last_sequence > after, timeout)
            return self.last_sequence > after

    def _blocks(self, after: int, period: Period) -> Iterator[StoredBlock]:
        while True:
            chunk = self._chunk(after, period)
            if chunk is None:
                return
            for block in chunk.blocks:
                after = block.header.last_sequence
                yield block

    def acknowledge(self, through: int) -> None:
        """Move the cursor to *through*: every record up to it is safe elsewhere and may be removed here.

        Cheap; the cursor is on the disk with the next commit or flush (after a crash before that, records may be
        delivered again). Never goes back: a smaller number is ignored. InvalidInputError beyond the last committed.
        """
        with self._lock:
            balance = self.balance
            if through > balance.last_sequence:
                raise InvalidInputError(
                    f"Record {through} of stream {self.name!r} cannot be acknowledged: the last is "
                    f"{balance.last_sequence}."
                )
            if through <= balance.cursor:
                return
            count = self._present(balance.start, through) if through > balance.start else 0
            self.balance = balance._replace(cursor=through, acknowledged=balance.acknowledged + count)
            self.balance_dirty = True
            self._host.note(self, self._host.delay_of(Durability.MEMORY))

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
        """The account with the bytes that wait and the time of the oldest record that does (0 = none)."""
        with self._lock:
            balance = self.balance
            waiting = [segment for segment in self.segments if segment.last_sequence > balance.start]
            pending_bytes = sum(segment.payload_bytes for segment in waiting)
            if waiting and waiting[0].first_sequence <= balance.start:
                oldest = waiting[0]
                share = (oldest.last_sequence - balance.start) / (oldest.last_sequence + 1 - oldest.first_sequence)
                pending_bytes -= round(oldest.payload_bytes * (1 - share))
        oldest_time = 0
        if waiting:
            chunk = self._chunk(balance.start)
            oldest_time = chunk.blocks[0].header.earliest_unix_nano if chunk and chunk.blocks else 0
        return StreamReport(self.name, self.epoch, self.ledger(), pending_bytes, oldest_time)

    def _present(self, after: int, through: int) -> int:
        """How many records with numbers in (after, through] are there."""
        total = 0
        for segment in self.segments:
            if segment.last_sequence <= after or segment.first_sequence > through:
                continue
            try:
                total += count_after(self._access, segment, after)
                total -= count_after(self._access, segment, through)
            except OSError as exc:
                raise from_os_error(exc, doing="read the stream", path=segment.path) from exc
        return total

    def _chunk(self, after: int, period: Period = ALWAYS) -> Chunk | None:
        """The next blocks that end after *after*, or None at the end."""
        missing: Segment | None = None
        while True:
            with self._lock:
                segment = find_segment(self.segments, after)
                if segment is None:
                    return None
                place = self._places.get(after)
                if place is None or place[:2] != (segment.serial, segment.generation):
                    place = Place(segment.serial, segment.generation, 0)
            if segment.count == 0 or not period.touches(segment) or segment is missing:
                after = segment.last_sequence
                continue
            try:
                chunk = read_chunk(self._access, segment, place, after, period)
            except FileNotFoundError:
                # Removed meanwhile: the list says what is there now. If it still names the file, somebody else did it.
                if segment is self._listed(segment.serial):
                    missing = segment
                    self._suspect(segment)
                continue
            except OSError as exc:
                raise from_os_error(exc, doing="read the stream", path=segment.path) from exc
            if chunk.damaged:
                self._suspect(segment)
            if chunk.blocks:
                self._remember(chunk.blocks[-1].header.last_sequence, chunk.next_place)
                return chunk
            after = segment.last_sequence

    def _listed(self, serial: int) -> Segment | None:
        return next((segment for segment in self.segments if segment.serial == serial), None)

    def _remember(self, after: int, place: Place) -> None:
        with self._lock:
            self._places[after] = place
            if len(self._places) > REMEMBERED_PLACES:
                self._places.popitem(last=False)

    def _suspect(self, segment: Segment) -> None:
        self.suspect({segment.serial})
