"""One commit of one stream, from what waits in memory to what is on the disk. One thread at a time."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from outstation.buffer import policy
from outstation.buffer.batch import Batch
from outstation.buffer.log import Log, Protector, is_full
from outstation.buffer.placing import Placing
from outstation.buffer.receipt import Work
from outstation.buffer.rewrite import repair, thin
from outstation.buffer.salvage import UnreadableError, is_unreadable
from outstation.buffer.segment import Access, Segment, file_name
from outstation.buffer.steady import SteadyClock
from outstation.buffer.stream import Stream
from outstation.errors import CorruptBlockError, DecryptionError, StorageError, from_os_error
from outstation.settings import BufferSettings
from outstation.types import DropReason, WhenFull
from outstation.wire.block import BlockHeader

log = logging.getLogger("outstation.buffer")

# A disk that stays full although old segments go is full of something else: no use in letting everything go.
TRIES = 8

# What cannot be read is tried again after so many seconds each, a minute in all: a cable that is loose or a bus that
# is reset is back by then. Meanwhile the disk must have taken a rewrite to lose anything by it: a disk that is gone
# takes none.
READ_AGAIN = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0)

# Thinning writes a segment again for half of its bytes; more at once would hold up the commit that waits for it.
THINNED_AT_ONCE = 4


class Room(Protocol):
    """What the whole folder may take."""

    def surplus_bytes(self, incoming_bytes: int) -> int:
        """How much must go before *incoming_bytes* fit."""
        ...

    def make_room(self, stream: Stream, surplus_bytes: int) -> None:
        """Let other streams give what they can, by their policies and priorities."""
        ...


class Committer:
    """Drives the log of one stream: commit, roll, retire, evict, mend."""

    def __init__(
        self,
        stream: Stream,
        segments: Log,
        *,
        access: Access,
        protect: Protector,
        settings: BufferSettings,
        clock: SteadyClock,
        room: Room,
    ) -> None:
        self.stream = stream
        self._log = segments
        self._settings = settings
        self._clock = clock
        self._room = room
        self._access = access
        self._protect = protect
        self._work: Work | None = None
        self._committed = False  # the commit that is under way, or was the last, has brought records to the disk
        self._doubtful = False  # the last block did not compress
        self._blocks: list[tuple[BlockHeader, bytes]] = []
        self._doomed: list[Path] = []  # to be removed once the balance that explains it is on the disk
        # One segment less than the bound: what is let go is removed only after the commit that explains it.
        limit = policy.segment_limit(settings, stream.settings)
        self._bound_bytes = stream.settings.max_bytes - limit
        self._checkpointed: tuple[object, ...] | None = None
        self._placing = Placing(stream, access.files)
        self._written_rewrites = 0  # of the balance that was written last
        self._unread: dict[int, tuple[int, int]] = {}  # by serial: how often it could not be read, when to try again

    def write(self) -> bool:
        """Write what waits; True when :meth:`sync` must follow. What the disk refuses ends in the receipts."""
        stream = self.stream
        self._committed = False
        if stream.taken.batches or stream.taken.tickets:
            self._take_up()
        self._go_on_placing()
        if stream.suspects:
            self._mend()
        self._retire()
        self._work = work = stream.take()
        self._blocks = [self._encode(batch) for batch in work.batches]
        self._make_room(sum([header.block_bytes for header, _ in self._blocks]))
        if not self._blocks and not stream.balance_dirty:
            self._work = None
            stream.publish(work, None)
            work.settle_tickets()
            return False
        try:
            self._write()
        except OSError as exc:
            if not self._log.rewind():
                self._abandon()
            self._try_again(work, exc)
        return self._work is not None or self._committed

    def sync(self) -> bool:
        """Bring it to the disk and tell everyone who waits; True when records were committed."""
        work = self._work
        if work is None:
            return self._committed
        try:
            segment = self._log.sync()
        except OSError as exc:
            self._abandon()
            self._try_again(work, exc)
        else:
            self._done(work, segment)
        return self._committed

    def fail(self, error: StorageError) -> None:
        """Refuse what is under way, after a fault that has nothing to do with the disk."""
        self._work = None
        self._abandon()
        self.stream.fail(error)

    def close(self) -> None:
        """Write the state, so that the next opening reads nothing else. Never raises."""
        self._log.trim()
        if self._checkpointed != self._now():
            self._checkpoint()
        self.stream.finish()

    def _take_up(self) -> None:
        """Go on after a commit that was interrupted: by Ctrl-C, say, on the thread of somebody who helped out.

        If its sync had returned, it is on the disk. If not nobody knows what its segment holds, and all of it is
        written once more elsewhere.
        """
        work, segment = self.stream.taken, self._log.synced
        if work.batches and segment is not None and work.batches[0].first_sequence <= segment.last_sequence:
            self._done(work, segment)
            return
        self._abandon()
        self.stream.balance_dirty = True

    def _encode(self, batch: Batch) -> tuple[BlockHeader, bytes]:
        level = self._settings.zstd_level
        header, body = batch.draft().pack(epoch=self.stream.epoch, level=level, doubtful=self._doubtful)
        self._doubtful = header.body_bytes > header.raw_bytes * 0.95
        return header, body

    def _write(self) -> None:
        balance, dirty = self.stream.take_balance()
        try:
            self._log.write(balance, dirty, self._blocks, self._protect, now=self._clock.now())
        except OSError:
            self.stream.balance_dirty = self.stream.balance_dirty or dirty
            raise
        self._written_rewrites = balance.rewrites

    def _try_again(self, work: Work, exc: OSError) -> None:
        """Once more, with room made if room is missing and in a new segment if the old one failed; else refuse."""
        for _ in range(TRIES):
            if is_full(exc) and not self._evict_one():
                break
            self.stream.balance_dirty = True
            try:
                self._write()
                segment = self._log.sync()
            except OSError as again:
                self._abandon()
                if not is_full(again):
                    exc = again
                    break
                exc = again
                continue
            self._done(work, segment)
            return
        self._work = None
        error = from_os_error(exc, doing=f"store records of the stream {self.stream.name!r}", path=self._log.folder)
        log.error("%s %s", error, error.hint)
        self.stream.balance_dirty = True
        self.stream.fail(error)

    def _done(self, work: Work, segment: Segment) -> None:
        self._work, self._blocks = None, []
        self._placing.told(self._written_rewrites)
        self._committed = self._committed or bool(work.batches)
        self.stream.publish(work, segment)
        try:
            if segment.sealed or self._doomed:
                self._checkpoint()
        finally:
            work.settle_tickets()

    def _checkpoint(self) -> None:
        stream = self.stream
        try:
            self._log.checkpoint(stream.balance, stream.committed_marks)
        except StorageError as exc:
            # The log holds everything that the state does; only files that wait for it must stay.
            log.warning("%s %s", exc, exc.hint)
            return
        self._checkpointed = self._now()
        doomed, self._doomed = self._doomed, []
        self._log.remove(doomed)

    def _now(self) -> tuple[object, ...]:
        return (self._log.position, self.stream.balance)

    def _abandon(self) -> None:
        segment = self._log.abandon()
        if segment is not None:
            self.stream.give_up(segment)

    # --- letting go --------------------------------------------------------------------------------------------

    def _retire(self) -> None:
        stream = self.stream
        if stream.segments and stream.segments[0].last_sequence <= stream.balance.cursor:
            self._let_go(policy.acknowledged(stream.segments, stream.balance.cursor), None)
        if stream.settings.max_age is not None:
            self._expire(self._clock.now() - round(stream.settings.max_age * 1e9), stream.settings.max_age)

    def _make_room(self, incoming_bytes: int) -> None:
        stream = self.stream
        surplus = stream.stored_bytes + incoming_bytes - self._bound_bytes
        if surplus > 0 and policy.drops(stream.settings):
            self._shed(surplus)
        # Who brings nothing gives nothing: others, less important, may have come a little over the folder's bound.
        surplus = self._room.surplus_bytes(incoming_bytes) if incoming_bytes else 0
        if surplus > 0:
            self._room.make_room(stream, surplus)

    def shed(self, surplus_bytes: int, *, all_of_it: bool) -> int:
        """Let go of up to *surplus_bytes* in the way of the stream's policy; how much that was.

        *all_of_it*: the segment that is being filled too, which is closed for it.
        """
        self._go_on_placing()
        before = self.stream.stored_bytes
        self._shed(surplus_bytes)
        left = surplus_bytes - (before - self.stream.stored_bytes)
        if all_of_it and left > 0 and self._log.active is not None:
            try:
                self._close_segment()
            except OSError as exc:
                log.warning("%s", from_os_error(exc, doing="close a segment", path=self._log.folder))
            self._let_go(policy.oldest_over(self.stream.segments, left), DropReason.EVICTED)
        return before - self.stream.stored_bytes

    def _shed(self, surplus_bytes: int) -> None:
        stream = self.stream
        if surplus_bytes > 0 and stream.settings.when_full is WhenFull.THIN:
            surplus_bytes -= self._thin(surplus_bytes)
        if surplus_bytes > 0:
            self._let_go(policy.oldest_over(stream.segments, surplus_bytes), DropReason.EVICTED)

    def _thin(self, surplus_bytes: int) -> int:
        """Thin the oldest half until *surplus_bytes* are free or nothing more comes of it."""
        stream = self.stream
        before = stream.stored_bytes
        for _ in range(THINNED_AT_ONCE):
            pair = policy.thinnable(stream.segments)
            if pair is None or before - stream.stored_bytes >= surplus_bytes:
                break
            start = stream.balance.start
            pending = sum(stream.pending_in(segment) for segment in pair)
            try:
                thinned = thin(
                    self._access,
                    pair,
                    start,
                    stream.balance.rewrites + 1,
                    pending=pending,
                    untold=self._placing.untold(pair),
                    block_bytes=self._settings.block_bytes,
                    level=self._settings.zstd_level,
                    protect=self._protect,
                )
                self._doomed += self._placing.put(thinned, DropReason.THINNED, start=start, needless=[pair[0].path])
            except OSError as exc:
                log.warning("%s", from_os_error(exc, doing="thin a segment", path=self._log.folder))
                if is_unreadable(exc):
                    stream.suspects.update(segment.serial for segment in pair)
                break
            except CorruptBlockError:
                stream.suspects.update(segment.serial for segment in pair)
                break
            except DecryptionError as exc:  # its key was taken away: whole segments go instead
                log.warning("A segment of the stream %r cannot be thinned. %s %s", stream.name, exc, exc.hint)
                break
        return before - stream.stored_bytes

    def _expire(self, before_unix_nano: int, max_age: float) -> None:
        stream = self.stream
        active = self._log.active
        if active is not None and active.count and active.written_unix_nano < before_unix_nano:
            try:
                self._close_segment()
            except OSError as exc:
                log.warning("%s", from_os_error(exc, doing="close a segment", path=self._log.folder))
                return
        self._let_go(policy.expired(stream.segments, before_unix_nano), DropReason.EXPIRED)
        if stream.segments:
            stream.look_again(min(max(max_age / 16, 0.05), 60.0))

    def _close_segment(self) -> Segment | None:
        """Seal the active segment. Raises OSError, and then nothing more is written to it, as after any failed sync."""
        try:
            closed = self._log.close_segment(self.stream.epoch)
        except OSError:
            self._abandon()
            raise
        if closed is not None:
            self.stream.give_up(closed)
        return closed

    def _let_go(self, segments: list[Segment], reason: DropReason | None) -> None:
        if segments:
            self.stream.let_go(segments, reason)
            self._doomed += [segment.path for segment in segments]

    def _evict_one(self) -> bool:
        """Free a segment at once, on a disk that takes nothing more, even the balance that would explain it."""
        if not policy.drops(self.stream.settings):
            return False
        doomed, self._doomed = self._doomed, []
        closed = policy.oldest_over(self.stream.segments, 1)
        if closed:
            self.stream.let_go(closed, DropReason.EVICTED)
        doomed += [segment.path for segment in closed]
        self._log.remove(doomed)
        return bool(doomed)

    def _go_on_placing(self) -> None:
        try:
            self._doomed += self._placing.go_on()
        except OSError as exc:
            log.warning("%s", from_os_error(exc, doing="put a segment in its place", path=self._log.folder))

    # --- mending -----------------------------------------------------------------------------------------------

    def _mend(self) -> None:
        """Rewrite the segments in which damage was found, or which could not be read."""
        stream = self.stream
        for serial in sorted(stream.suspects):
            segment = next((own for own in stream.segments if own.serial == serial), None)
            tries, not_before = self._unread.get(serial, (0, 0))
            hopeless = serial in stream.hopeless or tries > len(READ_AGAIN)
            if segment is not None and self._clock.now() < not_before and serial not in stream.hopeless:
                continue
            try:
                if segment is not None:
                    self._rewrite(segment, insistent=not hopeless)
            except UnreadableError as exc:
                log.warning("%s", from_os_error(exc, doing="read a segment", path=self._log.folder / file_name(serial)))
                self._try_later(serial, tries + 1)
                continue
            except OSError as exc:
                log.warning("%s", from_os_error(exc, doing="mend a damaged segment", path=self._log.folder))
                if tries:
                    self._try_later(serial, tries)
                    continue
            stream.suspects.discard(serial)
            stream.hopeless.discard(serial)
            self._unread.pop(serial, None)

    def _rewrite(self, segment: Segment, *, insistent: bool) -> None:
        stream = self.stream
        if self._log.active is not None and self._log.active.serial == segment.serial:
            try:
                closed = self._close_segment()
            except FileNotFoundError:  # somebody removed it, and it was given up
                closed = replace(segment, closed=True)
            if closed is None:
                return
            segment = closed
        number = stream.balance.rewrites + 1
        start = stream.balance.start
        pending = stream.pending_in(segment)
        untold = self._placing.untold((segment,))
        mended = repair(self._access, segment, start, number, pending=pending, untold=untold, insistent=insistent)
        self._placing.put(mended, DropReason.CORRUPT, start=start)
        log.warning(
            "A damaged segment of the stream %r was mended: %s; %d records are lost.",
            stream.name,
            segment.path.name,
            max(0, mended.lost),
        )

    def _try_later(self, serial: int, tries: int) -> None:
        delay = READ_AGAIN[min(tries, len(READ_AGAIN)) - 1]
        self._unread[serial] = tries, self._clock.now() + round(delay * 1e9)
        self.stream.look_again(delay)
