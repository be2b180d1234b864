"""Two devices of one name: each has its turn, and a device alone never waits for its own ghost."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from outstation_hub.duels import HOLD, MAX_INSTANCES, MEMORY, Duels, Holder


def test_the_newest_connection_takes_over_at_once():
    duels = Duels()
    assert duels.wait("press-7", "b", Holder("a", 0.0), 1.0) == 0.0
    assert duels.wait("press-7", "c", Holder("b", 1.0), 2.0) == 0.0  # restarted again and again
    assert not duels.is_doubled("press-7", 2.0)


@given(st.lists(st.floats(0, 5), min_size=1, max_size=50))
def test_a_device_that_flaps_never_waits_for_itself(pauses):
    duels, now, since = Duels(), 0.0, 0.0
    for pause in pauses:
        now += pause
        assert duels.wait("press-7", "a", Holder("a", since), now) == 0.0
        since = now
    assert not duels.is_doubled("press-7", now)


def test_who_was_thrown_out_and_comes_back_waits_until_the_other_had_its_turn():
    duels = Duels()
    assert duels.wait("press-7", "b", Holder("a", 0.0), 1.0) == 0.0
    assert duels.wait("press-7", "a", Holder("b", 1.0), 2.0) == HOLD - 1.0
    assert duels.is_doubled("press-7", 2.0)
    assert duels.wait("press-7", "a", Holder("b", 1.0), 1.0 + HOLD) == 0.0
    assert duels.wait("press-7", "b", Holder("a", 1.0 + HOLD), 2.0 + HOLD) == HOLD - 1.0


def test_stations_that_do_not_say_who_they_are_take_over_as_ever():
    duels = Duels()
    for now in range(10):
        assert duels.wait("press-7", "", Holder("", float(now)), now + 0.1) == 0.0
    assert not duels.is_doubled("press-7", 10.0)


def test_it_is_forgotten_after_a_while():
    duels = Duels()
    duels.wait("press-7", "b", Holder("a", 0.0), 1.0)
    assert duels.wait("press-7", "a", Holder("b", MEMORY), MEMORY + 2.0) == 0.0


def test_one_name_with_ever_new_instances_fills_nothing():
    duels = Duels()
    for number in range(1000):
        duels.wait("press-7", f"n{number + 1}", Holder(f"n{number}", 0.0), 1.0)
    assert len(duels._thrown["press-7"]) == MAX_INSTANCES


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0.1, 20)), min_size=1, max_size=100))
def test_two_devices_take_over_from_each_other_no_more_often_than_the_hold(tries):
    duels, now, holder = Duels(), 0.0, Holder("a", 0.0)
    changes = []
    for who, pause in tries:
        now += pause
        if who != holder.instance and duels.wait("press-7", who, holder, now) == 0.0:
            holder = Holder(who, now)
            changes.append(now)
    assert all(later - earlier >= HOLD for earlier, later in pairwise(changes[1:]))
