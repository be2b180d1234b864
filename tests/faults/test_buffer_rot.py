"""Bit rot: whatever happens to one file, only what stood there is missing, and it is counted."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from outstation.buffer import Buffer, commit, quarantine
from outstation.buffer.segment import Frame, walk
from outstation.durable import FILES
from outstation.settings import BufferSettings
from outstation.types import DropReason
from outstation.wire.block import BlockHeader

OPTIONS = BufferSettings(group_interval=5.0, segment_bytes=4096, block_bytes=512)
RECORDS = 120
ACKNOWLEDGED = 33


def payload(sequence: int) -> bytes:
    # Half of each record does not compress, so that blocks keep a size.
    return b"%06d" % sequence + bytes((sequence * 7919 * n) >> 3 & 0xFF for n in range(60))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """A buffer of many segments that was closed in order, part of it acknowledged and removed."""
    folder = tmp_path_factory.mktemp("pristine") / "buffer"
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        for first in range(1, RECORDS + 1, 4):
            stream.append_many([payload(n) for n in range(first, first + 4)], mark=("app", first + 3)).wait(5)
        stream.acknowledge(ACKNOWLEDGED)
    return folder


def blocks_of(path: Path) -> list[tuple[int, int, range]]:
    """Each block's place in the file and its numbers."""
    fd = os.open(path, os.O_RDONLY)
    try:
        frames = [piece for piece in walk(FILES, fd, 0, path.stat().st_size, None) if isinstance(piece, Frame)]
    finally:
        os.close(fd)
    return [
        (frame.offset, frame.offset + frame.size, range(frame.head.first_sequence, frame.head.last_sequence + 1))
        for frame in frames
        if isinstance(frame.head, BlockHeader)
    ]


def harmed(path: Path, how: str, where: float, bit: int) -> set[int]:
    """Damage *path*; which records may now be missing."""
    size = path.stat().st_size
    offset = min(int(where * size), size - 1)
    blocks = blocks_of(path) if path.suffix == ".seg" else []
    if how == "flip":
        with path.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes([byte ^ (1 << bit)]))
        return {n for start, end, numbers in blocks if start <= offset < end for n in numbers}
    if how == "cut":
        os.truncate(path, offset)
        return {n for _, end, numbers in blocks if end > offset for n in numbers}
    path.unlink()
    return {n for _, _, numbers in blocks for n in numbers}


def check(folder: Path, may_miss: set[int], acknowledged: int) -> None:
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert acknowledged <= ACKNOWLEDGED or stream.acknowledged <= acknowledged
        first_look = {record.sequence: record.payload for record in stream.read(stream.acknowledged)}
        stream.flush(10)
        delivered = {record.sequence: record.payload for record in stream.read(stream.acknowledged)}
        assert delivered == first_look
        assert all(data == payload(sequence) for sequence, data in delivered.items())
        wanted = set(range(stream.acknowledged + 1, RECORDS + 1))
        missing = wanted - set(delivered)
        assert missing <= may_miss
        ledger = stream.ledger()
        assert ledger.balanced
        assert ledger.pending == len(delivered)
        assert ledger.dropped[DropReason.CORRUPT] >= len(missing)
        if stream.acknowledged == ACKNOWLEDGED:
            assert ledger.appended == RECORDS
            assert ledger.acknowledged == ACKNOWLEDGED
            assert ledger.dropped[DropReason.CORRUPT] == len(missing)
        assert stream.append(b"new").first_sequence == RECORDS + 1
        stream.flush(10)
    with Buffer.open(folder, OPTIONS) as buffer:  # and it stays so
        stream = buffer.stream("events")
        assert {record.sequence for record in stream.read(stream.acknowledged)} == {*delivered, RECORDS + 1}
        assert stream.ledger().balanced
        assert stream.ledger().dropped == ledger.dropped


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_to_one_file_costs_what_stood_there_and_no_more(pristine, data):
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "buffer"
        shutil.copytree(pristine, folder)
        path = data.draw(st.sampled_from(files_of(folder)), label="file")
        how = data.draw(st.sampled_from(["flip", "cut", "delete"]), label="how")
        if path.stat().st_size == 0 and how != "delete":
            return
        where = data.draw(st.floats(0, 1, exclude_max=True), label="where")
        check(folder, harmed(path, how, where, data.draw(st.integers(0, 7), label="bit")), ACKNOWLEDGED)


@pytest.mark.soak
def test_every_byte_of_every_file_may_rot(pristine):
    for number, path in enumerate(files_of(pristine)):
        for offset in range(0, path.stat().st_size, 3):
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / "buffer"
                shutil.copytree(pristine, folder)
                own = folder / path.relative_to(pristine)
                may_miss = harmed(own, "flip", (offset + 0.5) / own.stat().st_size, (offset + number) % 8)
                check(folder, may_miss, ACKNOWLEDGED)


def test_damaged_bytes_are_kept_in_quarantine(pristine, tmp_path):
    folder = tmp_path / "buffer"
    shutil.copytree(pristine, folder)
    path = sorted(folder.rglob("*.seg"))[1]
    start, end, numbers = blocks_of(path)[1]
    original = path.read_bytes()[start:end]
    with path.open("r+b") as file:
        file.seek(start + 80)
        file.write(bytes([original[80] ^ 1]))
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert set(numbers).isdisjoint(record.sequence for record in stream.read())
        stream.flush(5)
        assert stream.ledger().dropped[DropReason.CORRUPT] == len([n for n in numbers if n > ACKNOWLEDGED])
        kept = list((folder / "streams" / "events" / "quarantine").iterdir())
        assert [len(one.read_bytes()) for one in kept] == [end - start]


@pytest.mark.parametrize("which", [0, -2, -1])
def test_a_file_that_somebody_removed_meanwhile_is_counted_and_not_taken_for_delivered(pristine, tmp_path, which):
    folder = tmp_path / "buffer"
    shutil.copytree(pristine, folder)
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        segment = sorted(folder.glob("streams/events/*.seg"))[which]
        lost = {n for _, _, numbers in blocks_of(segment) for n in numbers if n > ACKNOWLEDGED}
        segment.unlink()
        for record in stream.read(stream.acknowledged):
            assert record.sequence not in lost
            stream.acknowledge(record.sequence)
        stream.acknowledge(RECORDS)
        ledger = stream.ledger()
        assert (ledger.acknowledged, ledger.pending) == (RECORDS - len(lost), 0)
        assert ledger.dropped[DropReason.CORRUPT] == len(lost) > 0
        stream.append(payload(RECORDS + 1)).wait(5)
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert stream.ledger().dropped[DropReason.CORRUPT] == len(lost)
        assert [record.sequence for record in stream.read(stream.acknowledged)] == [RECORDS + 1]


def test_the_quarantine_is_bounded_in_bytes_and_files(tmp_path, monkeypatch):
    monkeypatch.setattr(quarantine, "MAX_BYTES", 100)
    monkeypatch.setattr(quarantine, "MAX_FILES", 5)
    for number in range(20):
        quarantine.keep_bytes(tmp_path, f"{number:02d}", b"x", FILES)
    assert len(list((tmp_path / "quarantine").iterdir())) == 5
    for number in range(20, 25):
        quarantine.keep_bytes(tmp_path, f"{number:02d}", bytes(40), FILES)
    assert sum(path.stat().st_size for path in (tmp_path / "quarantine").iterdir()) <= 100
    assert (tmp_path / "quarantine" / "24").exists()


def test_what_was_lost_is_counted_before_anything_after_it_is_handed_out(pristine, tmp_path, monkeypatch):
    folder = tmp_path / "buffer"
    shutil.copytree(pristine, folder)
    segment = sorted(folder.glob("streams/events/*.seg"))[-2]
    start, _, lost = blocks_of(segment)[1]
    data = bytearray(segment.read_bytes())
    data[start + 90] ^= 1
    segment.write_bytes(data)
    handed_out, handed_out_before_mending = [], []
    mend = commit.repair

    def slow(*arguments, **named):
        mended = mend(*arguments, **named)
        handed_out_before_mending.extend(handed_out)
        return mended

    monkeypatch.setattr(commit, "repair", slow)
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        for record in stream.read(stream.acknowledged):
            handed_out.append(record.sequence)
            stream.acknowledge(record.sequence)  # the far end is quick
        ledger = stream.ledger()
    assert handed_out_before_mending
    assert max(handed_out_before_mending) < lost[0]
    assert handed_out == [n for n in range(ACKNOWLEDGED + 1, RECORDS + 1) if n not in lost]
    assert (ledger.acknowledged, ledger.pending) == (RECORDS - len(lost), 0)
    assert ledger.dropped[DropReason.CORRUPT] == len(lost)
