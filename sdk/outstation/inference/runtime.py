"""What computes a model: the Protocol that every runtime meets. ONNX Runtime is the first (``onnx.py``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from outstation.errors import ModelLoadError
from outstation.models.manifest import TensorSpec


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How to compute. ``threads`` 0 = the runtime's choice; ``accelerators`` are tried in order, () = what there is."""

    threads: int = 1
    accelerators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is computed: the accelerator in use, and for each that was preferred to it, why it is not."""

    accelerator: str
    fallbacks: tuple[str, ...] = ()


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
    raise ModelLoadError(f"No runtime {name!r} is installed.", hint="Known: onnx.")
