"""The hub's one log: blocks of all stations, each taken once, so that one fdatasync serves them all.

A block becomes one record of the stream ``inbox``: payload = the block's bytes as the station wrote them, attributes
= station and stream. The *mark* of (station, stream, epoch) is stored in the same write, so after any crash the hub
holds a block and knows that it does, or neither.
"""

from __future__ import annotations

import logging
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from outstation.buffer import Buffer, Receipt
from outstation.clock import Clock
from outstation.errors import (
    BufferFullError,
    ClosedError,
    CorruptBlockError,
    InvalidInputError,
    ProviderUnavailableError,
    RefusedError,
    StorageError,
    UnsupportedVersionError,
)
from outstation.provider import Message
from outstation.types import STREAM_NAME
from outstation.wire.block import FLAG_ENCRYPTED, HEADER_BYTES, MAGIC, BlockHeader, decode, encode

log = logging.getLogger("outstation.hub")

INBOX = "inbox"
BLOCK_TYPE = "application/vnd.outstation.block"
STATION, STREAM = "station", "stream"
MAX_SEQUENCE = (1 << 63) - 1
# A block that arrives damaged may be sound at the station; one that arrives damaged this often is not.
DAMAGED_TIMES = 3
# Damaged blocks that are remembered; more at once means an attack, and forgetting one only costs another try.
REMEMBERED = 1000
_ROOM_INTERVAL = 0.2  # seconds between looks for room while the sinks catch up
_TELL_INTERVAL = 60.0  # seconds between warnings that there is none


@dataclass(slots=True)
class Counts:
    """What the inbox did since the hub started."""

    blocks: int = 0
    records: int = 0
    duplicates: int = 0
    trimmed: int = 0
    refused: int = 0
    damaged: int = 0


class Watcher(Protocol):
    """Who counts what comes. Called under the inbox's lock: returns at once."""

    def appended(self, station: str, stream: str, header: BlockHeader, receipt: Receipt) -> None:
        """The block with *header* was appended; it is there for good once *receipt* is done without an error."""
        ...


class Inbox:
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
        self.stream = buffer.stream(INBOX)
        self.counts = Counts()
        self._clock = clock
        self._max_block_bytes = max_block_bytes
        self._has_room = has_room
        self._watcher = watcher
        self._lock = threading.Lock()  # the mark is read and the block appended as one step
        # The last receipt of each key; one that is done says nothing that the mark does not, and is swept away.
        self._receipts: dict[str, Receipt] = {}
        self._sweep_at = 1024
        self._tell_full_at = clock.monotonic()
        self._damaged: OrderedDict[tuple[str, str, int, int], int] = OrderedDict()

    def take(
        self, station: str, message: Message, stop: threading.Event, done: Callable[[StorageError | None], None]
    ) -> None:
        """Take *message* once. Afterwards *done* is called, on the commit thread or at once: None = it is on the disk.

        Waits while the inbox is full, until *stop* is set (ClosedError). RefusedError: this block will never be
        taken. ProviderUnavailableError: send it again.
        """
        header = self._checked(station, message)
        key = f"{station}/{message.stream}/{message.epoch:016x}"
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

    def _tell_full(self, exc: BufferFullError) -> None:
        now = self._clock.monotonic()
        if now >= self._tell_full_at:  # each waiting station comes by five times a second
            self._tell_full_at = now + _TELL_INTERVAL
            log.warning("stations wait, as the inbox takes no more: %s Do the sinks take anything?", exc)

    def forget(self, station: str) -> None:
        """A new connection of *station* begins, and the *stop* of the older one is set: what failed comes again."""
        with self._lock:
            for key in [key for key in self._receipts if key.startswith(f"{station}/")]:
                if self._receipts[key].done:
                    del self._receipts[key]

    # -- checks --------------------------------------------------------------------------------------------------

    def _checked(self, station: str, message: Message) -> BlockHeader:
        """The header of a block that may be taken."""
        if STREAM_NAME.fullmatch(message.stream) is None:
            raise RefusedError(f"{message.stream[:63]!r} is no name of a stream.")
        data = message.block
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise RefusedError("There is no block in the message.")
        if len(data) > self._max_block_bytes:
            raise RefusedError(f"A block of {len(data)} bytes; this hub takes {self._max_block_bytes}.")
        try:
            header = _verified(message)
        except UnsupportedVersionError as exc:
            raise RefusedError(f"{exc} This hub is older than the station.") from exc
        except CorruptBlockError as exc:
            self._note_damage((station, message.stream, message.epoch, message.first_sequence), exc)
            raise ProviderUnavailableError(f"A block arrived damaged and must be sent again: {exc}") from exc
        if header.flags & FLAG_ENCRYPTED:
            raise RefusedError("The block is encrypted with a key of the station.")
        if header.last_sequence > MAX_SEQUENCE:
            raise RefusedError(f"Sequence numbers end at {MAX_SEQUENCE}.")
        return header

    def _note_damage(self, block: tuple[str, str, int, int], exc: CorruptBlockError) -> None:
        with self._lock:
            self.counts.damaged += 1
            times = self._damaged.pop(block, 0) + 1
            if times < DAMAGED_TIMES:
                self._damaged[block] = times
                if len(self._damaged) > REMEMBERED:
                    self._damaged.popitem(last=False)
                return
        raise RefusedError(f"The block arrived damaged {times} times: {exc}") from exc

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
        data = message.block
        if header.first_sequence <= taken:
            data = _trimmed(message, taken)
            if data:
                header = BlockHeader.unpack(data)
            else:  # nothing but numbers that the station has dropped itself
                return None if earlier is None or earlier.done else earlier
        if not self._has_room(len(data)):
            raise BufferFullError("The disk is as full as it may be.")
        receipt = self.stream.append(
            data,
            content_type=BLOCK_TYPE,
            attributes={STATION: station, STREAM: message.stream},
            mark=(key, header.last_sequence),
        )
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


def _verified(message: Message) -> BlockHeader:
    header = BlockHeader.unpack(message.block)
    if header.block_bytes != len(message.block):
        raise CorruptBlockError(f"It has {len(message.block)} bytes and claims {header.block_bytes}.")
    if zlib.crc32(memoryview(message.block)[HEADER_BYTES:]) != header.body_crc:
        raise CorruptBlockError("Its body fails the checksum.")
    named = (message.epoch, message.first_sequence, message.last_sequence)
    if named != (header.epoch, header.first_sequence, header.last_sequence):
        raise CorruptBlockError("It is not the block that its message names.")
    return header


def _trimmed(message: Message, taken: int) -> bytes:
    """The block without its records through *taken*, still reaching to the same last number; b"" if none is left."""
    try:
        _, columns = decode(message.block)
    except CorruptBlockError as exc:
        raise RefusedError(f"The block cannot be opened: {exc}") from exc
    rest = columns.after(taken)
    if not len(rest):
        return b""
    return encode(rest, epoch=message.epoch, span=message.last_sequence - rest.sequences[0] + 1)
