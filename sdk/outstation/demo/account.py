"""The account of a demo: what the reader says it produced, beside what lies in the hub's Parquet files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from outstation.telemetry.events import EVENTS
from outstation.types import ModelPhase, ModelReport

# What the operator calls it: a version that answered and was followed by a better one is no failure.
_OUTCOME = {
    ModelPhase.ACTIVE: "active",
    ModelPhase.SUPERSEDED: "superseded",
    ModelPhase.REFUSED: "refused",
    ModelPhase.REJECTED: "rejected",
    ModelPhase.ROLLED_BACK: "rejected",
}
EXPECTED_OUTCOMES = {"1.0.0": "superseded", "2.0.0": "active", "3.0.0": "refused", "4.0.0": "rejected"}


class ModelOutcome(msgspec.Struct, frozen=True):
    """How one version ended. ``accuracy`` is that of the delivered readings it made; None without any."""

    version: str
    outcome: str
    reason: str
    accuracy: float | None


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The report. Counts are of readings; they come from the reader's log and the Parquet files alone."""

    produced: int
    delivered: int
    duplicates: int
    lost: int
    dropped: dict[str, int]
    failed_calls: int
    outage_seconds: float
    kills: int
    backlog: int
    drain_seconds: float
    drain_records_per_second: float
    models: tuple[ModelOutcome, ...]

    def faults(self) -> list[str]:
        """What is not as it must be, a sentence each; empty when all is well."""
        faults = [
            f"{count} readings {what}."
            for what, count in (
                ("were lost", self.lost),
                ("arrived twice", self.duplicates),
                ("were dropped", sum(self.dropped.values())),
                ("could not be computed", self.failed_calls),
            )
            if count
        ]
        if not self.produced:
            faults.append("No reading was produced.")
        outcomes = {model.version: model.outcome for model in self.models}
        faults += [
            f"Version {version} ended {outcomes.get(version, 'unknown')}, not {expected}."
            for version, expected in EXPECTED_OUTCOMES.items()
            if outcomes.get(version) != expected
        ]
        return faults


class ReadingsLog:
    """The reader's own log, read on from where the last look ended; a line that is not whole yet waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self.readings: list[dict[str, Any]] = []

    def look(self) -> list[dict[str, Any]]:
        """Every reading so far, in order."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._offset)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._offset += len(whole) + len(newline)
            self.readings += [json.loads(line) for line in whole.splitlines()]
        return self.readings


def delivered(parquet: Path) -> list[dict[str, Any]]:
    """The bodies of the readings in the hub's Parquet files, a file's in the order of their sequence numbers."""
    import pyarrow.parquet as pq  # noqa: PLC0415  only the account needs it

    bodies: list[dict[str, Any]] = []
    for path in sorted(parquet.rglob(f"stream={EVENTS}/*/*.parquet")):
        table = pq.ParquetFile(path).read(columns=["payload"])
        bodies += [json.loads(payload) for payload in table.column("payload").to_pylist()]
    return bodies


def compare(produced: Iterable[Mapping[str, Any]], arrived: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Counts, and the accuracy of each version over what arrived."""
    made = {reading["number"] for reading in produced if "failed" not in reading}
    seen = Counter(reading["number"] for reading in arrived)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for reading in arrived:
        total[reading["version"]] += 1
        right[reading["version"]] += reading["digit"] == reading["truth"]
    return {
        "produced": len(made),
        "delivered": len(seen),
        "duplicates": sum(seen.values()) - len(seen),
        "lost": len(made - seen.keys()),
        "failed_calls": sum("failed" in reading for reading in produced),
        "accuracy": {version: right[version] / count for version, count in total.items()},
    }


def outcomes(reports: Iterable[ModelReport], accuracy: Mapping[str, float]) -> tuple[ModelOutcome, ...]:
    """How each version ended, oldest first."""
    return tuple(
        ModelOutcome(
            version.version,
            _OUTCOME.get(version.phase, version.phase.value),
            version.reason,
            None if version.version not in accuracy else round(accuracy[version.version], 4),
        )
        for report in reports
        for version in sorted(report.versions, key=lambda entry: entry.version)
    )
