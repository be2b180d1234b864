"""The OTLP sink against a collector of OpenTelemetry's own generated services, over real gRPC and HTTP."""

from __future__ import annotations

import gzip
import os
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import msgspec
import pytest

from hub_parts import drained, hub_provider, hub_settings
from outstation.clock import SystemClock
from outstation.errors import ProviderUnavailableError, SettingsError
from outstation.provider import Message
from outstation.testing.contract import Ear, message
from outstation.wire import Columns, decode, encode
from outstation_hub import Hub
from outstation_hub.sinks import Arrival
from support import wait_until

if not os.environ.get("CI"):
    pytest.importorskip("opentelemetry.proto")

import grpc
from google.protobuf import any_pb2, duration_pb2
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as logs
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as logs_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2 as metrics
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc as metrics_grpc
from opentelemetry.proto.metrics.v1.metrics_pb2 import ResourceMetrics

from outstation_hub.sinks.otlp import OtlpSink

METRICS = "application/vnd.opentelemetry.otlp+protobuf;signal=metrics"


class Collector(logs_grpc.LogsServiceServicer, metrics_grpc.MetricsServiceServicer):
    """Takes requests; ``verdict(request, context)`` may abort, or return an answer of its own."""

    def __init__(self, address="127.0.0.1:0"):
        self.requests = []
        self.verdict = lambda request, context: None
        self._server = grpc.server(futures.ThreadPoolExecutor(4), options=(("grpc.so_reuseport", 0),))
        logs_grpc.add_LogsServiceServicer_to_server(self, self._server)
        metrics_grpc.add_MetricsServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port(address)
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802  gRPC's name
        special = self.verdict(request, context)
        self.requests.append(request)
        if special is not None:
            return special
        kind = type(request).__name__
        return logs.ExportLogsServiceResponse() if "Logs" in kind else metrics.ExportMetricsServiceResponse()

    def close(self):
        self._server.stop(0).wait()

    def log_records(self):
        """(station, record) of every log record, in the order of arrival."""
        return [
            (values(entry.resource.attributes)["outstation.station"], record)
            for request in self.requests
            if isinstance(request, logs.ExportLogsServiceRequest)
            for entry in request.resource_logs
            for scope in entry.scope_logs
            for record in scope.log_records
        ]


def values(attributes):
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}


def sequences(collector, station="press-7"):
    return [
        values(record.attributes)["outstation.sequence"] for name, record in collector.log_records() if name == station
    ]


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.close()


@pytest.fixture
def sink(collector, tmp_path):
    sink = OtlpSink(f"grpc://{collector.address}", tmp_path / "rejected", SystemClock())
    yield sink
    sink.close()


def arrival(first, count, station="press-7"):
    header, columns = decode(message(first, count).block)
    return Arrival(station, "events", header, columns)


def one(payload, content_type, attributes=(), time=1_700_000_000_123_456_789, sequence=5):
    columns = Columns([sequence], [time], [payload], None, [(content_type, tuple(attributes))])
    return Arrival("press-7", "events", *decode(encode(columns, epoch=255)))


def test_a_record_becomes_a_log_record_with_its_own_time_and_names(collector, sink):
    body = {"value": 7, "deep": [1.5, None, True, "x"], "huge": 2**63}
    sink.write([one(msgspec.json.encode(body), "application/json; charset=utf-8", [("event", "reading"), ("k", "ä")])])
    ((station, record),) = collector.log_records()
    assert station == "press-7"
    assert record.time_unix_nano == 1_700_000_000_123_456_789
    assert record.event_name == "reading"
    assert values(record.attributes) == {
        "event": "reading",
        "k": "ä",
        "outstation.epoch": "00000000000000ff",
        "outstation.sequence": 5,
        "outstation.content_type": "application/json; charset=utf-8",
    }
    found = {pair.key: pair.value for pair in record.body.kvlist_value.values}
    assert found["value"].int_value == 7
    assert found["huge"].string_value == str(2**63)
    kinds = [value.WhichOneof("value") for value in found["deep"].array_value.values]
    assert kinds == ["double_value", None, "bool_value", "string_value"]
    (request,) = collector.requests
    assert values(request.resource_logs[0].resource.attributes)["outstation.stream"] == "events"


@pytest.mark.parametrize(
    ("payload", "content_type", "body"),
    [
        (b"\0\xff", "application/octet-stream", {"bytes_value": b"\0\xff"}),
        (b"{half", "application/json", {"bytes_value": b"{half"}),
        (b"[" * 5000, "application/json", {"bytes_value": b"[" * 5000}),
        ("grün".encode(), "text/plain", {"string_value": "grün"}),
        (b"\xff", "text/plain", {"bytes_value": b"\xff"}),
    ],
)
def test_a_body_is_what_the_payload_truly_is(collector, sink, payload, content_type, body):
    sink.write([one(payload, content_type, time=-5)])
    ((_, record),) = collector.log_records()
    ((kind, value),) = body.items()
    assert getattr(record.body, kind) == value
    assert record.time_unix_nano == 0


def otlp_metrics(name):
    entry = ResourceMetrics()
    entry.resource.attributes.add(key="service.name").value.string_value = "press"
    entry.resource.attributes.add(key="outstation.station").value.string_value = "somebody-else"
    metric = entry.scope_metrics.add().metrics.add(name=name)
    metric.gauge.data_points.add(time_unix_nano=77, as_double=1.25)
    return metrics.ExportMetricsServiceRequest(resource_metrics=[entry]).SerializeToString()


def test_what_is_otlp_already_goes_on_unchanged_and_names_its_station(collector, sink):
    sink.write([one(otlp_metrics("a"), METRICS), arrival(1, 2), one(otlp_metrics("b"), METRICS, sequence=6)])
    (request,) = [r for r in collector.requests if isinstance(r, metrics.ExportMetricsServiceRequest)]
    assert [e.scope_metrics[0].metrics[0].name for e in request.resource_metrics] == ["a", "b"]
    for entry in request.resource_metrics:
        assert values(entry.resource.attributes) == {
            "service.name": "press",
            "outstation.station": "press-7",
            "outstation.stream": "events",
        }
        assert len(entry.resource.attributes) == 3
        assert entry.scope_metrics[0].metrics[0].gauge.data_points[0].as_double == 1.25
    assert sequences(collector) == [1, 2]


def test_a_record_that_is_refused_for_good_is_set_aside_and_the_others_arrive(collector, sink, tmp_path):
    def verdict(request, context):
        names = [
            values(r.attributes)["outstation.sequence"]
            for e in request.resource_logs
            for r in e.scope_logs[0].log_records
        ]
        if 137 in names:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "I do not like 137")

    collector.verdict = verdict
    sink.write([arrival(1, 300)])
    assert sequences(collector) == [n for n in range(1, 301) if n != 137]
    assert sink.rejected == 1
    (kept,) = (tmp_path / "rejected").glob("*.binpb")
    aside = logs.ExportLogsServiceRequest.FromString(kept.read_bytes())
    record = aside.resource_logs[0].scope_logs[0].log_records[0]
    assert values(record.attributes)["outstation.sequence"] == 137
    sink.write([arrival(301, 10)])
    assert OtlpSink("grpc://127.0.0.1:1", tmp_path / "rejected", SystemClock()).rejected == 1


def test_a_partial_success_is_counted_and_not_sent_again(collector, sink):
    answer = logs.ExportLogsServiceResponse()
    answer.partial_success.rejected_log_records = 3
    answer.partial_success.error_message = "three are too old"
    collector.verdict = lambda request, context: answer
    sink.write([arrival(1, 10)])
    assert (len(collector.requests), sink.rejected) == (1, 3)


def test_a_signal_that_the_collector_does_not_know_holds_nothing_up(collector, sink):
    def verdict(request, context):
        if isinstance(request, metrics.ExportMetricsServiceRequest):
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "no metrics here")

    collector.verdict = verdict
    sink.write([one(otlp_metrics("a"), METRICS), arrival(1, 2)])
    assert (sequences(collector), sink.rejected) == ([1, 2], 1)


def test_a_payload_that_is_no_otlp_is_set_aside(collector, sink):
    sink.write([one(b"\xff\xff\xff", METRICS), arrival(1, 2)])
    assert (sequences(collector), sink.rejected) == ([1, 2], 1)


@pytest.mark.parametrize("code", ["UNAVAILABLE", "UNAUTHENTICATED", "DATA_LOSS"])
def test_what_may_pass_comes_again_and_nothing_is_doubled(collector, sink, code):
    failures = iter([False, True])

    def verdict(request, context):
        if next(failures, False):
            context.abort(grpc.StatusCode[code], "not now")

    collector.verdict = verdict
    batch = [arrival(1, 2500)]
    with pytest.raises(ProviderUnavailableError, match="not now"):
        sink.write(batch)  # its first thousand were taken
    sink.write(batch)
    assert sequences(collector) == list(range(1, 2501))


def test_a_collector_that_asks_for_rest_gets_it(collector, sink):
    detail = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo")
    detail.value = b"\x0a" + bytes([len(d := duration_pb2.Duration(seconds=60).SerializeToString())]) + d
    inner = detail.SerializeToString()
    status = b"\x08\x08" + b"\x1a" + bytes([len(inner)]) + inner

    def verdict(request, context):
        context.set_trailing_metadata((("grpc-status-details-bin", status),))
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much")

    collector.verdict = verdict
    with pytest.raises(ProviderUnavailableError, match="too much"):
        sink.write([arrival(1, 1)])
    with pytest.raises(ProviderUnavailableError, match="s of rest"):
        sink.write([arrival(1, 1)])
    assert sink.rejected == 0


def test_a_collector_that_is_away_delays_and_loses_nothing(tmp_path):
    collector = Collector()
    with Hub(hub_settings(tmp_path, otlp=f"grpc://{collector.address}")) as hub:
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        collector.close()
        for n in range(3):
            provider.uplink.send(message(1 + 100 * n, 100), 5)
        ear.wait(lambda ear: ear.through("events") == 300, 5)
        wait_until(lambda: hub.drains[0].failure)
        later = Collector(collector.address)
        drained(hub)
        provider.close()
    assert sequences(later) == list(range(1, 301))
    later.close()


def test_it_goes_over_http_as_well(tmp_path):
    answers = iter([503, 200, 400])
    got = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = gzip.decompress(self.rfile.read(int(self.headers["Content-Length"])))
            got.append((self.path, self.headers["Authorization"], logs.ExportLogsServiceRequest.FromString(body)))
            self.send_response(next(answers))
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever).start()
    url = f"http://127.0.0.1:{server.server_port}"
    sink = OtlpSink(url, tmp_path / "rejected", SystemClock(), headers={"Authorization": "Bearer x"})
    with pytest.raises(ProviderUnavailableError, match="503"):
        sink.write([arrival(1, 1)])
    sink.write([arrival(1, 1)])
    sink.write([arrival(2, 1)])
    sink.close()
    server.shutdown()
    server.server_close()
    assert [(path, token) for path, token, _ in got] == [("/v1/logs", "Bearer x")] * 3
    assert sink.rejected == 1


@pytest.mark.parametrize("endpoint", ["", "collector:4317", "grpc://host", "ftp://host:1", "http://host:x"])
def test_an_endpoint_that_is_none_is_refused(endpoint, tmp_path):
    with pytest.raises(SettingsError, match="no collector"):
        OtlpSink(endpoint, tmp_path, SystemClock())


def test_messages_of_the_hub_carry_otlp_from_a_station(collector, tmp_path):
    block = encode(Columns([1], [5], [otlp_metrics("m")], None, [(METRICS, ())]), epoch=7)
    with Hub(hub_settings(tmp_path, otlp=f"grpc://{collector.address}")) as hub:
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(Message("otel.metrics", 7, 1, 1, block), 5)
        ear.wait(lambda ear: ear.through("otel.metrics") == 1, 5)
        drained(hub)
        provider.close()
    assert [type(request).__name__ for request in collector.requests] == ["ExportMetricsServiceRequest"]
