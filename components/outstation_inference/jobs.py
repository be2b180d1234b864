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
    WireError,
)
from outstation.wire.tensors import InferRequest, InferResponse

# gRPC's status code and HTTP's for each error; the first that matches wins.
_CODES: tuple[tuple[type[OutstationError], int, int], ...] = (
    (ModelNotFoundError, 5, 404),  # NOT_FOUND
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
    def size_bytes(self) -> int: ...

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
