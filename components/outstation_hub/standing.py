"""How far each wish is: counted from what stations told last. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from outstation.types import ModelVersionReport
from outstation.wire.messages import Failure, ModelWish, StationEntry, WishEntry, WishName, WishStages
from outstation_hub.selection import ANSWERING, TURNED_DOWN, Rule, is_chosen, matches

# Failures that are listed with their reasons: more would say the same again.
MAX_FAILURES = 100
RUNNING, STOPPED = "running", "stopped"


@dataclass(slots=True)
class _Count:
    matching: int = 0
    deciding: int = 0
    active: int = 0
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)


def entries(
    rules: Sequence[Rule], stations: Iterable[StationEntry], deciding: Callable[[str], dict[str, Rule]]
) -> tuple[WishEntry, ...]:
    """*rules* with how many of *stations* each is for, decides for, answers at and failed at."""
    counts = [_Count() for _ in rules]
    for station in stations:
        decided = deciding(station.station)
        for rule, count in zip(rules, counts, strict=True):
            if matches(rule, station.station, station.reported.labels):
                _add(count, rule, station, decided.get(rule.model) is rule)
    return tuple(map(_entry, rules, counts))


def _add(count: _Count, rule: Rule, station: StationEntry, decides: bool) -> None:
    count.matching += 1
    count.deciding += decides
    known = _version(station, rule)
    # Of a rollout, who has failed counts even where it was taken back since.
    if known is None or not (decides or (rule.stages is not None and is_chosen(rule, station.station))):
        return
    count.active += decides and known.phase in ANSWERING
    if known.phase in TURNED_DOWN:
        count.failed += 1
        if len(count.failures) < MAX_FAILURES:
            count.failures.append(Failure(station.station, known.phase.value, known.reason))


def _version(station: StationEntry, rule: Rule) -> ModelVersionReport | None:
    for model in station.reported.models:
        if model.name == rule.model:
            return next((known for known in model.versions if known.version == rule.version), None)
    return None


def _entry(rule: Rule, count: _Count) -> WishEntry:
    stages, state, reason = None, "", ""
    if rule.stages is not None:
        stages = WishStages(rule.stages.percent, rule.stages.stop_after, rule.stages.stop_after_percent)
        state, reason = (STOPPED if rule.stages.stopped else RUNNING), rule.stages.stopped
    return WishEntry(
        ModelWish(WishName(rule.model, rule.target), rule.version, stages),
        rule.revision,
        rule.since_unix_nano,
        state,
        reason,
        count.matching,
        count.deciding,
        count.active,
        count.failed,
        tuple(count.failures),
    )
