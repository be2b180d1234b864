"""The log of many hubs: a block is acknowledged once NATS JetStream has each of its records.

Nothing of it lies on this hub's disk. What is already in the log is told by the log itself: every record goes to a
subject of its (station, stream, epoch), with the condition that the last message there is still the one before it
(``Nats-Expected-Last-Subject-Sequence``). So whatever two hubs do at once, and whenever either dies, the subject
holds each record once, in order, without a hole: see docs/adr/0048.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

from outstation.errors import (
    ClosedError,
    CorruptBlockError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    WireError,
)
from outstation.provider import Message
from outstation.wire.block import decode
from outstation.wire.columns import Columns
from outstation_hub.checks import BlockChecks
from outstation_hub.jetstream import FOREIGN_ERRORS, JetStream, OvertakenError, Tip

log = logging.getLogger("outstation.hub")

# Decompressed bytes under way in one hub: with less, many stations would wait for each other's round trips.
IN_FLIGHT_BYTES = 256 << 20
# Of one station: enough that its next block is here when the last is stored, too little to be in anyone's way.
STATION_BYTES = 8 << 20
# Times that another hub may be found to have written first, for one record; each time it has brought us further.
_OVERTAKEN_TIMES = 20
# Chains that are remembered; one that is forgotten costs one question to the log.
_REMEMBERED_CHAINS = 10_000


@dataclass(slots=True)
class _Chain:
    """One (station, stream, epoch) on one connection. Its tip and its failure belong to the loop's thread."""

    subject: str
    turn: asyncio.Lock
    tip: Tip | None = None  # None: the log must be asked
    failure: str = ""
    waiting: int = 0  # blocks; guarded by the relay's lock


@dataclass(frozen=True, slots=True)
class _Block:
    station: str
    stream: str
    epoch: int
    columns: Columns
    stop: threading.Event


class Relay(BlockChecks):
    """Takes blocks, as :class:`outstation_hub.inbox.Inbox` does. Thread-safe; owns the thread of *jetstream*."""

    def __init__(
        self,
        jetstream: JetStream,
        *,
        max_block_bytes: int,
        in_flight_bytes: int = IN_FLIGHT_BYTES,
        station_bytes: int = STATION_BYTES,
    ) -> None:
        super().__init__(max_block_bytes)
        self._jetstream = jetstream
        self._room = _Room(in_flight_bytes, station_bytes)
        self._chains: dict[tuple[str, str, int], _Chain] = {}
        self._failure = ""

    @property
    def failure(self) -> str:
        """Why the log took nothing last; "" when it does."""
        return self._failure

    @property
    def blocks_under_way(self) -> int:
        with self._lock:
            return sum(chain.waiting for chain in self._chains.values())

    def take(
        self, station: str, message: Message, stop: threading.Event, done: Callable[[OutstationError | None], None]
    ) -> int:
        """Take *message* once. Afterwards *done* is called, on the loop's thread: None = it is in the log.

        Returns 0; or, for a part of a block that has not come whole, how many bytes of it are held. Waits while too
        much is under way, until *stop* is set (ClosedError). RefusedError: this block will never be taken.
        ProviderUnavailableError: send it again.
        """
        whole = self._whole(station, message)
        if isinstance(whole, int):
            return whole
        message, header = whole
        try:
            columns = decode(message.block)[1]
        except (CorruptBlockError, WireError) as exc:
            raise RefusedError(f"The block cannot be opened: {exc}") from exc
        block = _Block(station, message.stream, message.epoch, columns, stop)
        self._room.enter(station, header.raw_bytes, stop)
        try:
            with self._lock:
                # Under the lock that `forget` takes: once a newer connection has begun, this one adds nothing.
                if stop.is_set():
                    raise ClosedError("The connection has ended.")
                chain = self._chain(block)
                if chain.failure:
                    raise ProviderUnavailableError(f"An earlier block was not stored: {chain.failure}")
                future = self._jetstream.submit(self._carry(chain, block))
                chain.waiting += 1
        except BaseException:
            self._room.leave(station, header.raw_bytes)
            raise
        future.add_done_callback(partial(self._settle, chain, station, header.raw_bytes, done))
        return 0

    def forget(self, station: str) -> None:
        """A new connection of *station* begins, and the *stop* of the older one is set: what failed comes again."""
        with self._lock:
            for key in [key for key in self._chains if key[0] == station]:
                # What still waits on the old chain fails with it; the new one asks the log where it stands.
                del self._chains[key]

    def close(self) -> None:
        """Let go of the log. Idempotent."""
        self._jetstream.close()

    def _chain(self, block: _Block) -> _Chain:
        key = (block.station, block.stream, block.epoch)
        chain = self._chains.get(key)
        if chain is None:
            if len(self._chains) >= _REMEMBERED_CHAINS:
                # One that failed stays: its station must not send past the hole before it has connected again.
                self._chains = {k: c for k, c in self._chains.items() if c.waiting or c.failure}
            subject = self._jetstream.subject(block.station, block.stream, block.epoch)
            chain = self._chains[key] = _Chain(subject, asyncio.Lock())
        return chain

    def _settle(
        self,
        chain: _Chain,
        station: str,
        size_bytes: int,
        done: Callable[[OutstationError | None], None],
        future: Future[int],
    ) -> None:
        self._room.leave(station, size_bytes)
        error = ClosedError("The hub is closing.") if future.cancelled() else future.exception()
        with self._lock:
            chain.waiting -= 1
            if error is None:
                self._count(future.result())
        if error is not None and not isinstance(error, OutstationError):
            log.error("a block of %s failed", chain.subject, exc_info=error)
            error = ProviderUnavailableError(f"The hub failed: {type(error).__name__}.")
        if isinstance(error, ProviderUnavailableError) and str(error) != self._failure:
            log.warning("the log takes nothing; nothing is lost: %s", error)
        self._failure = str(error) if isinstance(error, ProviderUnavailableError) else ""
        done(error)

    def _count(self, records: int) -> None:
        self.counts.blocks += records > 0
        self.counts.duplicates += records == 0
        self.counts.records += records

    # -- on the loop's thread ------------------------------------------------------------------------------------

    async def _carry(self, chain: _Chain, block: _Block) -> int:
        """Put what is new of *block* into the log; how many records that were."""
        async with chain.turn:
            if chain.failure:
                # With the block before this one missing, this one must not be written: the last message says
                # that everything up to it is there.
                raise ProviderUnavailableError(f"An earlier block was not stored: {chain.failure}")
            try:
                return await self._store(chain, block)
            except FOREIGN_ERRORS as exc:
                chain.failure = str(exc) or type(exc).__name__
                raise ProviderUnavailableError(f"NATS did not take a block: {chain.failure}") from exc
            except BaseException as exc:
                chain.failure = str(exc) or type(exc).__name__
                raise

    async def _store(self, chain: _Chain, block: _Block) -> int:
        stored = 0
        for record in block.columns.records():
            for _ in range(_OVERTAKEN_TIMES):
                if block.stop.is_set():
                    raise ClosedError("The connection has ended.")
                if chain.tip is None:
                    chain.tip = await self._jetstream.tip(chain.subject)
                if record.sequence <= chain.tip.mark:
                    break
                try:
                    chain.tip = await self._jetstream.publish(
                        chain.subject, (block.station, block.stream, block.epoch), record, chain.tip
                    )
                except OvertakenError:
                    chain.tip = None  # another hub has a connection of this station too, and was first
                    continue
                stored += 1
                break
            else:
                raise ProviderUnavailableError(f"Another hub writes {chain.subject} all the time.")
        return stored


@dataclass(slots=True)
class _Room:
    """How many bytes are under way, in all and of each station. Thread-safe."""

    limit_bytes: int
    station_bytes: int
    _held: dict[str, int] = field(default_factory=dict)
    _total: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def enter(self, station: str, size_bytes: int, stop: threading.Event) -> None:
        """Wait until *size_bytes* more of *station* fit; a single block always does. ClosedError once *stop* is set."""
        with self._changed:
            while not self._fits(station, size_bytes):
                if stop.is_set():
                    raise ClosedError("The connection ended while too much was under way.")
                self._changed.wait(0.2)  # nobody tells when *stop* is set
            self._held[station] = self._held.get(station, 0) + size_bytes
            self._total += size_bytes

    def leave(self, station: str, size_bytes: int) -> None:
        with self._changed:
            self._total -= size_bytes
            self._held[station] -= size_bytes
            if not self._held[station]:
                del self._held[station]
            self._changed.notify_all()

    def _fits(self, station: str, size_bytes: int) -> bool:
        own = self._held.get(station, 0)
        return (own == 0 or own + size_bytes <= self.station_bytes) and (
            self._total == 0 or self._total + size_bytes <= self.limit_bytes
        )
