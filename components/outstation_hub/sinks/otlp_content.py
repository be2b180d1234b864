"""Records as OpenTelemetry sees them. Pure: values in, messages out.

A record whose content type is ``application/vnd.opentelemetry.otlp+protobuf;signal=SIGNAL`` (metrics, traces or
logs) holds an export request and goes on as it is, with the station named in each resource. Every other record
becomes one log record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from outstation.errors import MissingExtraError, WireError
from outstation.types import Record

try:
    from google.protobuf.message import DecodeError
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs
    from opentelemetry.proto.resource.v1.resource_pb2 import Resource
except ImportError as exc:
    raise MissingExtraError("otlp", "The OTLP sink") from exc

OTLP_TYPE = "application/vnd.opentelemetry.otlp+protobuf"
_MAX_INT = (1 << 63) - 1
_MAX_DEPTH = 32  # of a JSON body; what lies deeper is kept as text

Source = tuple[str, str, int]  # station, stream, epoch


@dataclass(frozen=True, slots=True)
class Signal:
    """One of OpenTelemetry's signals: its request, and where that goes."""

    name: str
    request: Callable[..., Any]
    field: str  # of the request: one entry a resource
    grpc_path: str
    http_path: str
    rejected: str  # in an answer: how many were not taken


def _signal(name: str, request: Callable[..., Any], service: str, field: str, rejected: str) -> Signal:
    path = f"/opentelemetry.proto.collector.{service}/Export"
    return Signal(name, request, field, path, f"/v1/{name}", rejected)


LOGS = _signal("logs", ExportLogsServiceRequest, "logs.v1.LogsService", "resource_logs", "rejected_log_records")
METRICS = _signal(
    "metrics", ExportMetricsServiceRequest, "metrics.v1.MetricsService", "resource_metrics", "rejected_data_points"
)
TRACES = _signal("traces", ExportTraceServiceRequest, "trace.v1.TraceService", "resource_spans", "rejected_spans")
_SIGNALS = {signal.name: signal for signal in (LOGS, METRICS, TRACES)}


class Piece(NamedTuple):
    """What one record is to a collector."""

    signal: Signal
    source: Source
    sequence: int
    content: Any  # a LogRecord, or the resources of a request
    size_bytes: int


def piece_of(source: Source, record: Record) -> Piece:
    """*record* as a piece of a request. WireError when it claims to be OTLP and is not."""
    signal = signal_of(record.content_type)
    if signal is None:
        content = _log_record(source, record)
        return Piece(LOGS, source, record.sequence, content, content.ByteSize() + 8)
    request = signal.request()
    try:
        request.ParseFromString(record.payload)
    except DecodeError as exc:
        raise WireError(f"It is no request of {signal.name}.") from exc
    resources = list(getattr(request, signal.field))
    for entry in resources:
        _name(entry.resource, source)
    return Piece(signal, source, record.sequence, resources, len(record.payload) + 128 * len(resources))


def signal_of(content_type: str) -> Signal | None:
    """The signal that a record of *content_type* holds; None for a record of any other kind."""
    kind, *parameters = (part.strip().lower() for part in content_type.split(";"))
    if kind != OTLP_TYPE:
        return None
    return next((_SIGNALS.get(p.removeprefix("signal=")) for p in parameters if p.startswith("signal=")), None)


def request_of(signal: Signal, pieces: Iterable[Piece]) -> Any:
    """One request of *pieces*, all of *signal*, in their order."""
    request = signal.request()
    resources = getattr(request, signal.field)
    last: tuple[Source, Any] | None = None
    for piece in pieces:
        if isinstance(piece.content, list):
            resources.extend(piece.content)
            last = None
            continue
        if last is None or last[0] != piece.source:
            resource = Resource()
            _name(resource, piece.source)
            scope = ScopeLogs()
            scope.scope.name = "outstation"
            resources.append(ResourceLogs(resource=resource, scope_logs=[scope]))
            last = (piece.source, resources[-1].scope_logs[0])
        last[1].log_records.append(piece.content)
    return request


def _name(resource: Any, source: Source) -> None:
    """Say which station and stream it came through, whatever the resource itself says of that."""
    names = {"outstation.station": source[0], "outstation.stream": source[1]}
    kept = [own for own in resource.attributes if own.key not in names]
    del resource.attributes[:]
    resource.attributes.extend(kept)
    resource.attributes.extend(_pair(key, value) for key, value in names.items())


def _log_record(source: Source, record: Record) -> Any:
    attributes = [_pair(key, value) for key, value in record.attributes.items()]
    attributes += [
        _pair("outstation.epoch", f"{source[2]:016x}"),
        _pair("outstation.sequence", record.sequence),
        _pair("outstation.content_type", record.content_type),
    ]
    event = record.attributes.get("event", "")
    return LogRecord(
        time_unix_nano=max(0, record.time_unix_nano),  # OpenTelemetry's time begins in 1970
        body=_body(record),
        attributes=attributes,
        event_name=event,
    )


def _body(record: Record) -> Any:
    kind = record.content_type.partition(";")[0].strip().lower()
    try:
        if kind == "application/json" or kind.endswith("+json"):
            return _any_value(msgspec.json.decode(record.payload))
        if kind.startswith("text/"):
            return AnyValue(string_value=record.payload.decode())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # it is not what it says: the bytes themselves are the truth
    return AnyValue(bytes_value=record.payload)


def _any_value(value: Any, depth: int = 0) -> Any:
    """What msgspec made of JSON: one of seven types, so the table is complete."""
    if depth >= _MAX_DEPTH:
        return AnyValue(string_value=msgspec.json.encode(value).decode())
    if isinstance(value, list):
        return AnyValue(array_value=ArrayValue(values=[_any_value(item, depth + 1) for item in value]))
    if isinstance(value, dict):
        pairs = [KeyValue(key=key, value=_any_value(item, depth + 1)) for key, item in value.items()]
        return AnyValue(kvlist_value=KeyValueList(values=pairs))
    return _PLAIN[type(value)](value)


_PLAIN: Mapping[type, Callable[[Any], Any]] = {
    type(None): lambda _: AnyValue(),
    bool: lambda value: AnyValue(bool_value=value),
    int: lambda value: AnyValue(int_value=value) if abs(value) <= _MAX_INT else AnyValue(string_value=str(value)),
    float: lambda value: AnyValue(double_value=value),
    str: lambda value: AnyValue(string_value=value),
}


def _pair(key: str, value: str | int) -> Any:
    return KeyValue(
        key=key, value=AnyValue(int_value=value) if isinstance(value, int) else AnyValue(string_value=value)
    )
