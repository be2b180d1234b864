"""The demo as a user meets it: its account, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from outstation.demo.account import Account, ModelOutcome, ReadingsLog, compare
from outstation.demo.plant import kill_moments
from support import wait_until


def reading(number: int, **more: object) -> dict[str, object]:
    return {"number": number, "digit": 1, "truth": 1, "version": "1.0.0", **more}


def test_lost_and_doubled_readings_are_counted_from_log_and_files() -> None:
    produced = [reading(1), reading(2), reading(3), {"number": 4, "failed": "why"}]
    arrived = [reading(1), reading(1), reading(3, digit=2)]
    assert compare(produced, arrived) == {
        "produced": 3,
        "delivered": 2,
        "duplicates": 1,
        "lost": 1,
        "failed_calls": 1,
        "accuracy": {"1.0.0": 2 / 3},
    }


def account(**changes: object) -> Account:
    good = {
        "produced": 10,
        "delivered": 10,
        "duplicates": 0,
        "lost": 0,
        "dropped": {},
        "failed_calls": 0,
        "outage_seconds": 1.0,
        "kills": 1,
        "backlog": 5,
        "drain_seconds": 0.1,
        "drain_records_per_second": 50.0,
        "models": tuple(
            ModelOutcome(version, outcome, "", None)
            for version, outcome in (
                ("1.0.0", "superseded"),
                ("2.0.0", "active"),
                ("3.0.0", "refused"),
                ("4.0.0", "rejected"),
            )
        ),
    }
    return Account(**{**good, **changes})


def test_a_good_account_has_no_faults() -> None:
    assert account().faults() == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lost": 2}, "2 readings were lost."),
        ({"duplicates": 1}, "1 readings arrived twice."),
        ({"dropped": {"evicted": 3}}, "3 readings were dropped."),
        ({"failed_calls": 1}, "1 readings could not be computed."),
        ({"produced": 0}, "No reading was produced."),
        ({"models": ()}, "Version 3.0.0 ended unknown, not refused."),
    ],
)
def test_each_fault_is_a_sentence(changes: dict[str, object], said: str) -> None:
    assert said in account(**changes).faults()


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = ReadingsLog(path)
    assert log.look() == []
    with path.open("w") as file:
        file.write('{"number": 1}\n{"num')
        file.flush()
        assert [entry["number"] for entry in log.look()] == [1]
        file.write('ber": 2}\n')
        file.flush()
        assert [entry["number"] for entry in log.look()] == [1, 2]


def test_the_kill_falls_into_the_outage() -> None:
    moments = {kill_moments(seed, 6.0) for seed in range(50)}
    assert len(moments) == 50
    assert all(0 < after < after + away < 6.0 for after, away in moments)


def children(pid: int) -> set[int]:
    """The processes below *pid*, whatever their session."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    return {child for child, parent in parents.items() if parent == pid}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_process_and_no_temporary_file(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with tempfile.TemporaryDirectory() as scratch:  # a short path: the demo's sockets lie below it
        demo = subprocess.Popen(
            [sys.executable, "-m", "outstation", "demo", "--seconds", "60", "--out", str(out)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "TMPDIR": scratch},
        )
        try:
            # Hub, agent, inference and reader: all four run.
            wait_until(lambda: len(children(demo.pid)) >= 4, timeout=60.0)
            started = children(demo.pid)
            demo.send_signal(number)
            assert demo.wait(60) != 0
        finally:
            demo.kill()
            demo.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
        assert list(Path(scratch).iterdir()) == []
    assert not out.exists()


def test_a_short_demo_ends_well_and_leaves_its_report(tmp_path: Path) -> None:
    begin = time.monotonic()
    options = ["--seconds", "5", "--out", str(tmp_path / "out"), "--report", str(tmp_path / "account.json")]
    done = subprocess.run(
        [sys.executable, "-m", "outstation", "demo", *options],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begin < 60
    assert "Traceback" not in done.stdout + done.stderr
    written = json.loads((tmp_path / "account.json").read_text())
    assert set(written) >= {
        *("produced", "delivered", "duplicates", "lost", "dropped", "outage_seconds", "kills"),
        *("drain_records_per_second", "models"),
    }
    assert set(written["models"][0]) == {"version", "outcome", "reason", "accuracy"}
    assert list((tmp_path / "out" / "parquet").rglob("*.parquet"))
