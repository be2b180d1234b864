"""Ctrl-C, or any exception of a signal's handler, at whatever a caller is doing: nobody else's records suffer."""

from __future__ import annotations

import os
import sys
from array import array
from contextlib import contextmanager

import pytest

from outstation.buffer import Buffer
from outstation.durable import Files
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import DropReason, WhenFull

OPTIONS = BufferSettings(group_interval=600.0)  # nothing is committed but by who waits


class Interrupted(Files):
    """Raises KeyboardInterrupt once, where it is told: before the operation or when it has been done."""

    def __init__(self) -> None:
        self.at = ""
        self.afterwards = False

    def _interrupt(self, operation: str, *, afterwards: bool) -> None:
        if (self.at, self.afterwards) == (operation, afterwards):
            self.at = ""
            raise KeyboardInterrupt

    def write(self, fd, data, offset):
        self._interrupt("write", afterwards=False)
        super().write(fd, data, offset)
        self._interrupt("write", afterwards=True)

    def sync_data(self, fd):
        self._interrupt("sync_data", afterwards=False)
        super().sync_data(fd)
        self._interrupt("sync_data", afterwards=True)


@pytest.mark.parametrize("operation", ["write", "sync_data"])
@pytest.mark.parametrize("afterwards", [False, True])
@pytest.mark.parametrize("begun", [False, True])
def test_a_commit_that_was_interrupted_is_made_good_by_the_next(tmp_path, operation, afterwards, begun):
    files = Interrupted()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        if begun:
            stream.append(b"zero").wait()
        others = stream.append(b"of another thread", mark=("app", 7))
        files.at, files.afterwards = operation, afterwards
        with pytest.raises(KeyboardInterrupt):
            stream.append(b"mine").wait()
        assert not others.done
        stream.append(b"later").wait()
        assert others.done
        assert others.error is None
        expected = [b"zero"] * begun + [b"of another thread", b"mine", b"later"]
        assert [record.payload for record in stream.read()] == expected
        assert stream.ledger().pending == len(expected)
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert [record.payload for record in stream.read()] == expected
        assert stream.ledger().dropped[DropReason.CORRUPT] == 0
        assert stream.mark("app") == 7


def test_a_commit_that_was_interrupted_after_its_sync_is_not_written_again(tmp_path, monkeypatch):
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        stream = buffer.stream("events")
        publish = stream.publish

        def interrupted(*_: object) -> None:
            monkeypatch.setattr(stream, "publish", publish)
            raise KeyboardInterrupt

        monkeypatch.setattr(stream, "publish", interrupted)
        others = stream.append(b"of another thread")
        with pytest.raises(KeyboardInterrupt):
            stream.append(b"mine").wait()
        length = sum(path.stat().st_size for path in tmp_path.rglob("*.seg"))
        stream.flush(5)
        assert others.done
        assert [record.payload for record in stream.read()] == [b"of another thread", b"mine"]
        assert sum(path.stat().st_size for path in tmp_path.rglob("*.seg")) == length


def test_who_flushes_is_answered_though_the_commit_was_interrupted(tmp_path):
    files = Interrupted()
    with Buffer.open(tmp_path, BufferSettings(group_interval=0.01), files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait()
        files.at = "sync_data"
        with pytest.raises(KeyboardInterrupt):
            stream.append(b"two").wait()
        stream.flush(5)
        assert stream.last_sequence == 2


class InterruptedAtPlacing(Files):
    """Raises KeyboardInterrupt once, about when a segment that was written again takes the place of the old one."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.armed = False
        self._placed = False

    def _interrupt(self, at: str, *, here: bool) -> None:
        if self.armed and here and at == self.at:
            self.armed = False
            raise KeyboardInterrupt

    def rename(self, source, target):
        self._placed = target.suffix == ".seg"
        self._interrupt("before the rename", here=self._placed)
        super().rename(source, target)
        self._interrupt("after the rename", here=self._placed)

    def sync_directory(self, path):
        self._interrupt("before the sync of the folder", here=self._placed)
        super().sync_directory(path)
        self._interrupt("after the sync of the folder", here=self._placed)
        self._placed = False


def append_durably(stream, count):
    for _ in range(count):
        stream.append(os.urandom(300)).wait()


@pytest.mark.parametrize(
    "at", ["before the rename", "after the rename", "before the sync of the folder", "after the sync of the folder"]
)
def test_what_an_interrupted_thinning_took_is_counted_and_nothing_else_is_missing(tmp_path, at):
    thinned = StreamSettings(when_full=WhenFull.THIN, max_bytes=24 << 10)
    options = BufferSettings(group_interval=600.0, segment_bytes=4096, block_bytes=1024, streams={"events": thinned})
    files = InterruptedAtPlacing(at)
    with Buffer.open(tmp_path, options, files=files) as buffer:
        stream = buffer.stream("events")
        files.armed = True
        with pytest.raises(KeyboardInterrupt):
            append_durably(stream, 1000)
        stream.flush(5)
        delivered = [record.sequence for record in stream.read()]
        assert stream.ledger().pending == len(delivered)
        stream.acknowledge(stream.last_sequence)
        stream.flush(5)
        ledger = stream.ledger()
        assert ledger.acknowledged == len(delivered)
        assert ledger.dropped[DropReason.THINNED] == ledger.appended - len(delivered)
    with Buffer.open(tmp_path, options) as buffer:
        assert buffer.stream("events").ledger() == ledger


@contextmanager
def interrupted_at(place):
    """Raises KeyboardInterrupt where Python looks for signals in the buffer's code for the *place*-th time: when a
    function begins, or one of C's has returned.
    """
    seen = 0

    def look(frame, event, _):
        nonlocal seen
        if event in {"call", "c_return"} and "outstation/buffer" in frame.f_code.co_filename:
            seen += 1
            if seen == place:
                sys.setprofile(None)
                raise KeyboardInterrupt

    before = sys.getprofile()
    sys.setprofile(look)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize("place", range(1, 12))
def test_who_is_interrupted_when_about_to_commit_keeps_nobody_else_from_it(tmp_path, place):
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        stream = buffer.stream("events")
        receipt = stream.append(b"one")
        with pytest.raises(KeyboardInterrupt), interrupted_at(place):
            receipt.wait()
        if buffer._passing.locked():
            buffer._passing.release()  # else nothing would ever end
            pytest.fail("nobody would ever commit again")
        stream.flush(5)
        assert receipt.done
        assert [record.payload for record in stream.read()] == [b"one"]


class Raising(array):
    """A column that a signal's handler stops from growing."""

    def append(self, _: int) -> None:
        raise KeyboardInterrupt

    extend = append

    def __iadd__(self, _: object) -> Raising:
        raise KeyboardInterrupt


@pytest.mark.parametrize("column", ["index", "times", "sizes"])
@pytest.mark.parametrize("many", [False, True])
def test_an_append_that_was_interrupted_leaves_no_half_of_a_record(tmp_path, column, many):
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one", time_unix_nano=1)
        batch = stream._filling
        whole = getattr(batch, column)
        setattr(batch, column, Raising(whole.typecode, whole))
        call = stream.append_many if many else stream.append
        with pytest.raises(KeyboardInterrupt):
            call([b"half"] if many else b"half", mark=("app", 9))
        setattr(batch, column, whole)
        stream.append(b"two", time_unix_nano=2).wait()
        assert [(record.time_unix_nano, record.payload) for record in stream.read()] == [(1, b"one"), (2, b"two")]
        assert stream.mark("app") == 0
