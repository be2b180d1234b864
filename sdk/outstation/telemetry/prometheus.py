"""A station's status as metrics, in Prometheus' text format: for node_exporter's textfile collector, or any scraper.

The format is version 0.0.4 of Prometheus' text exposition. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from outstation.types import Link, LinkState, StationStatus, StreamReport

Sample = tuple[Mapping[str, str], float]
# What a label's value may not hold as it is.
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


def page(status: StationStatus) -> str:
    """Every metric of *status*. Counters begin anew when a stream does; the station's own name is a label of each."""
    lines: list[str] = []
    streams = status.reported.streams

    def add(name: str, kind: str, words: str, samples: Iterable[Sample]) -> None:
        lines.extend((f"# HELP outstation_{name} {words}", f"# TYPE outstation_{name} {kind}"))
        for labels, value in samples:
            both = {"station": status.station, **labels}
            named = ",".join(f'{key}="{text.translate(_ESCAPES)}"' for key, text in both.items())
            lines.append(f"outstation_{name}{{{named}}} {value}")

    def each(value: str) -> Iterable[Sample]:
        return (({"stream": report.stream}, getattr(report.ledger, value)) for report in streams)

    add("started_seconds", "gauge", "When the station was started, since 1970.", [({}, status.started_unix_nano / 1e9)])
    if status.reported.link is not None:
        add("link_state", "gauge", "1 for the state that the link is in.", _states(status.reported.link))
        metered = float(status.reported.link.metered)
        add("link_metered", "gauge", "1 when every byte over the link costs.", [({}, metered)])
        since = status.reported.link.since_unix_nano / 1e9
        add("link_since_seconds", "gauge", "Since when the link is there or away, since 1970.", [({}, since)])
    add("records_appended_total", "counter", "Records offered, those rejected included.", each("appended"))
    add("records_acknowledged_total", "counter", "Records that the far end has.", each("acknowledged"))
    add("records_pending", "gauge", "Records that wait.", each("pending"))
    add("records_dropped_total", "counter", "Records that were let go, by reason.", _dropped(streams))
    add("pending_bytes", "gauge", "Payload that waits.", (({"stream": r.stream}, r.pending_bytes) for r in streams))
    add("model_active", "gauge", "1 for each version that answers.", _active(status))
    add("model_placement", "gauge", "1 for what computes the version that answers.", _placements(status))
    fallbacks = (({"model": m.name}, float(len(m.placement.fallbacks))) for m in status.reported.models if m.placement)
    add("model_fallbacks", "gauge", "Accelerators that were preferred to it and are not in use.", fallbacks)
    return "\n".join(lines) + "\n"


def _states(link: Link) -> Iterable[Sample]:
    return (({"state": state.value}, float(state is link.state)) for state in LinkState)


def _dropped(streams: Iterable[StreamReport]) -> Iterable[Sample]:
    for report in streams:
        for reason, count in report.ledger.dropped.items():
            yield {"stream": report.stream, "reason": reason.value}, count


def _active(status: StationStatus) -> Iterable[Sample]:
    for model in status.reported.models:
        for version in model.versions:
            if version.version == model.active:
                yield {"model": model.name, "version": version.version, "phase": version.phase.value}, 1.0


def _placements(status: StationStatus) -> Iterable[Sample]:
    for model in status.reported.models:
        if model.placement is not None:
            placed = {"runtime": model.placement.runtime, "accelerator": model.placement.accelerator}
            yield {"model": model.name, "version": model.active, **placed}, 1.0
