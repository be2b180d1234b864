"""Places of the disk that cannot be read, for a moment or for ever: what is there comes out, what is not is counted."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from faults.test_buffer_disk import payloads, until_taken
from faults.test_buffer_rot import blocks_of
from outstation.buffer import Buffer, commit
from outstation.buffer import buffer as buffer_module
from outstation.buffer.salvage import PIECE_BYTES, Salvage
from outstation.durable import Files
from outstation.errors import DiskError
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import DropReason, WhenFull
from support import wait_until

OPTIONS = BufferSettings(group_interval=0.01, segment_bytes=32 << 10, block_bytes=4096, min_free_disk_bytes=0)
RECORDS = 60


class BadFiles(Files):
    """Answers EIO for the ranges in ``bad``, by file name, the next ``times`` times."""

    def __init__(self) -> None:
        self.bad: dict[str, tuple[int, int]] = {}
        self.shut: set[str] = set()  # not even open
        self.times = 1 << 62
        self.failures = 0
        self._names: dict[int, str] = {}

    def _fail(self) -> None:
        if self.failures < self.times:
            self.failures += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def open(self, path, flags, mode=0o640):
        if path.name in self.shut and not flags & os.O_CREAT:
            self._fail()
        fd = super().open(path, flags, mode)
        self._names[fd] = path.name
        return fd

    def read(self, fd, size, offset):
        start, end = self.bad.get(self._names[fd], (0, 0))
        if start < offset + size and end > offset:
            self._fail()
        return super().read(fd, size, offset)

    def rename(self, source, target):
        super().rename(source, target)
        self.bad.pop(target.name, None)  # the new file lies elsewhere
        self.shut.discard(target.name)


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(commit, "READ_AGAIN", (0.05, 0.05, 0.05))
    monkeypatch.setattr(buffer_module, "LOOK_AGAIN", (0.01, 0.01))


def payload(sequence: int) -> bytes:
    return b"%06d" % sequence + bytes((sequence * 7919 * n) >> 3 & 0xFF for n in range(1800))


def filled(folder: Path) -> None:
    with Buffer.open(folder, OPTIONS) as buffer:
        write(buffer)


def write(buffer: Buffer) -> None:
    stream = buffer.stream("events")
    for number in range(1, RECORDS + 1):
        stream.append(payload(number), mark=("app", number)).wait(5)


@pytest.fixture(scope="module")
def closed_well(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("closed") / "buffer"
    filled(folder)
    return folder


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """What a kill leaves: room reserved at the end, a state of before."""
    place = tmp_path_factory.mktemp("killed")
    with Buffer.open(place / "own", OPTIONS) as buffer:
        write(buffer)
        shutil.copytree(place / "own", place / "buffer")
    return place / "buffer"


def segments_of(folder: Path) -> list[Path]:
    return sorted((folder / "streams" / "events").glob("*.seg"))


def copied(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def delivered(stream) -> dict[int, bytes]:
    return {record.sequence: record.payload for record in stream.read(stream.acknowledged)}


def until_readable(stream) -> dict[int, bytes]:
    """Read as the uplink does: again, after an error."""

    def readable() -> bool:
        try:
            delivered(stream)
        except DiskError:
            return False
        return True

    wait_until(readable, 20)
    stream.flush(10)
    return delivered(stream)


def in_range(path: Path, start: int, end: int) -> set[int]:
    """The records of the blocks that lie in pieces with a byte of the range."""
    first, last = start - start % PIECE_BYTES, -(-end // PIECE_BYTES) * PIECE_BYTES
    return {n for begin, stop, numbers in blocks_of(path) if begin < last and stop > first for n in numbers}


def check(buffer: Buffer, found: dict[int, bytes], may_miss: set[int]) -> None:
    """Of the records only *may_miss* are missing, and the ledger says so."""
    stream = buffer.stream("events")
    assert all(data == payload(sequence) for sequence, data in found.items())
    assert set(range(1, RECORDS + 1)) - set(found) <= may_miss
    ledger = stream.ledger()
    assert ledger.balanced
    assert ledger.pending == len(found)
    assert ledger.dropped[DropReason.CORRUPT] == stream.last_sequence - len(found)


def check_it_stays_so(folder: Path, found: dict[int, bytes]) -> None:
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        ledger = stream.ledger()
        assert delivered(stream) == found
        assert ledger.pending == len(found)
        assert ledger.balanced
        assert stream.append(b"new").first_sequence > RECORDS


# --- while it is open --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [0, -1])
def test_two_failures_and_then_fine_lose_nothing(closed_well, tmp_path, which):
    folder, files = copied(closed_well, tmp_path / "buffer"), BadFiles()
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        path = segments_of(folder)[which]
        files.bad[path.name], files.times = (5000, 5001), 2
        found = until_readable(buffer.stream("events"))
        assert files.failures == 2
        assert len(found) == RECORDS
        check(buffer, found, set())
    check_it_stays_so(folder, found)


def test_a_place_that_stays_bad_costs_its_blocks_and_the_rest_is_delivered(closed_well, tmp_path, caplog):
    folder, files = copied(closed_well, tmp_path / "buffer"), BadFiles()
    path = segments_of(folder)[0]
    lost = in_range(path, 9000, 9001)
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        files.bad[path.name] = (9000, 9001)
        found = until_readable(buffer.stream("events"))
        assert 0 < RECORDS - len(found) <= len(lost)
        check(buffer, found, lost)
    assert "records are lost" in caplog.text
    # The file itself is kept: nothing else may come to lie on the bad place.
    assert path.name in {kept.name for kept in (folder / "streams" / "events" / "quarantine").iterdir()}
    check_it_stays_so(folder, found)


@pytest.mark.parametrize("through", [5, 12, 25, RECORDS])
def test_a_cursor_that_moves_while_a_segment_is_mended_counts_nothing_twice(closed_well, tmp_path, through):
    class Acknowledging(BadFiles):
        def rename(self, source, target):
            super().rename(source, target)
            if target.suffix == ".seg":
                stream.acknowledge(through)

    folder, files = copied(closed_well, tmp_path / "buffer"), Acknowledging()
    path = segments_of(folder)[0]
    lost = in_range(path, 9000, 9001)
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        files.bad[path.name] = (9000, 9001)
        found = until_readable(stream)
        assert stream.acknowledged == through
        ledger = stream.ledger()
        assert ledger.pending == len(found)
        assert ledger.acknowledged + ledger.pending + ledger.dropped[DropReason.CORRUPT] == RECORDS
        assert ledger.dropped[DropReason.CORRUPT] <= len(lost)


def test_a_bad_place_in_the_segment_that_is_being_written(tmp_path):
    files = BadFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        for number in range(1, 11):
            stream.append(payload(number)).wait(5)
        (path,) = segments_of(tmp_path)
        lost = in_range(path, 4096, 4097)
        files.bad[path.name] = (4096, 4097)
        found = until_readable(stream)
        assert set(range(1, 11)) - set(found) == lost
        assert stream.ledger().balanced
        assert stream.ledger().dropped[DropReason.CORRUPT] == len(lost)
        until_taken(stream, b"after")
        assert payloads(stream)[-1] == b"after"


def test_a_disk_that_takes_no_rewrite_costs_nothing_however_long_it_lasts(closed_well, tmp_path):
    class Gone(BadFiles):
        def open(self, path, flags, mode=0o640):
            if flags & os.O_CREAT and self.bad:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return super().open(path, flags, mode)

    folder, files = copied(closed_well, tmp_path / "buffer"), Gone()
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        files.bad = {path.name: (0, 1 << 30) for path in segments_of(folder)}
        for _ in range(20):
            with pytest.raises(DiskError):
                delivered(stream)
            buffer.clock.wait(buffer._wake, 0.02)
        files.bad = {}
        found = until_readable(stream)
        assert len(found) == RECORDS
        check(buffer, found, set())


@pytest.mark.parametrize("when_full", [WhenFull.DROP_OLDEST, WhenFull.THIN])
def test_a_full_stream_lets_go_of_what_it_cannot_read(tmp_path, when_full):
    options = BufferSettings(
        group_interval=0.01,
        segment_bytes=8 << 10,
        block_bytes=2048,
        min_free_disk_bytes=0,
        defaults=StreamSettings(max_bytes=96 << 10, when_full=when_full),
    )
    files = BadFiles()
    with Buffer.open(tmp_path, options, files=files) as buffer:
        stream = buffer.stream("events")
        for number in range(1, 100):
            stream.append(payload(number)).wait(5)
            if number == 60:
                stream.acknowledge(stream.last_sequence - 45)
                files.bad = {path.name: (0, 1 << 30) for path in segments_of(tmp_path)[:4]}
            assert stream.ledger().balanced
        found = until_readable(stream)
        assert stream.ledger().pending == len(found)
        assert max(found) == 99


# --- at opening --------------------------------------------------------------------------------------------------

CASES = [
    ("closed_well", 0),
    ("killed", -1),
    *(pytest.param(before, which, marks=pytest.mark.soak) for before, which in [("closed_well", -1), ("killed", 0)]),
]
PLACES = {"head": (0, 1), "middle": (9000, 9001), "end": (-1, 0), "all": (0, 1 << 30), "shut": None}


def spoil(files: BadFiles, path: Path, place: str) -> tuple[int, int]:
    where = PLACES[place]
    if where is None:
        files.shut.add(path.name)
        return 0, path.stat().st_size
    start, end = where
    if start < 0:
        start, end = path.stat().st_size + start, path.stat().st_size
    files.bad[path.name] = (start, end)
    return start, min(end, path.stat().st_size)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("before", "which"), CASES)
def test_opening_keeps_what_can_be_read_of_a_segment(request, tmp_path, before, which, place):
    folder, files = copied(request.getfixturevalue(before), tmp_path / "buffer"), BadFiles()
    path = segments_of(folder)[which]
    lost = in_range(path, *spoil(files, path, place))
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        until_taken(stream, b"meanwhile")
        found = until_readable(stream)
        sequence = max(found)
        assert found.pop(sequence) == b"meanwhile"
        assert sequence > RECORDS
        check_with(stream, found, lost)
    check_it_stays_so(folder, {**found, sequence: b"meanwhile"})


def check_with(stream, found: dict[int, bytes], may_miss: set[int]) -> None:
    assert all(data == payload(number) for number, data in found.items())
    assert set(range(1, RECORDS + 1)) - set(found) <= may_miss
    ledger = stream.ledger()
    assert ledger.balanced
    assert ledger.pending == len(found) + 1
    assert ledger.dropped[DropReason.CORRUPT] == stream.last_sequence - ledger.pending


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("before", "which"), CASES)
def test_what_can_be_read_a_little_after_opening_was_never_lost(request, tmp_path, before, which, place):
    folder, files = copied(request.getfixturevalue(before), tmp_path / "buffer"), BadFiles()
    path = segments_of(folder)[which]
    spoil(files, path, place)
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        until_taken(stream, b"meanwhile")  # its number is beyond all that may be there
        files.bad, files.shut = {}, set()
        found = until_readable(stream)
        assert found.pop(max(found)) == b"meanwhile"
        assert sorted(found) == list(range(1, RECORDS + 1))
        assert stream.mark("app") == RECORDS
        check_with(stream, found, set())
    with Buffer.open(folder, OPTIONS) as buffer:
        assert buffer.stream("events").mark("app") == RECORDS


@pytest.mark.parametrize("late", [False, True])
def test_two_segments_of_which_nothing_can_be_read_share_what_is_missing(killed, tmp_path, late):
    folder, files = copied(killed, tmp_path / "buffer"), BadFiles()
    first, second = segments_of(folder)[:2]
    for path in (first, second):
        spoil(files, path, "all")
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        until_taken(stream, b"meanwhile")
        del files.bad[second.name]  # it is mended before the other one, whatever each was thought to hold
        if not late:
            files.bad = {}
        found = until_readable(stream)
        assert found.pop(max(found)) == b"meanwhile"
        check_with(stream, found, in_range(first, 0, 1 << 30) | set(range(1, RECORDS + 1)) if late else set())
    with Buffer.open(folder, OPTIONS) as buffer:
        assert set(delivered(buffer.stream("events"))) >= set(found)


def test_marks_are_not_told_while_they_are_not_known(killed, tmp_path):
    folder, files = copied(killed, tmp_path / "buffer"), BadFiles()
    spoil(files, segments_of(folder)[-1], "all")
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        with pytest.raises(DiskError):
            stream.mark("app")
        files.bad = {}
        until_readable(stream)
        assert stream.mark("app") == RECORDS


def test_a_state_file_that_cannot_be_read_costs_nothing_while_its_blocks_are_there(closed_well, tmp_path):
    folder, files = copied(closed_well, tmp_path / "buffer"), BadFiles()
    files.bad["state"] = (0, 1)
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        assert stream.mark("app") == RECORDS
        check(buffer, delivered(stream), set())
    assert [path.name for path in (folder / "streams" / "events" / "quarantine").iterdir()] == ["state"]


def test_opening_waits_for_a_disk_that_is_a_little_late(closed_well, tmp_path):
    folder, files = copied(closed_well, tmp_path / "buffer"), BadFiles()
    files.bad, files.times = {path.name: (0, 1 << 30) for path in [*segments_of(folder), folder / "state"]}, 2
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        check(buffer, delivered(buffer.stream("events")), set())
        assert buffer.stream("events").mark("app") == RECORDS
    assert not (folder / "streams" / "events" / "quarantine").exists()


def test_a_stream_of_which_nothing_can_be_read_is_not_begun_anew_and_the_others_go_on(closed_well, tmp_path):
    folder, files = copied(closed_well, tmp_path / "buffer"), BadFiles()
    files.bad = {path.name: (0, 1 << 30) for path in [*segments_of(folder), folder / "state"]}
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        with pytest.raises(DiskError) as caught:
            buffer.stream("events")
        assert caught.value.hint
        assert buffer.stream("other").append(b"x").first_sequence == 1
        files.bad = {}
        check(buffer, delivered(buffer.stream("events")), set())


def test_a_folder_that_cannot_be_listed_costs_its_stream_until_it_can(closed_well, tmp_path, monkeypatch):
    folder = copied(closed_well, tmp_path / "buffer")
    with Buffer.open(folder, OPTIONS) as buffer:
        buffer.stream("other").append(b"x").wait(5)
    listed = Path.iterdir

    def refuse(self):
        if self.name == "events":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return listed(self)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir", refuse)
        buffer = Buffer.open(folder, OPTIONS)
        assert payloads(buffer.stream("other")) == [b"x"]
        with pytest.raises(DiskError):
            buffer.stream("events")
    with buffer:
        check(buffer, delivered(buffer.stream("events")), set())


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_cannot_be_read_everything_else_comes_out(closed_well, killed, tmp_path_factory, data):
    origin = data.draw(st.sampled_from([closed_well, killed]))
    folder, files = copied(origin, tmp_path_factory.mktemp("case") / "buffer"), BadFiles()
    path = data.draw(st.sampled_from([*segments_of(folder), folder / "streams" / "events" / "state"]))
    size = path.stat().st_size
    start = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(start + 1, size))
    files.bad[path.name] = (start, end)
    lost = in_range(path, start, end) if path.suffix == ".seg" else set()
    with Buffer.open(folder, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        found = until_readable(stream)
        check(buffer, found, lost)
    check_it_stays_so(folder, found)


def test_a_file_of_which_nothing_can_be_read_costs_few_tries(tmp_path):
    path, files = tmp_path / "one", BadFiles()
    path.write_bytes(b"x" * (8 << 20))
    files.bad["one"] = (0, 1 << 30)
    salvage = Salvage(files)
    fd = salvage.open(path, os.O_RDONLY)
    assert salvage.read(fd, 8 << 20, 0) == bytes(8 << 20)
    assert salvage.read(fd, 8 << 20, 0) == bytes(8 << 20)
    assert files.failures < 30
    salvage.close(fd)
