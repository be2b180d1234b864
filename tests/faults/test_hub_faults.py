"""What the hub holds through: SIGKILL at any moment, links that cut, disks that fill."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from hub_parts import HubProcess, Station, drained, hub_settings, rows
from outstation.errors import ProviderUnavailableError, StorageError
from outstation.provider import Message
from outstation.testing import FakeClock, FlakyLink
from outstation.wire import Columns, encode
from outstation_hub import Hub
from outstation_hub.room import DiskRoom
from outstation_hub.sinks.parquet import ParquetSink
from support import wait_until


def numbers(found: list[dict], station: str) -> list[int]:
    return [row["sequence"] for row in found if row["station"] == station]


def seeds(everyday: int, soak: int) -> list:
    """Seeds 1 to *everyday* for each run of the tests, on to *soak* for long ones."""
    return [pytest.param(n, marks=() if n <= everyday else pytest.mark.soak) for n in range(1, soak + 1)]


@pytest.mark.parametrize("seed", seeds(1, 20))
def test_a_hub_killed_again_and_again_has_each_record_once(tmp_path, seed):
    dice = random.Random(seed)
    hub = HubProcess(tmp_path).start()
    total = 4000
    with FlakyLink(hub.address) as link:
        stations = [Station(link.address, tmp_path, f"press-{n}", seed * 10 + n) for n in range(2)]
        for station in stations:
            station.start(total)
        for _ in range(2):
            before = stations[0].acknowledged
            wait_until(lambda before=before: stations[0].acknowledged > before or not stations[0].thread.is_alive(), 20)
            threading.Event().wait(dice.uniform(0, 0.4))  # any moment will do, and each seed has its own
            hub.kill()
            hub.start()
        for station in stations:
            station.finish(40)
        assert hub.stop() == 0
    found = rows(hub.parquet)
    for n in range(2):
        assert numbers(found, f"press-{n}") == list(range(1, total + 1))


@pytest.mark.parametrize("seed", seeds(2, 50))
def test_a_link_that_fails_in_every_way_doubles_and_loses_nothing(tmp_path, seed):
    dice = random.Random(seed)
    total = 3000
    with Hub(hub_settings(tmp_path)) as hub, FlakyLink(hub.address) as link:
        station = Station(link.address, tmp_path, "press-7", seed)
        station.start(total)
        faults = [link.cut, link.down, link.black_hole, lambda: link.black_hole(upward=False), link.half_close]
        faults += [lambda: link.corrupt(3), lambda: link.up(latency=0.02, bytes_per_second=200_000)]
        for fault in dice.sample(faults, len(faults)):
            before = station.acknowledged
            fault()
            threading.Event().wait(dice.uniform(0.05, 0.3))
            link.up()
            wait_until(lambda before=before: station.acknowledged > before or not station.thread.is_alive(), 20)
        station.finish(30)
        drained(hub)
        found = rows(hub.settings.parquet_dir)
    assert numbers(found, "press-7") == list(range(1, total + 1))


class Interrupted(ParquetSink):
    """Writes, and fails before it could be confirmed, as a kill between the two does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.failures = 3

    def write(self, arrivals):
        super().write(arrivals)
        if self.failures:
            self.failures -= 1
            raise ProviderUnavailableError("killed between write and acknowledgement")


def test_a_batch_that_is_written_twice_replaces_itself(tmp_path):
    settings = hub_settings(tmp_path)
    with Hub(settings, sinks=[Interrupted(tmp_path / "parquet")]) as hub:
        station = Station(hub.address, tmp_path, "press-7", 5)
        station.start(2000)
        station.finish(30)
        drained(hub)
    found = rows(tmp_path / "parquet")
    assert numbers(found, "press-7") == list(range(1, 2001))


def test_a_cursor_that_cannot_be_written_stops_the_sink_and_not_the_stations(tmp_path):
    settings = hub_settings(tmp_path)
    with Hub(settings) as hub:
        cursor = settings.data / "sinks" / "parquet.cursor.tmp"
        cursor.mkdir(parents=True)  # in the way of the temporary file
        station = Station(hub.address, tmp_path, "press-7", 6)
        station.start(1000)
        station.finish(30)
        wait_until(lambda: hub.drains[0].failure)
        cursor.rmdir()
        drained(hub)
    assert numbers(rows(settings.parquet_dir), "press-7") == list(range(1, 1001))


class Gate:
    """A sink that takes nothing until it is opened."""

    name = "gate"

    def __init__(self) -> None:
        self.open = False
        self.rows: list[int] = []

    def write(self, arrivals):
        if not self.open:
            raise ProviderUnavailableError("The sink is away.")
        self.rows += [number for arrival in arrivals for number in arrival.columns.sequences]

    def close(self):
        pass


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mount.returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def large(first: int, count: int) -> Message:
    """Records of 10 kB that nothing can compress."""
    numbers = range(first, first + count)
    columns = Columns(numbers, list(numbers), [random.Random(number).randbytes(10_000) for number in numbers])
    return Message("events", 7, first, first + count - 1, encode(columns, epoch=7))


def test_a_hub_whose_disk_is_full_delays_and_goes_on_when_there_is_room(tmp_path, small_disk):
    gate = Gate()
    with Hub(hub_settings(small_disk, inbox_bytes=64 << 20, min_free_disk_bytes=2 << 20), sinks=[gate]) as hub:
        station = Station(hub.address, tmp_path, "press-7", 8)
        station.make = large
        station.start(900)  # about 9 MB on the disk
        wait_until(
            lambda: shutil.disk_usage(small_disk).free < (5 << 20) // 2, 20
        )  # the reserve, and less than a block
        assert station.acknowledged < 900
        gate.open = True
        station.finish(40)
        drained(hub)
    assert gate.rows == list(range(1, 901))


def test_a_disk_that_went_away_is_an_error_of_ours(tmp_path):
    room = DiskRoom(tmp_path / "data", 0, FakeClock())
    with pytest.raises(StorageError, match="how full the disk is"):
        room.take(1)
