"""What changed between two versions of a model: which tensors, by how much, and what that costs to send."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outstation import zstd
from outstation.errors import mapped_os_errors
from outstation.models.delta_encoder import TensorStep, encode_delta, lanes_of, map_file, tensors_of
from outstation.models.tensors import Data, Tensor

# numpy's names of what TensorProto.DataType numbers; bfloat16 is read as the upper half of a float32.
_DTYPES = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}
_BFLOAT16 = 16


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor: how it is sent, the share of its numbers that changed, and the largest and the typical change.

    ``way`` is "same", "sparse", "difference" or "whole" as in a delta, "new" without a like in the old file, "gone".
    ``largest`` is the greatest absolute change, ``relative`` the root mean square of the change by that of the old
    values; None where there is nothing to compare or no number type that is known.
    """

    name: str
    bytes: int
    way: str
    packed_bytes: int
    changed: float | None = None
    largest: float | None = None
    relative: float | None = None


@dataclass(frozen=True, slots=True)
class FileDiff:
    """One file of two versions: sizes in bytes of the whole, of the whole under zstd -19, of the delta."""

    whole_bytes: int
    zstd_bytes: int
    delta_bytes: int
    tensors: tuple[TensorChange, ...]


def diff_files(before: Path, after: Path) -> FileDiff:
    """Compare two ONNX files. The tensors of external data are not looked at. MissingExtraError, StorageError."""
    with (
        mapped_os_errors(doing="compare the files", path=after),
        tempfile.TemporaryDirectory(prefix="outstation-diff-") as folder,
    ):
        tensors = tensors_of(before), tensors_of(after)
        report = encode_delta(before, after, Path(folder) / "delta", base_tensors=tensors[0], result_tensors=tensors[1])
        old, new = map_file(before), map_file(after)
        changes = [_change(old, new, step) for step in report.steps]
        changes += [TensorChange(tensor.name, tensor.size, "gone", 0) for tensor in report.gone]
        return FileDiff(report.result_bytes, _packed_size(new), report.size_bytes, tuple(changes))


def _change(old: Data, new: Data, step: TensorStep) -> TensorChange:
    tensor, before = step.tensor, step.before
    if step.way == "same":
        return TensorChange(tensor.name, tensor.size, "same", 0, 0.0, 0.0, 0.0)
    if before is None:
        return TensorChange(tensor.name, tensor.size, "new", step.packed_bytes)
    share = float((lanes_of(new, tensor) != lanes_of(old, before)).mean())
    return TensorChange(
        tensor.name, tensor.size, step.way, step.packed_bytes, share, *_distance(old, before, new, tensor)
    )


def _distance(old: Data, before: Tensor, new: Data, after: Tensor) -> tuple[float | None, float | None]:
    """The largest absolute change, and the root mean square of the change by that of the old values."""
    first, second = _numbers(old, before), _numbers(new, after)
    if first is None or second is None:
        return None, None
    change = second - first
    base = math.sqrt(float((first * first).mean()))
    largest = float(abs(change).max())
    relative = math.sqrt(float((change * change).mean())) / base if base else None
    return _finite(largest), _finite(relative)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _numbers(data: Data, tensor: Tensor) -> Any:
    """The values of *tensor* as float64, or None for a type that has no numbers."""
    lanes = lanes_of(data, tensor)
    if tensor.data_type == _BFLOAT16 and tensor.width == 2:
        return (lanes.astype("<u4") << 16).view("<f4").astype("f8")
    kind = _DTYPES.get(tensor.data_type)
    return lanes.view(kind).astype("f8") if kind and lanes.dtype.itemsize == int(kind[-1]) else None


def _packed_size(data: Data) -> int:
    """Bytes of *data* under zstd -19: what a peer without deltas would send."""
    frame = zstd.ZstdCompressor(19)
    pieces = (len(frame.compress(piece)) for piece in _pieces(data))
    return sum(pieces) + len(frame.flush())


def _pieces(data: Data) -> Iterator[bytes]:
    return (data[at : at + (1 << 20)] for at in range(0, len(data), 1 << 20))
