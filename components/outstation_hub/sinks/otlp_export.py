"""One OTLP request over gRPC or HTTP, and what the answer means by OpenTelemetry's specification."""

from __future__ import annotations

import gzip
import http.client
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol
from urllib.parse import urlsplit

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceResponse
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from outstation.errors import SettingsError
from outstation.wire.channel import grpc
from outstation_hub.sinks.otlp_content import Signal

_ANSWERS: Mapping[str, Any] = {
    "logs": ExportLogsServiceResponse,
    "metrics": ExportMetricsServiceResponse,
    "traces": ExportTraceServiceResponse,
}
_MAX_ANSWER_BYTES = 64 << 10  # a sentence and a number
_RETRY_INFO = "grpc-status-details-bin"

# What the specification calls retryable. RESOURCE_EXHAUSTED is so only when the answer says when to come again.
_LATER_CODES = frozenset(
    {
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.OUT_OF_RANGE,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DATA_LOSS,
        # Beyond the specification: these are about who we are, and an operator can mend them. Nothing is lost to a
        # token that has expired.
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.PERMISSION_DENIED,
    }
)
_LATER_STATUS = frozenset({429, 502, 503, 504, 401, 403})


class Verdict(Enum):
    TAKEN = "taken"
    LATER = "later"  # the same request may be taken another time
    REFUSED = "refused"  # this request never will; smaller ones may
    UNKNOWN_SIGNAL = "unknown signal"  # no request of this kind ever will


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a request."""

    verdict: Verdict
    reason: str = ""
    rejected: int = 0  # with TAKEN: what the collector threw away all the same
    delay: float = 0.0  # with LATER: seconds that it wants to be left alone


class Exporter(Protocol):
    """A way to a collector. Used by one thread."""

    def export(self, signal: Signal, request: bytes, timeout: float) -> Answer:
        """Send *request*. Never raises for what the network or the collector does."""
        ...

    def close(self) -> None: ...


def exporter_for(endpoint: str, headers: Mapping[str, str]) -> Exporter:
    """By the scheme of *endpoint*: http, https, grpc, grpcs. SettingsError."""
    parts = urlsplit(endpoint)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme not in {"http", "https", "grpc", "grpcs"} or not parts.hostname or port is None:
        raise SettingsError(f"{endpoint!r} is no collector.", hint="Write http://HOST:4318 or grpc://HOST:4317.")
    secure = parts.scheme.endswith("s")
    if parts.scheme.startswith("grpc"):
        return GrpcExporter(f"{parts.hostname}:{port}", secure, headers)
    return HttpExporter(parts.hostname, port, secure, parts.path.rstrip("/"), headers)


class GrpcExporter:
    """OTLP/gRPC."""

    def __init__(self, target: str, secure: bool, headers: Mapping[str, str]) -> None:
        options = (("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),)
        if secure:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(), options=options)
        else:
            self._channel = grpc.insecure_channel(target, options=options)
        self._metadata = tuple((name.lower(), value) for name, value in headers.items())

    def export(self, signal: Signal, request: bytes, timeout: float) -> Answer:
        call = self._channel.unary_unary(signal.grpc_path)
        try:
            data = call(request, timeout=timeout, metadata=self._metadata, compression=grpc.Compression.Gzip)
        except grpc.RpcError as exc:
            return _from_status(exc)
        return _from_data(signal, data)

    def close(self) -> None:
        self._channel.close()


def _from_status(exc: Any) -> Answer:
    code, reason = exc.code(), f"{exc.code().name}: {exc.details()}"
    if code in _LATER_CODES:
        return Answer(Verdict.LATER, reason, delay=_retry_delay(exc) or 0.0)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        delay = _retry_delay(exc)
        return Answer(Verdict.REFUSED, reason) if delay is None else Answer(Verdict.LATER, reason, delay=delay)
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Answer(Verdict.UNKNOWN_SIGNAL, reason)
    return Answer(Verdict.REFUSED, reason)


def _retry_delay(exc: Any) -> float | None:
    """Seconds of a ``google.rpc.RetryInfo`` in the trailing metadata; None if there is none."""
    data = dict(exc.trailing_metadata() or ()).get(_RETRY_INFO)
    if not isinstance(data, bytes):
        return None
    from google.protobuf import any_pb2, duration_pb2  # noqa: PLC0415  only for collectors that say so

    # google.rpc.Status { int32 code = 1; string message = 2; repeated Any details = 3 }, and RetryInfo { Duration
    # retry_delay = 1 }: their generated classes are in a package that is not needed for anything else.
    with suppress(DecodeError, ValueError):
        for number, value in _fields(data):
            if number != 3:
                continue
            detail = any_pb2.Any.FromString(value)
            if detail.type_url.endswith("/google.rpc.RetryInfo"):
                for inner, duration in _fields(detail.value):
                    if inner == 1:
                        found = duration_pb2.Duration.FromString(duration)
                        return max(0.0, float(found.seconds) + found.nanos / 1e9)
                return 0.0
    return None


def _fields(data: bytes) -> list[tuple[int, bytes]]:
    """The length-delimited fields of a message; ValueError for what is none. Numbers are passed over."""
    found, at = [], 0
    while at < len(data):
        tag, at = _varint(data, at)
        size, at = _varint(data, at)
        if tag & 7 == 2:
            if at + size > len(data):
                raise ValueError("cut off")
            found.append((tag >> 3, data[at : at + size]))
            at += size
        elif tag & 7 != 0:
            raise ValueError("another kind of field")
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at


class HttpExporter:
    """OTLP/HTTP with protobuf bodies."""

    def __init__(self, host: str, port: int, secure: bool, path: str, headers: Mapping[str, str]) -> None:
        self._make = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._host, self._port, self._path = host, port, path
        self._headers = {**headers, "Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        self._connection: http.client.HTTPConnection | None = None

    def export(self, signal: Signal, request: bytes, timeout: float) -> Answer:
        body = gzip.compress(request, 1)
        rested = self._connection is not None
        answer = self._try(signal, body, timeout)
        # A connection that rested may have been closed meanwhile: that says nothing about the collector.
        return self._try(signal, body, timeout) if rested and self._connection is None else answer

    def _try(self, signal: Signal, body: bytes, timeout: float) -> Answer:
        try:
            return self._post(signal, body, timeout)
        except (OSError, http.client.HTTPException) as exc:
            self.close()
            return Answer(Verdict.LATER, f"{type(exc).__name__}: {exc}")

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, signal: Signal, body: bytes, timeout: float) -> Answer:
        if self._connection is None:
            self._connection = self._make(self._host, self._port, timeout=timeout)
        self._connection.request("POST", self._path + signal.http_path, body, self._headers)
        response = self._connection.getresponse()
        data = response.read(_MAX_ANSWER_BYTES)
        if not response.isclosed():
            self.close()  # there is more than anybody will read
        if response.status in range(200, 300):
            return _from_data(signal, data)
        reason = f"{response.status} {response.reason}"
        if response.status in _LATER_STATUS:
            after = response.headers.get("Retry-After", "")
            return Answer(Verdict.LATER, reason, delay=float(after) if after.isdecimal() else 0.0)
        if response.status in {404, 405}:
            return Answer(Verdict.UNKNOWN_SIGNAL, reason)
        return Answer(Verdict.REFUSED, reason)


def _from_data(signal: Signal, data: bytes) -> Answer:
    answer = _ANSWERS[signal.name]()
    with suppress(DecodeError):  # it was taken: what the answer says besides cannot change that
        answer.ParseFromString(data)
    partial = answer.partial_success
    return Answer(Verdict.TAKEN, partial.error_message, rejected=getattr(partial, signal.rejected))
