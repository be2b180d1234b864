"""One call to compute, whichever way it came, and the codes by which its errors travel."""

from __future__ import annotations

from typing import Protocol

from outstation.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RegionExistsError,
    RegionNotFoundError,
    WireError,
)
from outstation.wire.shared import REGION
from outstation.wire.tensors import InferRequest, InferResponse

_REGION = REGION.encode()
# Names and parameters of tensors come first in every client's messages.
_HEAD_BYTES = 4096

# gRPC's status code and HTTP's for each error; the first that matches wins.
_CODES: tuple[tuple[type[OutstationError], int, int], ...] = (
    (ModelNotFoundError, 5, 404),  # NOT_FOUND
    (RegionNotFoundError, 5, 404),
    (RegionExistsError, 6, 400),  # ALREADY_EXISTS
    (InvalidInputError, 3, 400),  # INVALID_ARGUMENT
    (WireError, 3, 400),
    (DeadlineError, 4, 504),  # DEADLINE_EXCEEDED
    (ProviderUnavailableError, 8, 429),  # RESOURCE_EXHAUSTED: more calls than the queue holds
    (InferenceError, 13, 500),  # INTERNAL
    (OutstationError, 14, 503),  # UNAVAILABLE
)


def grpc_code(error: OutstationError) -> int:
    """The status code of gRPC for *error*."""
    return next(code for kind, code, _ in _CODES if isinstance(error, kind))


def http_code(error: OutstationError) -> int:
    """The status code of HTTP for *error*."""
    return next(code for kind, _, code in _CODES if isinstance(error, kind))


def names_shared_memory(message: bytes | bytearray) -> bool:
    """Whether a call's *message* may name tensors in shared memory: they can be of any size."""
    return message.find(_REGION, 0, _HEAD_BYTES) >= 0


class Job(Protocol):
    """A call of ModelInfer that waits to be computed. ``answer`` or ``fail`` is called once, from any thread."""

    @property
    def arrived(self) -> float:
        """When the call was whole, on the monotonic clock."""
        ...

    @property
    def model_hint(self) -> str:
        """The model's name if it can be told without reading the whole message, else ""."""
        ...

    @property
    def size_bytes(self) -> int:
        """What its message has."""
        ...

    @property
    def shared(self) -> bool:
        """Tensors of it, of whatever size, may lie in shared memory."""
        ...

    @property
    def deadline(self) -> float | None:
        """When the caller stops waiting, on the monotonic clock."""
        ...

    @property
    def cancelled(self) -> bool:
        """The caller has gone."""
        ...

    def request(self) -> InferRequest:
        """The call, decoded. WireError or InvalidInputError when it is none."""
        ...

    def answer(self, response: InferResponse) -> None: ...

    def fail(self, error: OutstationError) -> None: ...
