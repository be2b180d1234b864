"""Which wish decides for which station, and how a wish goes out in stages: pure functions, no I/O.

For each model one wish decides: that for the station itself, before those for labels, before that for every station.
Among wishes for labels the one with more conditions decides, among equals the one that was made last. So an exception
stays an exception when the rule around it changes.

A wish in stages takes part only for the stations that it has chosen. The choice is a hash of station, model and
version, so the same stations stay chosen when the percentage grows, and another version begins with others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import msgspec

from outstation.types import ModelPhase
from outstation.wire.messages import Target

TURNED_DOWN = frozenset({ModelPhase.REFUSED, ModelPhase.REJECTED, ModelPhase.ROLLED_BACK})
ANSWERING = frozenset({ModelPhase.PROBATION, ModelPhase.ACTIVE})


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """How far a wish has gone out. ``stopped`` is the reason why it goes no further, "" while it may."""

    percent: float
    stop_after: int = 1  # stations that failed; 0 = whatever their number
    stop_after_percent: float = 0.0  # ... of those chosen; 0 = whatever their share
    stopped: str = ""
    kept: frozenset[str] = frozenset()  # while stopped: the stations where it answered then, which keep it
    excused: frozenset[str] = frozenset()  # failed before an operator resumed it, and are not counted again


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One wish: a version of a model for one station, for labels, or for every station."""

    model: str
    version: str
    station: str = ""
    where: dict[str, str] = {}
    revision: int
    since_unix_nano: int = 0
    stages: Stages | None = None

    @property
    def target(self) -> Target:
        return Target(self.station, self.where)

    @property
    def rank(self) -> tuple[bool, int, int]:
        """The higher one decides."""
        return bool(self.station), len(self.where), self.revision


def place(station: str, model: str, version: str) -> float:
    """Where *station* stands in the queue for a version, from 0 up to 100: it is chosen by a percentage above that."""
    digest = hashlib.sha256(f"{station}\0{model}\0{version}".encode()).digest()
    # 53 bits, or rounding could lift the last ones to 100.0 and leave them out for ever.
    return (int.from_bytes(digest[:8], "big") >> 11) / (1 << 53) * 100.0


def matches(rule: Rule, station: str, labels: Mapping[str, str]) -> bool:
    """Whether *rule* is for *station*, whether or not it has come to it yet."""
    if rule.station:
        return rule.station == station
    return all(labels.get(name) == value for name, value in rule.where.items())


def is_chosen(rule: Rule, station: str) -> bool:
    """Whether a wish in stages has come to *station*, as far as the percentage tells."""
    return rule.stages is not None and place(station, rule.model, rule.version) < rule.stages.percent


def offers(rule: Rule, station: str, answers: bool) -> bool:
    """Whether *rule*, which is for *station*, takes part there. *answers*: its version answers there already.

    A wish that was stopped keeps its version where that does well, and comes to no other station.
    """
    if rule.stages is None:
        return True
    if rule.stages.stopped:
        return is_chosen(rule, station) and (answers or station in rule.stages.kept)
    return is_chosen(rule, station)


def deciding(
    rules: Iterable[Rule], station: str, labels: Mapping[str, str], phases: Mapping[tuple[str, str], ModelPhase]
) -> dict[str, Rule]:
    """The rule that decides for each model of *station*. *phases* by (model, version), as the station told last."""
    found: dict[str, Rule] = {}
    for rule in rules:
        best = found.get(rule.model)
        if best is not None and best.rank >= rule.rank:
            continue
        answers = phases.get((rule.model, rule.version)) in ANSWERING
        if matches(rule, station, labels) and offers(rule, station, answers):
            found[rule.model] = rule
    return found


def judged(stages: Stages, chosen: Mapping[str, ModelPhase | None]) -> Stages:
    """*stages*, stopped if too many of the *chosen* stations have turned the version down; by name, with its phase."""
    if stages.stopped:
        return stages
    failed = sorted(name for name, phase in chosen.items() if phase in TURNED_DOWN and name not in stages.excused)
    if not failed:
        return stages
    share = 100.0 * len(failed) / len(chosen)
    by_count = 0 < stages.stop_after <= len(failed)
    by_share = 0.0 < stages.stop_after_percent <= share
    if not (by_count or by_share):
        return stages
    shown = ", ".join(failed[:3]) + (", ..." if len(failed) > 3 else "")
    reason = f"{len(failed)} of {len(chosen)} stations turned it down ({shown})"
    return stopped(stages, reason, chosen)


def stopped(stages: Stages, reason: str, chosen: Mapping[str, ModelPhase | None]) -> Stages:
    """*stages* with no way further, for *reason*."""
    kept = frozenset(name for name, phase in chosen.items() if phase in ANSWERING)
    return msgspec.structs.replace(stages, stopped=reason, kept=kept)


def resumed(stages: Stages, chosen: Mapping[str, ModelPhase | None]) -> Stages:
    """*stages* on their way again: who has failed so far is not counted again."""
    excused = stages.excused | {name for name, phase in chosen.items() if phase in TURNED_DOWN}
    return msgspec.structs.replace(stages, stopped="", kept=frozenset(), excused=excused)
