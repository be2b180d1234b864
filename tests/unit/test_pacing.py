"""How fast, and whose turn: the uplink's decisions."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import SettingsError
from outstation.sync.pacing import Backoff, Flow, Hours, Sent, Turns, Window


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


def drained(
    bytes_per_second: float, round_trip: float, *, seconds: float, ceiling: int = 8 << 20
) -> tuple[Flow, float, float]:
    """A backlog over a link of that rate: the flow, the bytes a second that arrived, the longest answer of the end."""
    flow, now, sent_bytes, link_free_at = Flow(ceiling), 0.0, 0, 0.0
    under_way: list[tuple[float, int, float]] = []  # answered at, bytes, sent at
    arrived, slowest = 0, 0.0
    while now < seconds:
        while sent_bytes == 0 or sent_bytes + flow.message_bytes <= flow.window_bytes:
            size = flow.message_bytes
            link_free_at = max(link_free_at, now) + size / bytes_per_second
            under_way.append((link_free_at + round_trip, size, now))
            sent_bytes += size
        answered, size, sent_at = under_way.pop(0)
        now = answered
        sent_bytes -= size
        arrived += size
        flow.acknowledged(size, sent_at, now)
        if now > seconds / 2:
            slowest = max(slowest, now - sent_at)
    return flow, arrived / now, slowest


@pytest.mark.parametrize(
    ("rate", "round_trip"), [(4_000, 0.6), (15_000, 0.1), (60_000, 0.05), (1e6, 0.05), (1e8, 0.02)]
)
def test_the_window_fills_the_link_and_keeps_a_keepalive_from_waiting(rate: float, round_trip: float) -> None:
    _, throughput, slowest = drained(rate, round_trip, seconds=600)
    assert throughput > 0.8 * rate
    assert slowest < 5.0  # of the 10 seconds after which both sides take a link for dead


def test_a_far_link_is_believed_to_be_far_and_filled_all_the_same() -> None:
    flow = Flow(8 << 20)
    flow.acknowledged(1000, 0.0, 0.05)  # it was near once
    now = 0.05
    for _ in range(400):
        flow.acknowledged(flow.message_bytes, now, now + 3.0)
        now += 3.0
    assert flow.window_bytes > 1 << 20


def test_after_a_loss_less_is_sent_at_once_but_never_nothing() -> None:
    flow = Flow(8 << 20)
    for _ in range(20):
        flow.lost()
    assert flow.window_bytes == Flow.FLOOR_BYTES
    assert flow.message_bytes == Flow.SMALLEST_MESSAGE_BYTES


@given(st.integers(1, 64 << 20), st.lists(st.tuples(st.integers(1, 1 << 20), st.floats(0, 100)), max_size=60))
def test_the_window_stays_within_its_bounds(ceiling: int, answers: list[tuple[int, float]]) -> None:
    flow, now = Flow(ceiling), 0.0
    for size, took in answers:
        flow.acknowledged(size, now, now + took)
        now += took
        assert min(Flow.FLOOR_BYTES, ceiling) <= flow.window_bytes <= max(ceiling, Flow.FLOOR_BYTES)


def test_parts_that_are_held_make_room_in_the_window() -> None:
    window = Window(8, 100)
    window.add(Sent("a", 5, 40, 0.0, end=40))
    window.add(Sent("a", 5, 40, 1.0, end=80))
    assert not window.has_room(40)
    assert window.hold("a", 5, 40) == [Sent("a", 5, 40, 0.0, end=40)]
    assert window.has_room(40)
    assert window.hold("a", 6, 99) == []


@pytest.mark.parametrize(
    ("texts", "open_at", "closed_at"),
    [
        ((), [0, 719, 1439], []),
        (("02:00-04:00",), [120, 239], [119, 240]),
        (("22:00-02:00", "12:00-12:30"), [1320, 0, 119, 720], [120, 750, 1319]),
        (("00:00-24:00",), [0, 1439], []),
    ],
)
def test_hours_of_the_day_are_kept(texts: tuple[str, ...], open_at: list[int], closed_at: list[int]) -> None:
    hours = Hours.parse(texts)
    assert all(map(hours.are_open, open_at))
    assert not any(map(hours.are_open, closed_at))


@pytest.mark.parametrize("text", ["", "2-4", "25:00-26:00", "02:00", "02:60-03:00", "04:00-04:00", "24:00-01:00"])
def test_what_is_no_time_of_the_day_is_said_to_be_none(text: str) -> None:
    with pytest.raises(SettingsError):
        Hours.parse([text])
