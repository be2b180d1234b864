"""What the buffer promises its callers, with real files and the machine's own clock."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

import pytest

from outstation.buffer import Buffer
from outstation.buffer.encryption import Keys
from outstation.buffer.stream import Stream
from outstation.buffer.view import look
from outstation.errors import (
    BufferFullError,
    BufferLockedError,
    ClosedError,
    DeadlineError,
    InvalidInputError,
    InvalidNameError,
    RecordTooLargeError,
)
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import DropReason, Durability, WhenFull
from support import wait_until


def settings(**changes) -> BufferSettings:
    stream = {key: changes.pop(key) for key in list(changes) if key in StreamSettings.__struct_fields__}
    return BufferSettings(**{"group_interval": 0.01, "defaults": StreamSettings(**stream), **changes})


def fill(stream) -> None:
    while True:
        stream.append_many([os.urandom(500)] * 2).wait(5)


def payloads_of(stream, after=0):
    return [record.payload for record in stream.read(after)]


def test_records_come_back_as_they_went_in(tmp_path):
    with Buffer.open(tmp_path) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one", time_unix_nano=7, content_type="text/plain", attributes={"b": "2", "a": "1"})
        stream.append(b"", time_unix_nano=3)
        stream.append_many([b"x", b"y"], times_unix_nano=[1, 9], attributes=[{"k": "v"}, {}]).wait(5)
    with Buffer.open(tmp_path) as buffer:
        records = list(buffer.stream("events").read())
    assert [(r.sequence, r.time_unix_nano, r.payload, r.content_type, dict(r.attributes)) for r in records] == [
        (1, 7, b"one", "text/plain", {"a": "1", "b": "2"}),
        (2, 3, b"", "application/octet-stream", {}),
        (3, 1, b"x", "application/octet-stream", {"k": "v"}),
        (4, 9, b"y", "application/octet-stream", {}),
    ]


def test_a_receipt_names_its_records_and_is_done_once_they_are_on_the_disk(tmp_path):
    with Buffer.open(tmp_path, settings(group_interval=60.0)) as buffer:
        stream = buffer.stream("events")
        receipt = stream.append_many([b"a", b"b", b"c"])
        assert (receipt.first_sequence, receipt.last_sequence, receipt.done) == (1, 3, False)
        assert stream.last_sequence == 0
        receipt.wait(5)
        assert receipt.done
        assert receipt.error is None
        assert stream.last_sequence == 3


def test_a_done_callback_comes_on_the_commit_thread_or_at_once(tmp_path):
    with Buffer.open(tmp_path, settings(group_interval=60.0)) as buffer:
        told: list[tuple[int, str]] = []
        receipt = buffer.stream("events").append(b"a")
        receipt.add_done_callback(lambda own: told.append((own.last_sequence, threading.current_thread().name)))
        assert told == []
        receipt.wait(5)
        wait_until(lambda: told == [(1, "outstation-commit")])
        receipt.add_done_callback(lambda own: told.append((own.last_sequence, threading.current_thread().name)))
        assert told[1] == (1, threading.current_thread().name)


def test_a_group_is_committed_by_itself_after_the_interval(tmp_path):
    with Buffer.open(tmp_path, settings()) as buffer:
        seen = threading.Event()
        buffer.on_commit(seen.set)
        buffer.stream("events").append(b"a")
        assert seen.wait(5)
        assert buffer.stream("events").last_sequence == 1


def test_what_is_of_durability_memory_is_committed_by_itself_too(tmp_path):
    with Buffer.open(tmp_path, settings(durability=Durability.MEMORY)) as buffer:
        receipt = buffer.stream("events").append(b"x")
        wait_until(lambda: receipt.done)


def test_durability_record_returns_with_the_record_on_the_disk(tmp_path):
    with Buffer.open(tmp_path, settings(durability=Durability.RECORD, group_interval=60.0)) as buffer:
        stream = buffer.stream("events")
        for number in range(1, 4):
            assert stream.append(b"x").done
            assert stream.last_sequence == number


def test_reading_ends_at_what_is_committed_and_begins_after_any_number(tmp_path):
    with Buffer.open(tmp_path, settings(block_bytes=512)) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"%04d" % number for number in range(1, 501)]).wait(5)
        assert len(list(stream.blocks(0))) > 5
        for after in (0, 1, 37, 250, 499, 500, 900):
            assert payloads_of(stream, after) == [b"%04d" % number for number in range(after + 1, 501)]


def test_the_cursor_survives_and_never_goes_back(tmp_path):
    with Buffer.open(tmp_path) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"x"] * 10).wait(5)
        stream.acknowledge(6)
        stream.acknowledge(2)
        assert stream.acknowledged == 6
        with pytest.raises(InvalidInputError):
            stream.acknowledge(11)
        ledger = stream.ledger()
        assert (ledger.appended, ledger.acknowledged, ledger.pending, ledger.balanced) == (10, 6, 4, True)
    with Buffer.open(tmp_path) as buffer:
        assert buffer.stream("events").acknowledged == 6
        assert buffer.stream("events").ledger() == ledger


def test_a_cursor_reaches_the_disk_though_nothing_else_happens(tmp_path):
    with Buffer.open(tmp_path, settings()) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"a", b"b"]).wait(5)
        stream.acknowledge(1)
        wait_until(lambda: look(tmp_path, Keys())[0].found.balance.cursor == 1)


def test_epoch_and_numbers_go_on_after_reopening(tmp_path):
    with Buffer.open(tmp_path) as buffer:
        epoch = buffer.stream("events").epoch
        buffer.stream("events").append(b"a")
    with Buffer.open(tmp_path) as buffer:
        assert buffer.stream("events").epoch == epoch
        assert buffer.stream("events").append(b"b").first_sequence == 2
        assert buffer.stream("other").epoch != epoch
        assert [stream.name for stream in buffer.streams()] == ["events", "other"]


def test_a_mark_is_kept_with_its_records_and_after_they_are_gone(tmp_path):
    options = settings(segment_bytes=4096, block_bytes=512)
    with Buffer.open(tmp_path, options) as buffer:
        stream = buffer.stream("events")
        stream.append(b"x", mark=("app", 3))
        assert stream.mark("app") == 3
        stream.append_many([os.urandom(100)] * 4, mark=("other", 9))
        assert stream.mark("nobody") == 0
        for _ in range(100):
            stream.append(os.urandom(100)).wait(5)
        stream.acknowledge(stream.last_sequence)
        stream.flush(5)
        assert stream.mark("app") == 3
    with Buffer.open(tmp_path, options) as buffer:
        stream = buffer.stream("events")
        assert next(iter(stream.read())).sequence > 50
        assert (stream.mark("app"), stream.mark("other")) == (3, 9)


def test_records_of_one_mark_are_in_one_block(tmp_path):
    with Buffer.open(tmp_path, settings(block_bytes=256)) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"x" * 100] * 50, mark=("app", 50)).wait(5)
        blocks = list(stream.blocks())
        assert [(block.header.count, block.columns().marks) for block in blocks] == [(50, {"app": 50})]


def test_acknowledged_segments_are_removed(tmp_path):
    with Buffer.open(tmp_path, settings(segment_bytes=8192, block_bytes=1024)) as buffer:
        stream = buffer.stream("events")
        for _ in range(20):
            stream.append_many([os.urandom(1000)] * 4).wait(5)
        held = buffer.stat().stored_bytes
        stream.acknowledge(stream.last_sequence)
        stream.flush(5)
        assert buffer.stat().stored_bytes < held / 4
        assert len(list((tmp_path / "streams" / "events").glob("*.seg"))) <= 1
        assert stream.ledger().balanced


def test_reject_refuses_whole_calls_and_counts_them(tmp_path):
    with Buffer.open(tmp_path, settings(when_full=WhenFull.REJECT, max_bytes=20_000)) as buffer:
        stream = buffer.stream("events")
        with pytest.raises(BufferFullError) as caught:
            fill(stream)
        taken = stream.last_sequence
        assert taken >= 30
        assert stream.stored_bytes <= 20_000
        assert caught.value.retryable
        with pytest.raises(BufferFullError):
            stream.append(b"x" * 20_000)
        ledger = stream.ledger()
        assert (ledger.appended, ledger.pending, ledger.dropped[DropReason.REJECTED]) == (taken + 3, taken, 3)
        assert ledger.balanced
        stream.acknowledge(taken)
        stream.flush(5)
        stream.append(b"room again").wait(5)


def test_drop_oldest_keeps_the_newest_within_the_bound(tmp_path):
    with Buffer.open(tmp_path, settings(when_full=WhenFull.DROP_OLDEST, max_bytes=64 << 10)) as buffer:
        stream = buffer.stream("events")
        for number in range(300):
            stream.append(number.to_bytes(4, "big") + os.urandom(1000)).wait(5)
            assert stream.stored_bytes <= 64 << 10
        sequences = [record.sequence for record in stream.read()]
        ledger = stream.ledger()
        assert sequences == list(range(sequences[0], 301))
        assert len(sequences) > 40
        assert (ledger.appended, ledger.pending) == (300, len(sequences))
        assert ledger.dropped[DropReason.EVICTED] == 300 - len(sequences)
        assert ledger.balanced


def test_a_second_owner_is_told_who_holds_the_folder(tmp_path):
    with Buffer.open(tmp_path), pytest.raises(BufferLockedError) as caught:
        Buffer.open(tmp_path)
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in str(caught.value)
    Buffer.open(tmp_path).close()


@pytest.mark.parametrize("name", ["", "Events", "a/b", "../x", ".hidden", "a" * 64])
def test_a_stream_has_a_name_that_fits_everywhere(tmp_path, name):
    with Buffer.open(tmp_path) as buffer, pytest.raises(InvalidNameError):
        buffer.stream(name)


@pytest.mark.parametrize(
    "call",
    [
        lambda stream: stream.append("text"),
        lambda stream: stream.append(b"x", time_unix_nano=-1),
        lambda stream: stream.append(b"x", time_unix_nano=1 << 63),
        lambda stream: stream.append(b"x", attributes={"a": 1}),
        lambda stream: stream.append(b"x", attributes={"a": "\ud800"}),
        lambda stream: stream.append(b"x", attributes={"a": "b" * 70_000}),
        lambda stream: stream.append(b"x", mark=("", 1)),
        lambda stream: stream.append(b"x", mark=("app", -1)),
        lambda stream: stream.append_many([]),
        lambda stream: stream.append_many([b"x"], times_unix_nano=[1, 2]),
        lambda stream: stream.append_many([b"x"], attributes=[{}, {}]),
    ],
)
def test_a_wrong_call_changes_nothing(tmp_path, call):
    with Buffer.open(tmp_path, settings()) as buffer:
        stream = buffer.stream("events")
        with pytest.raises(InvalidInputError):
            call(stream)
        stream.append(b"good").wait(5)
        assert payloads_of(stream) == [b"good"]


def test_a_record_has_a_largest_size(tmp_path):
    with Buffer.open(tmp_path, settings()) as buffer:
        stream = buffer.stream("events")
        with pytest.raises(RecordTooLargeError):
            stream.append(bytes(33 << 20))
        with pytest.raises(RecordTooLargeError):
            stream.append_many([bytes(20 << 20)] * 2, mark=("app", 1))
        large = os.urandom(3 << 20)
        stream.append(large).wait(10)
        assert payloads_of(stream) == [large]


def test_a_closed_buffer_says_so(tmp_path):
    buffer = Buffer.open(tmp_path)
    stream = buffer.stream("events")
    stream.append(b"kept")
    buffer.close()
    buffer.close()
    with pytest.raises(ClosedError):
        stream.append(b"late")
    with pytest.raises(ClosedError):
        buffer.stream("new")
    with Buffer.open(tmp_path) as again:
        assert payloads_of(again.stream("events")) == [b"kept"]


def test_a_report_tells_what_waits_and_since_when(tmp_path):
    with Buffer.open(tmp_path, settings()) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"x" * 10] * 10, times_unix_nano=list(range(100, 110))).wait(5)
        report = stream.report()
        assert (report.stream, report.epoch) == ("events", stream.epoch)
        assert (report.pending_bytes, report.oldest_time_unix_nano) == (100, 100)
        stream.acknowledge(10)
        assert (stream.report().pending_bytes, stream.report().oldest_time_unix_nano) == (0, 0)


@pytest.fixture
def often():
    """Threads take turns a hundred times as often as they do, so that a lock that is missing shows."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 100)
    yield
    sys.setswitchinterval(before)


def test_many_threads_append_without_losing_or_mixing(tmp_path, often):
    with Buffer.open(tmp_path, settings(block_bytes=4096)) as buffer:
        stream = buffer.stream("events")

        def write(own: int) -> None:
            for number in range(200):
                receipt = stream.append_many([b"%d:%d:%d" % (own, number, part) for part in range(3)])
                if number % 10 == own % 10:
                    receipt.wait()

        writers = [threading.Thread(target=write, args=(own,)) for own in range(16)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        stream.flush(10)
        lines = payloads_of(stream)
        assert len(lines) == 16 * 200 * 3
        for own in range(16):
            mine = [line for line in lines if line.startswith(b"%d:" % own)]
            assert mine == [b"%d:%d:%d" % (own, number, part) for number in range(200) for part in range(3)]
        assert [record.sequence for record in stream.read()] == list(range(1, len(lines) + 1))


def test_what_is_appended_while_it_closes_is_on_the_disk_or_was_refused(tmp_path, monkeypatch):
    begun, receipts = threading.Event(), []
    close = Stream.close

    def close_late(stream: Stream) -> None:
        begun.set()
        wait_until(lambda: len(receipts) > 50)  # the commit thread has long looked again
        close(stream)

    def append() -> None:
        assert begun.wait(10)
        with suppress(ClosedError):
            while True:
                receipts.append(stream.append(b"x"))
                with suppress(DeadlineError):
                    receipts[-1].wait(0.01)

    monkeypatch.setattr(Stream, "close", close_late)
    buffer = Buffer.open(tmp_path, BufferSettings(group_interval=0.001))
    stream = buffer.stream("events")
    thread = threading.Thread(target=append)
    thread.start()
    buffer.close()
    thread.join()
    assert all(receipt.done for receipt in receipts)
    with Buffer.open(tmp_path) as buffer:
        assert buffer.stream("events").last_sequence == len(receipts)
