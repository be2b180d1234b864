"""Making a delta at the publisher's desk: tensor by tensor, the cheapest way to say it. docs/delta.md has the format.

For each tensor the smallest of: a copy of bytes that the old file has, its bytes by planes (the first byte of every
number, then the second, ...), its difference to the old tensor as whole numbers by planes, or only the numbers that
changed. Numbers that changed a little differ in their low bytes only, and the planes of the high ones are nearly
empty. What lies between the tensors is compressed with the old file's like as dictionary.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outstation import zstd
from outstation.errors import MissingExtraError, mapped_os_errors
from outstation.models.delta import (
    BLOCK_LANES,
    DIFFERENCE,
    GAPS,
    LONG_GAP,
    MAX_PREFIX_BYTES,
    MAX_PREFIX_RANGES,
    MAX_PROGRAM_BYTES,
    MIN_PREFIX_BYTES,
    PROGRAM,
    RAW,
    REST,
    STEP_COPY,
    STEP_DIFFERENCE,
    STEP_RAW,
    STEP_REST,
    STEP_SPARSE,
    VALUES,
)
from outstation.models.delta_streams import QUICK, Streams
from outstation.models.tensors import Data, Tensor, find_tensors

if TYPE_CHECKING:
    import numpy as np

    Lanes = np.ndarray[Any, np.dtype[Any]]

# More changed numbers than these, and naming each costs more than the differences of all.
_SPARSE_SHARE = 1 / 8


@dataclass(frozen=True, slots=True)
class TensorStep:
    """How one tensor of the new file is sent: "same", "difference", "sparse" or "whole", in about how many bytes."""

    tensor: Tensor
    before: Tensor | None
    way: str
    packed_bytes: int


@dataclass(frozen=True, slots=True)
class DeltaReport:
    """What the delta holds. ``gone`` are tensors of the old file that none of the new one was compared with."""

    size_bytes: int
    result_bytes: int
    steps: tuple[TensorStep, ...]
    gone: tuple[Tensor, ...]


def encode_delta(
    base: Path,
    result: Path,
    delta: Path,
    *,
    base_tensors: Sequence[Tensor] | None = None,
    result_tensors: Sequence[Tensor] | None = None,
) -> DeltaReport:
    """Write into *delta* what makes *result* out of *base*: the same files and the same zstd give the same bytes.

    The files are mapped, not read. Their tensors are looked for in them unless they are given, as they must be for
    external data. Raises MissingExtraError without numpy, DiskFullError, DiskError.
    """
    _numpy()
    with mapped_os_errors(doing="make the delta", path=delta):
        old, new = map_file(base), map_file(result)
        before = tensors_of(base) if base_tensors is None else base_tensors
        after = tensors_of(result) if result_tensors is None else result_tensors
        with _encoded(old, new, before, after) as encoding, delta.open("wb") as file:
            head = (len(old), len(new), hashlib.sha256(old).digest(), hashlib.sha256(new).digest())
            encoding.streams.write(file, head, encoding.prefix())
            size = file.tell()
        compared = {step.before for step in encoding.steps}
        gone = tuple(tensor for tensor in before if tensor not in compared)
        return DeltaReport(size, len(new), tuple(encoding.steps), gone)


def tensors_of(file: Path, model: Path | None = None, location: str = "") -> list[Tensor]:
    """The tensors in *file*: an ONNX model, or the external data that *model* calls *location*. None beyond its end."""
    size = file.stat().st_size
    return [
        tensor
        for tensor in find_tensors(map_file(model or file))
        if tensor.location.removeprefix("./") == location and tensor.offset + tensor.size <= size
    ]


def map_file(path: Path) -> Data:
    """The bytes of *path*, as long as somebody looks at them."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""  # nothing cannot be mapped
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def lanes_of(data: Data, tensor: Tensor) -> Lanes:
    """The numbers of *tensor* as unsigned ones, without a copy."""
    np = _numpy()
    lanes: Lanes = np.frombuffer(data, f"<u{tensor.width}", tensor.size // tensor.width, tensor.offset)
    return lanes


def pairs(before: Iterable[Tensor], after: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """For tensors of the new file, that of the old one to compare with: of the same name and size, else of the same
    type and size in the same order, for an exporter that numbers its names anew.
    """
    found: dict[Tensor, Tensor] = {}
    left = list(before)
    for key in (_name_and_size, _type_and_size):
        waiting: dict[tuple[object, ...], list[Tensor]] = {}
        for tensor in left:
            waiting.setdefault(key(tensor), []).append(tensor)
        for tensor in after:
            if tensor not in found and waiting.get(key(tensor)):
                found[tensor] = waiting[key(tensor)].pop(0)
        left = [tensor for tensors in waiting.values() for tensor in tensors]
    return found


def _name_and_size(tensor: Tensor) -> tuple[object, ...]:
    return tensor.name, tensor.data_type, tensor.width, tensor.size


def _type_and_size(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_type, tensor.width, tensor.size


@contextmanager
def _encoded(old: Data, new: Data, before: Sequence[Tensor], after: Sequence[Tensor]) -> Iterator[_Encoding]:
    with Streams() as streams:
        encoding = _Encoding(old, new, streams, before, after)
        if streams.size(PROGRAM) <= MAX_PROGRAM_BYTES:
            yield encoding
            return
    with Streams() as streams:  # more tensors than a program may name: one rest, then
        yield _Encoding(old, new, streams, (), ())


class _Encoding:
    """The new file put into streams, from its beginning to its end."""

    def __init__(
        self, old: Data, new: Data, streams: Streams, before: Sequence[Tensor], after: Sequence[Tensor]
    ) -> None:
        self.streams = streams
        self.steps: list[TensorStep] = []
        self._old = old
        self._new = new
        self._places = {_digest(old, tensor): tensor for tensor in reversed(before)}
        self._ranges = _prefix_ranges(before, len(old))
        self._program(len(self._ranges), *(number for part in self._ranges for number in part))
        likes = pairs(before, after)
        at = 0
        for tensor in after:
            self._rest(at, tensor.offset)
            self.steps.append(self._step(tensor, likes.get(tensor)))
            at = tensor.offset + tensor.size
        self._rest(at, len(new))

    def prefix(self) -> bytes:
        """The dictionary of the rest."""
        return b"".join(self._old[offset : offset + size] for offset, size in self._ranges)

    def _program(self, *numbers: int) -> None:
        self.streams.add(b"".join(map(_varint, numbers)), PROGRAM)

    def _rest(self, start: int, end: int) -> None:
        if end > start:
            self._program(STEP_REST, end - start)
            self.streams.add(self._new[start:end], REST)

    def _step(self, tensor: Tensor, before: Tensor | None) -> TensorStep:
        same = self._places.get(_digest(self._new, tensor))
        if same is not None:
            self._program(STEP_COPY, same.offset, tensor.size)
            return TensorStep(tensor, before or same, "same", 0)
        new = lanes_of(self._new, tensor)
        ways: list[_Way] = [_Whole(new)]
        if before is not None:
            coded = zigzag(new, lanes_of(self._old, before))
            ways.append(_Difference(coded, before.offset))
            if len(changed := coded.nonzero()[0]) <= len(coded) * _SPARSE_SHARE:
                ways.append(_Sparse(coded, changed, before.offset))
        best = min(ways, key=lambda way: way.cost)
        self._program(*best.program)
        for key, planes in best.planes.items():
            for plane, data in enumerate(planes):
                self.streams.add(data, key, best.width if key != GAPS else 1, plane)
        return TensorStep(tensor, before, best.name, best.cost)


class _Way:
    """One way to send a tensor: its step, the planes for the streams, and what they cost in the quick way."""

    name = ""

    def __init__(self, width: int, program: list[int], planes: dict[int, list[bytes]]) -> None:
        self.width = width
        self.program = program
        self.planes = planes
        self.cost = sum(
            len(zstd.compress(plane, options=dict(QUICK))) for group in planes.values() for plane in group
        ) + len(program)


class _Whole(_Way):
    name = "whole"

    def __init__(self, lanes: Lanes) -> None:
        super().__init__(lanes.itemsize, [STEP_RAW, lanes.itemsize, len(lanes)], {RAW: _planes(lanes)})


class _Difference(_Way):
    name = "difference"

    def __init__(self, coded: Lanes, offset: int) -> None:
        program = [STEP_DIFFERENCE, coded.itemsize, offset, len(coded)]
        super().__init__(coded.itemsize, program, {DIFFERENCE: _planes(coded)})


class _Sparse(_Way):
    """The differences that are not zero, each after the gap of those that are: in every block of lanes anew."""

    name = "sparse"

    def __init__(self, coded: Lanes, changed: Lanes, offset: int) -> None:
        np = _numpy()
        block, place = np.divmod(changed, BLOCK_LANES)
        previous = np.roll(place, 1)
        previous[np.flatnonzero(np.diff(block, prepend=-1))] = -1  # the first of each block
        gaps = place - previous - 1
        longs = gaps // LONG_GAP
        bytes_ = np.full(int((longs + 1).sum()), LONG_GAP, np.uint8)
        bytes_[np.cumsum(longs + 1) - 1] = gaps % LONG_GAP
        blocks = -(-len(coded) // BLOCK_LANES)
        entries = np.bincount(block, longs + 1, blocks).astype(int).tolist()
        program = [STEP_SPARSE, coded.itemsize, offset, len(coded), *entries]
        super().__init__(coded.itemsize, program, {GAPS: [bytes_.tobytes()], VALUES: _planes(coded[changed])})


def zigzag(new: Lanes, old: Lanes) -> Lanes:
    """*new* minus *old* as whole numbers, modulo their width: 0, -1, 1, -2, ... as 0, 1, 2, 3, ..."""
    np = _numpy()
    difference = new - old
    signed = difference.view(f"<i{difference.itemsize}")
    coded: Lanes = (difference << np.uint8(1)) ^ (signed >> np.int8(8 * signed.itemsize - 1)).view(difference.dtype)
    return coded


def _planes(lanes: Lanes) -> list[bytes]:
    np = _numpy()
    rows = lanes.view(np.uint8).reshape(-1, lanes.itemsize)
    return [rows[:, plane].tobytes() for plane in range(lanes.itemsize)]


def _prefix_ranges(tensors: Sequence[Tensor], size: int) -> list[tuple[int, int]]:
    """Offset and size of what lies between *tensors* in a file of *size* bytes, as far as a dictionary may reach."""
    ends = [0, *(tensor.offset + tensor.size for tensor in tensors)]
    starts = [*(tensor.offset for tensor in tensors), size]
    room = MAX_PREFIX_BYTES
    ranges: list[tuple[int, int]] = []
    for end, start in zip(ends, starts, strict=True):
        if (part := min(start - end, room)) > 0 and len(ranges) < MAX_PREFIX_RANGES:
            ranges.append((end, part))
            room -= part
    return ranges if MAX_PREFIX_BYTES - room >= MIN_PREFIX_BYTES else []


def _digest(data: Data, tensor: Tensor) -> bytes:
    return hashlib.sha256(memoryview(data)[tensor.offset : tensor.offset + tensor.size]).digest()


def _varint(number: int) -> bytes:
    data = bytearray()
    while number >= 0x80:
        data.append(number & 0x7F | 0x80)
        number >>= 7
    data.append(number)
    return bytes(data)


def _numpy() -> Any:
    try:
        import numpy as np  # noqa: PLC0415 - an extra
    except ImportError as exc:
        raise MissingExtraError("onnx", "Making a delta") from exc
    return np
