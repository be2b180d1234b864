"""What a station hands to gRPC: messages that wait go together, as far as the hub takes them so."""

from __future__ import annotations

import threading

import pytest

from outstation.errors import DeadlineError, LinkDownError
from outstation.provider import Message
from outstation.providers.hub.uplink import Outbox
from outstation.wire.messages import Hello, Ledgers, Messages

LIMIT = 1 << 20


def message(number: int, size_bytes: int = 100) -> Message:
    return Message("events", 7, number, number, bytes(size_bytes))


def outbox(*items, max_blocks=64, max_message_bytes=LIMIT):
    box = Outbox(Hello("press-7"), max_message_bytes)
    assert next(box) == Hello("press-7")
    box.max_blocks = max_blocks
    for item in items:
        box.put(item, 0.0)
    return box


def test_messages_that_wait_go_together_and_in_order():
    box = outbox(message(1), message(2), message(3))
    assert next(box) == Messages((message(1), message(2), message(3)))


def test_a_message_alone_goes_as_it_is():
    assert next(outbox(message(1))) == message(1)


@pytest.mark.parametrize("max_blocks", [0, 1])
def test_a_hub_that_takes_one_block_a_message_gets_one(max_blocks):
    box = outbox(message(1), message(2), max_blocks=max_blocks)
    assert [next(box), next(box)] == [message(1), message(2)]


def test_no_more_go_together_than_the_hub_takes():
    box = outbox(*map(message, range(1, 6)), max_blocks=3)
    assert [len(next(box).messages), len(next(box).messages)] == [3, 2]


def test_what_is_no_block_keeps_its_place():
    box = outbox(message(1), Ledgers(()), message(2), message(3))
    assert [next(box), next(box), next(box)] == [message(1), Ledgers(()), Messages((message(2), message(3)))]


def test_together_they_are_no_larger_than_one_message_may_be():
    box = outbox(message(1, 400), message(2, 400), message(3, 400), max_message_bytes=1000)
    assert [next(box), next(box)] == [Messages((message(1, 400), message(2, 400))), message(3, 400)]


def test_a_message_larger_than_the_outbox_still_goes():
    large = message(1, 600_000)
    box = outbox(large)
    with pytest.raises(DeadlineError):
        box.put(message(2), 0.0)
    assert next(box) == large
    box.put(message(2), 0.0)
    assert next(box) == message(2)


def test_taking_makes_room_for_whoever_waits():
    box = outbox(*(message(n) for n in range(1, 17)))
    waiting = threading.Thread(target=box.put, args=(message(17), 10.0))
    waiting.start()
    taken = next(box)
    waiting.join(10)
    assert len(taken.messages) == 16
    assert next(box) == message(17)


def test_closing_ends_the_iteration_and_every_wait():
    box = outbox(message(1))
    box.close()
    assert list(box) == []
    with pytest.raises(LinkDownError):
        box.put(message(2), 10.0)
