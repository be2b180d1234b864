"""``outstation buffer``: what it shows of a buffer, running or not, and what it mends."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from outstation.buffer import Buffer
from outstation.cli.buffer import app
from outstation.settings import BufferSettings
from outstation.types import DropReason
from support import wait_until

OPTIONS = BufferSettings(group_interval=0.01, segment_bytes=4096, block_bytes=512)


@pytest.fixture
def station(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Buffer.open(tmp_path / "buffer", OPTIONS) as buffer:
        stream = buffer.stream("events")
        for number in range(40):
            stream.append(b"line %d" % number + os.urandom(0), time_unix_nano=(number + 1) * 10**9).wait(5)
        stream.append(b"\xff\x00", content_type="image/raw", attributes={"camera": "2"})
        buffer.stream("other").append(b"x")
    return tmp_path


def call(station, *arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*arguments, "--data", str(station)])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result.output


def test_ls_and_stat_show_every_stream(station):
    rows = [json.loads(line) for line in call(station, "ls", "--json").splitlines()]
    assert [(row["stream"], row["pending"], row["last_sequence"]) for row in rows] == [
        ("events", 41, 41),
        ("other", 1, 1),
    ]
    (events, _) = (json.loads(line) for line in call(station, "stat", "--interval", "0", "--json").splitlines())
    assert events["appended"] == events["pending"] == 41
    assert events["corrupt"] == 0
    assert events["oldest_seconds"] > 0
    assert "stream=events" in call(station, "stat", "--interval", "0")


def test_cat_writes_payloads_or_json(station):
    assert call(station, "cat", "events").splitlines()[:2] == ["line 0", "line 1"]
    last = json.loads(call(station, "cat", "events", "--after", "40", "--json"))
    assert last["payload_base64"] == "/wA="
    assert last["attributes"] == {"camera": "2"}
    chosen = call(
        station, "cat", "events", "--since", "1970-01-01T00:00:05+00:00", "--until", "1970-01-01T00:00:07+00:00"
    )
    assert chosen.splitlines() == ["line 4", "line 5", "line 6"]


def test_tail_shows_the_newest(station):
    assert call(station, "tail", "other", "-n", "3").splitlines() == ["x"]
    assert len(call(station, "tail", "events", "-n", "2", "--json").splitlines()) == 2


def test_a_running_buffer_is_looked_at_without_disturbing_it(station):
    with Buffer.open(station / "buffer", OPTIONS) as buffer:
        buffer.stream("other").append(b"second").wait(5)
        assert call(station, "cat", "other").splitlines() == ["x", "second"]
        assert "no damage" in call(station, "verify")
        buffer.stream("other").append(b"third").wait(5)


def test_tail_follows_another_process(station):
    command = [sys.executable, "-c", "from outstation.cli.buffer import app; app()"]
    command += ["tail", "-f", "other", "--data", str(station)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "x\n"
        with Buffer.open(station / "buffer", OPTIONS) as buffer:
            buffer.stream("other").append(b"while you look").wait(5)
            assert process.stdout.readline() == "while you look\n"
        process.terminate()


def test_verify_finds_damage_and_repair_takes_it_out_of_the_way(station):
    path = min((station / "buffer" / "streams" / "events").glob("*.seg"))
    data = bytearray(path.read_bytes())
    at = data.find(b"line 7")
    data[at] ^= 1
    path.write_bytes(data)
    assert "fails its checksum" in call(station, "verify", code=1)
    assert "1 corrupt" in call(station, "repair")
    assert "no damage" in call(station, "verify")
    lines = call(station, "cat", "events").splitlines()
    assert "line 7" not in lines
    assert "line 8" in lines
    with Buffer.open(station / "buffer", OPTIONS) as buffer:
        assert buffer.stream("events").ledger().dropped[DropReason.CORRUPT] == 1


def test_verify_misses_a_file_that_is_gone(station):
    segments = sorted((station / "buffer" / "streams" / "events").glob("*.seg"))
    before = json.loads(call(station, "ls", "--json").splitlines()[0])["pending"]
    segments[0].unlink()
    after = json.loads(call(station, "ls", "--json").splitlines()[0])["pending"]
    assert after < before
    assert f"{before - after} records that the account has are in no file" in call(station, "verify", code=1)
    assert f"{before - after} corrupt" in call(station, "repair")
    assert "no damage" in call(station, "verify")


@pytest.mark.parametrize("arguments", [("cat", "nothing"), ("cat", "events", "--since", "yesterday")])
def test_a_wrong_question_is_answered_as_such(station, arguments):
    result = CliRunner().invoke(app, [*arguments, "--data", str(station)])
    assert type(result.exception).__name__ == "InvalidInputError"


def test_a_stream_is_read_by_time_and_followed_in_its_process(tmp_path):
    with Buffer.open(tmp_path / "buffer", OPTIONS) as buffer:
        stream = buffer.stream("events")
        stream.append_many([b"%d" % n for n in range(200)], times_unix_nano=list(range(200))).wait(5)
        chosen = [record.payload for record in stream.read(since_unix_nano=50, until_unix_nano=52)]
        assert chosen == [b"50", b"51", b"52"]
        assert list(stream.read(100, until_unix_nano=99)) == []
        tail = stream.tail(199, timeout=5)
        assert next(tail).payload == b"199"
        stream.append(b"new")
        assert next(tail).payload == b"new"
        assert list(stream.tail(timeout=0.01)) == []
        buffer.close()
        wait_until(lambda: list(tail) == [])
