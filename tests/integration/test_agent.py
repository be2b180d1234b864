"""An application and its agent: records are confirmed once they are on the disk, and once only."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import outstation
from outstation.agent import AgentClient
from outstation.buffer import Buffer
from outstation.errors import BufferFullError, DeadlineError, InvalidInputError, LinkDownError
from outstation.settings import Settings, decoded
from outstation.types import Record
from outstation.wire.client import Client
from outstation.wire.station import APPEND, AppendRequest
from outstation_agent import Agent
from support import wait_until


def settings_for(folder: Path, **tables: object) -> Settings:
    tree = {"station": {"name": "s", "data_dir": str(folder)}, "uplink": {"enabled": False}, **tables}
    return decoded(tree, Settings, where="the test")


class AgentProcess:
    """A real agent, to be killed."""

    def __init__(self, folder: Path, *, sends: bool = False) -> None:
        self.folder = folder
        self.socket = folder / "agent.sock"
        self.sends = sends
        self.start()

    def start(self) -> None:
        sends = "true" if self.sends else "false"
        environ = {"OUTSTATION_UPLINK__ENABLED": sends, "OUTSTATION_BUFFER__MIN_FREE_DISK_BYTES": "0"}
        self._popen = subprocess.Popen(
            [sys.executable, "-m", "outstation", "agent", "--data", str(self.folder)],
            stdout=subprocess.PIPE,
            env={**os.environ, **environ},
            cwd=self.folder.parent,
        )
        assert self._popen.stdout is not None
        assert self._popen.stdout.readline().startswith(b"agent ready")

    @property
    def pid(self) -> int:
        return self._popen.pid

    def end(self, number: int = signal.SIGTERM) -> int:
        self._popen.send_signal(number)
        code = self._popen.wait(20)
        assert self._popen.stdout is not None
        self._popen.stdout.close()
        return code


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[AgentProcess]:
    process = AgentProcess(tmp_path / "data")
    yield process
    process.end()


def stored(folder: Path, stream: str) -> list[bytes]:
    buffer = Buffer.open(folder / "buffer")
    try:
        return [record.payload for record in buffer.stream(stream).read()]
    finally:
        buffer.close()


def test_a_confirmed_event_is_on_the_agents_disk(agent: AgentProcess) -> None:
    with outstation.connect(agent.socket) as station:
        receipt = station.telemetry.event("reading", {"value": 1})
        receipt.wait(10.0)
    agent.end(signal.SIGKILL)
    assert stored(agent.folder, "events") == [b'{"value":1}']
    agent.start()


def test_records_outlive_kills_of_the_agent_once_each(agent: AgentProcess) -> None:
    count, kills = 600, 3
    with outstation.connect(agent.socket) as station:
        stream = station.buffer.stream("events")
        for number in range(count):
            receipt = stream.append(b"%d" % number)
            if number % (count // kills) == count // kills // 2:
                agent.end(signal.SIGKILL)
                agent.start()
        receipt.wait(20.0)
    agent.end()
    assert stored(agent.folder, "events") == [b"%d" % number for number in range(count)]
    agent.start()


def test_an_application_starts_before_its_agent(tmp_path: Path) -> None:
    with outstation.connect(tmp_path / "data" / "agent.sock") as station:
        receipt = station.telemetry.event("early", {})
        with pytest.raises(DeadlineError, match="kept and sent again"):
            receipt.wait(0.05)
        with pytest.raises(LinkDownError, match="No agent answers") as caught:
            station.status()
        assert "outstation agent" in caught.value.hint
        process = AgentProcess(tmp_path / "data")
        receipt.wait(10.0)
    process.end()
    assert stored(process.folder, "events") == [b"{}"]


def test_closing_without_an_agent_says_what_is_lost(tmp_path: Path) -> None:
    client = AgentClient(tmp_path / "agent.sock")
    client.stream("events").append(b"x")
    with pytest.raises(DeadlineError, match="1 records were not confirmed"):
        client.close(timeout=0.05)


def test_what_waits_in_the_application_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outstation.agent.MAX_WAITING_RECORDS", 3)
    client = AgentClient(tmp_path / "agent.sock")
    stream = client.stream("events")
    for _ in range(3):
        stream.append(b"x")
    with pytest.raises(BufferFullError, match="3 records wait"):
        stream.append(b"x")
    with pytest.raises(DeadlineError):
        client.close(timeout=0.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"payload": "text"},
        {"payload": b"x", "attributes": {"line": 7}},
        {"payload": b"x", "time_unix_nano": -1},
        {"payload": b"x", "attributes": {"a": "b" * 70_000}},
        {"payload": b"x", "attributes": {"half": "\ud800"}},
    ],
)
def test_what_no_record_can_hold_is_refused_where_it_is_appended(tmp_path: Path, wrong: dict[str, object]) -> None:
    client = AgentClient(tmp_path / "agent.sock")
    with pytest.raises(InvalidInputError):
        client.stream("events").append(**wrong)
    client.close(timeout=0.0)


def test_a_request_sent_again_is_confirmed_and_not_stored_again(tmp_path: Path) -> None:
    agent = Agent(settings_for(tmp_path / "data"))
    try:
        request = AppendRequest("ab" * 16, "events", tuple(Record(n, 1_000, b"%d" % n) for n in (1, 2, 3)))
        longer = AppendRequest("ab" * 16, "events", tuple(Record(n, 1_000, b"%d" % n) for n in (2, 3, 4)))
        with Client(f"unix:{agent.socket}") as client:
            for sent, through in ((request, 3), (request, 3), (longer, 4)):
                with client.stream(APPEND, iter([sent]), 10.0) as call:
                    assert next(call).through == through
        agent.close()
    finally:
        agent.close()
    assert stored(tmp_path / "data", "events") == [b"1", b"2", b"3", b"4"]


def test_a_refused_record_raises_at_its_receipt_and_the_next_ones_are_taken(tmp_path: Path) -> None:
    streams = {"small": {"when_full": "reject", "max_bytes": 20_000}}
    settings = settings_for(tmp_path / "data", buffer={"streams": streams, "group_interval": 0.01})
    agent = Agent(settings)
    try:
        with outstation.connect(agent.socket) as station:
            stream = station.buffer.stream("small")
            taken = stream.append(os.urandom(9_000))
            taken.wait(10.0)
            refused = stream.append(os.urandom(15_000))
            with pytest.raises(BufferFullError):
                refused.wait(10.0)
            after = stream.append(b"fits")
            after.wait(10.0)
        agent.close()
    finally:
        agent.close()
    assert stored(tmp_path / "data", "small")[1:] == [b"fits"]


def test_status_tells_of_streams_and_link(agent: AgentProcess) -> None:
    with outstation.connect(agent.socket) as station:
        station.telemetry.event("reading", {}).wait(10.0)
        wait_until(lambda: bool(station.status().reported.streams))
        status = station.status()
    report = next(report for report in status.reported.streams if report.stream == "events")
    assert report.ledger.pending == 1
    assert report.ledger.balanced
    assert status.provider == "local"


def test_a_killed_agents_socket_is_no_obstacle_and_sigterm_ends_with_zero(agent: AgentProcess) -> None:
    agent.end(signal.SIGKILL)
    assert agent.socket.exists()
    agent.start()
    assert agent.end() == 0
    assert not agent.socket.exists()
    agent.start()


def outstation_says(agent: AgentProcess, command: str, *options: str) -> str:
    command = [sys.executable, "-m", "outstation", command, "--data", str(agent.folder), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout


def test_the_status_command_shows_link_and_streams_to_people_and_to_machines(agent: AgentProcess) -> None:
    with outstation.connect(agent.socket) as station:
        station.telemetry.event("reading", {}).wait(10.0)
    shown = outstation_says(agent, "status")
    assert "by provider local" in shown
    assert re.search(r"events\s+│\s+1 │", shown)
    assert 'outstation_records_pending{station="' in outstation_says(agent, "status", "--metrics")
    told = json.loads(outstation_says(agent, "status", "--json"))
    events = next(stream for stream in told["reported"]["streams"] if stream["stream"] == "events")
    assert events["ledger"]["pending"] == 1
    assert told["pid"] == agent.pid


def test_a_link_is_metered_for_as_long_as_somebody_says_so(tmp_path: Path) -> None:
    agent = AgentProcess(tmp_path / "data", sends=True)
    with outstation.connect(agent.socket) as station:
        assert not station.status().reported.link.metered
        station.set_metered(True)
        assert station.status().reported.link.metered
    assert ", metered" in outstation_says(agent, "status")
    assert outstation_says(agent, "metered", "off") == "not metered: everything is sent\n"
    assert ", metered" not in outstation_says(agent, "status")
    outstation_says(agent, "metered", "on")
    agent.end()
    agent.start()
    assert ", metered" not in outstation_says(agent, "status")
    agent.end()


def test_without_an_agent_nobody_can_be_told_of_the_link(tmp_path: Path) -> None:
    with outstation.connect(tmp_path / "agent.sock") as station, pytest.raises(LinkDownError, match="No agent answers"):
        station.set_metered(True)
