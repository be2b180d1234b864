"""Where the tensors lie in an ONNX file: a walk through its protobuf that needs neither onnx nor protobuf. Pure.

A hint for the encoder of deltas, not more: a file that is no ONNX has no tensors, and a walk that breaks off has found
those before it. Numbers of messages and fields are those of onnx.proto3.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeAlias

# What a message is made of: the number of a field → the message in it. Only the ways to tensors are followed.
_WAYS: Mapping[str, Mapping[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
# Bytes of one number in raw_data and external data, by TensorProto.DataType; what is packed closer counts as bytes.
_WIDTHS = {1: 4, 4: 2, 5: 2, 6: 4, 7: 8, 10: 2, 11: 8, 12: 4, 13: 8, 14: 4, 15: 8, 16: 2}
_STRINGS = 8
_DATA_TYPE, _FLOATS, _NAME, _RAW, _DOUBLES, _EXTERNAL, _LOCATION = 2, 4, 8, 9, 10, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_NUMBER = re.compile(r"[0-9]{1,18}")
_MAX_DEPTH = 64  # of subgraphs within subgraphs; python's own stack is deeper
# Below, a tensor is left where it is: a scale or a shape costs more as a step of its own.
MIN_TENSOR_BYTES = 256


Data: TypeAlias = bytes | mmap.mmap  # the contents of a file, read or mapped into memory


@dataclass(frozen=True, slots=True)
class Tensor:
    """Numbers that lie side by side, *width* bytes each; *location* is the file beside the model, "" the model itself.

    ``data_type`` is a number of TensorProto.DataType.
    """

    name: str
    data_type: int
    width: int
    offset: int
    size: int
    location: str = ""


def find_tensors(data: Data) -> list[Tensor]:
    """The tensors of the model in *data* with at least MIN_TENSOR_BYTES, by location and offset, none over another.

    Numbers in varints (int32_data, int64_data, uint64_data) and strings are not among them.
    """
    found: list[Tensor] = []
    with suppress(_NotProtobufError):
        for tensor in _walk(data, "model", 0, len(data), 0):
            found.append(tensor)  # noqa: PERF402 - what came before the walk breaks off counts
    kept: list[Tensor] = []
    for tensor in sorted(found, key=lambda tensor: (tensor.location, tensor.offset)):
        before = kept[-1] if kept and kept[-1].location == tensor.location else None
        if tensor.size >= MIN_TENSOR_BYTES and (before is None or before.offset + before.size <= tensor.offset):
            kept.append(tensor)
    return kept


class _NotProtobufError(Exception):
    """Bytes that are no protobuf. Stays inside this file."""


@dataclass(slots=True)
class _Parts:
    """One TensorProto while it is read."""

    name: str = ""
    data_type: int = 0
    places: list[tuple[int, int, int]] = field(default_factory=list)  # width (0 = of the data type), offset, size
    external: dict[str, str] = field(default_factory=dict)
    is_external: bool = False


def _walk(data: Data, message: str, start: int, end: int, depth: int) -> Iterator[Tensor]:
    if depth > _MAX_DEPTH:
        raise _NotProtobufError
    ways = _WAYS[message]
    for number, wire, value, size in _fields(data, start, end):
        inner = ways.get(number) if wire == _BYTES else None
        if inner == "tensor":
            yield from _tensor(data, value, value + size)
        elif inner is not None:
            yield from _walk(data, inner, value, value + size, depth + 1)


def _tensor(data: Data, start: int, end: int) -> Iterator[Tensor]:
    parts = _Parts()
    for number, wire, value, size in _fields(data, start, end):
        if number == _DATA_TYPE and wire == _VARINT:
            parts.data_type = value
        elif number == _LOCATION and wire == _VARINT:
            parts.is_external = value == 1
        elif wire != _BYTES:
            continue
        elif number == _NAME:
            parts.name = data[value : value + size].decode("utf-8", "replace")
        elif number in {_RAW, _FLOATS, _DOUBLES}:
            parts.places.append(({_RAW: 0, _FLOATS: 4, _DOUBLES: 8}[number], value, size))
        elif number == _EXTERNAL:
            entry = [data[at : at + count] for _, kind, at, count in _fields(data, value, value + size) if kind == 2]
            if len(entry) == 2:
                parts.external[entry[0].decode("utf-8", "replace")] = entry[1].decode("utf-8", "replace")
    yield from _placed(parts)


def _placed(parts: _Parts) -> Iterator[Tensor]:
    if parts.data_type == _STRINGS:
        return
    location = ""
    if parts.is_external:
        location = parts.external.get("location", "")
        numbers = [parts.external.get(key, "0") for key in ("offset", "length")]
        if not location or not all(_NUMBER.fullmatch(number) for number in numbers):
            return
        parts.places = [(0, int(numbers[0]), int(numbers[1]))]
    for width, offset, size in parts.places:
        lanes = width or _WIDTHS.get(parts.data_type, 1)
        yield Tensor(parts.name, parts.data_type, 1 if size % lanes else lanes, offset, size, location)


def _fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Number, wire type, value (of a varint) or offset, and size of each field between *start* and *end*."""
    at = start
    while at < end:
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield number, wire, value, 0
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        elif wire in {_FIXED64, _FIXED32}:
            size = 8 if wire == _FIXED64 else 4
        else:
            raise _NotProtobufError
        if size > end - at:
            raise _NotProtobufError
        yield number, wire, at, size
        at += size


def _varint(data: Data, at: int, end: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : min(at + 10, end)]):
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, at + index + 1
    raise _NotProtobufError
