"""The Open Inference Protocol's calls, answered from models; knows nothing of sockets."""

from __future__ import annotations

from typing import Any

from outstation._version import __version__
from outstation.errors import DeadlineError, ModelNotFoundError, OutstationError
from outstation.inference.deadlines import Deadlines
from outstation.inference.host import Models
from outstation.inference.model import Version
from outstation.models.manifest import TensorSpec
from outstation.wire.services import Caller, handler
from outstation.wire.tensors import (
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    SERVICE,
    InferRequest,
    InferResponse,
    ModelKey,
    ModelMetadata,
    ServerMetadata,
    TensorMetadata,
)

NAME = "outstation"
PLATFORM = "onnxruntime_onnx"


class InferenceService:
    """Answers calls. Thread-safe. Errors of ours reach the caller with the protocol's status codes."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._deadlines = Deadlines()

    @property
    def handler(self) -> Any:
        """The service for :class:`outstation.wire.services.Server`."""
        return handler(
            SERVICE,
            {
                SERVER_LIVE: lambda _request, _caller: True,
                SERVER_READY: lambda _request, _caller: self._models.settled,
                MODEL_READY: lambda request, _caller: self.model_ready(request),
                SERVER_METADATA: lambda _request, _caller: self.server_metadata(),
                MODEL_METADATA: lambda request, _caller: self.model_metadata(request),
                MODEL_INFER: self.infer,
            },
        )

    def infer(self, request: InferRequest, caller: Caller) -> InferResponse:
        """Compute one answer within the caller's deadline. A call that nobody waits for any more is not computed."""
        version = self._version(request.model, request.version)
        version.signature.check_outputs(request.outputs)
        left = caller.time_remaining
        if not caller.is_active or (left is not None and left <= 0):
            raise DeadlineError("The call was given up while it waited for a worker.")
        result = version.run(request.inputs, request.outputs or None, left, self._deadlines)
        return InferResponse(request.model, version.version, result, request.id, request.raw)

    def model_ready(self, key: ModelKey) -> bool:
        """Whether the model answers, in the version asked for."""
        try:
            self._version(key.name, key.version)
        except OutstationError:
            return False
        return True

    def server_metadata(self) -> ServerMetadata:
        """Who answers."""
        return ServerMetadata(NAME, __version__)

    def model_metadata(self, key: ModelKey) -> ModelMetadata:
        """Inputs and outputs of the version that answers."""
        version = self._version(key.name, key.version)
        signature = version.signature
        return ModelMetadata(
            key.name, (version.version,), PLATFORM, _tensors(signature.inputs), _tensors(signature.outputs)
        )

    def close(self) -> None:
        """End the thread that watches deadlines. Idempotent."""
        self._deadlines.close()

    def _version(self, name: str, version: str) -> Version:
        current = self._models.get(name, 0.0).current
        if version not in ("", current.version):
            raise ModelNotFoundError(f"{name!r} answers in version {current.version}, not in {version!r}.")
        return current


def _tensors(specs: tuple[TensorSpec, ...]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(spec.name, spec.datatype, spec.shape) for spec in specs)
