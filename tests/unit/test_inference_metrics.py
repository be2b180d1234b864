"""The same counters by Prometheus's page and through OpenTelemetry."""

from __future__ import annotations

import gc
import sys

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import tiny_models
from outstation.inference.host import FixedModels
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation_inference.metrics import observe, page
from outstation_inference.service import InferenceService


@pytest.fixture
def service(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_models.scale(2))
    models = FixedModels((Model("m", load_file(tmp_path / "m.onnx", version="2.0.0")),))
    made = InferenceService(models)
    made.count("m", "1.0.0", 50, errors=0, queue=1.0, compute=1.0)
    made.count("m", "2.0.0", 3, errors=1, queue=0.5, compute=0.25)
    made.count("m", "2.0.0", 1, errors=0, queue=0.0, compute=0.25)
    yield made
    models.close()


@pytest.fixture
def reader():
    made = InMemoryMetricReader()
    provider = MeterProvider([made])
    made.provider = provider
    yield made
    provider.shutdown()


def points(reader):
    data = reader.get_metrics_data()
    if data is None:
        return {}
    metrics = [metric for scope in data.resource_metrics[0].scope_metrics for metric in scope.metrics]
    return {
        metric.name: (metric.unit, [(dict(point.attributes), point.value) for point in metric.data.data_points])
        for metric in metrics
    }


def test_the_page_has_the_counters_of_the_version_that_answers(service):
    assert [line for line in page(service).splitlines() if not line.startswith("#")] == [
        'outstation_inference_calls_total{model="m",version="2.0.0"} 3',
        'outstation_inference_errors_total{model="m",version="2.0.0"} 1',
        'outstation_inference_executions_total{model="m",version="2.0.0"} 2',
        'outstation_inference_queue_seconds_total{model="m",version="2.0.0"} 0.5',
        'outstation_inference_compute_seconds_total{model="m",version="2.0.0"} 0.5',
    ]


def test_opentelemetry_reads_the_same_counters(service, reader):
    observe(service, reader.provider)
    of = {"model": "m", "version": "2.0.0"}
    assert points(reader) == {
        "outstation.inference.calls": ("{call}", [(of, 3)]),
        "outstation.inference.errors": ("{call}", [(of, 1)]),
        "outstation.inference.executions": ("{run}", [(of, 2)]),
        "outstation.inference.queue": ("s", [(of, 0.5)]),
        "outstation.inference.compute": ("s", [(of, 0.5)]),
    }
    service.count("m", "2.0.0", 1, errors=0, queue=0.0, compute=0.5)
    assert points(reader)["outstation.inference.calls"][1] == [(of, 4)]


def test_a_server_that_has_stopped_is_let_go_and_has_nothing_to_say(reader):
    observe(InferenceService(FixedModels(())), reader.provider)
    gc.collect()
    assert points(reader) == {}


def test_without_opentelemetry_nothing_is_missing(service, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    observe(service)


def test_versions_that_were_long_ago_are_forgotten(service):
    for number in range(300):
        service.count("m", f"0.0.{number}", 1, errors=0, queue=0.0, compute=0.0)
    assert len(service._counts) == 256
