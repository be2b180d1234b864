"""The agent's side of an application's call: nothing is confirmed that is not on the disk, nothing is taken twice."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from outstation.buffer import Buffer, Receipt, Stream
from outstation.errors import DiskError
from outstation.settings import BufferSettings
from outstation.types import Record
from outstation.wire.station import AppendRequest, AppendResponse
from outstation_agent.service import StationService, _Connection
from support import wait_until

PRODUCER = "ab" * 16


@pytest.fixture
def buffer(tmp_path: Path) -> Iterator[Buffer]:
    opened = Buffer.open(tmp_path / "buffer", BufferSettings(group_interval=0.01, min_free_disk_bytes=0))
    yield opened
    opened.close()


def connections(buffer: Buffer, count: int = 1) -> list[_Connection]:
    service = StationService(SimpleNamespace(buffer=buffer))  # type: ignore[arg-type]
    return [_Connection(service._parts, service._gate) for _ in range(count)]


def request(first: int, last: int) -> AppendRequest:
    return AppendRequest(PRODUCER, "x", tuple(Record(n, 1_000, b"%d" % n) for n in range(first, last + 1)))


def answers(connection: _Connection) -> list[AppendResponse]:
    """What was said until the call was ended."""
    said = []
    while (answer := connection._out.get(timeout=10.0)) is not None:
        said.append(answer)
    return said


def stored(buffer: Buffer) -> list[bytes]:
    return [record.payload for record in buffer.stream("x").read()]


def test_numbers_that_two_calls_bring_at_once_are_stored_once(buffer: Buffer) -> None:
    calls = connections(buffer, 8)
    threads = [threading.Thread(target=call.read, args=(iter([request(1, 50)]),)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {answers(call)[-1].through for call in calls} == {50}
    assert stored(buffer) == [b"%d" % n for n in range(1, 51)]


def test_what_an_older_call_appended_is_confirmed_only_from_the_disk(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise DiskError("the disk is broken")

    monkeypatch.setattr(Stream, "flush", broken)
    older, newer = connections(buffer, 2)
    assert older._take(request(1, 10))
    assert not newer._take(request(1, 10))
    assert answers(newer) == []


def test_after_a_commit_that_failed_the_call_ends_without_a_word(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch
) -> None:
    (call,) = connections(buffer)
    assert call._take(request(1, 10))
    monkeypatch.setattr(Receipt, "error", property(lambda _: DiskError("the disk was full")))
    assert not call._take(request(11, 20))
    assert [answer for answer in answers(call) if answer.through > 10 or answer.error] == []
    monkeypatch.undo()
    assert buffer.stream("x").mark(PRODUCER) == 10


def test_a_call_that_the_application_has_finished_ends_behind_its_last_confirmation(buffer: Buffer) -> None:
    (call,) = connections(buffer)
    call.read(iter([request(1, 10), request(11, 20)]))
    assert answers(call)[-1] == AppendResponse("x", 20)


def test_a_call_without_a_record_ends_at_once(buffer: Buffer) -> None:
    (call,) = connections(buffer)
    call.read(iter([]))
    assert answers(call) == []


def test_a_fault_of_ours_ends_the_call_and_not_silently(
    buffer: Buffer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise DiskError("no folder for the stream")

    monkeypatch.setattr(Buffer, "stream", broken)
    (call,) = connections(buffer)
    call.read(iter([request(1, 10)]))
    assert answers(call) == []
    assert "no folder for the stream" in caplog.text


def test_the_gates_of_calls_that_are_over_are_forgotten(buffer: Buffer) -> None:
    service = StationService(SimpleNamespace(buffer=buffer))  # type: ignore[arg-type]
    for number in range(100):
        service._gate(f"{number:032x}", "x")
    assert len(service._gates) == 0


def test_confirmations_wait_for_nobody(buffer: Buffer) -> None:
    (call,) = connections(buffer)
    assert call._take(request(1, 10))
    wait_until(lambda: not call._out.empty())
    assert call._out.get_nowait() == AppendResponse("x", 10)
    with pytest.raises(queue.Empty):
        call._out.get_nowait()
