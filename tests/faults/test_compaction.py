"""Compaction of Parquet files: a day holds each record once, whenever the hub is killed and whoever reads."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from hub_parts import drained, hub_provider, hub_settings, rows
from outstation.errors import DiskFullError
from outstation.provider import Message
from outstation.testing import FakeClock
from outstation.testing.contract import Ear
from outstation.wire import Columns, decode, encode
from outstation_hub import Hub
from outstation_hub.sinks import Arrival, compaction
from outstation_hub.sinks.compaction import Compaction
from outstation_hub.sinks.parquet import ParquetSink
from support import wait_until

DAY = 86_400 * 1_000_000_000
PROCESS = """
import os, signal, sys
from pathlib import Path
from outstation.clock import SystemClock
from outstation_hub.sinks.compaction import Compaction

point, times = sys.argv[2], int(sys.argv[3])
def reached(name):
    global times
    print(name, flush=True)
    if name == point:
        times -= 1
        if not times:
            os.kill(os.getpid(), signal.SIGKILL)
work = Compaction(Path(sys.argv[1]), SystemClock(), 0.001, reached=reached)
work.open()
while work.step():
    pass
work.close()
"""


def arrival(first, count, *, station="press-7", epoch=7, day=1):
    numbers = range(first, first + count)
    header, columns = decode(
        encode(Columns(numbers, [day * DAY + n for n in numbers], [b"%d" % n for n in numbers]), epoch=epoch)
    )
    return Arrival(station, "events", header, columns)


def filled(folder, *, files=12, stations=3):
    sink = ParquetSink(folder)
    for n in range(files):
        sink.write([arrival(1 + 10 * n, 10, station=f"press-{s}", day=1 + n % 2) for s in range(stations)])
    sink.close()
    return sink


def files(folder):
    return sorted(path for path in folder.glob("stream=*/day=*/*.parquet"))


def found(folder, station="press-0"):
    """The numbers that a reader finds who lists the folders."""
    tables = [pq.ParquetFile(path).read(["station", "sequence"]).to_pylist() for path in files(folder)]
    return sorted(row["sequence"] for table in tables for row in table if row["station"] == station)


def compacted(folder, **changes):
    work = Compaction(folder, changes.pop("clock", None) or later(), 3600.0, **changes)
    work.open()
    while work.step():
        pass
    work.close()


def later():
    """A clock years after everything."""
    clock = FakeClock()
    clock.advance(4e9)
    return clock


def test_many_small_files_become_one_with_the_same_rows_in_order(tmp_path):
    filled(tmp_path)
    before = rows(tmp_path)
    compacted(tmp_path)
    assert rows(tmp_path) == before
    assert len(files(tmp_path)) == 6  # three stations, two days
    path = files(tmp_path)[0]
    assert path.name == "press-0.0000000000000007.00000000000000000001.parquet"
    table = pq.ParquetFile(path).read()
    assert table.column("sequence").to_pylist() == sorted(table.column("sequence").to_pylist())
    assert path.stat().st_mode == files(filled(tmp_path / "other") and tmp_path / "other")[0].stat().st_mode


def test_epochs_and_stations_stay_apart(tmp_path):
    sink = ParquetSink(tmp_path)
    for first in (1, 11):
        for station, epoch in (("a", 1), ("a", 2), ("a.0000000000000001", 1)):
            sink.write([arrival(first, 10, station=station, epoch=epoch)])
    sink.close()
    before = rows(tmp_path)
    compacted(tmp_path)
    assert rows(tmp_path) == before
    assert len(files(tmp_path)) == 3


def test_a_day_that_is_not_over_or_not_at_rest_is_left_alone(tmp_path):
    filled(tmp_path)
    clock = FakeClock()
    clock.advance(max(0.0, files(tmp_path)[0].parent.stat().st_mtime + 1800 - clock.time_unix_nano() / 1e9))
    compacted(tmp_path, clock=clock)
    assert len(files(tmp_path)) == 36


def test_late_records_of_a_compacted_day_are_joined_again(tmp_path):
    filled(tmp_path, files=4, stations=1)
    compacted(tmp_path)
    sink = ParquetSink(tmp_path)
    sink.write([arrival(101, 5, station="press-0")])
    sink.close()
    compacted(tmp_path)
    assert found(tmp_path) == [*range(1, 41), *range(101, 106)]
    assert len(files(tmp_path)) == 2


def test_records_that_come_while_a_day_is_built_are_not_lost(tmp_path):
    filled(tmp_path, files=4, stations=1)
    sink = ParquetSink(tmp_path)

    def reached(point):
        if point == "joined":
            sink.write([arrival(101, 5, station="press-0", day=1), arrival(106, 5, station="press-0", day=2)])

    sink.write([arrival(90, 1, station="press-0", day=3)])
    sink.close()
    compacted(tmp_path, reached=reached)
    assert found(tmp_path) == [*range(1, 41), 90, *range(101, 111)]


def test_as_long_as_another_hub_writes_there_nothing_is_replaced(tmp_path):
    filled(tmp_path)
    other = ParquetSink(tmp_path)
    other.write([arrival(1, 1, day=5)])
    compacted(tmp_path)
    assert len(files(tmp_path)) == 37
    other.close()
    compacted(tmp_path)
    assert len(files(tmp_path)) == 7


def test_a_hub_that_died_may_write_its_last_batch_again_whoever_else_writes_there(tmp_path):
    batch = [arrival(1, 10, station="press-9")]
    filled(tmp_path)
    killed = ParquetSink(tmp_path, owner="b")
    killed.write(batch)
    killed.write([arrival(11, 10, station="press-9")])
    killed.close()  # as a kill does: the lock is free, and no cursor says that this was written
    compacted(tmp_path)
    again = ParquetSink(tmp_path, owner="b")
    again.write([arrival(11, 10, station="press-9")])
    again.close()
    assert found(tmp_path, "press-9") == list(range(1, 21))
    assert len(files(tmp_path)) == 38


@pytest.mark.parametrize(
    ("point", "times"), [("joined", 1), ("joined", 3), ("built", 1), ("built", 2), ("exchanged", 1), ("exchanged", 2)]
)
def test_a_kill_at_any_point_leaves_each_record_once(tmp_path, point, times):
    filled(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path), point, str(times)], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    for s in range(3):
        assert found(tmp_path, f"press-{s}") == list(range(1, 121))
    compacted(tmp_path)
    assert found(tmp_path) == list(range(1, 121))
    assert len(files(tmp_path)) == 6
    assert not [path for path in (tmp_path / compaction.SCRATCH).rglob("*") if path.is_file()]


def test_a_kill_at_any_time_leaves_each_record_once(tmp_path):
    dice = random.Random(3)
    filled(tmp_path, files=30)
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path), "never", "1"], stdout=subprocess.PIPE)
        process.stdout.readline()  # it has begun
        threading.Event().wait(dice.uniform(0, 0.02))  # any moment will do
        process.kill()
        process.communicate()
        assert found(tmp_path) == list(range(1, 301))


def test_a_reader_sees_all_of_a_day_or_an_error(tmp_path):
    filled(tmp_path, files=40, stations=2)
    stopping = threading.Event()
    seen = []

    def look():
        # It lists first and opens then: what is replaced in between is an error, not a part of the truth.
        with suppress(FileNotFoundError):
            seen.append(found(tmp_path))

    def read():
        while not stopping.is_set():
            look()

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: seen)
    compacted(tmp_path)
    count = len(seen)
    wait_until(lambda: len(seen) > count + 1)
    stopping.set()
    reader.join()
    assert all(numbers == list(range(1, 401)) for numbers in seen)


def test_a_file_that_cannot_be_read_stops_its_day_alone(tmp_path):
    filled(tmp_path)
    broken = files(tmp_path)[3]
    broken.write_bytes(b"PAR1 and nothing more")
    compacted(tmp_path)
    assert len(files(tmp_path)) == 18 + 3
    assert broken.read_bytes() == b"PAR1 and nothing more"


def test_a_file_system_that_cannot_exchange_folders_keeps_its_small_files(tmp_path, monkeypatch):
    filled(tmp_path)
    monkeypatch.setattr(compaction.ctypes, "CDLL", lambda *_, **__: object())
    compacted(tmp_path)
    assert len(files(tmp_path)) == 36
    assert found(tmp_path) == list(range(1, 121))


def test_a_hub_compacts_when_nothing_waits_and_replays_nothing_into_it(tmp_path):
    settings = hub_settings(tmp_path, compact_after=0.001)
    with Hub(settings) as hub:
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        for n in range(10):
            numbers = range(1 + 20 * n, 21 + 20 * n)
            block = encode(Columns(numbers, [DAY + i for i in numbers], [b"x"] * 20), epoch=7)
            provider.uplink.send(Message("events", 7, numbers[0], numbers[-1], block), 5)
            ear.wait(lambda ear, n=n: ear.through("events") == 20 * (n + 1), 5)
            drained(hub)
        provider.close()
        hub.drains[0].sink._compaction._look_at = 0.0
        wait_until(lambda: len(files(settings.parquet_dir)) == 1)
    assert found(settings.parquet_dir, "press-7") == list(range(1, 201))


@pytest.fixture
def no_space(monkeypatch):
    def join(run: list[Path], folder: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(compaction, "_join", join)


def test_a_full_disk_changes_nothing(tmp_path, no_space):
    filled(tmp_path)
    with pytest.raises(DiskFullError):
        compacted(tmp_path)
    assert len(files(tmp_path)) == 36
