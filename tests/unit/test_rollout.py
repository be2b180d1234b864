from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.models.rollout import (
    TABLE,
    TURNED_DOWN,
    Event,
    ModelState,
    MoveError,
    Verdict,
    VersionState,
    candidates,
    deserves_another_try,
    judge,
    moved,
    next_phase,
)
from outstation.types import LATEST, ModelPhase

P, E = ModelPhase, Event
# Every move there is, written out once more: the table must not change without this one.
MOVES = """
None        offer    -> offered
offered     begin    -> downloading
offered     distrust -> refused
offered     fail     -> rejected
offered     recall   -> superseded
downloading begin    -> downloading
downloading complete -> verified
downloading distrust -> refused
downloading fail     -> rejected
downloading recall   -> superseded
verified    pass     -> staged
verified    fail     -> rejected
verified    recall   -> superseded
verified    damage   -> offered
staged      watch    -> shadow
staged      admit    -> probation
staged      recall   -> superseded
staged      damage   -> offered
shadow      admit    -> probation
shadow      fail     -> rejected
shadow      recall   -> superseded
shadow      damage   -> offered
probation   prove    -> active
probation   fault    -> rolled_back
probation   recall   -> superseded
probation   damage   -> offered
active      replace  -> superseded
active      damage   -> offered
superseded  offer    -> offered
superseded  prove    -> active
refused     forgive  -> offered
rejected    forgive  -> offered
rolled_back forgive  -> offered
"""
ALLOWED = {(start, event): end for start, event, _, end in (line.split() for line in MOVES.split("\n") if line)}


@pytest.mark.parametrize(("phase", "event"), list(itertools.product([None, *ModelPhase], Event)))
def test_each_event_moves_as_the_table_says_or_is_an_error(phase, event):
    expected = ALLOWED.get((phase.value if phase else "None", event.value))
    if expected is None:
        with pytest.raises(MoveError):
            next_phase(phase, event)
    else:
        assert next_phase(phase, event).value == expected


def test_the_table_holds_no_move_that_is_not_listed_here():
    assert len(TABLE) == len(ALLOWED)


def walk(model, version, *events, at=1):
    for event in events:
        model = moved(model, version, event, at_unix_nano=at)
    return model


INSTALL = (E.OFFER, E.BEGIN, E.COMPLETE, E.PASS, E.ADMIT)


def test_a_version_on_trial_answers_and_the_active_one_stays_active():
    model = walk(ModelState(), "1.0.0", *INSTALL, E.PROVE)
    model = walk(model, "2.0.0", *INSTALL)
    assert (model.active, model.candidate, model.answering) == ("1.0.0", "2.0.0", "2.0.0")


def test_a_proved_version_supersedes_the_active_one_which_becomes_the_last_good():
    model = walk(walk(ModelState(), "1.0.0", *INSTALL, E.PROVE), "2.0.0", *INSTALL, E.PROVE)
    assert (model.active, model.candidate, model.last_good) == ("2.0.0", "", "1.0.0")
    assert model.phase("1.0.0") is P.SUPERSEDED


def test_a_fault_gives_the_answers_back_to_the_active_version():
    model = walk(walk(ModelState(), "1.0.0", *INSTALL, E.PROVE), "2.0.0", *INSTALL)
    model = moved(model, "2.0.0", E.FAULT, at_unix_nano=9, reason="3 of 9 calls failed")
    assert model.answering == "1.0.0"
    assert model.versions["2.0.0"] == VersionState(
        phase=P.ROLLED_BACK, since_unix_nano=9, reason="3 of 9 calls failed", digest=""
    )


def test_two_versions_cannot_be_on_trial_at_once():
    model = walk(ModelState(), "1.0.0", *INSTALL)
    model = walk(model, "2.0.0", *INSTALL[:-1])
    with pytest.raises(MoveError, match="on trial already"):
        moved(model, "2.0.0", E.ADMIT, at_unix_nano=1)


def test_the_last_good_version_can_take_the_place_of_a_damaged_active_one():
    model = walk(walk(ModelState(), "1.0.0", *INSTALL, E.PROVE), "2.0.0", *INSTALL, E.PROVE)
    model = walk(model, "2.0.0", E.DAMAGE)
    model = walk(model, "1.0.0", E.PROVE)
    assert (model.active, model.last_good, model.phase("2.0.0")) == ("1.0.0", "", P.OFFERED)


def test_the_instant_of_a_phase_is_that_of_entering_it():
    model = walk(ModelState(), "1.0.0", E.OFFER, E.BEGIN, at=5)
    assert moved(model, "1.0.0", E.BEGIN, at_unix_nano=8).versions["1.0.0"].since_unix_nano == 5


VERSIONS = ["1.0.0", "1.1.0", "2.0.0"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(VERSIONS), st.sampled_from(Event)), max_size=80))
def test_whatever_happens_at_most_one_version_is_active_and_one_on_trial(happenings):
    model = ModelState()
    for version, event in happenings:
        try:
            model = moved(model, version, event, at_unix_nano=1)
        except MoveError:
            continue
        phases = [state.phase for state in model.versions.values()]
        assert phases.count(P.ACTIVE) <= 1
        assert phases.count(P.PROBATION) <= 1
        assert model.last_good == "" or model.last_good != model.active


def state(**phases):
    return ModelState(
        versions={
            key.replace("_", ".").lstrip("v"): VersionState(phase=phase, since_unix_nano=0)
            for key, phase in phases.items()
        }
    )


AVAILABLE = ["1.0.0", "2.0.0", "3.0.0", "10.0.0"]


def test_latest_is_tried_from_the_newest_down_to_the_active_version():
    assert candidates(state(v2_0_0=P.ACTIVE), LATEST, AVAILABLE) == ("10.0.0", "3.0.0", "2.0.0")


@pytest.mark.parametrize("phase", sorted(TURNED_DOWN))
def test_latest_passes_over_what_was_turned_down(phase):
    assert candidates(state(v10_0_0=phase, v2_0_0=P.ACTIVE), LATEST, AVAILABLE) == ("3.0.0", "2.0.0")


def test_latest_takes_no_prerelease_while_there_is_a_release():
    assert candidates(ModelState(), LATEST, ["1.0.0", "2.0.0-rc.1"]) == ("1.0.0",)
    assert candidates(ModelState(), LATEST, ["2.0.0-rc.1", "2.0.0-rc.2"]) == ("2.0.0-rc.2", "2.0.0-rc.1")


def test_latest_goes_back_when_the_active_version_was_withdrawn():
    assert candidates(state(v3_0_0=P.ACTIVE), LATEST, ["1.0.0", "2.0.0"]) == ("2.0.0", "1.0.0")


def test_an_explicit_version_stands_alone_even_if_it_is_older():
    assert candidates(state(v3_0_0=P.ACTIVE), "1.0.0", AVAILABLE) == ("1.0.0",)


def test_an_explicit_version_that_was_turned_down_or_is_not_offered_is_not_tried():
    assert candidates(state(v1_0_0=P.REJECTED), "1.0.0", AVAILABLE) == ()
    assert candidates(ModelState(), "4.0.0", AVAILABLE) == ()


@pytest.mark.parametrize(
    ("elapsed", "calls", "errors", "verdict"),
    [
        (0.0, 0, 0, Verdict.WAIT),
        (9.9, 1000, 0, Verdict.WAIT),
        (10.0, 0, 0, Verdict.PROVED),
        (10.0, 1000, 0, Verdict.PROVED),
        (0.1, 1, 1, Verdict.FAULTY),
        (10.0, 1000, 1, Verdict.FAULTY),
    ],
)
def test_a_trial_of_ten_seconds_is_judged(elapsed, calls, errors, verdict):
    assert judge(elapsed, 10.0, calls, errors) is verdict


def test_no_trial_is_proved_at_once():
    assert judge(0.0, 0.0, 0, 0) is Verdict.PROVED


@pytest.mark.parametrize(
    ("phase", "digest", "software", "again"),
    [
        (P.REJECTED, "aa", "1", False),
        (P.REJECTED, "bb", "1", True),  # other bytes under the same version
        (P.REJECTED, "aa", "2", False),  # the same model fails the same goldens
        (P.REFUSED, "aa", "2", True),  # a newer software may know the manifest's format
        (P.REFUSED, "aa", "1", False),
        (P.ACTIVE, "bb", "2", False),
    ],
)
def test_what_was_turned_down_is_tried_again_only_when_it_or_we_have_changed(phase, digest, software, again):
    known = VersionState(phase=phase, since_unix_nano=0, digest="aa", software="1")
    assert deserves_another_try(known, digest, software) is again
