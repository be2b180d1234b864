"""What computes a model: the Protocol that every runtime meets. ``onnx.py`` and ``openvino.py`` do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from outstation.errors import ModelLoadError
from outstation.models.manifest import TensorSpec
from outstation.settings import InferenceSettings
from outstation.types import Placement

# Every name that the settings may hold; each runtime knows some of them.
ACCELERATORS = ("tensorrt", "cuda", "openvino", "qnn", "gpu", "npu", "cpu")


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How to compute. ``threads`` 0 = the runtime's choice; ``accelerators`` are tried in order, () = what there is.

    ``runtime`` computes instead of the one that the manifest names ("" = that one). ``parallel``: nodes of a graph that
    do not wait for each other are computed at once. ``arena``: memory of a call is kept for the next one.
    """

    threads: int = 1
    accelerators: tuple[str, ...] = ()
    runtime: str = ""
    parallel: bool = False
    arena: bool = True


def options_of(settings: InferenceSettings) -> RuntimeOptions:
    """What ``[inference]`` says of computing."""
    return RuntimeOptions(settings.threads, settings.accelerators, settings.runtime, settings.parallel, settings.arena)


def chosen_accelerators(
    preferred: Sequence[str], preference: Sequence[str], present: Collection[str], runtime: str
) -> tuple[list[str], list[str]]:
    """Which accelerators to ask *runtime* for, the processor last; and why each other preferred one is not asked for.

    *preference* is the runtime's own order, for when the settings name none; *present* is what the machine has.
    ModelLoadError for a name that no runtime knows.
    """
    for name in preferred:
        if name not in ACCELERATORS:
            raise ModelLoadError(f"No accelerator {name!r} is known.", hint=f"Known: {', '.join(ACCELERATORS)}.")
    wanted = [name for name in (preferred or preference) if name in present]
    missing = [f"{name}: not in this build of {runtime}" for name in preferred if name not in present]
    return (wanted if "cpu" in wanted else [*wanted, "cpu"]), missing


class Stop(Protocol):
    """Ends one running call when set, from any thread. Idempotent; nothing happens when the call is over."""

    def set(self) -> None: ...


class Session(Protocol):
    """One loaded model file. Thread-safe; its memory is freed with the last reference to it."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def placement(self) -> Placement: ...

    def run(self, names: Sequence[str], feed: Mapping[str, Any], stop: Stop | None = None) -> list[Any]:
        """The outputs *names*, in that order, for *feed*: arrays of the types and ranks of :attr:`inputs`.

        InvalidInputError when their sizes are refused, DeadlineError when *stop* was set meanwhile, otherwise
        InferenceError.
        """
        ...

    def stop(self) -> Stop:
        """A new :class:`Stop` for one call of :meth:`run`."""
        ...


class Runtime(Protocol):
    """Loads model files of one format."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...

    def load(self, path: Path, options: RuntimeOptions) -> Session:
        """The model in the file *path*; ModelLoadError with the reason when it cannot be loaded."""
        ...


def runtime(name: str) -> Runtime:
    """The runtime that a manifest calls *name*; its package is imported now. MissingExtraError, ModelLoadError."""
    if name == "onnx":
        # Imported here: who only talks to a server has no need of it.
        from outstation.inference.onnx import OnnxRuntime  # noqa: PLC0415

        return OnnxRuntime()
    if name == "openvino":
        from outstation.inference.openvino import OpenVinoRuntime  # noqa: PLC0415

        return OpenVinoRuntime()
    raise ModelLoadError(f"No runtime {name!r} is installed.", hint="Known: onnx, openvino.")
