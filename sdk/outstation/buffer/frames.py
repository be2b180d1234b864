"""The two small frames that stand between blocks in a segment: the balance and the seal. Pure.

A segment is a row of frames: blocks (:mod:`outstation.wire.block`), balances and, at the end of a closed one, a seal.
A *balance* holds the cursor and the ledger; it is written with the blocks of the same commit, by the same fdatasync,
so the account and the records cannot part. A *seal* sums up the segment, so that opening need not read it.
docs/format.md is the normative text. Integers are little-endian.
"""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple

from outstation.errors import CorruptBlockError, UnsupportedVersionError
from outstation.types import DropReason

BALANCE_MAGIC, SEAL_MAGIC = b"OBAL", b"OSEA"
VERSION = 1
TAG_BYTES = 16  # authenticates the frame where the buffer is encrypted; zeros where it is not
NO_TAG = bytes(TAG_BYTES)

_BALANCE = struct.Struct(f"<4sB3xQQQQQQQQQQQQQq{TAG_BYTES}sI")
_SEAL = struct.Struct(f"<4sB3xQQQQQQQQqqqQQQ{TAG_BYTES}sI")
BALANCE_BYTES, SEAL_BYTES = _BALANCE.size, _SEAL.size


class Balance(NamedTuple):
    """Cursor and ledger of a stream at one instant.

    ``retired``: every segment that ends at or before this number is gone, or about to be. ``rewrites``: how many
    rewritten segments (thinned or repaired) the counters include.
    """

    epoch: int
    serial: int  # of the segment that it stands in
    last_sequence: int = 0
    cursor: int = 0
    retired: int = 0
    acknowledged: int = 0
    expired: int = 0
    evicted: int = 0
    thinned: int = 0
    corrupt: int = 0
    rejected: int = 0
    rewrites: int = 0
    torn_bytes: int = 0  # cut from torn tails and kept in quarantine, over the stream's life
    time_unix_nano: int = 0  # by the steady clock, which ages records

    @property
    def start(self) -> int:
        """Records after this number are pending, if they are there."""
        return max(self.cursor, self.retired)

    @property
    def accounted_pending(self) -> int:
        """What must be pending by the account: every number is in exactly one place."""
        return self.last_sequence - (self.acknowledged + self.expired + self.evicted + self.thinned + self.corrupt)

    def through(self, last_sequence: int) -> Balance:
        """The account once the records up to *last_sequence* are on the disk; made for each commit."""
        return Balance(self.epoch, self.serial, last_sequence, *self[3:])

    def dropped(self) -> dict[DropReason, int]:
        return {reason: getattr(self, reason.value) for reason in DropReason}

    def pack(self) -> bytes:
        return _checked(_BALANCE.pack(BALANCE_MAGIC, VERSION, *self, NO_TAG, 0))


class Seal(NamedTuple):
    """The summary at the end of a closed segment."""

    epoch: int
    serial: int
    first_sequence: int  # of the first block; last_sequence + 1 when there is none
    last_sequence: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    blocks: int
    payload_bytes: int
    length: int  # bytes before the seal
    earliest_unix_nano: int = 0
    latest_unix_nano: int = 0
    written_unix_nano: int = 0  # when the newest record was appended, by the steady clock
    rewrite: int = 0  # 0, or the number of the rewrite that made this file
    rewrite_thinned: int = 0  # what that rewrite took away
    rewrite_corrupt: int = 0

    def pack(self) -> bytes:
        return _checked(_SEAL.pack(SEAL_MAGIC, VERSION, *self, NO_TAG, 0))


def unpack_balance(data: bytes | memoryview) -> Balance:
    """The balance at the start of *data*; CorruptBlockError or UnsupportedVersionError."""
    values = _unpacked(_BALANCE, BALANCE_MAGIC, data)
    balance = Balance(*values[2:-2])
    if balance.accounted_pending < 0 or balance.start > balance.last_sequence:
        raise CorruptBlockError("A balance does not balance.")
    return balance


def unpack_seal(data: bytes | memoryview) -> Seal:
    """The seal at the start of *data*; CorruptBlockError or UnsupportedVersionError."""
    seal = Seal(*_unpacked(_SEAL, SEAL_MAGIC, data)[2:-2])
    if (
        not 0 < seal.first_sequence <= seal.last_sequence + 1
        or seal.count > seal.last_sequence + 1 - seal.first_sequence
    ):
        raise CorruptBlockError("A seal counts what cannot be.")
    return seal


def _checked(data: bytes) -> bytes:
    body = data[:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


def _unpacked(shape: struct.Struct, magic: bytes, data: bytes | memoryview) -> tuple[int, ...]:
    if len(data) < shape.size:
        raise CorruptBlockError(f"A frame of {shape.size} bytes is cut to {len(data)}.")
    values = shape.unpack_from(data)
    if values[0] != magic:
        raise CorruptBlockError(f"There is no {magic.decode()} frame here.")
    if zlib.crc32(data[: shape.size - 4]) != values[-1]:
        raise CorruptBlockError("A frame fails its checksum.")
    if values[1] > VERSION:
        raise UnsupportedVersionError(f"A frame of format {values[1]}.")
    return values
