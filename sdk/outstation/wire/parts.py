"""A block that is larger than a message travels in parts; this cuts it and puts it together again. Pure.

A part is a header of 44 bytes and a slice of the block; docs/format.md is the normative text. A far end that gets a
part keeps it in memory only, says how many bytes of the block it holds, and acknowledges the block when all of it is
on its disk: until then the station keeps the record, and sends what is missing again.
"""

from __future__ import annotations

import struct
import zlib
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

from outstation.errors import CorruptBlockError, ProviderUnavailableError, RefusedError, UnsupportedVersionError
from outstation.wire.block import MAX_BODY_BYTES, BlockHeader

MAGIC = b"OPRT"
VERSION = 1
_HEADER = struct.Struct("<4sB3xQQIIIII")
HEADER_BYTES = _HEADER.size
# A part smaller than this is mostly header.
SMALLEST_PART_BYTES = 256
# An assembly costs something beside its bytes, and a hostile station could begin very many of one byte each.
SMALLEST_CLAIM_BYTES = 4 << 10
# A sender that says nothing for this many seconds has lost its link; its bytes may make room for another's.
IDLE_SECONDS = 60.0


class Part(NamedTuple):
    """The header of a part, and its slice."""

    epoch: int
    first_sequence: int
    span: int
    total_bytes: int  # of the block
    offset: int  # of the slice in the block
    block_crc: int  # of the whole block: tells one cutting of it from another
    data: memoryview

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.span - 1

    @property
    def end(self) -> int:
        return self.offset + len(self.data)


def is_part(data: bytes) -> bool:
    return data[: len(MAGIC)] == MAGIC


class Cutting:
    """A block that is being cut; parts may differ in size, as the link does."""

    def __init__(self, block: bytes) -> None:
        header = BlockHeader.unpack(block)
        self._block = block
        self._fields = (MAGIC, VERSION, header.epoch, header.first_sequence, header.span, len(block))
        self._crc = zlib.crc32(block)

    def part(self, offset: int, max_bytes: int) -> tuple[bytes, int]:
        """The part that begins at *offset*, of at most *max_bytes* with its header; and where in the block it ends."""
        piece = self._block[offset : offset + max(max_bytes, SMALLEST_PART_BYTES) - HEADER_BYTES]
        head = _HEADER.pack(*self._fields, offset, self._crc, 0)[:-4]
        return head + zlib.crc32(piece, zlib.crc32(head)).to_bytes(4, "little") + piece, offset + len(piece)


def unpack(data: bytes) -> Part:
    """The part in *data*. CorruptBlockError, or UnsupportedVersionError for a newer format."""
    if len(data) <= HEADER_BYTES or not is_part(data):
        raise CorruptBlockError("There is no part of a block here.")
    _, version, epoch, first_sequence, span, total_bytes, offset, block_crc, crc = _HEADER.unpack_from(data)
    piece = memoryview(data)[HEADER_BYTES:]
    if zlib.crc32(piece, zlib.crc32(data[: HEADER_BYTES - 4])) != crc:
        raise CorruptBlockError("A part of a block fails its checksum.")
    if version > VERSION:
        raise UnsupportedVersionError(f"A part of format {version}.")
    part = Part(epoch, first_sequence, span, total_bytes, offset, block_crc, piece)
    if part.first_sequence == 0 or part.span == 0 or part.end > part.total_bytes:
        raise CorruptBlockError("A part of a block counts what cannot be.")
    return part


@dataclass(slots=True)
class _Assembly:
    crc: int
    total_bytes: int
    touched: float
    data: bytearray = field(default_factory=bytearray)


class Assembler:
    """Puts parts together, for many senders, in bounded memory. Not thread-safe: its caller holds a lock.

    Parts of one block come in order; one that leaves a hole is passed over, and what is held says where to go on.
    """

    def __init__(self, max_bytes: int = MAX_BODY_BYTES, *, max_block_bytes: int = MAX_BODY_BYTES) -> None:
        """*max_bytes* of blocks under way together; a block over *max_block_bytes* is refused."""
        self._max_bytes = max_bytes
        self._max_block_bytes = max_block_bytes
        self._under_way: OrderedDict[tuple[str, str, int, int], _Assembly] = OrderedDict()  # longest untouched first

    @property
    def claimed_bytes(self) -> int:
        """What the blocks under way will take together."""
        return sum(max(SMALLEST_CLAIM_BYTES, assembly.total_bytes) for assembly in self._under_way.values())

    def take(self, station: str, stream: str, part: Part, now: float) -> bytes | int:
        """The whole block once its last part has come; until then how many bytes of it are held.

        *now* in seconds, of a clock that never goes back. RefusedError: the block is larger than may be.
        ProviderUnavailableError: no room beside the blocks of others; to be sent again later.
        """
        key = (station, stream, part.epoch, part.first_sequence)
        assembly = self._under_way.get(key)
        if assembly is None or (assembly.crc, assembly.total_bytes) != (part.block_crc, part.total_bytes):
            self._under_way.pop(key, None)  # cut anew, by an uplink that was restarted
            if part.offset:
                return 0
            assembly = self._admit(key, part, now)
        assembly.touched = now
        self._under_way.move_to_end(key)
        if part.offset <= len(assembly.data) < part.end:
            assembly.data += part.data[len(assembly.data) - part.offset :]
        if len(assembly.data) < assembly.total_bytes:
            return len(assembly.data)
        del self._under_way[key]
        block = bytes(assembly.data)
        if zlib.crc32(block) != assembly.crc:
            raise CorruptBlockError("The parts of a block do not make the block.")
        return block

    def _admit(self, key: tuple[str, str, int, int], part: Part, now: float) -> _Assembly:
        if part.total_bytes > self._max_block_bytes:
            raise RefusedError(f"A block of {part.total_bytes} bytes; {self._max_block_bytes} are taken.")
        # A station sends one large record of a stream at a time: an older one of its own will not be finished.
        for other in [other for other in self._under_way if other[:2] == key[:2]]:
            del self._under_way[other]
        while self._under_way and self.claimed_bytes + part.total_bytes > self._max_bytes:
            oldest = next(iter(self._under_way.values()))
            if now - oldest.touched < IDLE_SECONDS:
                raise ProviderUnavailableError("Too many large records are under way at once.")
            self._under_way.popitem(last=False)
        assembly = self._under_way[key] = _Assembly(part.block_crc, part.total_bytes, now)
        return assembly
