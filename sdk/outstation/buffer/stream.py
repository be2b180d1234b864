"""One stream: where applications append and readers read. Thread-safe for any number of either.

The way of a record: ``append`` puts it into the batch that is being filled; whoever commits takes the batches
(``take``), writes and syncs them (commit.py, log.py), and publishes them (``publish``) or refuses them (``fail``).
Reading and the account are in committed.py.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence

from outstation.buffer.batch import Batch, cut_to_blocks
from outstation.buffer.committed import Committed, Host
from outstation.buffer.receipt import Receipt, Ticket, Work
from outstation.buffer.recovery import Found
from outstation.buffer.segment import Access, Segment
from outstation.errors import BufferFullError, ClosedError, DeadlineError, DiskError, RecordTooLargeError, StorageError
from outstation.settings import StreamSettings
from outstation.types import NO_ATTRIBUTES, OCTETS, Durability, WhenFull
from outstation.wire.block import MAX_METAS
from outstation.wire.checks import (
    MAX_INTEGER,
    MAX_RECORD_BYTES,
    RECORD_OVERHEAD_BYTES,
    MetaKey,
    Rows,
    as_bytes,
    check_mark,
    checked_time,
    checked_times,
    joined,
    meta_keys,
    stored_meta,
)

# Appended and not yet on the disk, in blocks: past this an append waits for the disk instead of filling the memory.
UNCOMMITTED_BLOCKS = 16
# A disk may stall (an SD card erasing, a volume on a network); after this many seconds it has failed.
STALL_TIMEOUT = 60.0
# A stream that rejects fills its bound less this: the heads of blocks, balances and seals come on top of its records,
# and its cursor must be stored even when it is full.
RESERVE_BYTES = 4 << 10
# After the disk refused, appends fail at once for this many seconds; the next one is the try whether it is back.
RETRY_INTERVAL = 0.5
# So few different attributes in one call that their size needs no thought.
FEW_METAS = 64


class Stream(Committed):
    """A named row of records, each with a sequence number from 1 on. Made by :meth:`Buffer.stream`."""

    def __init__(self, name: str, settings: StreamSettings, host: Host, found: Found, access: Access) -> None:
        super().__init__(name, settings, host, found, access)
        self.committed_marks = dict(found.marks)
        self._now = host.clock.time_unix_nano
        self._durable = settings.durability is Durability.RECORD
        self._bound_bytes = settings.max_bytes - min(RESERVE_BYTES, settings.max_bytes // 8)
        self._next = self.balance.last_sequence + 1
        self._marks = dict(found.marks)
        self._filling: Batch | None = None
        self._filling_bytes = 0
        self._limit = -1  # of _filling_bytes; -1 sends the next append the long way round
        self._queue: list[Batch] = []
        self._queue_bytes = 0
        self._taken = Work([], [])  # under way to the disk
        self._taken_bytes = 0
        self._tickets: list[Ticket] = []
        self._failure: StorageError | None = None
        self._retry_at = 0.0
        self._finished = False

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
            sequence = self._next
            try:
                batch.index.append(meta)
                batch.times.append(time_unix_nano)
                batch.sizes.append(len(payload))
                batch.payloads.append(payload)
                if mark is not None:
                    self._take_mark(batch, mark)
                self._next = sequence + 1
            except BaseException:  # of a signal's handler, as Ctrl-C; the columns must stay of one length
                batch.cut(self._next - batch.first_sequence)
                raise
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
        run, sizes = joined(payloads)
        count = len(sizes)
        times = checked_times(times_unix_nano, count, self._now)
        rows = Rows(run, sizes, times, *meta_keys(attributes, content_type, count))
        total = len(run) + RECORD_OVERHEAD_BYTES * count
        pieces = [(rows, total)]
        if mark is not None:
            check_mark(mark)
        if len(rows.keys) > FEW_METAS or total > self._host.block_bytes:
            pieces = cut_to_blocks(rows, self._host.block_bytes, whole=mark is not None)
        with self._lock:
            self._await_room(total, count)
            first = self._next
            for piece, size in pieces:
                batch = self._fill(piece, size, mark)
        receipt = Receipt(batch, first, first + count - 1)
        if self._durable:
            receipt.wait()
        return receipt

    def _fill(self, rows: Rows, size: int, mark: tuple[str, int] | None) -> Batch:
        keys, index, count = rows.keys, rows.places, len(rows.sizes)
        total = self._filling_bytes + size
        crowded = self._filling is not None and len(self._filling.metas) + min(len(keys), count) > MAX_METAS
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
        try:
            batch.index.extend(array("H", (places[0],)) * count if index is None else map(places.__getitem__, index))
            batch.payloads.append(rows.run)
            batch.sizes += rows.sizes
            batch.times += rows.times
            if mark is not None:
                self._take_mark(batch, mark)
            self._next += count
        except BaseException:  # as in append
            batch.cut(self._next - batch.first_sequence)
            raise
        return batch

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
            uncommitted = self.uncommitted_bytes
            if (
                self.settings.when_full is WhenFull.REJECT
                and self._stored_bytes + uncommitted + size > self._bound_bytes
            ):
                self._reject(count)
                raise BufferFullError(f"The stream {self.name!r} holds its {self.settings.max_bytes} bytes.")
            if self._host.is_full(self, size):
                self._reject(count)
                raise BufferFullError(
                    f"The buffer's folder is full, and nothing in it may go for the stream {self.name!r}."
                )
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
            room = self._bound_bytes - self._stored_bytes - self._queue_bytes
            self._limit = max(size, min(self._limit, room))
        return size

    def _close_batch(self) -> None:
        batch = self._filling if self._filling is not None and self._filling.count else None
        size, self._filling, self._filling_bytes, self._limit = self._filling_bytes, None, 0, -1
        if batch is not None:
            self._queue_bytes += size
            self._queue.append(batch)

    def _intern(self, batch: Batch, key: MetaKey) -> int:
        """The place of content type and attributes in the block, where they stand once for all records."""
        meta = stored_meta(key)
        place = len(batch.metas)
        batch.metas.append(meta)
        batch.keys[key] = place
        self._filling_bytes += len(meta)
        if place + 1 >= MAX_METAS:
            self._limit = -1  # the block is full of attributes: the next append begins another
        return place

    def _take_mark(self, batch: Batch, mark: tuple[str, int]) -> None:
        producer, number = mark
        stored, taken = max(number, batch.marks.get(producer, 0)), max(number, self._marks.get(producer, 0))
        self._filling_bytes += len(producer) + 16
        if len(batch.marks) + 1 >= MAX_METAS:
            self._limit = -1
        # Last, and without a call between them: an interrupted append leaves no mark of records that are not there.
        batch.marks[producer] = stored
        self._marks[producer] = taken

    def _reject(self, count: int) -> None:
        self.balance = self.balance._replace(rejected=self.balance.rejected + count)
        self.balance_dirty = True

    @property
    def uncommitted_bytes(self) -> int:
        """What was appended and is not on the disk yet."""
        return self._taken_bytes + self._queue_bytes + self._filling_bytes

    def hurry(self, *, help_out: bool = False) -> None:
        """Ask for a commit now; returns at once, or, to *help_out*, when one was made by this thread."""
        if help_out and self._host.help_out(self):
            return
        with self._lock:
            self._host.note(self, 0.0)

    def mark(self, producer: str) -> int:
        """The highest number taken from *producer*: appended, not only committed; 0 if none.

        Survives any crash together with the records that carried it, and stays after they were acknowledged and
        removed. A producer that may send again asks here which of its records are stored already. DiskError while a
        part of the stream could not be read, which may hold a higher one.
        """
        with self._lock:
            if self._has_unread:
                raise DiskError(f"Not all of the stream {self.name!r} could be read; its marks are known once it is.")
            return self._marks.get(producer, 0)

    def producers(self) -> list[str]:
        """Whoever has a mark here, as far as it is known."""
        with self._lock:
            return list(self._marks)

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything appended before, and the cursor, is on the disk; asks for a prompt commit.

        *timeout* in seconds. Raises DeadlineError, or the StorageError that the disk answered with.
        """
        ticket = Ticket()
        with self._lock:
            if self._finished:
                if self._failure is not None:
                    raise self._failure
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

    @property
    def taken(self) -> Work:
        """What was taken and neither published nor refused: under way, or its commit was interrupted."""
        return self._taken

    def take(self) -> Work:
        """Everything that waits, in order. The batches belong to the caller until :meth:`publish` or :meth:`fail`."""
        with self._lock:
            self._close_batch()
            work = Work([*self._taken.batches, *self._queue], [*self._taken.tickets, *self._tickets])
            self._taken_bytes += self._queue_bytes
            self._taken, self._queue, self._queue_bytes, self._tickets = work, [], 0, []
        return work

    def publish(self, work: Work, segment: Segment | None) -> None:
        """*work* is on the disk, at the end of *segment* (None: there was nothing to write). Tickets wait on."""
        with self._lock:
            if segment is not None:
                self._replace_segment(segment)
                if work.batches:
                    self.balance = self.balance.through(segment.last_sequence)
            for batch in work.batches:
                for producer, number in batch.marks.items():
                    self.committed_marks[producer] = max(number, self.committed_marks.get(producer, 0))
            self._taken_bytes, self._failure = 0, None
            self._settled.notify_all()
        self._settle(work.batches, None)
        self._taken = Work([], [])  # now: whoever is interrupted before is here a second time, which does no harm

    def learn_marks(self, marks: Mapping[str, int]) -> None:
        """These *marks* were found in a segment that could not be read before."""
        with self._lock:
            for producer, number in marks.items():
                self._marks[producer] = max(number, self._marks.get(producer, 0))
                self.committed_marks[producer] = max(number, self.committed_marks.get(producer, 0))

    def fail(self, error: StorageError) -> None:
        """The disk refused what was taken: it and all that was appended since is refused, and counted as rejected."""
        with self._lock:
            self._close_batch()
            refused = [*self._taken.batches, *self._queue]
            tickets = [*self._taken.tickets, *self._tickets]
            self._taken, self._taken_bytes = Work([], []), 0
            self._queue, self._queue_bytes, self._tickets = [], 0, []
            self._reject(sum(batch.count for batch in refused))  # and what the balance said is written again
            self._next = self.balance.last_sequence + 1
            self._marks = dict(self.committed_marks)
            self._failure, self._retry_at = error, self.clock.monotonic() + RETRY_INTERVAL
            self._settled.notify_all()
        self._settle(refused, error)
        for ticket in tickets:
            ticket.settle(error)

    def close(self) -> None:
        """Refuse appends from now on. What was appended is committed by the buffer's last pass."""
        with self._lock:
            self._closed, self._limit = True, -1
            self._settled.notify_all()

    def finish(self) -> None:
        """The last pass was made: whoever flushes after it is told at once how it ended."""
        with self._lock:
            self._finished = True
            tickets, self._tickets = self._tickets, []
        for ticket in tickets:
            ticket.settle(self._failure)

    def _room_changed(self) -> None:
        if self.settings.when_full is WhenFull.REJECT:
            self._limit = -1  # the running block was told of other room

    def _settle(self, batches: list[Batch], error: StorageError | None) -> None:
        for batch in batches:
            callbacks = batch.settle(error)
            if callbacks:
                self._host.defer(callbacks)
