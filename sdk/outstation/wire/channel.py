"""What both ends of a gRPC connection share: keys and certificates, keepalive, and errors that cross it whole.

A server sends the class, the sentence and the hint of an OutstationError in the trailing metadata, a client raises
that class again. Any other failure of gRPC becomes the error of ours that fits its status code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outstation import errors
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    InferenceError,
    InvalidInputError,
    LinkDownError,
    MissingExtraError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    SettingsError,
    WireError,
)

__all__ = [
    "DEFAULT_KEEPALIVE",
    "ERROR_KEY",
    "HINT_KEY",
    "HUB_NAME",
    "MAX_DETAILS",
    "MAX_HINT_BYTES",
    "MAX_MESSAGE_BYTES",
    "STATUS_OF",
    "Keepalive",
    "Tls",
    "from_rpc_error",
    "grpc",
    "pem",
]

try:
    import grpc
except ImportError as exc:
    raise MissingExtraError("hub", "gRPC") from exc

# A block's body is at most 64 MiB (outstation.wire.block), plus its header and the fields around it.
MAX_MESSAGE_BYTES = (64 << 20) + (64 << 10)
# Both travel in HTTP/2 headers, of which most peers take 8 KiB in all.
MAX_DETAILS = 2000
MAX_HINT_BYTES = 1000
# A name that every hub's certificate holds, so that stations need not care by which address they reach it.
HUB_NAME = "outstation-hub"
ERROR_KEY, HINT_KEY = "outstation-error", "outstation-hint-bin"

# Which status a server answers with; the first that matches wins.
STATUS_OF: tuple[tuple[type[OutstationError], Any], ...] = (
    (ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (InferenceError, grpc.StatusCode.INTERNAL),
    (OutstationError, grpc.StatusCode.UNAVAILABLE),
)
# What a status means when the server said nothing more.
_ERROR_OF: Mapping[Any, type[OutstationError]] = {
    grpc.StatusCode.UNAVAILABLE: LinkDownError,
    grpc.StatusCode.CANCELLED: LinkDownError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.OUT_OF_RANGE: RefusedError,
    grpc.StatusCode.UNIMPLEMENTED: RefusedError,
}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the authority that signs the other side, and our own certificate and key (None: we show none)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Keepalive:
    """A connection that swallows everything is given up after ``interval`` + ``timeout`` seconds."""

    interval: float = 7.0
    timeout: float = 3.0

    def options(self) -> tuple[tuple[str, int], ...]:
        """As channel arguments."""
        return (
            ("grpc.keepalive_time_ms", round(self.interval * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.timeout * 1000)),
            # gRPC also pings to measure the link. While such a ping is out no keepalive is sent, and it would be
            # waited for a minute: a link that dies just then must be noticed as soon as any other.
            ("grpc.http2.ping_timeout_ms", round((self.interval + self.timeout) * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
        )


DEFAULT_KEEPALIVE = Keepalive()


def pem(path: Path) -> bytes:
    """The bytes of a PEM file; SettingsError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SettingsError(f"Could not read {path}: {exc.strerror}.", hint="It must be a PEM file.") from exc


def from_rpc_error(exc: Any, target: str) -> OutstationError:
    """The error of ours for a failed call: the very one that our server raised, else what the status says."""
    details = exc.details() or exc.code().name
    metadata = dict(exc.trailing_metadata() or ())
    kind = getattr(errors, str(metadata.get(ERROR_KEY, "")), None)
    if isinstance(kind, type) and issubclass(kind, OutstationError) and kind is not MissingExtraError:
        hint = metadata.get(HINT_KEY, b"")
        return kind(details, hint=hint.decode("utf-8", "replace"))
    code = exc.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        if "CERTIFICATE" in details.upper() and "HANDSHAKE" in details.upper():
            return AccessDeniedError(f"{target} and this side do not trust each other's certificates: {details}")
        return LinkDownError(f"{target} does not answer: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RefusedError(f"{target} does not take messages of that size: {details}")
    return _ERROR_OF.get(code, ProviderUnavailableError)(f"{target}: {details}")
