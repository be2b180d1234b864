"""What the uplink sends, and when: records in parts, a broker's word, hours, metered links, rates, signs of life."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outstation.buffer import Buffer
from outstation.clock import SystemClock
from outstation.errors import LinkDownError
from outstation.provider import Acknowledgement, Limits, Message
from outstation.settings import BufferSettings, StreamSettings, UplinkSettings
from outstation.sync.budget import Budget
from outstation.sync.deadletter import DEAD_LETTER
from outstation.sync.uplink import UplinkThread
from outstation.testing import FakeClock
from outstation.types import AcknowledgedBy, LinkState
from outstation.wire import parts
from outstation.wire.block import decode
from support import wait_until
from uplink_parts import FAST, FarEnd, put, started


class Assembling(FarEnd):
    """A far end that puts parts together, and says how much of them it holds."""

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self.assembler = parts.Assembler()
        self.parts: list[Message] = []
        self.silent_after = -1  # parts, after which no word comes any more
        self.order: list[str] = []

    def send(self, message: Message, timeout: float) -> None:
        self.order.append(message.stream)
        if not parts.is_part(message.block):
            super().send(message, timeout)
            return
        if not self.up:
            raise LinkDownError("cut")
        self.parts.append(message)
        if len(self.parts) == self.silent_after:
            self.lose()
            return
        answer = self.assembler.take("s", message.stream, parts.unpack(message.block), 0.0)
        assert self.listener is not None
        if isinstance(answer, int):
            held = Acknowledgement(message.stream, message.epoch, message.last_sequence, held_bytes=answer)
            self.listener.acknowledged(held)
        else:
            whole = Message(message.stream, message.epoch, message.first_sequence, message.last_sequence, answer)
            super().send(whole, timeout)

    def payloads(self, stream: str) -> list[bytes]:
        blocks = [decode(message.block)[1] for message in self.messages if message.stream == stream]
        return [payload for columns in blocks for payload in columns.payloads]


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    streams = {
        "alarms": StreamSettings(priority=0),
        "logs": StreamSettings(acknowledged_by=AcknowledgedBy.BROKER),
    }
    opened = Buffer.open(
        tmp_path / "buffer", BufferSettings(group_interval=0.01, min_free_disk_bytes=0, streams=streams)
    )
    yield opened
    opened.close()


@pytest.fixture
def far_end() -> FarEnd:
    return FarEnd()


PICTURE = random.Random(1).randbytes(200_000)


def test_a_record_larger_than_a_message_arrives_in_parts_and_whole(buffer: Buffer) -> None:
    far_end = Assembling(10_000)
    put(buffer, 5)
    buffer.stream("events").append(PICTURE)
    put(buffer, 5)
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 11)
    uplink.close()
    assert far_end.payloads("events")[5] == PICTURE
    assert far_end.arrived("events") == list(range(1, 12))
    assert max(len(message.block) for message in far_end.parts) <= 10_000
    assert len(far_end.parts) >= 20
    assert all(stream.name != DEAD_LETTER for stream in buffer.streams())


def test_after_a_lost_link_parts_that_the_far_end_holds_are_not_sent_again(buffer: Buffer) -> None:
    far_end = Assembling(10_000)
    far_end.silent_after = 12
    buffer.stream("events").append(PICTURE)
    buffer.flush()
    uplink = started(buffer, far_end)
    wait_until(lambda: not far_end.up)
    far_end.up = True
    wait_until(lambda: buffer.stream("events").acknowledged == 1)
    uplink.close()
    assert far_end.payloads("events") == [PICTURE]
    whole = -(-len(PICTURE) // (10_000 - parts.HEADER_BYTES))
    assert whole <= len(far_end.parts) <= whole + 8  # those under way when the link went, and not all eleven before


def test_alarms_pass_between_the_parts_of_a_large_record(buffer: Buffer) -> None:
    far_end = Assembling(2_000)
    far_end.up = False
    buffer.stream("events").append(PICTURE)
    put(buffer, 10, "alarms")
    uplink = started(buffer, far_end)
    far_end.up = True
    wait_until(lambda: buffer.stream("events").acknowledged == 1 and buffer.stream("alarms").acknowledged == 10)
    uplink.close()
    assert far_end.order.index("alarms") < 3
    assert far_end.arrived("alarms") == list(range(1, 11))


def test_a_record_that_is_refused_in_the_middle_is_set_aside_whole_and_the_rest_moves_on(buffer: Buffer) -> None:
    far_end = Assembling(10_000)
    real = far_end.send

    def send(message: Message, timeout: float) -> None:
        if parts.is_part(message.block) and len(far_end.parts) == 3:
            assert far_end.listener is not None
            word = Acknowledgement(message.stream, message.epoch, message.last_sequence, refused="too large for us")
            far_end.listener.acknowledged(word)
            return
        real(message, timeout)

    far_end.send = send  # type: ignore[method-assign]
    buffer.stream("events").append(PICTURE)
    buffer.flush()
    put(buffer, 5)
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 6)
    uplink.close()
    (letter,) = buffer.stream(DEAD_LETTER).read()
    assert letter.payload == PICTURE
    assert letter.attributes["outstation.refused"] == "too large for us"
    assert far_end.arrived("events") == [2, 3, 4, 5, 6]


def test_a_brokers_word_lets_records_go_only_where_it_is_enough_and_only_without_a_gap(
    buffer: Buffer, far_end: FarEnd
) -> None:
    far_end.auto = False
    put(buffer, 30, "logs")
    put(buffer, 10)
    uplink = started(buffer, far_end)
    wait_until(
        lambda: far_end.arrived("logs") == list(range(1, 31)) and far_end.arrived("events") == list(range(1, 11))
    )
    listener = far_end.listener
    assert listener is not None
    logs, events = buffer.stream("logs"), buffer.stream("events")
    first, *others = [message for message in far_end.messages if message.stream == "logs"]
    for message in [*others, *(message for message in far_end.messages if message.stream == "events")]:
        listener.accepted(Acknowledgement(message.stream, message.epoch, message.last_sequence))
    assert logs.acknowledged == 0  # the first of them may be lost
    listener.accepted(Acknowledgement("logs", logs.epoch, first.last_sequence))
    wait_until(lambda: logs.acknowledged == 30)
    assert events.acknowledged == 0  # the far end has said nothing
    uplink.close()


def test_over_a_metered_link_only_urgent_streams_leave_until_it_is_metered_no_more(
    buffer: Buffer, far_end: FarEnd
) -> None:
    put(buffer, 10)
    put(buffer, 10, "alarms")
    uplink = started(buffer, far_end, UplinkSettings(backoff_first=0.01, metered=True))
    wait_until(lambda: buffer.stream("alarms").acknowledged == 10)
    assert uplink.metered
    assert far_end.arrived("events") == []
    uplink.metered = False
    wait_until(lambda: buffer.stream("events").acknowledged == 10)
    uplink.close()


def test_outside_its_hours_a_station_sends_what_is_urgent_only() -> None:
    minute = [59]
    settings = UplinkSettings(send_hours=("01:00-02:00",), urgent_priority=1)
    budget = Budget(settings, Limits(), FakeClock(), lambda _: minute[0])
    assert [budget.admits(priority) for priority in (0, 1, 2, 9)] == [True, True, False, False]
    minute[0] = 60
    assert budget.admits(9)
    budget.metered = True
    assert not budget.admits(2)


def test_bits_and_messages_a_second_are_kept_together() -> None:
    clock = FakeClock()
    budget = Budget(UplinkSettings(max_bits_per_second=8_000), Limits(messages_per_second=2), clock)
    budget.spend(500)
    assert budget.wait() == 0.0
    budget.spend(2_500)
    assert budget.wait() == pytest.approx(2.0)  # 3,000 bytes, of which 1,000 were in hand
    clock.advance(2.0)
    assert budget.wait() == 0.0
    for _ in range(4):
        budget.spend(0)
    assert budget.wait() == pytest.approx(1.0)


def test_a_capped_uplink_still_sends_everything(buffer: Buffer, far_end: FarEnd) -> None:
    put(buffer, 100)
    uplink = started(buffer, far_end, UplinkSettings(backoff_first=0.01, max_bits_per_second=100_000))
    wait_until(lambda: buffer.stream("events").acknowledged == 100)
    assert far_end.connects == 1
    uplink.close()


class Sleeper(FarEnd):
    """A broker that accepts and loses: sending works, and nothing ever comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.probes = 0
        self.comes_back = True

    def probe(self, timeout: float) -> None:
        self.probes += 1
        if not self.comes_back:
            raise LinkDownError("the canary did not come back")


def test_a_link_that_accepts_and_loses_is_noticed_by_a_canary(buffer: Buffer) -> None:
    far_end = Sleeper()
    clock = FakeClock()
    uplink = UplinkThread(buffer, far_end, FAST, clock, jitter=lambda: 0.5)  # type: ignore[arg-type]
    uplink.start()
    wait_until(lambda: uplink.link.state is LinkState.ONLINE)
    clock.advance(FAST.canary_interval / 2)
    clock.advance(FAST.canary_interval / 2 + 1)
    wait_until(lambda: far_end.probes == 1)
    assert uplink.link.state is LinkState.ONLINE
    far_end.comes_back = False
    far_end.up = False
    wait_until(lambda: clock.waiters > 0)
    clock.advance(FAST.canary_interval + 1)
    wait_until(lambda: uplink.link.state is not LinkState.ONLINE)
    assert far_end.probes == 2
    uplink.close()


def test_whoever_asks_hears_of_each_coming_and_going_of_the_link(buffer: Buffer, far_end: FarEnd) -> None:
    heard: list[Any] = []
    uplink = UplinkThread(buffer, far_end, FAST, SystemClock(), on_link=heard.append, jitter=lambda: 0.5)
    uplink.start()
    wait_until(lambda: len(heard) == 1)
    far_end.lose()
    wait_until(lambda: far_end.connects > 4)
    far_end.up = True
    wait_until(lambda: len(heard) == 3)
    assert [link.state for link in heard] == [LinkState.ONLINE, LinkState.OFFLINE, LinkState.ONLINE]
    assert heard[1].reason == "cut"
    uplink.close()
