"""What a block must be before the hub takes it, wherever it then goes."""

from __future__ import annotations

import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass, replace

from outstation.clock import Clock, SystemClock
from outstation.errors import CorruptBlockError, ProviderUnavailableError, RefusedError, UnsupportedVersionError
from outstation.provider import Message
from outstation.types import STREAM_NAME
from outstation.wire import parts
from outstation.wire.block import FLAG_ENCRYPTED, HEADER_BYTES, MAGIC, BlockHeader
from outstation.wire.checks import MAX_RECORD_BYTES

MAX_SEQUENCE = (1 << 63) - 1
# A block that arrives damaged may be sound at the station; one that arrives damaged this often is not.
DAMAGED_TIMES = 3
# Records larger than a message that are put together at once, and the largest: what the inbox takes as one record.
PARTS_BYTES = 128 << 20
LARGEST_BLOCK_BYTES = MAX_RECORD_BYTES - (64 << 10)
# Damaged blocks that are remembered; more at once means an attack, and forgetting one only costs another try.
REMEMBERED = 1000


@dataclass(slots=True)
class Counts:
    """What was taken, and what was not, since the hub started."""

    blocks: int = 0
    records: int = 0
    duplicates: int = 0
    trimmed: int = 0
    refused: int = 0
    damaged: int = 0


class BlockChecks:
    """The checks that every log of a hub makes, and its counts. Thread-safe."""

    def __init__(self, max_block_bytes: int, clock: Clock = SystemClock()) -> None:
        self.counts = Counts()
        self._clock = clock
        self._assembler = parts.Assembler(PARTS_BYTES, max_block_bytes=LARGEST_BLOCK_BYTES)
        self._max_block_bytes = max_block_bytes
        self._lock = threading.Lock()
        self._damaged: OrderedDict[tuple[str, str, int, int], int] = OrderedDict()

    def _whole(self, station: str, message: Message) -> tuple[Message, BlockHeader] | int:
        """*message* with a whole block that may be taken, and its header; for a part, how many bytes are held yet."""
        if not parts.is_part(message.block):
            return message, self._checked(station, message, self._max_block_bytes)
        try:
            part = parts.unpack(message.block)
            if (part.epoch, part.last_sequence) != (message.epoch, message.last_sequence):
                raise CorruptBlockError("It is not a part of the block that its message names.")
            with self._lock:
                block = self._assembler.take(station, message.stream, part, self._clock.monotonic())
        except UnsupportedVersionError as exc:
            raise RefusedError(f"{exc} This hub is older than the station.") from exc
        except CorruptBlockError as exc:
            self._note_damage((station, message.stream, message.epoch, message.first_sequence), exc)
            raise ProviderUnavailableError(f"A part arrived damaged and must be sent again: {exc}") from exc
        if block == 0:  # what came before it made room for others; the station waits for a word it cannot have
            raise ProviderUnavailableError("The beginning of a block in parts is gone; send it again.")
        if isinstance(block, int):
            return block
        message = replace(message, block=block)
        return message, self._checked(station, message, LARGEST_BLOCK_BYTES)

    def _checked(self, station: str, message: Message, max_bytes: int) -> BlockHeader:
        """The header of a block that may be taken."""
        if STREAM_NAME.fullmatch(message.stream) is None:
            raise RefusedError(f"{message.stream[:63]!r} is no name of a stream.")
        data = message.block
        if len(data) < HEADER_BYTES or data[: len(MAGIC)] != MAGIC:
            raise RefusedError("There is no block in the message.")
        if len(data) > max_bytes:
            raise RefusedError(f"A block of {len(data)} bytes; this hub takes {max_bytes}.")
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
