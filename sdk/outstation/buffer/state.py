"""The state file of a stream: a checkpoint of what the log says, so that opening reads only what came after it.

One line ``outstation-stream 1 CRC32`` and one line of JSON. Losing it costs time at the next opening, and the marks
of producers whose blocks are gone; the log holds the rest.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

import msgspec

from outstation.buffer.frames import Balance
from outstation.errors import CorruptBlockError, UnsupportedVersionError
from outstation.shapes import learn

FILE_NAME = "state"
FORMAT = 1
# Ten million marks; a file beyond this is no state.
MAX_BYTES = 1 << 30
_FIRST_LINE = re.compile(rb"outstation-stream (\d+) ([0-9a-f]{8})\n")


class State(msgspec.Struct, frozen=True, kw_only=True):
    """``serial`` and ``offset`` say up to where in the log it knows."""

    stream: str
    epoch: str  # 16 hexadecimal digits: JSON numbers end at 2**53
    serial: int = 0
    offset: int = 0
    balance: dict[str, int] = {}
    marks: dict[str, int] = {}


def encode(stream: str, balance: Balance, serial: int, offset: int, marks: Mapping[str, int]) -> bytes:
    fields = balance._asdict()
    epoch = fields.pop("epoch")
    state = State(stream=stream, epoch=f"{epoch:016x}", serial=serial, offset=offset, balance=fields, marks=dict(marks))
    body = msgspec.json.encode(state) + b"\n"
    return b"outstation-stream %d %08x\n" % (FORMAT, zlib.crc32(body)) + body


def decode(data: bytes) -> tuple[State, Balance]:
    """CorruptBlockError, or UnsupportedVersionError for a state of a newer format."""
    first = _FIRST_LINE.match(data)
    if first is None:
        raise CorruptBlockError("There is no state here.")
    body = data[first.end() :]
    if zlib.crc32(body) != int(first[2], 16):
        raise CorruptBlockError("A state file fails its checksum.")
    if int(first[1]) > FORMAT:
        raise UnsupportedVersionError(f"A state file of format {int(first[1])}.")
    try:
        state = msgspec.json.decode(body, type=State)
        balance = Balance(epoch=int(state.epoch, 16), **state.balance)
    except (msgspec.DecodeError, TypeError, ValueError) as exc:
        raise CorruptBlockError("A state file does not decode.") from exc
    return state, balance


learn(State)
