"""Full, old, and out of room: what goes, what stays, and what the ledger says of it."""

from __future__ import annotations

import os
import threading
from itertools import pairwise

import pytest

from outstation.buffer import Buffer
from outstation.buffer.steady import BELIEVED_NANO, SteadyClock
from outstation.durable import Files
from outstation.errors import BufferFullError
from outstation.settings import BufferSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.types import DropReason, WhenFull
from support import wait_until

DAY = 24 * 3600.0
NANO = 1_000_000_000


def options(**streams: StreamSettings) -> BufferSettings:
    return BufferSettings(group_interval=0.01, segment_bytes=4096, block_bytes=1024, streams=streams)


def fill(stream, count: int, size: int = 500) -> None:
    for _ in range(count):
        stream.append(os.urandom(size)).wait(5)


def sequences(stream) -> list[int]:
    return [record.sequence for record in stream.read(stream.acknowledged)]


def test_thin_keeps_the_whole_span_at_falling_resolution(tmp_path):
    settings = options(history=StreamSettings(when_full=WhenFull.THIN, max_bytes=48 << 10))
    with Buffer.open(tmp_path, settings) as buffer:
        stream = buffer.stream("history")
        fill(stream, 1000, 300)
        kept = sequences(stream)
        ledger = stream.ledger()
        assert stream.stored_bytes <= 48 << 10
        assert ledger.balanced
        assert ledger.pending == len(kept)
        assert ledger.dropped[DropReason.THINNED] >= 800
        gaps = [after - before for before, after in pairwise(kept)]
        assert kept[0] < 300, "the beginning is still visible"
        assert max(gaps[: len(gaps) // 4]) > 4, "and coarse"
        assert gaps[-20:] == [1] * 20, "the newest are all there"
    with Buffer.open(tmp_path, settings) as buffer:
        assert sequences(buffer.stream("history")) == kept
        assert buffer.stream("history").ledger() == ledger


class ReadAcross(Files):
    """Has a reader stand in the middle of a segment when its rewritten self takes the place, and go on before the list
    of segments says so.
    """

    def __init__(self) -> None:
        self.reader = self.stream = None
        self.seen: list[list[int]] = []
        self._threads: list[threading.Thread] = []

    def rename(self, source, target):
        if self.reader is None or target.suffix != ".seg":
            super().rename(source, target)
            return
        records = self.reader()
        (segment,) = [own for own in self.stream.segments if own.path == target]
        head = [next(records).sequence]
        while head[-1] < (segment.first_sequence + segment.last_sequence) // 2:
            head.append(next(records).sequence)
        super().rename(source, target)

        def go_on() -> None:
            self.seen.append(head + [record.sequence for record in records])

        self._threads.append(threading.Thread(target=go_on))
        self._threads[-1].start()
        self._threads[-1].join(0.05)  # time to read wrongly; who reads rightly waits for the list

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def test_a_reader_misses_nothing_that_stays_while_segments_are_thinned(tmp_path, monkeypatch):
    monkeypatch.setattr("outstation.buffer.reading.CHUNK_BYTES", 1)  # a block at a time, so that it stands within one
    settings = options(history=StreamSettings(when_full=WhenFull.THIN, max_bytes=48 << 10))
    files = ReadAcross()
    with Buffer.open(tmp_path, settings, files=files) as buffer:
        stream = buffer.stream("history")
        fill(stream, 130, 300)
        before = sequences(stream)
        files.reader, files.stream = stream.read, stream
        fill(stream, 60, 300)
        files.join()
        stays = set(before) & set(sequences(stream))
        assert len(files.seen) > 3
        assert all(stays <= set(seen) for seen in files.seen)
        assert stream.ledger().dropped[DropReason.CORRUPT] == 0
        assert not list((tmp_path / "streams" / "history").glob("quarantine/*"))


class AcknowledgeAcross(Files):
    """Has the far end acknowledge half of what is pending while a segment is written anew."""

    stream = None

    def rename(self, source, target):
        super().rename(source, target)
        if self.stream is not None and target.suffix == ".seg":
            stream, self.stream = self.stream, None
            stream.acknowledge((stream.acknowledged + stream.last_sequence) // 2)
            self.acknowledged = True

    def open(self, path, flags, *rest):
        if self.stream is not None and path.suffix == ".tmp" and ".seg" in path.name:
            self.stream.acknowledge((self.stream.acknowledged + self.stream.last_sequence) // 4)
        return super().open(path, flags, *rest)


def test_what_is_acknowledged_while_it_is_thinned_is_counted_once(tmp_path):
    settings = options(history=StreamSettings(when_full=WhenFull.THIN, max_bytes=48 << 10))
    files = AcknowledgeAcross()
    with Buffer.open(tmp_path, settings, files=files) as buffer:
        stream = buffer.stream("history")
        fill(stream, 70)
        files.stream = stream
        fill(stream, 200)
        assert files.acknowledged
        assert stream.ledger().balanced
        assert stream.ledger().pending == len(sequences(stream))


def test_a_thinned_stream_is_acknowledged_at_any_number(tmp_path):
    settings = options(history=StreamSettings(when_full=WhenFull.THIN, max_bytes=48 << 10))
    with Buffer.open(tmp_path, settings) as buffer:
        stream = buffer.stream("history")
        fill(stream, 400, 300)
        for through in range(1, 400, 7):
            left = [sequence for sequence in sequences(stream) if sequence > through]
            stream.acknowledge(through)
            assert stream.ledger().pending == len(left)
            assert stream.ledger().balanced
        stream.flush(5)
        left, ledger = sequences(stream), stream.ledger()
    with Buffer.open(tmp_path, settings) as buffer:
        assert sequences(buffer.stream("history")) == left
        assert buffer.stream("history").ledger() == ledger


def ranked(max_bytes: int, **alarms) -> BufferSettings:
    return BufferSettings(
        group_interval=0.01,
        segment_bytes=4096,
        block_bytes=1024,
        max_bytes=max_bytes,
        min_free_disk_bytes=0,
        streams={
            "alarms": StreamSettings(priority=0, **alarms),
            "readings": StreamSettings(priority=5),
            "debug": StreamSettings(priority=9),
        },
    )


def test_the_folder_makes_the_least_important_stream_give(tmp_path):
    settings = ranked(100 << 10, when_full=WhenFull.DROP_LOWEST_PRIORITY)
    with Buffer.open(tmp_path, settings) as buffer:
        alarms, readings, debug = (buffer.stream(name) for name in ("alarms", "readings", "debug"))
        fill(readings, 60)
        fill(debug, 60)
        fill(alarms, 40)
        buffer.flush(5)
        assert buffer.stat().stored_bytes <= 100 << 10
        assert alarms.ledger().pending == 40
        assert debug.ledger().dropped[DropReason.EVICTED] > 0
        assert readings.ledger().dropped[DropReason.EVICTED] == 0
        fill(alarms, 60)
        buffer.flush(5)
        assert alarms.ledger().pending == 100
        assert readings.ledger().dropped[DropReason.EVICTED] > 0
        assert buffer.stat().stored_bytes <= 100 << 10
        for stream in buffer.streams():
            assert stream.ledger().balanced
            assert stream.ledger().pending == len(sequences(stream))


def test_nobody_gives_for_a_less_important_stream(tmp_path):
    settings = ranked(64 << 10)
    with Buffer.open(tmp_path, settings) as buffer:
        alarms, readings, debug = (buffer.stream(name) for name in ("alarms", "readings", "debug"))
        fill(alarms, 60)
        fill(readings, 40)
        buffer.flush(5)
        assert alarms.ledger().pending == 60
        assert readings.ledger().dropped[DropReason.EVICTED] > 0
        left = readings.ledger().pending
        with pytest.raises(BufferFullError, match="may go for"):
            fill(debug, 60)
        buffer.flush(5)
        assert (alarms.ledger().pending, readings.ledger().pending) == (60, left)
        assert buffer.stat().stored_bytes <= 64 << 10


def test_a_full_folder_refuses_what_may_drop_nothing(tmp_path):
    settings = BufferSettings(
        group_interval=0.01,
        segment_bytes=4096,
        block_bytes=1024,
        max_bytes=64 << 10,
        defaults=StreamSettings(when_full=WhenFull.REJECT),
    )
    with Buffer.open(tmp_path, settings) as buffer:
        stream = buffer.stream("events")
        with pytest.raises(BufferFullError):
            fill(stream, 200)
        assert stream.ledger().dropped[DropReason.REJECTED] == 1
        assert 50 << 10 < buffer.stat().stored_bytes <= 64 << 10
        stream.acknowledge(stream.last_sequence)
        stream.flush(5)
        stream.append(b"room again").wait(5)
        assert stream.ledger().balanced


def test_what_waits_in_memory_counts_for_the_folder_too(tmp_path):
    settings = BufferSettings(
        group_interval=600.0,
        block_bytes=4096,
        max_bytes=128 << 10,
        min_free_disk_bytes=0,
        defaults=StreamSettings(when_full=WhenFull.REJECT),
    )
    with Buffer.open(tmp_path, settings) as buffer:
        refused = 0
        for number in range(10):  # each alone has room in memory, and by its own bound
            stream = buffer.stream(f"stream-{number}")
            try:
                for _ in range(100):
                    stream.append(os.urandom(400))
            except BufferFullError:
                refused += 1
        buffer.flush(5)
        assert refused > 5
        assert 64 << 10 < buffer.stat().stored_bytes <= 128 << 10


def test_one_stream_keeps_the_newest_of_what_a_small_folder_holds(tmp_path):
    """Though a segment, and the stream's own bound, may be larger than the folder."""
    settings = BufferSettings(group_interval=0.01, block_bytes=4096, max_bytes=256 << 10, min_free_disk_bytes=0)
    with Buffer.open(tmp_path, settings) as buffer:
        stream = buffer.stream("events")
        for _ in range(100):
            stream.append_many([os.urandom(500) for _ in range(20)]).wait(5)
        assert 128 << 10 < buffer.stat().stored_bytes <= 256 << 10
        assert sequences(stream)[-1] == 2000
        assert stream.ledger().dropped[DropReason.EVICTED] == 2000 - len(sequences(stream))


def test_a_folder_of_many_small_streams_takes_new_records_at_the_cost_of_old_ones(tmp_path):
    """None of them fills a segment before the folder is full."""
    settings = BufferSettings(group_interval=0.01, max_bytes=64 << 10, min_free_disk_bytes=0)
    with Buffer.open(tmp_path, settings) as buffer:
        streams = [buffer.stream(f"sensor-{number}") for number in range(20)]
        for _ in range(16):
            for stream in streams:
                stream.append(os.urandom(400)).wait(5)
        buffer.flush(5)
        assert 32 << 10 < buffer.stat().stored_bytes <= 64 << 10
        for stream in streams:
            assert stream.ledger().appended == 16
            assert stream.ledger().balanced
            assert stream.ledger().pending == len(sequences(stream))
        ledgers = [stream.ledger() for stream in streams]
    with Buffer.open(tmp_path, settings) as buffer:
        assert [stream.ledger() for stream in buffer.streams()] == sorted_by_name(streams, ledgers)


def sorted_by_name(streams, ledgers) -> list:
    return [ledger for _, ledger in sorted(zip((stream.name for stream in streams), ledgers, strict=True))]


def test_free_space_on_the_disk_is_kept(tmp_path):
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    settings = BufferSettings(
        group_interval=0.01, min_free_disk_bytes=free * 4, defaults=StreamSettings(when_full=WhenFull.REJECT)
    )
    with Buffer.open(tmp_path, settings) as buffer, pytest.raises(BufferFullError):
        buffer.stream("events").append(b"x")


def test_old_records_expire_though_nothing_is_appended(tmp_path):
    clock = FakeClock()
    with Buffer.open(tmp_path, options(events=StreamSettings(max_age=3600.0)), clock=clock) as buffer:
        stream = buffer.stream("events")
        fill(stream, 20)
        clock.advance(1800)
        fill(stream, 5)
        clock.advance(1900)
        wait_until(lambda: stream.ledger().dropped[DropReason.EXPIRED] > 0)
        stream.flush()
        left = sequences(stream)
        assert set(range(21, 26)) <= set(left)
        assert len(left) < 25
        clock.advance(4000)
        wait_until(lambda: stream.ledger().dropped[DropReason.EXPIRED] == 25)
        assert stream.ledger().balanced
        assert sequences(stream) == []


@pytest.mark.parametrize("jump", [365 * DAY, -365 * DAY])
def test_a_clock_that_jumps_a_year_expires_nothing_and_keeps_the_order(tmp_path, jump):
    clock = FakeClock()
    settings = options(events=StreamSettings(max_age=7 * DAY))
    with Buffer.open(tmp_path, settings, clock=clock) as buffer:
        stream = buffer.stream("events")
        fill(stream, 20)
        clock.set_time(clock.time_unix_nano() + round(jump * NANO))
        fill(stream, 20)
        clock.advance(3600)
        stream.flush()
        assert sequences(stream) == list(range(1, 41))
        clock.advance(7 * DAY)
        wait_until(lambda: stream.ledger().dropped[DropReason.EXPIRED] == 40)


def test_a_device_that_boots_in_1970_expires_nothing(tmp_path):
    settings = options(events=StreamSettings(max_age=7 * DAY))
    with Buffer.open(tmp_path, settings, clock=FakeClock()) as buffer:
        fill(buffer.stream("events"), 20)
    clock = FakeClock(time_unix_nano=5 * NANO)
    with Buffer.open(tmp_path, settings, clock=clock) as buffer:
        stream = buffer.stream("events")
        fill(stream, 1)
        clock.set_time(1_700_000_000 * NANO + round(3600 * NANO))
        fill(stream, 1)
        assert sequences(stream) == list(range(1, 23))


def test_the_steady_clock_believes_passing_time_only():
    clock = FakeClock(time_unix_nano=1000 * NANO)
    steady = SteadyClock(clock, 0)
    assert steady.now() == 1000 * NANO
    clock.set_time(5)
    clock.advance(2.0)
    assert steady.now() == 1002 * NANO
    assert SteadyClock(FakeClock(time_unix_nano=50), 1002 * NANO).now() == 1002 * NANO
    assert SteadyClock(FakeClock(time_unix_nano=1003 * NANO), 1002 * NANO).now() == 1003 * NANO
    too_far = FakeClock(time_unix_nano=1002 * NANO + BELIEVED_NANO + 1)
    assert SteadyClock(too_far, 1002 * NANO).now() == 1002 * NANO
