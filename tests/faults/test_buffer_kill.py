"""SIGKILL at random instants: what was confirmed is there, in order, once, and the account balances."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from faults.buffer_writer import OPTIONS, STREAM
from outstation.buffer import Buffer

WRITERS = 4
SCRIPT = Path(__file__).with_name("buffer_writer.py")


class Account:
    """What the writers were told, over all kills."""

    def __init__(self) -> None:
        self.confirmed = dict.fromkeys(range(WRITERS), 0)
        self.acknowledged = 0

    def hear(self, line: str) -> None:
        words = line.split()
        if words[0] == "ack":
            self.acknowledged = max(self.acknowledged, int(words[1]))
        elif words[0] != "ready":
            writer = int(words[0])
            self.confirmed[writer] = max(self.confirmed[writer], int(words[2]))

    def check(self, buffer: Buffer) -> None:
        stream = buffer.stream(STREAM)
        ledger = stream.ledger()
        assert ledger.balanced
        assert ledger.dropped_total == 0
        assert stream.acknowledged >= self.acknowledged
        self._check_records(stream)
        assert ledger.pending == stream.last_sequence - stream.acknowledged
        for writer, confirmed in self.confirmed.items():
            assert stream.mark(f"writer-{writer}") >= confirmed

    def _check_records(self, stream) -> None:
        expected = stream.acknowledged + 1
        newest = dict.fromkeys(range(WRITERS), 0)
        for record in stream.read(stream.acknowledged):
            assert record.sequence == expected
            expected += 1
            writer, number = map(int, record.payload.split(b":", 2)[:2])
            assert newest[writer] in (0, number - 1), "in order, once, without a gap"
            newest[writer] = number
        assert expected == stream.last_sequence + 1
        for writer, number in newest.items():
            if number:
                assert number >= self.confirmed[writer]
                # The records and their mark are one: neither was stored without the other.
                assert number == stream.mark(f"writer-{writer}")


def kill_once(folder: Path, seed: int, delay: float, account: Account) -> None:
    command = [sys.executable, str(SCRIPT), str(folder), str(WRITERS), str(seed)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("ready")
        timer = threading.Timer(delay, process.kill)
        timer.start()
        for line in process.stdout:
            if line.endswith("\n"):
                account.hear(line)
        timer.join()


def run(folder: Path, kills: int) -> None:
    dice = random.Random(4711)
    account = Account()
    for seed in range(kills):
        kill_once(folder, seed, dice.uniform(0.0, 0.25), account)
        with Buffer.open(folder, OPTIONS) as buffer:
            account.check(buffer)
            stream = buffer.stream(STREAM)
            if stream.last_sequence - stream.acknowledged > 50_000:  # keep the reading short
                stream.acknowledge(stream.last_sequence - 1000)
                account.acknowledged = stream.acknowledged


def test_nothing_confirmed_is_lost_by_a_few_kills(tmp_path):
    run(tmp_path, 6)


@pytest.mark.soak
def test_nothing_confirmed_is_lost_by_300_kills_on_one_folder(tmp_path):
    run(tmp_path, 300)
