"""What the Open Inference Protocol asks of a server, answered from models; knows nothing of transports."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from outstation._version import __version__
from outstation.errors import InvalidInputError, ModelNotFoundError, OutstationError
from outstation.inference.host import Models
from outstation.inference.model import Version
from outstation.models.manifest import TensorSpec
from outstation.wire.questions import (
    IndexedModel,
    IndexQuery,
    ModelKey,
    ModelMetadata,
    ModelStatistics,
    RepositoryOrder,
    ServerMetadata,
    TensorMetadata,
)
from outstation.wire.tensors import SERVICE, InferRequest
from outstation_inference.regions import Regions

NAME = "outstation"
PLATFORM = "onnxruntime_onnx"
READY, UNAVAILABLE = "READY", "UNAVAILABLE"  # states of a model in the index
# What a client may use beyond the protocol's core, by Triton's names.
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
    "system_shared_memory",
)
# Versions whose calls are remembered, the oldest forgotten first: a device changes a version every few weeks.
_MAX_COUNTED = 256
# How long loading a model at a client's wish may take; a very large one takes seconds on a small device.
LOAD_TIMEOUT = 60.0
# Of a name that a client made up, in the words of an error.
_MAX_SAID = 200
# What a client may say beside a model's name; it concerns ensembles, of which there are none.
_MEANINGLESS = frozenset({"unload_dependents"})


@dataclass(slots=True)
class _Counts:
    """What a model has done; see :class:`outstation.wire.questions.ModelStatistics`. Durations in seconds."""

    calls: int = 0
    executions: int = 0
    errors: int = 0
    last_unix_nano: int = 0
    queue: float = 0.0
    compute: float = 0.0

    def of(self, name: str, version: str) -> ModelStatistics:
        return ModelStatistics(
            name,
            version,
            self.calls,
            self.executions,
            self.errors,
            self.last_unix_nano,
            round(self.queue * 1e9),
            round(self.compute * 1e9),
        )


class InferenceService:
    """Answers questions about models, finds the version for a call, and counts. Thread-safe."""

    def __init__(self, models: Models, regions: Regions | None = None) -> None:
        self.regions = Regions(0, 0) if regions is None else regions
        self._models = models
        self._lock = threading.Lock()
        self._counts: dict[tuple[str, str], _Counts] = {}  # by model and version

    def version_for(self, request: InferRequest) -> Version:
        """The version that answers *request*; ModelNotFoundError, ModelNotReadyError, InvalidInputError."""
        version = self._version(request.model, request.version)
        if request.outputs:
            version.signature.check_outputs(request.outputs)
        return version

    def located(self, request: InferRequest) -> InferRequest:
        """*request* with the inputs that lie in shared memory; InvalidInputError when any window of it is wrong."""
        self.regions.check(request.into)
        return request.brought(self.regions.read(request.shared))

    def ready(self) -> bool:
        """Whether every model that should answer does, or is known to be impossible to load."""
        return self._models.settled

    def healthy(self, service: str) -> bool:
        """Whether *service* serves: "" or the protocol's name, which is the whole server, or a model's name.

        ModelNotFoundError for any other.
        """
        if service in ("", SERVICE):
            return self.ready()
        if service not in self._models.names():
            raise ModelNotFoundError(f"No service and no model {service[:_MAX_SAID]!r} is known here.")
        return self.model_ready(ModelKey(service))

    def model_ready(self, key: ModelKey) -> bool:
        """Whether the model answers, in the version asked for."""
        try:
            self._version(key.name, key.version)
        except OutstationError:
            return False
        return True

    def server_metadata(self) -> ServerMetadata:
        """Who answers."""
        return ServerMetadata(NAME, __version__, EXTENSIONS)

    def model_metadata(self, key: ModelKey) -> ModelMetadata:
        """Inputs and outputs of the version that answers."""
        version = self._version(key.name, key.version)
        signature = version.signature
        tensors = _tensors(signature.inputs), _tensors(signature.outputs)
        return ModelMetadata(key.name, (version.version,), PLATFORM, *tensors, version.labels)

    def index(self, query: IndexQuery) -> tuple[IndexedModel, ...]:
        """Every model that is known here, and whether it answers; InvalidInputError for another repository."""
        _check_repository(query.repository)
        models = map(self._indexed, self._models.names())
        return tuple(model for model in models if model.state == READY or not query.ready)

    def load(self, order: RepositoryOrder) -> None:
        """Have a model answer that was unloaded or could not be loaded; blocks until it does.

        Which version answers is not the caller's to choose. ModelNotFoundError, ModelNotReadyError, ModelLoadError;
        InvalidInputError for a caller that brings configuration or files.
        """
        _check_repository(order.repository)
        _check_parameters(order.parameters)
        self._models.load(order.model, LOAD_TIMEOUT)

    def unload(self, order: RepositoryOrder) -> None:
        """Let a model answer no more, and free its memory, until it is loaded or the server is started again."""
        _check_repository(order.repository)
        _check_parameters(order.parameters)
        self._models.unload(order.model, LOAD_TIMEOUT)

    def statistics(self, key: ModelKey) -> tuple[ModelStatistics, ...]:
        """Calls and times of the version that answers: of one model, or of all when *key* has no name."""
        if key.name:
            versions = [(key.name, self._version(key.name, key.version).version)]
        else:
            versions = [(model.name, model.version) for model in self.index(IndexQuery(ready=True))]
        with self._lock:
            return tuple(self._counts.get((name, version), _Counts()).of(name, version) for name, version in versions)

    def count(self, model: str, version: str, calls: int, *, errors: int, queue: float, compute: float) -> None:
        """Note one execution: the *calls* that it answered, their seconds of waiting, its seconds of computing."""
        with self._lock:
            known = self._counts_of(model, version)
            known.calls += calls - errors
            known.executions += errors < calls  # as Triton counts: those that gave an answer
            known.errors += errors
            known.last_unix_nano = time.time_ns()
            known.queue += queue
            known.compute += compute

    def count_refused(self, model: str) -> None:
        """Note a call that nobody has computed, as the queue was full or its time was up; an error of the version that
        answers, and of none if none does.
        """
        try:
            version = self._models.get(model, 0.0).version
        except OutstationError:
            return
        with self._lock:
            self._counts_of(model, version).errors += 1

    def _counts_of(self, model: str, version: str) -> _Counts:
        known = self._counts.get((model, version))
        if known is None:
            if len(self._counts) >= _MAX_COUNTED:
                del self._counts[next(iter(self._counts))]
            known = self._counts[model, version] = _Counts()
        return known

    def _indexed(self, name: str) -> IndexedModel:
        try:
            return IndexedModel(name, self._version(name, "").version, READY)
        except OutstationError as exc:
            return IndexedModel(name, "", UNAVAILABLE, str(exc))

    def _version(self, name: str, version: str) -> Version:
        current = self._models.get(name, 0.0).current
        if version and version != current.version:
            raise ModelNotFoundError(f"{name!r} answers in version {current.version}, not in {version!r}.")
        return current


def _tensors(specs: tuple[TensorSpec, ...]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(spec.name, spec.datatype, spec.shape) for spec in specs)


def _check_repository(name: str) -> None:
    if name:
        raise InvalidInputError(f"There is no repository {name!r}; this server has one, without a name.")


def _check_parameters(names: tuple[str, ...]) -> None:
    for name in names:
        if name not in _MEANINGLESS:
            raise InvalidInputError(
                f"{name!r} is not taken: what a model is comes from its signed bundle, never from a caller.",
                hint="Publish a new version instead.",
            )
