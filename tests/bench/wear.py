"""Flash wear at a low rate: 10 records a second for 10 minutes, by group interval, beside SQLite FULL.

Counted is what the device under the file system is told to write, journal and all: a loop image with ext4 of its own,
/sys/block/loopN/stat. Time is not waited for: a group interval of a second is ten records and one commit, which writes
the same whether or not a second passes in between.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import report
from buffer import OPTIONS, Work, folder, telemetry
from report import Row

from outstation.buffer import Buffer

RATE = 10  # records a second
MINUTES = 10
INTERVALS = (0.1, 0.25, 0.5, 1.0, 5.0)


@contextmanager
def device(place: Path) -> Iterator[tuple[Path, Path]]:
    """A mounted file system of its own, and the counter of its device."""
    image, mounted = place / "image", place / "disk"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    loop = subprocess.run(["losetup", "-f", "--show", str(image)], check=True, capture_output=True, text=True)
    name = loop.stdout.strip()
    try:
        subprocess.run(["mount", name, str(mounted)], check=True)
        try:
            yield mounted, Path("/sys/block") / Path(name).name / "stat"
        finally:
            subprocess.run(["umount", str(mounted)], check=True)
    finally:
        subprocess.run(["losetup", "-d", name], check=True)


def written(counter: Path) -> int:
    return int(counter.read_text().split()[6]) * 512


def groups(work: Work, interval: float) -> Iterator[list[tuple[int, dict[str, str], bytes]]]:
    size = max(1, round(RATE * interval))
    for start in range(0, len(work), size):
        yield list(work.part(start, start + size))


def ours(place: Path, work: Work, interval: float) -> int:
    commits = 0
    with Buffer.open(place / "buffer", OPTIONS) as buffer:
        stream = buffer.stream("events")
        for group in groups(work, interval):
            for moment, attributes, payload in group:
                receipt = stream.append(payload, time_unix_nano=moment, attributes=attributes)
            receipt.wait()
            commits += 1
    return commits


def sqlite(place: Path, work: Work, interval: float) -> int:
    base = sqlite3.connect(place / "sqlite.db", isolation_level=None)
    base.execute("PRAGMA journal_mode=WAL")
    base.execute("PRAGMA synchronous=FULL")
    base.execute("CREATE TABLE records (seq INTEGER PRIMARY KEY, time INTEGER, attributes TEXT, payload BLOB)")
    for group in groups(work, interval):
        rows = [(moment, json.dumps(attributes), payload) for moment, attributes, payload in group]
        base.execute("BEGIN")
        base.executemany("INSERT INTO records (time, attributes, payload) VALUES (?,?,?)", rows)
        base.execute("COMMIT")
    base.close()
    return 0


def run(scale: float) -> list[Row]:
    work = telemetry(max(200, int(RATE * 60 * MINUTES * scale)))
    minutes = len(work) / RATE / 60
    rows = []
    with folder() as place, device(place) as (disk, counter):
        for interval in INTERVALS:
            figures = []
            for store in (ours, sqlite):
                own = disk / f"{store.__name__}-{interval}"
                own.mkdir()
                subprocess.run(["sync", "-f", str(disk)], check=True)
                before = written(counter)
                commits = store(own, work, interval)
                subprocess.run(["sync", "-f", str(disk)], check=True)
                figures.append((written(counter) - before) / work.payload_bytes)
                if store is ours:
                    a_minute = commits / minutes
            what = f"{RATE} records/s, a group of {interval} s"
            rows.append(Row(f"{what}: written a payload byte", figures[0], "sqlite", figures[1], 1.0, True, "bytes"))
            rows.append(Row(f"{what}: fdatasyncs", a_minute, unit="a minute"))
    return rows


if __name__ == "__main__":
    if sys.platform != "linux":
        sys.exit("This benchmark needs Linux and the right to mount.")
    report.main("wear", run)
