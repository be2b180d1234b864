"""ONNX Runtime as a :class:`outstation.inference.runtime.Runtime`."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from outstation.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    ModelLoadError,
)
from outstation.inference.runtime import RuntimeOptions, Stop, chosen_accelerators
from outstation.models.manifest import ANY, TensorSpec
from outstation.ort import load_onnxruntime
from outstation.types import Placement
from outstation.wire.datatypes import BF16

onnxruntime = load_onnxruntime("Running an ONNX model")
ort_errors = onnxruntime.capi.onnxruntime_pybind11_state

# What is tried when the settings name nothing, best first. Azure's "provider" is a remote call: never by itself.
PREFERENCE = ("tensorrt", "cuda", "openvino", "qnn", "cpu")
_PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
_SHORT = {provider: short for short, provider in _PROVIDERS.items()}
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(bfloat16)": "BF16",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ONNX_BF16 = 16  # TensorProto.BFLOAT16
# ONNX Runtime prints what it also raises; 4 = only what ends the process.
_FATAL = 4
_PREFIX = re.compile(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ")


class OnnxRuntime:
    """ONNX Runtime, as installed."""

    name = "onnx"

    @property
    def version(self) -> str:
        return str(onnxruntime.__version__)

    def load(self, path: Path, options: RuntimeOptions) -> OnnxSession:
        """See :meth:`outstation.inference.runtime.Runtime.load`. Imports nothing of accelerators that are not there."""
        present = {_SHORT.get(provider, provider) for provider in onnxruntime.get_available_providers()}
        wanted, fallbacks = chosen_accelerators(options.accelerators, PREFERENCE, present, "ONNX Runtime")
        with _loading(path):
            session = onnxruntime.InferenceSession(
                str(path), _session_options(options), providers=[_PROVIDERS[short] for short in wanted]
            )
        used = [_SHORT.get(provider, provider) for provider in session.get_providers()]
        fallbacks += [f"{short}: did not take the model" for short in wanted if short not in used]
        return OnnxSession(session, Placement(used[0], tuple(fallbacks), self.name), path)


class OnnxSession:
    """See :class:`outstation.inference.runtime.Session`."""

    def __init__(self, session: Any, placement: Placement, path: Path) -> None:
        self._session = session
        self.placement = placement
        self.inputs = _specs("input", session.get_inputs(), path)
        self.outputs = _specs("output", session.get_outputs(), path)
        # numpy has no BF16, so that ONNX Runtime cannot take or give such arrays itself.
        self._by_value = any(spec.datatype == "BF16" for spec in (*self.inputs, *self.outputs))
        if self._by_value and any(spec.datatype == "BYTES" for spec in self.inputs):
            raise ModelLoadError(
                f"{path} takes text and has tensors of BF16; ONNX Runtime's Python cannot carry both.",
                hint="Add a Cast to or from FP32 to the model.",
            )

    def run(self, names: Sequence[str], feed: Mapping[str, Any], stop: Stop | None = None) -> list[Any]:
        options = stop.options if isinstance(stop, OnnxStop) else None
        try:
            if self._by_value:
                return _run_by_value(self._session, names, feed, options)
            outputs: list[Any] = self._session.run(names, feed, options)
        except ort_errors.InvalidArgument as exc:
            raise InvalidInputError(f"The model refuses these inputs: {_said(exc)}") from exc
        except Exception as exc:  # whatever a kernel throws; ONNX Runtime has no base class of its errors
            if isinstance(stop, OnnxStop) and stop.options.terminate:
                raise DeadlineError("The model was stopped: its time was up.") from exc
            raise InferenceError(f"The model failed while computing: {_said(exc)}") from exc
        return outputs

    def stop(self) -> OnnxStop:
        return OnnxStop()


class OnnxStop:
    """Ends one run between two nodes of its graph."""

    __slots__ = ("options",)

    def __init__(self) -> None:
        self.options = onnxruntime.RunOptions()
        self.options.log_severity_level = _FATAL

    def set(self) -> None:
        self.options.terminate = True


def _run_by_value(session: Any, names: Sequence[str], feed: Mapping[str, Any], options: Any) -> list[Any]:
    """Run with ONNX Runtime's own tensors; they share the memory of *feed*, which must live until it returns."""
    values = {}
    for name, array in feed.items():
        if array.dtype == BF16:
            bits = np.ascontiguousarray(array).view(np.uint16).reshape(array.shape)
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_BF16)
        else:
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(array)
    return [_array_of(value) for value in session.run_with_ort_values(names, values, options)]


def _array_of(value: Any) -> Any:
    if value.data_type() != "tensor(bfloat16)":
        return value.numpy()
    shape = value.shape()
    size = math.prod(shape) * BF16.itemsize
    # Outputs of a run by value lie in the processor's memory, wherever they were computed.
    data = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.frombuffer(data, BF16).reshape(shape)


def _session_options(options: RuntimeOptions) -> Any:
    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = options.threads
    made.inter_op_num_threads = options.threads if options.parallel else 1
    if options.parallel:
        made.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
        made.add_session_config_entry("session.inter_op.allow_spinning", "0")
    made.enable_cpu_mem_arena = options.arena
    made.log_severity_level = _FATAL
    # Threads that spin between calls burn a small device's battery for microseconds.
    made.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return made


def _specs(kind: str, metadata: Sequence[Any], path: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for entry in metadata:
        datatype = _DATATYPES.get(entry.type)
        if datatype is None:
            raise ModelLoadError(
                f"The {kind} {entry.name!r} of {path} is {entry.type}, which cannot be served.",
                hint="Export the model with tensors only (from scikit-learn: zipmap=False), of types other than these.",
            )
        shape = tuple(size if isinstance(size, int) and size >= 0 else ANY for size in entry.shape)
        specs.append(TensorSpec(entry.name, datatype, shape))
    return tuple(specs)


@contextmanager
def _loading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ort_errors.NoSuchFile, ort_errors.NoModel) as exc:
        raise ModelLoadError(f"There is no file {path}.") from exc
    except ort_errors.InvalidProtobuf as exc:
        raise ModelLoadError(
            f"{path} is no ONNX file.", hint="Give the path of a model that was exported as ONNX."
        ) from exc
    except Exception as exc:  # an operator that is not implemented, a graph that contradicts itself, no memory
        if _is_empty(path):
            raise ModelLoadError(f"{path} is empty.", hint="The export or the copy of it was cut short.") from exc
        raise ModelLoadError(
            f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_said(exc)}",
            hint="Export the model for an older opset, or install a newer onnxruntime.",
        ) from exc


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:
        return False


def _said(exc: Exception) -> str:
    """The message of ONNX Runtime on one line, without its prefix."""
    return " ".join(_PREFIX.sub("", str(exc)).split()) or type(exc).__name__
