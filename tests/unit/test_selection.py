"""Which wish decides, and how a rollout goes out and stops: properties of pure functions."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.types import ModelPhase
from outstation_hub.selection import Rule, Stages, deciding, is_chosen, judged, offers, place, resumed

P = ModelPhase
NAMES = [f"press-{number}" for number in range(200)]
PHASES = st.sampled_from([None, *ModelPhase])
LABELS = st.dictionaries(st.sampled_from(["line", "site"]), st.sampled_from(["1", "2"]))
STAGES = st.builds(
    Stages, percent=st.floats(0.1, 100), stop_after=st.integers(1, 5), stop_after_percent=st.sampled_from([0.0, 5.0])
)
REPORTS = st.dictionaries(st.sampled_from(NAMES[:40]), PHASES, max_size=20)


def rule(version="2.0.0", station="", revision=1, stages=None, **where):
    return Rule(model="digits", version=version, station=station, where=where, revision=revision, stages=stages)


def decided(rules, station="press-7", **labels):
    found = deciding(rules, station, labels, {}).get("digits")
    return found.version if found else None


# -- which wish decides ----------------------------------------------------------------------------------------------


def test_the_station_comes_before_its_labels_and_they_before_all():
    every, line, own = rule("1.0.0", revision=3), rule("2.0.0", revision=2, line="3"), rule("3.0.0", "press-7")
    assert decided([every, line, own], line="3") == "3.0.0"
    assert decided([every, line], line="3") == "2.0.0"
    assert decided([every, line], line="4") == "1.0.0"
    assert decided([line]) is None


def test_more_conditions_come_before_fewer_and_then_the_later_wish():
    line, site = rule("1.0.0", revision=5, line="3"), rule("2.0.0", revision=6, site="x")
    both = rule("3.0.0", revision=1, line="3", site="x")
    assert decided([line, site, both], line="3", site="x") == "3.0.0"
    assert decided([line, site], line="3", site="x") == "2.0.0"


@settings(deadline=None, max_examples=50)
@given(st.permutations(range(5)), LABELS, st.data())
def test_the_order_of_the_rules_decides_nothing(order, labels, data):
    rules = [
        rule(f"{n}.0.0", data.draw(st.sampled_from(["", "press-7"])), n, data.draw(st.none() | STAGES), **where)
        for n, where in enumerate(data.draw(st.lists(LABELS, min_size=5, max_size=5)))
    ]
    assert decided(rules, **labels) == decided([rules[n] for n in order], **labels)


def test_each_model_is_decided_for_itself():
    other = msgspec.structs.replace(rule("9.0.0", "press-7"), model="faces")
    found = deciding([rule("1.0.0"), other], "press-7", {}, {})
    assert {name: r.version for name, r in found.items()} == {"digits": "1.0.0", "faces": "9.0.0"}


# -- stages ----------------------------------------------------------------------------------------------------------


@given(st.text(max_size=20), st.text(max_size=10), st.floats(0, 100), st.floats(0, 100))
def test_who_is_chosen_stays_chosen_when_the_percentage_grows(station, version, one, other):
    few, many = sorted((one, other))
    if is_chosen(rule(version, stages=Stages(percent=few)), station):
        assert is_chosen(rule(version, stages=Stages(percent=many)), station)


@given(st.text(max_size=20))
def test_a_hundred_percent_are_all(station):
    assert is_chosen(rule(stages=Stages(percent=100.0)), station)


def test_the_choice_is_the_same_on_every_machine():
    assert place("press-7", "digits", "2.0.0") == pytest.approx(86.77039618, abs=1e-6)
    chosen = [name for name in NAMES if is_chosen(rule(stages=Stages(percent=25.0)), name)]
    assert 35 <= len(chosen) <= 65
    others = [name for name in NAMES if is_chosen(rule("2.0.1", stages=Stages(percent=25.0)), name)]
    assert chosen != others  # another version begins with others


def test_who_is_not_chosen_follows_the_next_wish():
    rules = [rule("1.0.0"), rule("2.0.0", revision=2, stages=Stages(percent=25.0))]
    versions = [decided(rules, name) for name in NAMES]
    assert set(versions) == {"1.0.0", "2.0.0"}


def test_it_stops_at_the_number_of_failures_and_says_who():
    stages = Stages(percent=50.0, stop_after=2)
    one = {"a": P.ROLLED_BACK, "b": P.ACTIVE, "c": None}
    assert judged(stages, one) is stages
    stopped = judged(stages, one | {"c": P.REJECTED})
    assert stopped.stopped == "2 of 3 stations turned it down (a, c)"
    assert stopped.kept == {"b"}


def test_it_stops_at_a_share_of_those_chosen():
    stages = Stages(percent=50.0, stop_after=0, stop_after_percent=10.0)
    many = dict.fromkeys(NAMES[:100], P.ACTIVE)
    few = many | dict.fromkeys(NAMES[:9], P.REFUSED)
    assert judged(stages, few) is stages
    assert judged(stages, few | {NAMES[9]: P.REFUSED}).stopped


@settings(deadline=None)
@given(STAGES, REPORTS, REPORTS, st.floats(0.1, 100))
def test_after_it_stopped_it_comes_to_no_further_station(stages, at_stop, later, percent):
    stopped = judged(stages, at_stop)
    if not stopped.stopped:
        return
    answering = {name for name, phase in at_stop.items() if phase in (P.PROBATION, P.ACTIVE)}
    for name in NAMES[:40]:
        if offers(rule(stages=stopped), name, answers=False):
            assert name in answering
    assert judged(stopped, later) is stopped
    widened = msgspec.structs.replace(stopped, percent=percent)
    assert not any(offers(rule(stages=widened), name, answers=False) for name in set(NAMES[:40]) - answering)


@settings(deadline=None)
@given(STAGES, REPORTS)
def test_what_failed_before_it_was_resumed_stops_it_no_more(stages, reports):
    again = resumed(judged(stages, reports), reports)
    assert not again.stopped
    assert judged(again, reports) == again
    fresh = reports | {f"new-{n}": P.REJECTED for n in range(stages.stop_after)}
    assert judged(again, fresh).stopped
