"""What may be taken when a broker loses, reorders and repeats: decided without a broker."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation_hub.mqtt import order as room
from outstation_hub.mqtt.order import HOLD, Early, Order

KEY = ("press-7", "events", 7)


def early(first: int, size: int = 10) -> Early[int]:
    return Early(first, size, first)


def test_what_waits_comes_back_in_order_and_once():
    order: Order[int] = Order()
    for first in (30, 10, 20):
        assert order.keep(KEY, early(first), 0.0)
    assert [one.item for one in order.release(KEY)] == [10, 20, 30]
    assert order.release(KEY) == []
    assert order.waiting == 0


def test_what_waited_in_vain_is_given_up_and_what_moves_is_not():
    order: Order[int] = Order()
    order.keep(KEY, early(10), 0.0)
    order.keep(("press-8", "events", 7), early(10), HOLD)
    assert [key for key, _ in order.given_up(HOLD + 0.1)] == [KEY]
    assert order.waiting == 1


def test_what_waits_is_bounded_in_number_and_bytes(monkeypatch):
    monkeypatch.setattr(room, "MAX_EARLY", 3)
    monkeypatch.setattr(room, "MAX_EARLY_BYTES", 100)
    order: Order[int] = Order()
    assert not order.keep(KEY, early(1, 101), 0.0)
    assert [order.keep(KEY, early(n), 0.0) for n in range(4)] == [True, True, True, False]
    order.release(KEY)
    assert order.keep(KEY, early(1, 100), 0.0)


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(room, "MAX_KEYS", 2)
    order: Order[int] = Order()
    for n in range(3):
        order.settle(("press-7", "events", n), 5)
    assert [order.settled(("press-7", "events", n)) for n in range(3)] == [0, 5, 5]


def test_settled_only_grows():
    order: Order[int] = Order()
    assert order.settle(KEY, 5)
    assert not order.settle(KEY, 4)
    assert order.settled(KEY) == 5


def test_a_refusal_counts_for_its_own_link_only():
    order: Order[int] = Order()
    order.pass_over(KEY, "one", 20)
    assert (order.bound(KEY, "one"), order.bound(KEY, "two"), order.settled(KEY)) == (20, 0, 0)


@st.composite
def deliveries(draw) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Messages (after, first, last) of one station, and an order in which a broker delivers some of them."""
    messages, at = [], 0
    for size, gap in draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=12)):
        messages.append((at, at + gap + 1, at + gap + size))
        at += gap + size
    indexes = st.integers(0, len(messages) - 1)
    return messages, draw(st.lists(indexes, max_size=40))


@given(deliveries())
@pytest.mark.parametrize("then_all", [False, True])
def test_whatever_a_broker_does_the_mark_never_passes_a_hole(then_all, case):
    """A hub in ten lines: take what follows the mark, keep what is early, try again when something came."""
    messages, delivered = case
    order: Order[tuple[int, int, int]] = Order()
    mark, taken = 0, []

    def take(one: tuple[int, int, int]) -> bool:
        nonlocal mark
        after, first, last = one
        if last <= mark:
            return False
        if after > max(mark, order.bound(KEY, "x")):
            order.keep(KEY, Early(first, 1, one), 0.0)
            return False
        mark = last
        taken.append(one)
        return True

    for index in [*delivered, *(range(len(messages)) if then_all else ())]:
        if take(messages[index]):
            while any(list(map(take, [early.item for early in order.release(KEY)]))):
                pass
    assert taken == messages[: len(taken)], "something was passed over, or taken twice"
    if then_all:
        assert taken == messages
