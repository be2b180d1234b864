"""The hub's one log: blocks of all stations, each taken once, so that one fdatasync serves them all.

A block becomes one record of the stream ``inbox``: payload = the block's bytes as the station wrote them, attributes
= station and stream. The *mark* of (station, stream, epoch) is stored in the same write, so after any crash the hub
holds a block and knows that it does, or neither.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from outstation.buffer import Buffer, Receipt
from outstation.clock import Clock
from outstation.errors import (
    BufferFullError,
    ClosedError,
    CorruptBlockError,
    InvalidInputError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    StorageError,
    WireError,
)
from outstation.provider import Message
from outstation.wire.block import BlockHeader, decode, encode
from outstation_hub.checks import BlockChecks, Counts

log = logging.getLogger("outstation.hub")

INBOX = "inbox"
BLOCK_TYPE = "application/vnd.outstation.block"
STATION, STREAM = "station", "stream"
# Lives of streams that the hub remembers of one station: each costs it 100 bytes for ever, as each may come again. A
# station has some dozen streams, and begins a new life of each when its folder was wiped.
MAX_LIVES = 10_000
_ROOM_INTERVAL = 0.2  # seconds between looks for room while the sinks catch up
_TELL_INTERVAL = 60.0  # seconds between warnings that there is none


class Log(Protocol):
    """Where blocks go before they are acknowledged: this hub's own disk, or a log that several hubs share."""

    @property
    def counts(self) -> Counts: ...

    def take(
        self, station: str, message: Message, stop: threading.Event, done: Callable[[OutstationError | None], None]
    ) -> int:
        """As :meth:`Inbox.take`."""
        ...

    def forget(self, station: str) -> None:
        """As :meth:`Inbox.forget`."""
        ...


class MissingRecordsError(ProviderUnavailableError):
    """The message follows another that has not come: taking it would raise the mark over a hole."""


class Watcher(Protocol):
    """Who counts what comes. Called under the inbox's lock: returns at once."""

    def appended(self, station: str, stream: str, header: BlockHeader, receipt: Receipt) -> None:
        """The block with *header* was appended; it is there for good once *receipt* is done without an error."""
        ...


class Inbox(BlockChecks):
    """Takes blocks. Thread-safe."""

    def __init__(
        self,
        buffer: Buffer,
        clock: Clock,
        *,
        max_block_bytes: int,
        has_room: Callable[[int], bool] = lambda size_bytes: True,
        watcher: Watcher | None = None,
    ) -> None:
        """*has_room*: whether the disk may take that much more; asked for each block, so it must be cheap."""
        super().__init__(max_block_bytes, clock)
        self.stream = buffer.stream(INBOX)
        self._has_room = has_room
        self._watcher = watcher
        self._lives = Counter(key.partition("/")[0] for key in self.stream.producers())
        # Under the lock of the checks the mark is read and the block appended as one step.
        # The last receipt of each key; one that is done says nothing that the mark does not, and is swept away.
        self._receipts: dict[str, Receipt] = {}
        self._sweep_at = 1024
        self._tell_full_at = clock.monotonic()

    def take(
        self, station: str, message: Message, stop: threading.Event, done: Callable[[StorageError | None], None]
    ) -> int:
        """Take *message* once. Afterwards *done* is called, on the commit thread or at once: None = it is on the disk.

        Returns 0; or, for a part of a block that has not come whole, how many bytes of the block are held in memory,
        and then *done* is not called. Waits while the inbox is full, until *stop* is set (ClosedError). RefusedError:
        this block will never be taken. ProviderUnavailableError: send it again; MissingRecordsError: after what comes
        before it.
        """
        whole = self._whole(station, message)
        if isinstance(whole, int):
            return whole
        message, header = whole
        key = _key(station, message)
        while True:
            try:
                with self._lock:
                    # Looked at under the lock that `forget` takes: once a newer connection has begun, this one adds
                    # nothing, or it could raise the mark over what the newer one is about to send again.
                    if stop.is_set():
                        raise ClosedError("The connection has ended.")
                    receipt = self._append(station, message, header, key)
                break
            except BufferFullError as exc:
                self._tell_full(exc)
                if self._clock.wait(stop, _ROOM_INTERVAL):
                    raise ClosedError("The connection ended while the inbox was full.") from None
            except InvalidInputError as exc:
                raise RefusedError(str(exc)) from exc
            except StorageError as exc:
                raise ProviderUnavailableError(f"The hub cannot store now: {exc}") from exc
        if receipt is None:
            done(None)
        else:
            receipt.add_done_callback(lambda receipt: done(receipt.error))
        return 0

    def _tell_full(self, exc: BufferFullError) -> None:
        now = self._clock.monotonic()
        if now >= self._tell_full_at:  # each waiting station comes by five times a second
            self._tell_full_at = now + _TELL_INTERVAL
            log.warning("stations wait, as the inbox takes no more: %s Do the sinks take anything?", exc)

    def follows(self, station: str, message: Message) -> bool:
        """Whether nothing is missing before *message*: what it follows is taken, settled, or not told."""
        return _follows(message, self.stream.mark(_key(station, message)))

    def forget(self, station: str) -> None:
        """A new connection of *station* begins, and the *stop* of the older one is set: what failed comes again."""
        with self._lock:
            for key in [key for key in self._receipts if key.startswith(f"{station}/")]:
                if self._receipts[key].done:
                    del self._receipts[key]

    # -- the one step --------------------------------------------------------------------------------------------

    def _append(self, station: str, message: Message, header: BlockHeader, key: str) -> Receipt | None:
        """Append what is new of *message*. The receipt to wait for; None when all of it is on the disk already."""
        earlier = self._receipts.get(key)
        if earlier is not None and earlier.error is not None:
            # What came before this block on this connection was not stored. Taking this one would raise the mark
            # over it, and its repetition would be dropped as a duplicate.
            raise ProviderUnavailableError(f"The hub could not store an earlier block: {earlier.error}")
        taken = self.stream.mark(key)
        if header.last_sequence <= taken:
            self.counts.duplicates += 1
            return None if earlier is None or earlier.done else earlier
        if not _follows(message, taken):
            raise MissingRecordsError(f"What comes after {max(taken, message.settled)} is missing.")
        data = message.block
        if header.first_sequence <= taken:
            data = _trimmed(message, taken)
            if data:
                header = BlockHeader.unpack(data)
            else:  # nothing but numbers that the station has dropped itself
                return None if earlier is None or earlier.done else earlier
        is_new = not taken and earlier is None
        if is_new and self._lives[station] >= MAX_LIVES:
            raise RefusedError(f"Station {station!r} has begun {MAX_LIVES:,} streams or lives of them; it may no more.")
        if not self._has_room(len(data)):
            raise BufferFullError("The disk is as full as it may be.")
        receipt = self.stream.append(
            data,
            content_type=BLOCK_TYPE,
            attributes={STATION: station, STREAM: message.stream},
            mark=(key, header.last_sequence),
        )
        self._lives[station] += is_new
        self.counts.trimmed += data is not message.block
        self.counts.blocks += 1
        self.counts.records += header.count
        if self._watcher is not None:
            self._watcher.appended(station, message.stream, header, receipt)
        self._receipts[key] = receipt
        if len(self._receipts) > self._sweep_at:
            self._receipts = {k: r for k, r in self._receipts.items() if not r.done or r.error is not None}
            self._sweep_at = 1024 + 2 * len(self._receipts)
        return receipt


def _key(station: str, message: Message) -> str:
    return f"{station}/{message.stream}/{message.epoch:016x}"


def _follows(message: Message, taken: int) -> bool:
    return message.after is None or message.after <= max(taken, message.settled)


def _trimmed(message: Message, taken: int) -> bytes:
    """The block without its records through *taken*, still reaching to the same last number; b"" if none is left."""
    try:
        _, columns = decode(message.block)
        rest = columns.after(taken)
        if not len(rest):
            return b""
        return encode(rest, epoch=message.epoch, span=message.last_sequence - rest.sequences[0] + 1)
    except (CorruptBlockError, WireError) as exc:
        raise RefusedError(f"The block cannot be opened: {exc}") from exc
