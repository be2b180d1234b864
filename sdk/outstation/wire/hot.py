"""The two messages of every inference call, read and written by hand where that is worth it.

A client repeats itself: between two calls only the elements of the tensors change, and they lie at the end of the
message. So a message whose beginning was read once is not read again: its tensors are views on the new bytes. An
answer is put together from a beginning made once for its shape. Both hold what a few dozen clients differ in, no more.

The encoding is protobuf's: a field is its number and kind in one byte, a length, and its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from outstation.wire.datatypes import DTYPES, Array
from outstation.wire.shared import Window

Head = TypeVar("Head")

RAW_INPUT_TAG = b"\x3a"  # ModelInferRequest.raw_input_contents = 7
RAW_OUTPUT_TAG = b"\x32"  # ModelInferResponse.raw_output_contents = 6
ID_TAG = b"\x1a"  # ModelInferResponse.id = 3
# Message lengths, and beginnings of one length, that are remembered. Clients of one model send one or two of each.
_MAX_LENGTHS = 64
_MAX_ALIKE = 4
# Of a request that names places in shared memory and brings nothing; a dozen of them are shorter.
_MAX_REPEATED_BYTES = 1024


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: ``header`` (tag and length) ends at ``at``."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]
    count: int
    header: bytes
    at: int


class Beginnings(Generic[Head]):
    """Beginnings of requests that were read before. Thread-safe: entries are immutable, losing one costs a little."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[bytes, Head, tuple[_Place, ...]], ...]] = {}

    def find(self, data: bytes | bytearray) -> tuple[Head, dict[str, Array]] | None:
        """What was learned with this beginning, and the tensors of *data*; None when it is new."""
        for prefix, head, places in self._known.get(len(data), ()):
            if data.startswith(prefix) and all(data.startswith(p.header, p.at - len(p.header)) for p in places[1:]):
                return head, {p.name: np.frombuffer(data, p.dtype, p.count, p.at).reshape(p.shape) for p in places}
        return None

    def learn(self, data: bytes | bytearray, head: Head, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> None:
        """Remember the beginning of *data*, whose *tensors* (name, datatype, shape) all came raw, in that order.

        Nothing is learned when they do not lie at the end of *data* one behind the other, or have no fixed size.
        """
        at = len(data)
        places: list[_Place] = []
        for name, datatype, shape in reversed(tensors):
            dtype = DTYPES[datatype]
            if dtype.kind == "O":
                return
            count = math.prod(shape)
            header = RAW_INPUT_TAG + varint(count * dtype.itemsize)
            at -= count * dtype.itemsize
            if at < len(header) or not data.startswith(header, at - len(header)):
                return
            places.insert(0, _Place(name, shape, dtype, count, header, at))
            at -= len(header)
        if not places:
            return
        if len(self._known) >= _MAX_LENGTHS:
            self._known.clear()
        alike = self._known.get(len(data), ())[-_MAX_ALIKE + 1 :]
        self._known[len(data)] = (*alike, (bytes(data[: places[0].at]), head, tuple(places)))


class Repeats(Generic[Head]):
    """Whole requests that were read before: one whose tensors lie in shared memory is the same each time. As above."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}

    def find(self, data: bytes | bytearray) -> Head | None:
        """What was learned of *data*."""
        return self._known.get(bytes(data)) if len(data) <= _MAX_REPEATED_BYTES else None

    def learn(self, data: bytes | bytearray, head: Head) -> None:
        """Remember *head*, which must be immutable, unless *data* is long."""
        if len(data) <= _MAX_REPEATED_BYTES:
            if len(self._known) >= _MAX_LENGTHS:
                self._known.clear()
            self._known[bytes(data)] = head


class Answers:
    """Beginnings of responses by what they say. Thread-safe, as above."""

    def __init__(self, make: Callable[[str, str, Mapping[str, Array], Mapping[str, Window]], bytes]) -> None:
        """*make* writes all but id and elements, for a model, a version and arrays of the wanted types and shapes."""
        self._make = make
        self._known: dict[tuple[object, ...], bytes] = {}

    def pack(
        self, model: str, version: str, request_id: str, outputs: Mapping[str, Array], into: Mapping[str, Window]
    ) -> bytes:
        """The response with *outputs*, none of them BYTES, as raw contents; those named in *into* lie there."""
        key: tuple[object, ...] = (model, version, *((name, a.dtype, a.shape) for name, a in outputs.items()))
        if into:
            key += (tuple(into.items()),)
        beginning = self._known.get(key)
        if beginning is None:
            if len(self._known) >= _MAX_LENGTHS:
                self._known.clear()
            beginning = self._known[key] = self._make(model, version, outputs, into)
        parts = [beginning]
        if request_id:
            text = request_id.encode()
            parts += (ID_TAG, varint(len(text)), text)
        for name, array in outputs.items():
            if name in into:
                parts += (RAW_OUTPUT_TAG, b"\0")  # clients find the others by their place
                continue
            parts += (RAW_OUTPUT_TAG, varint(array.nbytes), array.tobytes())
        return b"".join(parts)


def varint(value: int) -> bytes:
    """*value* as protobuf writes a length."""
    if value < 128:
        return bytes((value,))
    octets = bytearray()
    while value >= 128:
        octets.append(value & 127 | 128)
        value >>= 7
    octets.append(value)
    return bytes(octets)
