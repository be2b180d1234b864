"""The publisher's look into a model file, with ONNX Runtime: what it takes and gives, and what it answers.

The one file of this room that needs onnxruntime. A device does its own checks (``outstation.inference``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from outstation.errors import InferenceError, InvalidInputError, ModelLoadError
from outstation.models.manifest import ANY, Golden, Manifest, TensorSpec
from outstation.models.pipeline import Pipeline
from outstation.ort import load_onnxruntime

onnxruntime = load_onnxruntime("Reading a model file")
import numpy as np  # noqa: E402  of the same extra

_DATATYPES = {
    "bool": "BOOL",
    "string": "BYTES",
    "float16": "FP16",
    "float": "FP32",
    "double": "FP64",
    "bfloat16": "BF16",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_INPUT, _OUTPUT = "input/", "output/"
# A spot check, not a test set: every device computes it before every activation.
MAX_CASES = 1024

Arrays = Mapping[str, Any]


class ModelProbe:
    """An open model file. ModelLoadError when the runtime cannot read it."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # fatal only: what is wrong comes as an exception
        options.intra_op_num_threads = 1  # as on a device; answers do not depend on the order of sums then
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=["CPUExecutionProvider"]
            )
        except Exception as exc:
            raise ModelLoadError(f"{path.name} is no model that ONNX Runtime can load: {_short(exc)}") from exc
        self.inputs = _specs(self._session.get_inputs())
        self.outputs = _specs(self._session.get_outputs())

    def run(self, inputs: Arrays) -> dict[str, Any]:
        """The answer to one call. InferenceError when the runtime fails."""
        try:
            names = [spec.name for spec in self.outputs]
            return dict(zip(names, self._session.run(names, dict(inputs)), strict=True))
        except Exception as exc:
            raise InferenceError(f"The model cannot compute the golden inputs: {_short(exc)}") from exc


class ProcessedProbe:
    """A model file together with its processing: what a caller gives, and gets."""

    def __init__(self, probe: ModelProbe, pipeline: Pipeline) -> None:
        self._probe = probe
        self._pipeline = pipeline
        self.inputs = pipeline.inputs
        self.outputs = pipeline.outputs

    def run(self, inputs: Arrays) -> dict[str, Any]:
        """As :meth:`ModelProbe.run`. InvalidInputError for inputs that cannot be prepared."""
        values = self._probe.run(self._pipeline.feed(inputs))
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._pipeline.answers(names, values), strict=True))


Probe: TypeAlias = ModelProbe | ProcessedProbe


def processed(probe: ModelProbe, manifest: Manifest, labels: Sequence[str]) -> Probe:
    """*probe* as a caller of the version that *manifest* describes sees it."""
    return probe if manifest.processing is None else ProcessedProbe(probe, Pipeline(manifest, labels))


def golden_file(probe: Probe, source: Path, target: Path, golden: Golden, *, check: bool) -> int:
    """Write *target*, the golden file of a bundle, from *source*; returns the number of cases.

    *source* is an .npz with arrays ``input/NAME``, or plain ``NAME``, first axis the cases: the expected outputs are
    what the model answers. With arrays ``output/NAME`` too, those are the expected ones, and unless *check* is False
    the model must meet them. InvalidInputError says what is wrong with the file.
    """
    arrays = _read(source)
    inputs = {name: arrays[_INPUT + name] for name in (spec.name for spec in probe.inputs) if _INPUT + name in arrays}
    expected = {key.removeprefix(_OUTPUT): array for key, array in arrays.items() if key.startswith(_OUTPUT)}
    _check_names(probe, source, arrays, inputs, expected)
    cases = _cases(probe, source, inputs)
    answers = _answers(probe, cases, inputs) if check or not expected else {}
    for name, array in expected.items():
        if check:
            _compare(source, name, array, answers[name], golden)
    kept = expected or answers
    if any(len(array) != cases for array in kept.values()):
        raise InvalidInputError(f"{source.name}: inputs and outputs do not hold the same number of cases.")
    with target.open("wb") as file:
        np.savez(
            file,
            **{_INPUT + name: array for name, array in inputs.items()},
            **{_OUTPUT + name: _without_objects(array) for name, array in kept.items()},
        )
    return cases


def read_cases(probe: Probe, source: Path) -> list[dict[str, Any]]:
    """The inputs of each case in *source*, an .npz as for :func:`golden_file`; outputs in it are passed over."""
    arrays = _read(source)
    inputs = {key.removeprefix(_INPUT): array for key, array in arrays.items() if key.startswith(_INPUT)}
    _check_names(probe, source, {_INPUT + name: array for name, array in inputs.items()}, inputs, {})
    return _calls(probe, _cases(probe, source, inputs), inputs)


def _calls(probe: Probe, cases: int, inputs: Arrays) -> list[dict[str, Any]]:
    ranks = {spec.name: len(spec.shape) for spec in probe.inputs}
    return [
        {name: a[case] if a.ndim == ranks[name] + 1 else a[case : case + 1] for name, a in inputs.items()}
        for case in range(cases)
    ]


def _answers(probe: Probe, cases: int, inputs: Arrays) -> dict[str, Any]:
    """What the model answers to each case alone, put together along the first axis."""
    rows: dict[str, list[Any]] = {spec.name: [] for spec in probe.outputs}
    for one in _calls(probe, cases, inputs):
        for name, answer in probe.run(one).items():
            rows[name].append(answer)
    specs = {spec.name: spec for spec in probe.outputs}
    return {
        name: np.concatenate(values) if specs[name].shape and all(len(v) == 1 for v in values) else np.stack(values)
        for name, values in rows.items()
    }


def _cases(probe: Probe, source: Path, inputs: Arrays) -> int:
    lengths = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(lengths) != 1 or not 0 < max(lengths) <= MAX_CASES:
        raise InvalidInputError(
            f"{source.name}: the inputs hold {sorted(lengths)} cases; the same number, 1 to {MAX_CASES}, is needed."
        )
    for spec in probe.inputs:
        if inputs[spec.name].ndim - len(spec.shape) not in {0, 1}:
            raise InvalidInputError(
                f"{source.name}: input/{spec.name} has {inputs[spec.name].ndim} dimensions; the model takes "
                f"{len(spec.shape)}, and one more for the cases is allowed."
            )
    return int(max(lengths))


def _check_names(probe: Probe, source: Path, arrays: Arrays, inputs: Arrays, expected: Arrays) -> None:
    wanted = [spec.name for spec in probe.inputs]
    for name in wanted:
        if name not in inputs:
            raise InvalidInputError(f"{source.name} has no array input/{name}; the model takes {', '.join(wanted)}.")
    known = {_INPUT + name for name in wanted} | {_OUTPUT + spec.name for spec in probe.outputs}
    for key in [*arrays, *(_OUTPUT + name for name in expected)]:
        if key not in known:
            raise InvalidInputError(f"{source.name}: {key} is no input or output of the model ({_list(known)}).")


def _compare(source: Path, name: str, expected: Any, answer: Any, golden: Golden) -> None:
    same_shape = expected.shape == answer.shape
    if same_shape and expected.dtype.kind == "f":
        allowed = golden.absolute + golden.relative * np.abs(expected)
        wrong = ~((np.abs(answer - expected) <= allowed) | (np.isnan(answer) & np.isnan(expected)))
    elif same_shape:
        wrong = np.asarray(answer != expected)
    else:
        raise InvalidInputError(
            f"{source.name}: output/{name} has shape {list(expected.shape)}, the model answers {list(answer.shape)}."
        )
    if wrong.any():
        case = int(np.argwhere(wrong)[0][0])
        raise InvalidInputError(
            f"{source.name}: the model misses output/{name} in case {case} ({int(wrong.sum())} numbers are off).",
            hint="Correct the golden file, or publish with --no-check.",
        )


def _read(source: Path) -> dict[str, Any]:
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, KeyError) as exc:
        raise InvalidInputError(f"{source} cannot be read as a golden file (.npz without pickles): {exc}.") from exc
    return {key if "/" in key else _INPUT + key: array for key, array in arrays.items()}


def _specs(nodes: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(node.name, _datatype(node), tuple(_length(size) for size in node.shape)) for node in nodes)


def _datatype(node: Any) -> str:
    inner = str(node.type).removeprefix("tensor(").removesuffix(")")
    if inner not in _DATATYPES:
        raise ModelLoadError(f"{node.name!r} is of type {node.type}, which no call can carry.")
    return _DATATYPES[inner]


def _length(size: Any) -> int:
    return size if isinstance(size, int) and size >= 0 else ANY


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names))


def _without_objects(array: Any) -> Any:
    """Text in numpy's fixed width: an array of objects would be written as a pickle."""
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def _short(exc: Exception) -> str:
    """The first line of an error of the runtime, without its prefix of codes."""
    return str(exc).splitlines()[0].rpartition(" : ")[2][:300]
