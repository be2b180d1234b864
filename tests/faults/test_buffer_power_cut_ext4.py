"""Real power cuts: ext4 on a loop image is shut down under several writers, without flushing its journal."""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.buffer_writer import OPTIONS, STREAM
from faults.test_buffer_kill import SCRIPT, WRITERS, Account
from outstation.buffer import Buffer

EXT4_IOC_SHUTDOWN = 0x8004587D
WITHOUT_LOG_FLUSH = 2


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """A loop image with ext4 on it, and the switch of its power."""

    def __init__(self, place: Path) -> None:
        self.image, self.mount_point = place / "image", place / "disk"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(256 << 20)
        run("mkfs.ext4", "-q", str(self.image))

    def mount(self) -> None:
        run("mount", "-o", "loop", str(self.image), str(self.mount_point))

    def unmount(self) -> None:
        run("umount", str(self.mount_point))

    def cut(self) -> None:
        fd = os.open(self.mount_point, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("I", WITHOUT_LOG_FLUSH))
        finally:
            os.close(fd)


@contextmanager
def disk(place: Path) -> Iterator[Disk]:
    try:
        made = Disk(place)
        made.mount()
    except (OSError, subprocess.CalledProcessError):
        if os.environ.get("CI"):
            raise
        pytest.skip("loop images cannot be mounted here")
    try:
        yield made
    finally:
        subprocess.run(["umount", "-l", str(made.mount_point)], check=False, capture_output=True)


def cut_once(place: Disk, seed: int, delay: float, account: Account) -> None:
    command = [sys.executable, str(SCRIPT), str(place.mount_point / "buffer"), str(WRITERS), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")

        moments = []

        def cut() -> None:
            # A real cut ends the process with the disk. This one leaves it a moment in which an fdatasync that had
            # begun may return 0 although its extents were never converted; what it says then counts for nothing.
            moments.append(time.monotonic_ns())
            place.cut()
            process.kill()

        timer = threading.Timer(delay, cut)
        timer.start()
        lines = [line for line in process.stdout if line.endswith("\n")]
        timer.join()
        for line in lines:
            if int(line.split()[-1]) < moments[0]:
                account.hear(line)
    place.unmount()
    place.mount()


def run_cuts(place: Path, cuts: int) -> None:
    dice = random.Random(815)
    account = Account()
    with disk(place) as own:
        for seed in range(cuts):
            cut_once(own, seed, dice.uniform(0.0, 0.2), account)
            with Buffer.open(own.mount_point / "buffer", OPTIONS) as buffer:
                account.check(buffer)
                stream = buffer.stream(STREAM)
                if stream.last_sequence - stream.acknowledged > 30_000:  # keep the reading short
                    stream.acknowledge(stream.last_sequence - 1000)
                    account.acknowledged = stream.acknowledged


def test_nothing_confirmed_is_lost_by_a_few_power_cuts(tmp_path):
    run_cuts(tmp_path, 5)


@pytest.mark.soak
def test_nothing_confirmed_is_lost_by_500_power_cuts(tmp_path):
    run_cuts(tmp_path, 500)
