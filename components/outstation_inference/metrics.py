"""Counters by model and version: a page that Prometheus reads, and the same through OpenTelemetry's API."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outstation._version import __version__
from outstation.wire.questions import ModelKey, ModelStatistics
from outstation_inference.service import InferenceService

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation


@dataclass(frozen=True, slots=True)
class _Counter:
    name: str  # of Prometheus; OpenTelemetry keeps the unit apart
    unit: str
    words: str
    value: Callable[[ModelStatistics], int | float]


_COUNTERS = (
    _Counter("calls", "{call}", "Calls answered.", lambda row: row.calls),
    _Counter("errors", "{call}", "Calls that failed.", lambda row: row.errors),
    _Counter(
        "executions", "{run}", "Runs of the model that gave an answer; a batch is one.", lambda row: row.executions
    ),
    _Counter("queue_seconds", "s", "Time that calls waited.", lambda row: row.queue_nano / 1e9),
    _Counter("compute_seconds", "s", "Time that runs took.", lambda row: row.compute_nano / 1e9),
)


def page(service: InferenceService) -> str:
    """Every counter of every version that answers, in Prometheus's text format."""
    rows = service.statistics(ModelKey(""))
    lines: list[str] = []
    for counter in _COUNTERS:
        name = f"outstation_inference_{counter.name}_total"
        lines += [f"# HELP {name} {counter.words}", f"# TYPE {name} counter"]
        lines += [f'{name}{{model="{row.name}",version="{row.version}"}} {counter.value(row)}' for row in rows]
    return "\n".join(lines) + "\n"


def observe(service: InferenceService, provider: MeterProvider | None = None) -> None:
    """Offer every counter to *provider*, or to the one that the process has or will have.

    Nothing happens where OpenTelemetry's API is not installed. The API has no way to take an instrument back: one
    whose service has gone has nothing to say.
    """
    try:
        from opentelemetry import metrics  # noqa: PLC0415 - of an extra, and 20 ms that a device without it saves
    except ImportError:
        return
    meter = metrics.get_meter("outstation.inference", __version__, provider)
    known = weakref.ref(service)
    for counter in _COUNTERS:
        meter.create_observable_counter(
            f"outstation.inference.{counter.name.removesuffix('_seconds')}",
            [_callback(known, counter.value, metrics.Observation)],
            unit=counter.unit,
            description=counter.words,
        )


def _callback(
    known: weakref.ref[InferenceService],
    value: Callable[[ModelStatistics], int | float],
    observation: type[Observation],
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def read(_: CallbackOptions) -> Iterable[Observation]:
        service = known()
        rows = () if service is None else service.statistics(ModelKey(""))
        return [observation(value(row), {"model": row.name, "version": row.version}) for row in rows]

    return read
