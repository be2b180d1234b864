"""How fast, and whose turn: the uplink's decisions."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from outstation.sync.pacing import Backoff, Sent, Turns, Window


@given(st.integers(1, 10_000), st.floats(0, 1, exclude_max=True))
def test_backoff_stays_between_zero_and_its_ceiling(failures: int, jitter: float) -> None:
    assert 0 <= Backoff(0.5, 60.0).delay(failures, jitter) < 60.0


def test_backoff_doubles_its_bound_with_each_failure() -> None:
    bounds = [Backoff(1.0, 8.0).delay(failures, 0.999) for failures in range(1, 6)]
    assert [round(bound) for bound in bounds] == [1, 2, 4, 8, 8]


def test_the_window_is_bounded_in_messages_and_bytes() -> None:
    window = Window(2, 100)
    window.add(Sent("a", 1, 60, 0.0))
    assert window.has_room(40)
    assert not window.has_room(41)
    window.add(Sent("a", 2, 10, 1.0))
    assert not window.has_room()
    window.acknowledge("a", 1)
    assert window.has_room(90)
    assert window.oldest() == Sent("a", 2, 10, 1.0)


def test_a_message_larger_than_the_window_goes_alone() -> None:
    window = Window(8, 100)
    assert window.has_room(1_000)
    window.add(Sent("a", 1, 1_000, 0.0))
    assert not window.has_room(1)


def test_an_acknowledgement_is_for_its_own_stream() -> None:
    window = Window(8, 100)
    window.add(Sent("a", 5, 1, 0.0))
    window.add(Sent("b", 5, 1, 0.0))
    window.acknowledge("b", 9)
    assert len(window) == 1


def serve(turns: Turns, ready: list[tuple[int, str]]) -> str:
    name = turns.next(ready)
    assert name is not None
    turns.served(name)
    return name


def test_a_turn_that_came_to_nothing_is_not_one() -> None:
    turns = Turns()
    ready = [(0, "alarms"), (9, "logs")]
    served: Counter[str] = Counter()
    for _ in range(400):
        turns.next(ready)  # and the window had no room
        served[serve(turns, ready)] += 1
    assert served == {"alarms": 300, "logs": 100}


def test_the_first_priority_gets_three_quarters_and_nobody_starves() -> None:
    turns = Turns()
    ready = [(0, "alarms"), (5, "events"), (9, "logs")]
    served = Counter(serve(turns, ready) for _ in range(1200))
    assert served["alarms"] >= 900
    assert min(served["events"], served["logs"]) >= 100


def test_streams_of_one_priority_take_turns() -> None:
    turns = Turns()
    served = Counter(serve(turns, [(5, "a"), (5, "b")]) for _ in range(100))
    assert served == {"a": 50, "b": 50}


def test_with_nobody_ready_it_is_nobodys_turn() -> None:
    assert Turns().next([]) is None
