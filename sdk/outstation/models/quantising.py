"""Quantising a float model with the scales of a version before: then most of its numbers stay what they were.

A delta between two quantised versions is a few percent when they share their scales, and nearly everything when each
has its own. Scales that no longer fit cost accuracy, so both ways are tried on the publisher's data.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outstation.errors import InvalidInputError, MissingExtraError
from outstation.models.probe import ModelProbe, read_cases

try:
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
except ImportError as exc:
    raise MissingExtraError("publishing", "Quantising a model") from exc
import numpy as np

# Kept scales may miss the float model's answers by so much more than fresh ones do, in the root mean square.
ALLOWANCE = 1.25
_SUFFIX = "_quantized"  # what ONNX Runtime's quantiser puts behind the name of a weight
_TYPES = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8, "int16": QuantType.QInt16, "uint16": QuantType.QUInt16}

Overrides = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Quantised:
    """Which scales were taken, and how far each way is from the float model: root mean square of the difference by that
    of the float model's answers, over the data given.
    """

    kept: bool
    error_kept: float
    error_fresh: float


def quantise_like(source: Path, like: Path, data: Path, target: Path, *, allowance: float = ALLOWANCE) -> Quantised:
    """Write into *target* the float model *source*, quantised with the scales of *like*, or with fresh ones when those
    answer the cases of *data* (.npz as for goldens) worse than fresh ones by more than *allowance*.

    Raises InvalidInputError when *like* is not quantised in the QDQ format or has no tensor in common with *source*.
    """
    probe = ModelProbe(source)
    cases = read_cases(probe, data)
    wanted = [probe.run(case) for case in cases]
    overrides, style = _scales(like, _tensor_names(source))
    with tempfile.TemporaryDirectory(prefix="outstation-quantised-") as folder:
        errors = {}
        for way, chosen in (("kept", overrides), ("fresh", {})):
            path = Path(folder) / f"{way}.onnx"
            _quantise(source, path, cases, style, chosen)
            answers = ModelProbe(path)
            errors[way] = _error(wanted, [answers.run(case) for case in cases])
        kept = errors["kept"] <= allowance * errors["fresh"]
        target.write_bytes((Path(folder) / ("kept.onnx" if kept else "fresh.onnx")).read_bytes())
    return Quantised(kept, errors["kept"], errors["fresh"])


def _quantise(
    source: Path, target: Path, cases: Sequence[Mapping[str, Any]], style: Mapping[str, Any], overrides: Overrides
) -> None:
    try:
        quantize_static(
            str(source),
            str(target),
            _Cases(cases),
            quant_format=QuantFormat.QDQ,
            extra_options={"TensorQuantOverrides": {name: list(entries) for name, entries in overrides.items()}},
            **style,
        )
    except (ValueError, RuntimeError, KeyError) as exc:
        raise InvalidInputError(f"{source.name} cannot be quantised: {exc}") from exc


class _Cases(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """The cases, one call each."""

    def __init__(self, cases: Sequence[Mapping[str, Any]]) -> None:
        self._left = iter(cases)

    def get_next(self) -> Mapping[str, Any] | None:
        return next(self._left, None)


def _scales(like: Path, names: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """The scales of *like* for tensors among *names*, and how it was quantised."""
    graph = onnx.load(like).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    overrides: dict[str, list[dict[str, Any]]] = {}
    style: dict[str, Any] = {"per_channel": False}
    for node in graph.node:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or len(node.input) < 3:
            continue
        scale, zero = constants.get(node.input[1]), constants.get(node.input[2])
        is_weight = node.op_type == "DequantizeLinear" and node.input[0] in constants
        if scale is None or zero is None or zero.dtype.name not in _TYPES:
            continue  # a bias has 32 bits, and its scale follows from the others
        if node.op_type == "DequantizeLinear" and not is_weight:
            continue  # the other half of a pair
        name = node.input[0].removesuffix(_SUFFIX) if is_weight else node.input[0]
        style["weight_type" if is_weight else "activation_type"] = _TYPES[zero.dtype.name]
        style["per_channel"] |= scale.size > 1
        if name in names and (entries := _entries(node, scale, zero, names[name])):
            overrides[name] = entries
    if not overrides:
        raise InvalidInputError(
            f"{like.name} has no scales for the tensors of this model.",
            hint="It must have been quantised in the QDQ format, from a float model with the same names.",
        )
    return overrides, style


def _entries(node: Any, scale: Any, zero: Any, shape: tuple[int, ...]) -> list[dict[str, Any]]:
    """What onnxruntime calls overrides: one entry, or one for each channel; none when their number is another."""
    kind = _TYPES[zero.dtype.name]
    if scale.size == 1:
        return [{"quant_type": kind, "scale": scale.reshape(()), "zero_point": zero.reshape(())}]
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    if axis >= len(shape) or shape[axis] != scale.size:
        return []
    pairs = zip(scale, zero, strict=True)
    return [{"quant_type": kind, "axis": axis, "scale": np.asarray(s), "zero_point": np.asarray(z)} for s, z in pairs]


def _tensor_names(source: Path) -> dict[str, tuple[int, ...]]:
    """The tensors of a model by name, with the shape of the constant ones."""
    graph = onnx.load(source).graph
    values = [value.name for value in graph.input] + [name for node in graph.node for name in node.output]
    return dict.fromkeys(values, ()) | {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}


def _error(wanted: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    pairs = list(_floats(wanted, found))
    base = sum(float((right * right).sum()) for right, _ in pairs)
    off = sum(float(((answer - right) ** 2).sum()) for right, answer in pairs)
    return float(np.sqrt(off / base)) if base else float(np.sqrt(off))


def _floats(wanted: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Any]]:
    for right, answer in zip(wanted, found, strict=True):
        for name, array in right.items():
            yield array.astype("f8"), answer[name].astype("f8")
