"""A power cut at every operation of the disk, with everything a cruel disk may make of what was not synced."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from faults.recording import Disk, RecordingFiles
from outstation.buffer import Buffer
from outstation.durable import Files
from outstation.settings import BufferSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.types import DropReason, WhenFull

OPTIONS = {
    "plain": BufferSettings(group_interval=600.0, segment_bytes=4096, block_bytes=700),
    "evicting": BufferSettings(
        group_interval=600.0,
        segment_bytes=4096,
        block_bytes=700,
        defaults=StreamSettings(max_bytes=24 << 10, when_full=WhenFull.DROP_OLDEST),
    ),
    "thinning": BufferSettings(
        group_interval=600.0,
        segment_bytes=4096,
        block_bytes=700,
        defaults=StreamSettings(max_bytes=24 << 10, when_full=WhenFull.THIN),
    ),
}


def payload(sequence: int) -> bytes:
    dice = random.Random(sequence)
    return b"%06d" % sequence + dice.randbytes(dice.choice([5, 80, 300]))


class Promise:
    """What the buffer had promised by some operation."""

    def __init__(self) -> None:
        self.confirmed = 0  # records through this number are on the disk
        self.appended = 0
        self.acknowledged = 0  # a flushed cursor
        self.asked = 0  # a cursor that may or may not be there
        self.once = 0  # the mark of the producer that is heard of once

    def hear(self, note: tuple[str, int]) -> None:
        kind, number = note
        setattr(self, kind, max(getattr(self, kind), number))


def play(files: RecordingFiles, root: Path, options: BufferSettings, seed: int, rounds: int) -> None:
    """Use a buffer: append, wait, acknowledge, flush, close and open again. Notes say what was promised."""
    dice = random.Random(seed)
    buffer = Buffer.open(root, options, clock=FakeClock(), files=files)
    stream = buffer.stream("events")
    for turn in range(rounds):
        first = stream.last_sequence + 1
        count = dice.choice([1, 2, 5, 12]) if turn else 1
        # One producer is heard of once: its mark outlives its records in the state, and nowhere else.
        mark = ("app" if turn else "once", first + count - 1)
        receipt = stream.append_many([payload(n) for n in range(first, first + count)], mark=mark)
        files.note(("appended", first + count - 1))
        receipt.wait()
        files.note(("confirmed", first + count - 1))
        files.note(("once", 1))
        action = dice.random()
        if action < 0.4:
            through = dice.randint(stream.acknowledged, stream.last_sequence)
            files.note(("asked", through))
            stream.acknowledge(through)
            if dice.random() < 0.5:
                stream.flush()
                files.note(("acknowledged", through))
        elif action < 0.47:
            buffer.close()
            buffer = Buffer.open(root, options, clock=FakeClock(), files=files)
            stream = buffer.stream("events")
    buffer.close()


def check(folder: Path, options: BufferSettings, promise: Promise) -> None:
    """Whatever the disk holds, what was promised holds, and so it is after going on and opening once more."""
    for turn in range(2):
        with Buffer.open(folder, options, clock=FakeClock()) as buffer:
            stream = buffer.stream("events")
            ledger = stream.ledger()
            assert ledger.balanced
            assert promise.acknowledged <= stream.acknowledged <= max(promise.asked, promise.acknowledged)
            records = {record.sequence: record.payload for record in stream.read(stream.acknowledged)}
            assert all(data == payload(sequence) for sequence, data in records.items())
            assert promise.confirmed <= stream.last_sequence <= promise.appended
            gone = ledger.dropped[DropReason.EVICTED] + ledger.dropped[DropReason.THINNED]
            missing = set(range(stream.acknowledged + 1, promise.confirmed + 1)) - set(records)
            assert len(missing) <= gone, "confirmed records are missing"
            if not ledger.dropped[DropReason.THINNED]:
                assert not any(sequence > min(records, default=0) for sequence in missing if records)
            # Only records that nobody was promised may have been torn.
            assert ledger.dropped[DropReason.CORRUPT] <= promise.appended - promise.confirmed
            assert ledger.pending == len(records)
            assert promise.confirmed <= max(stream.mark("app"), stream.mark("once")) <= promise.appended
            assert stream.mark("once") >= promise.once
            if turn == 0:
                last = stream.last_sequence
                stream.append_many([payload(last + 1), payload(last + 2)], mark=("app", last + 2)).wait(5)
                stream.flush(5)
                promise.appended = promise.confirmed = last + 2
                promise.asked = promise.acknowledged = stream.acknowledged
                continue
            assert stream.last_sequence == promise.confirmed


def cut_again(folder: Path, options: BufferSettings, dice: random.Random) -> Path:
    """The power goes a second time, while the buffer is being opened or closed after the first."""
    files = RecordingFiles(folder)
    Buffer.open(folder, options, clock=FakeClock(), files=files).close()
    disk = Disk(files)
    for operation in files.operations[: dice.randint(0, len(files.operations))]:
        disk.apply(operation)
    target = folder.with_name(folder.name + "-again")
    target.mkdir()
    disk.cut(folder, target, dice)
    shutil.rmtree(folder)
    return target


def cuts(tmp_path: Path, name: str, seed: int, *, rounds: int, every: int, outcomes: int) -> int:
    root = tmp_path / "root"
    root.mkdir()
    files = RecordingFiles(root)
    play(files, root, OPTIONS[name], seed, rounds)
    dice = random.Random(seed)
    disk, promise, tried = Disk(files), Promise(), 0
    offset = dice.randrange(every)
    for number, operation in enumerate(files.operations):
        if operation.kind == "note":
            promise.hear(operation.note)
            continue
        disk.apply(operation)
        # A file that takes another's place is where a sync that is missing does the most harm.
        if number % every != offset and operation.kind != "rename":
            continue
        for outcome in range(2 * outcomes if operation.kind == "rename" else outcomes):
            target = tmp_path / f"cut-{number}-{outcome}"
            target.mkdir()
            disk.cut(root, target, random.Random(seed * 1_000_003 + number * 31 + outcome))
            if dice.random() < 0.3:
                target = cut_again(target, OPTIONS[name], dice)
            own = Promise()
            own.__dict__.update(promise.__dict__)
            check(target, OPTIONS[name], own)
            shutil.rmtree(target)
            tried += 1
    shutil.rmtree(root)
    return tried


def test_content_is_on_the_disk_before_its_name_and_names_before_anything_is_removed(tmp_path):
    files = RecordingFiles(tmp_path)
    with Buffer.open(tmp_path, OPTIONS["thinning"], clock=FakeClock(), files=files) as buffer:
        for number in range(200):
            buffer.stream("events").append(random.Random(number).randbytes(300)).wait()
    unsynced, renamed, removed = set(), 0, 0
    for operation in files.operations:
        if operation.kind in {"write", "truncate"}:
            unsynced.add(operation.inode)
        elif operation.kind == "sync":
            unsynced.discard(operation.inode)
        elif operation.kind == "rename":
            assert operation.inode not in unsynced
            unsynced.add(operation.target.parent)
            renamed += operation.target.suffix == ".seg"
        elif operation.kind == "sync_directory":
            unsynced.discard(operation.path)
        elif operation.kind == "unlink":
            assert operation.path.parent not in unsynced
            removed += 1
    assert renamed > 5
    assert removed > 5


class CopyOfEachRename(Files):
    """What a kill just after a segment was rewritten would leave."""

    def __init__(self, root: Path, place: Path) -> None:
        self._root, self._place = root, place
        self.copies: list[Path] = []

    def rename(self, source, target):
        super().rename(source, target)
        if target.suffix == ".seg":
            self.copies.append(self._place / f"{len(self.copies)}")
            shutil.copytree(self._root, self.copies[-1])


def test_what_is_thinned_twice_in_one_commit_is_told_as_thinned_whenever_it_is_killed(tmp_path):
    files = CopyOfEachRename(tmp_path / "root", tmp_path)
    history = StreamSettings(max_bytes=48 << 10, when_full=WhenFull.THIN)
    options = BufferSettings(group_interval=600.0, segment_bytes=4096, block_bytes=1024, defaults=history)
    with Buffer.open(tmp_path / "root", options, clock=FakeClock(), files=files) as buffer:
        stream = buffer.stream("events")
        for _ in range(120):
            stream.append(os.urandom(300)).wait()
        seen = len(files.copies)
        stream.append_many([os.urandom(300) for _ in range(80)]).wait()
        assert len(files.copies) - seen > 2
    for folder in files.copies:
        with Buffer.open(folder, options, clock=FakeClock()) as buffer:
            ledger = buffer.stream("events").ledger()
            assert ledger.balanced
            assert ledger.dropped[DropReason.THINNED] > 0
            assert ledger.dropped[DropReason.CORRUPT] == 0


@pytest.mark.parametrize("name", ["plain", "evicting", "thinning"])
def test_what_was_promised_survives_a_cut_at_any_operation(tmp_path, name):
    assert cuts(tmp_path, name, seed=1, rounds=50, every=8, outcomes=1) > 50


@pytest.mark.soak
@pytest.mark.parametrize("name", ["plain", "evicting", "thinning"])
@pytest.mark.parametrize("seed", range(10))
def test_what_was_promised_survives_every_cut(tmp_path, name, seed):
    assert cuts(tmp_path, name, seed, rounds=60, every=1, outcomes=3) > 300
