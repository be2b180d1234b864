"""The page that Prometheus reads: counters by model, in its text format."""

from __future__ import annotations

from collections.abc import Callable

from outstation.wire.questions import ModelKey, ModelStatistics
from outstation_inference.service import InferenceService

_Row = tuple[str, str, Callable[[ModelStatistics], float]]
_ROWS: tuple[_Row, ...] = (
    ("calls_total", "Calls answered.", lambda row: row.calls),
    ("errors_total", "Calls that failed.", lambda row: row.errors),
    ("executions_total", "Runs of the model; a batch is one.", lambda row: row.executions),
    ("queue_seconds_total", "Time that calls waited.", lambda row: row.queue_nano / 1e9),
    ("compute_seconds_total", "Time that runs took.", lambda row: row.compute_nano / 1e9),
)


def page(service: InferenceService) -> str:
    """Every counter of every model that answers."""
    rows = service.statistics(ModelKey(""))
    lines: list[str] = []
    for name, words, value in _ROWS:
        lines += [f"# HELP outstation_inference_{name} {words}", f"# TYPE outstation_inference_{name} counter"]
        lines += [
            f'outstation_inference_{name}{{model="{row.name}",version="{row.version}"}} {value(row)}' for row in rows
        ]
    return "\n".join(lines) + "\n"
