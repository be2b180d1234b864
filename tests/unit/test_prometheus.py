"""A station's status as Prometheus reads it."""

from __future__ import annotations

from outstation.telemetry.prometheus import page
from outstation.types import (
    DropReason,
    Ledger,
    Link,
    LinkState,
    ModelPhase,
    ModelReport,
    ModelVersionReport,
    Reported,
    StationStatus,
    StreamReport,
)


def samples(text: str) -> dict[str, float]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def test_link_streams_and_models_are_metrics():
    ledger = Ledger(10, 4, 3, {DropReason.EVICTED: 2, DropReason.CORRUPT: 1})
    versions = (ModelVersionReport("1.0.0", ModelPhase.SUPERSEDED), ModelVersionReport("2.0.0", ModelPhase.PROBATION))
    reported = Reported(
        (ModelReport("digits", "2.0.0", versions),),
        (StreamReport("events", 7, ledger, 456),),
        Link(LinkState.OFFLINE, 5_000_000_000, "cut", metered=True),
    )
    found = samples(page(StationStatus("press-7", "hub", 1, 2_500_000_000, reported)))
    assert found == {
        'outstation_started_seconds{station="press-7"}': 2.5,
        'outstation_link_state{station="press-7",state="offline"}': 1,
        'outstation_link_state{station="press-7",state="probing"}': 0,
        'outstation_link_state{station="press-7",state="online"}': 0,
        'outstation_link_metered{station="press-7"}': 1,
        'outstation_link_since_seconds{station="press-7"}': 5,
        'outstation_records_appended_total{station="press-7",stream="events"}': 10,
        'outstation_records_acknowledged_total{station="press-7",stream="events"}': 4,
        'outstation_records_pending{station="press-7",stream="events"}': 3,
        'outstation_records_dropped_total{station="press-7",stream="events",reason="evicted"}': 2,
        'outstation_records_dropped_total{station="press-7",stream="events",reason="corrupt"}': 1,
        'outstation_pending_bytes{station="press-7",stream="events"}': 456,
        'outstation_model_active{station="press-7",model="digits",version="2.0.0",phase="probation"}': 1,
    }


def test_every_metric_says_what_it_is_and_large_counts_are_whole():
    ledger = Ledger(2**50 + 1, 2**50 + 1, 0)
    text = page(StationStatus("s", "local", 1, 0, Reported(streams=(StreamReport("events", 7, ledger),))))
    names = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {line.partition("{")[0] for line in text.splitlines() if not line.startswith("#")} <= names
    assert f"}} {2**50 + 1}\n" in text
