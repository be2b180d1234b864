"""Files of format 1 as the first release wrote them: they must stay readable for ever.

``OUTSTATION_TEST_WRITE=1`` makes the files that are missing; those that are there are never written again.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from pathlib import Path

import pytest

from outstation.buffer import Buffer
from outstation.errors import UnsupportedVersionError
from outstation.settings import BufferSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.types import DropReason, WhenFull
from outstation.wire.block import decode, encode
from outstation.wire.columns import Columns

GOLDEN = Path(__file__).parents[1] / "golden"
FORMAT_1 = GOLDEN / "buffer-1"
BLOCKS_1 = GOLDEN / "block-1"
KEY = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"


def options() -> BufferSettings:
    return BufferSettings(
        group_interval=600.0,
        segment_bytes=4096,
        block_bytes=600,
        streams={"thinned": StreamSettings(when_full=WhenFull.THIN, max_bytes=32 << 10)},
    )


def encrypted() -> BufferSettings:
    return BufferSettings(group_interval=600.0, segment_bytes=4096, keys={"7": "env:GOLDEN_KEY"}, key_id=7)


def payload(sequence: int) -> bytes:
    """Some that compress and some that do not, always the same."""
    noise = bytes((sequence * 2654435761 >> shift) & 0xFF for shift in range(24)) * (sequence % 3)
    return b'{"reading": %d, "unit": "bar"}' % sequence * (sequence % 5) + noise


def write_golden(folder: Path) -> None:
    with Buffer.open(folder / "plain", options(), clock=FakeClock()) as buffer:
        for name in ("events", "thinned"):
            stream = buffer.stream(name)
            for first in range(1, 601, 6):
                numbers = range(first, first + 6)
                stream.append_many(
                    [payload(n) for n in numbers],
                    times_unix_nano=[n * 10**9 for n in numbers],
                    content_type="application/json",
                    attributes=[{"line": str(n % 2), "ort": "Köln"} for n in numbers],
                    mark=("app", first + 5),
                ).wait()
        buffer.stream("events").acknowledge(123)
    # As a kill leaves it: no state of what came last, and half a block at the end.
    with Buffer.open(folder / "torn", options(), clock=FakeClock()) as buffer:
        stream = buffer.stream("events")
        stream.append_many([payload(n) for n in range(1, 11)], mark=("app", 10)).wait()
        shutil.copytree(folder / "torn", folder / "kept")
    shutil.rmtree(folder / "torn")
    (folder / "kept").rename(folder / "torn")
    (segment,) = (folder / "torn").rglob("*.seg")
    block = encode(Columns([11], [0], [payload(11)]), epoch=1)
    length = len(segment.read_bytes().rstrip(b"\0"))
    with segment.open("r+b") as file:
        file.seek(length)
        file.write(block[: len(block) // 2])
    (folder / "torn" / "lock").unlink()
    with Buffer.open(folder / "encrypted", encrypted(), clock=FakeClock()) as buffer:
        for number in range(1, 21):
            buffer.stream("events").append(payload(number), time_unix_nano=number).wait()
    for lock in folder.rglob("lock"):
        lock.unlink()


def samples() -> dict[str, Columns]:
    return {
        "one": Columns([1], [1_700_000_000_000_000_000], [b"one"]),
        "many": Columns(
            range(5, 105),
            [n * 1000 for n in range(100)],
            [payload(n) for n in range(100)],
            marks={"app": 7, "b": 1 << 62},
        ),
        "sparse": Columns(
            [3, 5, 9],
            [5, 4, 1 << 62],
            [b"a", b"", b"c" * 300],
            [0, 1, 0],
            [("text/plain", (("k", "v"),)), ("application/json", ())],
        ),
    }


@pytest.fixture
def golden(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GOLDEN_KEY", KEY)
    if os.environ.get("OUTSTATION_TEST_WRITE") and not FORMAT_1.exists():
        write_golden(FORMAT_1)
    shutil.copytree(FORMAT_1, tmp_path / "golden")
    return tmp_path / "golden"


def test_a_buffer_of_format_1_is_read(golden):
    with Buffer.open(golden / "plain", options(), clock=FakeClock()) as buffer:
        events = buffer.stream("events")
        records = list(events.read(events.acknowledged))
        assert [record.sequence for record in records] == list(range(124, 601))
        for record in records:
            assert record.payload == payload(record.sequence)
            assert record.time_unix_nano == record.sequence * 10**9
            assert record.content_type == "application/json"
            assert dict(record.attributes) == {"line": str(record.sequence % 2), "ort": "Köln"}
        assert (events.acknowledged, events.mark("app")) == (123, 600)
        assert events.ledger().balanced
        thinned = buffer.stream("thinned")
        kept = [record.sequence for record in thinned.read()]
        assert all(record.payload == payload(record.sequence) for record in thinned.read())
        assert thinned.ledger().pending == len(kept) == 600 - thinned.ledger().dropped[DropReason.THINNED]
        assert kept[-1] == 600
        assert events.append(b"and on").first_sequence == 601


def test_a_torn_buffer_of_format_1_is_mended(golden):
    with Buffer.open(golden / "torn", options(), clock=FakeClock()) as buffer:
        stream = buffer.stream("events")
        assert [record.payload for record in stream.read()] == [payload(n) for n in range(1, 11)]
        assert stream.mark("app") == 10
        assert stream.ledger().dropped_total == 0
        assert stream.balance.torn_bytes > 0


@pytest.mark.parametrize(("magic", "size"), [(b"OBLK", 76), (b"OBAL", 140), (b"OSEA", 140)])
def test_a_frame_of_a_newer_format_is_refused_and_left_as_it_is(golden, magic, size):
    segments = sorted((golden / "plain" / "streams" / "events").glob("*.seg"))
    path = next(path for path in reversed(segments) if magic in path.read_bytes())
    data = bytearray(path.read_bytes())
    at = data.rindex(magic)
    data[at + 4] += 1
    data[at + size - 4 : at + size] = zlib.crc32(data[at : at + size - 4]).to_bytes(4, "little")
    path.write_bytes(data)
    (path.parent / "state").unlink()  # so that everything new is read through
    with pytest.raises(UnsupportedVersionError):
        Buffer.open(golden / "plain", options(), clock=FakeClock())
    assert path.read_bytes() == data


def test_an_encrypted_buffer_of_format_1_is_read(golden):
    with Buffer.open(golden / "encrypted", encrypted(), clock=FakeClock()) as buffer:
        assert [record.payload for record in buffer.stream("events").read()] == [payload(n) for n in range(1, 21)]


@pytest.mark.parametrize("name", list(samples()))
def test_a_block_of_format_1_is_read(name):
    path = BLOCKS_1 / f"{name}.bin"
    columns = samples()[name]
    if os.environ.get("OUTSTATION_TEST_WRITE") and not path.exists():
        BLOCKS_1.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(columns, epoch=0x0123456789ABCDEF))
        rows = [
            {
                "sequence": record.sequence,
                "time_unix_nano": record.time_unix_nano,
                "content_type": record.content_type,
                "attributes": dict(record.attributes),
                "payload_hex": record.payload.hex(),
            }
            for record in columns.records()
        ]
        path.with_suffix(".json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    header, back = decode(path.read_bytes())
    assert header.epoch == 0x0123456789ABCDEF
    assert list(back.records()) == list(columns.records())
    assert dict(back.marks) == dict(columns.marks)
    rows = json.loads(path.with_suffix(".json").read_text())
    assert [bytes.fromhex(row["payload_hex"]) for row in rows] == [record.payload for record in back.records()]
