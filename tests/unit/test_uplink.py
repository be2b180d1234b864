"""The uplink: cursors move on the far end's word alone, whatever the provider does."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outstation.buffer import Buffer, Stream
from outstation.errors import DeadlineError, DiskError
from outstation.provider import Acknowledgement, Message
from outstation.settings import BufferSettings, StreamSettings, UplinkSettings
from outstation.sync.deadletter import DEAD_LETTER, with_dead_letters
from outstation.types import LinkState, WhenFull
from support import wait_until
from uplink_parts import FarEnd, put, started


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    streams = {"alarms": StreamSettings(priority=0)}
    with_small_blocks = BufferSettings(group_interval=0.01, min_free_disk_bytes=0, streams=streams)
    opened = Buffer.open(tmp_path / "buffer", with_small_blocks)
    yield opened
    opened.close()


@pytest.fixture
def far_end() -> FarEnd:
    return FarEnd()


def test_everything_arrives_in_order_and_is_acknowledged(buffer: Buffer, far_end: FarEnd) -> None:
    uplink = started(buffer, far_end)
    put(buffer, 100)
    wait_until(lambda: buffer.stream("events").acknowledged == 100)
    assert far_end.arrived("events") == list(range(1, 101))
    assert uplink.link.state is LinkState.ONLINE
    uplink.close()


def test_the_cursor_waits_for_the_far_ends_word(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 20)
    uplink = started(buffer, far_end)
    wait_until(lambda: far_end.arrived("events") == list(range(1, 21)))
    assert buffer.stream("events").acknowledged == 0
    far_end.acknowledge(far_end.messages[0])
    wait_until(lambda: buffer.stream("events").acknowledged == far_end.messages[0].last_sequence)
    uplink.close()


def test_what_was_not_acknowledged_is_sent_again_after_a_lost_connection(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 20)
    uplink = started(buffer, far_end)
    wait_until(lambda: far_end.arrived("events") == list(range(1, 21)))
    far_end.lose()
    wait_until(lambda: uplink.link.state is not LinkState.ONLINE)
    put(buffer, 5)
    far_end.auto = far_end.up = True
    wait_until(lambda: buffer.stream("events").acknowledged == 25)
    assert far_end.arrived("events") == list(range(1, 26))
    assert len(far_end.messages) > len({message.last_sequence for message in far_end.messages})
    uplink.close()


def test_silence_is_taken_for_a_lost_link(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 5)
    uplink = started(buffer, far_end, UplinkSettings(backoff_first=0.01, backoff_ceiling=0.02, acknowledge_timeout=0.2))
    wait_until(lambda: far_end.connects >= 2)
    assert "acknowledged nothing" in uplink.link.reason or uplink.link.state is LinkState.ONLINE
    far_end.auto = True
    wait_until(lambda: buffer.stream("events").acknowledged == 5)
    uplink.close()


class Forgetful(FarEnd):
    """Acknowledges everything but the stream it has forgotten."""

    forgotten = "events"

    def acknowledge(self, message: Message) -> None:
        if message.stream != self.forgotten:
            super().acknowledge(message)


def test_a_message_that_is_lost_while_others_are_acknowledged_is_sent_again(buffer: Buffer) -> None:
    far_end = Forgetful()
    put(buffer, 1)
    uplink = started(buffer, far_end, UplinkSettings(backoff_first=0.01, backoff_ceiling=0.02, acknowledge_timeout=0.5))
    wait_until(lambda: far_end.arrived("events") == [1])
    # There is always word of the far end.
    wait_until(lambda: put(buffer, 1, "alarms") or far_end.connects > 1)
    far_end.forgotten = ""
    wait_until(lambda: buffer.stream("events").acknowledged == 1)
    uplink.close()


def test_late_doubled_and_foreign_acknowledgements_do_no_harm(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 10)
    stream = buffer.stream("events")
    uplink = started(buffer, far_end)
    wait_until(lambda: far_end.arrived("events") == list(range(1, 11)))
    listener = far_end.listener
    assert listener is not None
    listener.acknowledged(Acknowledgement("events", stream.epoch ^ 1, 10))  # an older epoch
    listener.acknowledged(Acknowledgement("events", stream.epoch, 999))  # beyond what was sent
    listener.acknowledged(Acknowledgement("nobody", stream.epoch, 1))
    listener.acknowledged(Acknowledgement("events", stream.epoch, 4))
    wait_until(lambda: stream.acknowledged == 4)
    for through in (4, 2, 4):
        listener.acknowledged(Acknowledgement("events", stream.epoch, through))
    listener.acknowledged(Acknowledgement("events", stream.epoch, 10))
    wait_until(lambda: stream.acknowledged == 10)
    assert stream.ledger().balanced
    uplink.close()


def test_what_the_far_end_refuses_is_set_aside_with_the_reason_and_the_rest_moves_on(
    buffer: Buffer, far_end: FarEnd
) -> None:
    far_end.refuse = {15}
    put(buffer, 30)
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 30)
    letters = list(buffer.stream(DEAD_LETTER).read())
    refused = [int(record.attributes["outstation.sequence"]) for record in letters]
    assert 15 in refused
    assert sorted(refused + far_end.arrived("events")) == list(range(1, 31))
    assert {record.attributes["outstation.refused"] for record in letters} == {"poison"}
    assert all(message.stream != DEAD_LETTER for message in far_end.messages)
    uplink.close()


def test_a_late_refusal_waits_for_what_was_sent_before_it(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 20)
    stream = buffer.stream("events")
    uplink = started(buffer, far_end)
    wait_until(lambda: far_end.arrived("events") == list(range(1, 21)))
    first, second = far_end.messages[:2]
    listener = far_end.listener
    assert listener is not None
    listener.acknowledged(Acknowledgement("events", stream.epoch, second.last_sequence, refused="no"))
    listener.acknowledged(Acknowledgement("events", stream.epoch, first.last_sequence))
    wait_until(lambda: stream.acknowledged == second.last_sequence)
    letters = [int(r.attributes["outstation.sequence"]) for r in buffer.stream(DEAD_LETTER).read()]
    assert letters == list(range(second.first_sequence, second.last_sequence + 1))
    uplink.close()


def test_messages_fit_the_providers_limit(buffer: Buffer) -> None:
    far_end = FarEnd(max_message_bytes=600)
    put(buffer, 100)
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 100)
    assert max(len(message.block) for message in far_end.messages) <= 600
    assert far_end.arrived("events") == list(range(1, 101))
    uplink.close()


def test_the_window_bounds_what_is_under_way(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    put(buffer, 100)
    settings = UplinkSettings(backoff_first=0.01, window_messages=3)
    uplink = started(buffer, far_end, settings)
    wait_until(lambda: len(far_end.messages) == 3)
    far_end.acknowledge(far_end.messages[0])
    wait_until(lambda: len(far_end.messages) == 4)
    uplink.close()
    assert len(far_end.messages) == 4


def test_alarms_overtake_a_backlog(buffer: Buffer, far_end: FarEnd) -> None:
    put(buffer, 200)
    put(buffer, 10, "alarms")
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 200)
    order = [message.stream for message in far_end.messages]
    assert "alarms" in order[:2]
    uplink.close()


def test_the_account_goes_up_with_the_records(buffer: Buffer, far_end: FarEnd) -> None:
    put(buffer, 3)
    uplink = started(buffer, far_end)
    wait_until(lambda: bool(far_end.ledgers))
    assert all(report.ledger.balanced for report in far_end.ledgers[0])
    uplink.close()


def test_a_far_end_that_never_answers_is_tried_again_and_again(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.up = False
    uplink = started(buffer, far_end)
    wait_until(lambda: far_end.connects >= 3)
    assert uplink.link.state is not LinkState.ONLINE
    assert uplink.link.reason == "nobody answers"
    uplink.close()


def test_a_fault_inside_an_adapter_does_not_end_the_thread(buffer: Buffer, far_end: FarEnd) -> None:
    real = far_end.connect
    far_end.connect = lambda *_: 1 / 0  # type: ignore[method-assign,assignment]
    put(buffer, 1)
    uplink = started(buffer, far_end)
    wait_until(lambda: "ZeroDivisionError" in uplink.link.reason)
    far_end.connect = real  # type: ignore[method-assign]
    wait_until(lambda: buffer.stream("events").acknowledged == 1)
    uplink.close()


def test_a_stream_that_the_disk_cannot_read_holds_up_no_other(
    buffer: Buffer, far_end: FarEnd, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(buffer, 10)
    put(buffer, 10, "alarms")
    alarms, real = buffer.stream("alarms"), Stream.blocks

    def blocks(stream: Stream, *arguments: Any) -> Any:
        if stream is alarms:
            raise DiskError("a sector cannot be read")
        return real(stream, *arguments)

    monkeypatch.setattr(Stream, "blocks", blocks)
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 10)
    assert far_end.connects == 1
    assert alarms.acknowledged == 0
    uplink.close()


def test_a_transport_without_room_is_not_a_lost_link(buffer: Buffer, far_end: FarEnd) -> None:
    far_end.auto = False
    real, full = far_end.send, threading.Event()

    def send(message: Message, timeout: float) -> None:
        if len(far_end.messages) == 1 and not full.is_set():
            full.set()
            raise DeadlineError("no room")
        real(message, timeout)

    far_end.send = send  # type: ignore[method-assign]
    put(buffer, 30)
    uplink = started(buffer, far_end)
    wait_until(full.is_set)
    far_end.acknowledge(far_end.messages[0])
    far_end.auto = True
    wait_until(lambda: buffer.stream("events").acknowledged == 30)
    assert far_end.connects == 1
    assert far_end.arrived("events") == list(range(1, 31))
    uplink.close()


def test_a_refused_record_whose_own_attributes_fill_the_bound_is_set_aside_all_the_same(
    buffer: Buffer, far_end: FarEnd
) -> None:
    far_end.refuse = {1}
    buffer.stream("events").append(b"x", attributes={"a": "b" * 65_500})
    buffer.flush()
    uplink = started(buffer, far_end)
    wait_until(lambda: buffer.stream("events").acknowledged == 1)
    (letter,) = buffer.stream(DEAD_LETTER).read()
    assert letter.attributes["outstation.refused"] == "poison"
    assert far_end.connects == 1
    uplink.close()


def test_dead_letters_never_hold_up_what_waits_behind_them() -> None:
    rejecting = BufferSettings(defaults=StreamSettings(when_full=WhenFull.REJECT))
    assert with_dead_letters(rejecting).streams[DEAD_LETTER].when_full is WhenFull.DROP_OLDEST
    chosen = BufferSettings(streams={DEAD_LETTER: StreamSettings(when_full=WhenFull.REJECT)})
    assert with_dead_letters(chosen) is chosen
