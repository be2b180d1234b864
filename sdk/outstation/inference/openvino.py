"""OpenVINO as a :class:`outstation.inference.runtime.Runtime`: it reads the same ONNX files.

Importing OpenVINO reports to its maker (its package ``openvino_telemetry``, over HTTP, from a child process) and
leaves an identity in the home folder. A plant's devices tell nobody anything that their operator did not ask for, so
that package cannot be imported in this process from now on, and OpenVINO falls back to its own stub of it.
"""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from outstation.errors import DeadlineError, InferenceError, MissingExtraError, ModelLoadError
from outstation.inference.runtime import RuntimeOptions, Stop, chosen_accelerators
from outstation.models.manifest import ANY, TensorSpec
from outstation.types import Placement


def _load_openvino() -> Any:
    loaded: dict[str, Any] = sys.modules
    loaded.setdefault("openvino_telemetry", None)  # the import system's own way to make an import fail
    try:
        import openvino  # noqa: PLC0415  after the switch
    except ImportError as exc:
        raise MissingExtraError("openvino", "Running a model with OpenVINO") from exc
    return openvino


openvino = _load_openvino()

# What is tried when the settings name nothing, best first.
PREFERENCE = ("npu", "gpu", "cpu")
_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}
# Calls that were given up and are still being computed, because a node of their graph does not end; each holds the
# memory of a call. With as many the model takes no more calls.
MAX_ABANDONED = 8
# OpenVINO looks at a call's end only between two nodes; so often we look whether the caller's time is up.
_LOOK_MILLISECONDS = 10
# Where in its sources an error was raised says nothing to who reads it.
_PLACE = re.compile(r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:")


class OpenVinoRuntime:
    """OpenVINO, as installed."""

    name = "openvino"

    @property
    def version(self) -> str:
        return str(openvino.__version__).split("-", maxsplit=1)[0]

    def load(self, path: Path, options: RuntimeOptions) -> OpenVinoSession:
        """See :meth:`outstation.inference.runtime.Runtime.load`. ``options.arena`` means nothing here."""
        _check_file(path)
        core = openvino.Core()
        devices = {device.split(".")[0].lower(): device for device in reversed(core.available_devices)}
        wanted, fallbacks = chosen_accelerators(options.accelerators, PREFERENCE, devices, "OpenVINO on this machine")
        try:
            model = core.read_model(path)
        except Exception as exc:  # its frontends throw what they like
            raise ModelLoadError(
                f"OpenVINO {self.version} cannot read {path}: {_said(exc)}",
                hint="Give the path of a model that was exported as ONNX, of an opset that OpenVINO knows.",
            ) from exc
        problem: Exception | None = None
        for accelerator in wanted:
            try:
                compiled = core.compile_model(model, devices[accelerator], _properties(accelerator, options))
            except Exception as exc:  # noqa: BLE001  a device that is there and refuses it: the next one computes
                problem = exc
                fallbacks.append(f"{accelerator}: {_said(exc)}")
                continue
            return OpenVinoSession(compiled, Placement(accelerator, tuple(fallbacks), self.name), path)
        raise ModelLoadError(f"OpenVINO {self.version} cannot load {path}: {fallbacks[-1]}") from problem


class OpenVinoSession:
    """See :class:`outstation.inference.runtime.Session`."""

    def __init__(self, compiled: Any, placement: Placement, path: Path) -> None:
        self._compiled = compiled
        self.placement = placement
        self.inputs = _specs("input", compiled.inputs, path)
        self.outputs = _specs("output", compiled.outputs, path)
        self._place = {spec.name: at for at, spec in enumerate(self.outputs)}
        self._lock = threading.Lock()
        self._free: list[Any] = []  # requests that wait for a call: as many as there were calls at once
        self._abandoned: list[Any] = []

    def run(self, names: Sequence[str], feed: Mapping[str, Any], stop: Stop | None = None) -> list[Any]:
        request = self._take()
        try:
            if isinstance(stop, OpenVinoStop):
                self._run_until(stop, request, feed)
                values = [request.get_output_tensor(self._place[name]).data.copy() for name in names]
            else:
                answer = request.infer(feed).to_tuple()
                values = [answer[self._place[name]] for name in names]
        except DeadlineError:
            raise
        except Exception as exc:  # whatever a kernel throws
            self._give_back(request)
            raise InferenceError(f"The model failed while computing: {_said(exc)}") from exc
        self._give_back(request)
        return values

    def stop(self) -> OpenVinoStop:
        return OpenVinoStop()

    def _run_until(self, stop: OpenVinoStop, request: Any, feed: Mapping[str, Any]) -> None:
        """Compute on OpenVINO's thread until *stop* is set: then DeadlineError, even if that thread goes on."""
        request.start_async(feed)
        try:
            while not request.wait_for(_LOOK_MILLISECONDS):
                if stop.is_set:
                    break
            else:
                return
            request.cancel()
            ended = request.wait_for(_LOOK_MILLISECONDS)
        except RuntimeError:
            if not stop.is_set:
                raise
            ended = True  # it says that it was cancelled
        if ended:
            self._give_back(request)
        else:
            with self._lock:
                self._abandoned.append(request)  # letting go of it would wait for its end
        raise DeadlineError("The model was stopped: its time was up.")

    def _take(self) -> Any:
        with self._lock:
            if self._abandoned:
                self._collect()
            if self._free:
                return self._free.pop()
        return self._compiled.create_infer_request()

    def _collect(self) -> None:
        """Take back what was given up and has ended since; InferenceError when too much has not. The lock is held."""
        ended = [request for request in self._abandoned if _has_ended(request)]
        self._abandoned = [request for request in self._abandoned if request not in ended]
        self._free += ended
        if len(self._abandoned) >= MAX_ABANDONED:
            raise InferenceError(f"{MAX_ABANDONED} calls whose time was up are still being computed.")

    def _give_back(self, request: Any) -> None:
        with self._lock:
            self._free.append(request)


class OpenVinoStop:
    """Ends one run between two nodes of its graph; the caller is let go even when a node does not end."""

    __slots__ = ("is_set",)

    def __init__(self) -> None:
        self.is_set = False

    def set(self) -> None:
        self.is_set = True


def _has_ended(request: Any) -> bool:
    try:
        return bool(request.wait_for(0))
    except RuntimeError:  # it says that it was cancelled
        return True


def _properties(accelerator: str, options: RuntimeOptions) -> dict[str, Any]:
    made: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "EXECUTION_MODE_HINT": "ACCURACY"}
    if accelerator == "cpu" and options.threads:
        # A stream computes one call; the threads are those of all streams together.
        streams = max(1, (os.cpu_count() or 1) // options.threads) if options.parallel else 1
        made |= {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * options.threads}
    return made


def _check_file(path: Path) -> None:
    try:
        size = path.stat().st_size
    except OSError as exc:
        raise ModelLoadError(f"There is no file {path}.") from exc
    if size == 0:
        raise ModelLoadError(f"{path} is empty.", hint="The export or the copy of it was cut short.")


def _specs(kind: str, ports: Sequence[Any], path: Path) -> tuple[TensorSpec, ...]:
    specs = []
    for port in ports:
        name, element = port.get_any_name(), port.get_element_type().get_type_name()
        datatype = _DATATYPES.get(element)
        if datatype is None:
            # Text among them: OpenVINO 2026.4 takes it from Python and then corrupts its memory.
            raise ModelLoadError(
                f"The {kind} {name!r} of {path} is {element}, which OpenVINO cannot be served with.",
                hint="Run this model with ONNX Runtime: inference.runtime.",
            )
        partial = port.get_partial_shape()
        shape = (
            tuple(size.get_length() if size.is_static else ANY for size in partial) if partial.rank.is_static else ()
        )
        specs.append(TensorSpec(name, datatype, shape))
    return tuple(specs)


def _said(exc: Exception) -> str:
    """The message of OpenVINO on one line, without the places in its sources."""
    return " ".join(_PLACE.sub(" ", str(exc)).split())[:500] or type(exc).__name__
