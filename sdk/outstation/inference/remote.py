"""Models of a server of the Open Inference Protocol, with the face of ``outstation.inference.model.Model``."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

from outstation.clock import Clock, SystemClock
from outstation.errors import (
    ClosedError,
    DeadlineError,
    InvalidInputError,
    LinkDownError,
    ModelNotFoundError,
    ModelNotReadyError,
    RefusedError,
)
from outstation.inference.capturing import PARAMETER
from outstation.inference.model import Result
from outstation.models.manifest import TensorSpec
from outstation.wire.client import Client
from outstation.wire.datatypes import Array, object_array
from outstation.wire.questions import (
    MODEL_LABELS,
    MODEL_METADATA,
    MODEL_READY,
    ModelKey,
    ModelMetadata,
    TensorMetadata,
)
from outstation.wire.tensors import MODEL_INFER, InferRequest

T = TypeVar("T")

# How long one question about a model may take, and how often it is asked again until the model is ready.
_ASK_TIMEOUT = 5.0
_ASK_INTERVAL = 0.1
# A server that is started again answers within this time on a small device; then the call is sent once more.
_RESTART = 5.0
# A version changes once in a while; calls that see three changes in a row see a rollout that runs away.
_ROUNDS = 3
_HINT = "Start one with `outstation inference`, or look at its log."


class RemoteModels:
    """The models of one server at *target*: "host:port" or "unix:/path". Thread-safe; connects when first used."""

    def __init__(self, target: str, *, max_message_bytes: int = 64 << 20, clock: Clock = SystemClock()) -> None:
        self.target = target
        self._clock = clock
        self._closing = threading.Event()
        self._client = Client(target, max_message_bytes=max_message_bytes)
        self._ready = self._client.unary(MODEL_READY)
        self._metadata = self._client.unary(MODEL_METADATA)
        self._labels = self._client.unary(MODEL_LABELS)
        self._infer = self._client.unary(MODEL_INFER)

    def get(self, name: str, timeout: float = 10.0) -> RemoteModel:
        """The model *name*, once the server can answer with it.

        Raises, after *timeout* seconds, ModelNotReadyError, or LinkDownError when no server answered.
        """
        until = self._clock.monotonic() + timeout
        while True:
            problem = self._problem(name, until)
            if problem is None:
                return RemoteModel(name, self)
            if self._clock.monotonic() + _ASK_INTERVAL >= until:
                raise problem
            if self._clock.wait(self._closing, _ASK_INTERVAL):
                raise ClosedError(f"The client of {self.target} is closed.")

    def metadata(self, name: str, timeout: float = _ASK_TIMEOUT) -> ModelMetadata:
        """What the server tells of the model *name*."""
        return self.again(lambda left: self._metadata(ModelKey(name), left), timeout)

    def labels(self, name: str, timeout: float = _ASK_TIMEOUT) -> tuple[str, ...]:
        """What the classes of the model *name* are called; () when the server does not say."""
        try:
            return self.again(lambda left: self._labels(ModelKey(name), left), timeout)
        except RefusedError:  # a server without Triton's extension of configurations
            return ()

    def infer(self, request: InferRequest, timeout: float | None) -> Result:
        """One call; see :meth:`RemoteModel.run`."""
        try:
            response = self.again(lambda left: self._infer(request, left), timeout)
        except RefusedError as exc:  # what servers other than ours say of a call that does not fit
            raise InvalidInputError(str(exc), hint=exc.hint) from exc
        result = Result((name, _text(array)) for name, array in response.outputs.items())
        result.model_version = response.version
        return result

    def again(self, call: Callable[[float | None], T], timeout: float | None) -> T:
        """What *call* returns; sent once more if the server was lost meanwhile, all within *timeout* seconds.

        A computation has no effects, so that a second one does no harm.
        """
        until = None if timeout is None else self._clock.monotonic() + timeout
        try:
            return call(timeout)
        except LinkDownError:
            self._client.wait_ready(
                _RESTART if until is None else min(_RESTART, max(0.0, until - self._clock.monotonic()))
            )
            left = None if until is None else until - self._clock.monotonic()
            if left is not None and left <= 0:
                raise
            return call(left)

    def close(self) -> None:
        """End every call and the connection. Idempotent."""
        self._closing.set()
        self._client.close()

    def _problem(self, name: str, until: float) -> Exception | None:
        """Why *name* cannot answer now, or None."""
        left = max(0.01, min(_ASK_TIMEOUT, until - self._clock.monotonic()))
        try:
            if self._ready(ModelKey(name), left):
                return None
        except (LinkDownError, DeadlineError) as exc:
            return LinkDownError(f"No inference server answers on {self.target}: {exc}", hint=_HINT)
        except (ModelNotFoundError, ModelNotReadyError) as exc:
            return ModelNotReadyError(str(exc))
        return ModelNotReadyError(f"{self.target} has no version of {name!r} that may answer.")

    def __enter__(self) -> RemoteModels:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False


class RemoteModel:
    """One model of a server. Thread-safe; the version that answers may change between two calls."""

    def __init__(self, name: str, models: RemoteModels) -> None:
        self.name = name
        self._models = models

    def run(self, inputs: Mapping[str, Array], *, timeout: float | None = None) -> Result:
        """Compute every output for *inputs*, as :meth:`outstation.inference.model.Model.run` does.

        Sent once more when the server was restarted meanwhile. Raises InvalidInputError, ModelNotReadyError,
        DeadlineError after *timeout* seconds, LinkDownError when no server answers, ProviderUnavailableError when it
        has too much to do, InferenceError when it failed.
        """
        return self._models.infer(InferRequest(self.name, inputs), timeout)

    def run_many(self, calls: Sequence[Mapping[str, Array]], *, timeout: float | None = None) -> list[Result]:
        """:meth:`run` for each of *calls*, in order, all by one version; *timeout* is for each of them.

        ModelNotReadyError when versions change so fast that three rounds were mixed.
        """
        for _ in range(_ROUNDS):
            results = [self.run(inputs, timeout=timeout) for inputs in calls]
            if len({result.model_version for result in results}) <= 1:
                return results
        raise ModelNotReadyError(f"The version of {self.name!r} changed in each of {_ROUNDS} rounds.")

    def capture(self, inputs: Mapping[str, Array], note: str = "", *, timeout: float | None = None) -> Result:
        """:meth:`run`, and ask the server to keep the call for retraining, within its bounds, with *note*."""
        return self._models.infer(InferRequest(self.name, inputs, parameters={PARAMETER: note or True}), timeout)

    @property
    def version(self) -> str:
        """The version that answers now; asks the server, as do :attr:`inputs`, :attr:`outputs` and :attr:`labels`."""
        versions = self._models.metadata(self.name).versions
        return versions[0] if versions else ""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return _specs(self._models.metadata(self.name).inputs)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return _specs(self._models.metadata(self.name).outputs)

    @property
    def labels(self) -> tuple[str, ...]:
        """What the classes are called, in their order; () when the bundle names none, or the server is not ours."""
        return self._models.labels(self.name)

    def __repr__(self) -> str:
        return f"<RemoteModel {self.name} at {self._models.target}>"


def _specs(tensors: tuple[TensorMetadata, ...]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(tensor.name, tensor.datatype, tensor.shape) for tensor in tensors)


def _text(array: Array) -> Array:
    """Text as a model in the process gives it; bytes that are no UTF-8 are kept inside as surrogates."""
    if array.dtype.kind != "O":
        return array
    words: list[Any] = [element.decode("utf-8", "surrogateescape") for element in array.ravel().tolist()]
    return object_array(words).reshape(array.shape)
