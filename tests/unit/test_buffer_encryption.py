"""Encryption at rest: what is on the disk says nothing, and opens only with its key and in its place."""

from __future__ import annotations

import os
import shutil

import pytest

from outstation.buffer import Buffer
from outstation.errors import DecryptionError, MissingExtraError, SettingsError
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import DropReason, WhenFull

KEYS = {number: os.urandom(32).hex() for number in (1, 2, 3)}
SECRET = b"the pressure of boiler 3 is 4.2 bar"


@pytest.fixture
def options(tmp_path):
    for number, key in KEYS.items():
        (tmp_path / f"key-{number}").write_text(key + "\n")

    def make(current: int, *known: int, **changes) -> BufferSettings:
        keys = {str(number): f"file:{tmp_path}/key-{number}" for number in known or (current,)}
        return BufferSettings(group_interval=0.01, segment_bytes=4096, keys=keys, key_id=current, **changes)

    return make


def write(folder, settings, stream="events", count=20) -> None:
    with Buffer.open(folder, settings) as buffer:
        for number in range(count):
            buffer.stream(stream).append(b"%d: %s" % (number, SECRET), mark=("app", number + 1)).wait(5)


def read(folder, settings, stream="events") -> list[bytes]:
    with Buffer.open(folder, settings) as buffer:
        return [record.payload for record in buffer.stream(stream).read()]


def test_what_is_written_is_unreadable_on_the_disk_and_comes_back(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1))
    assert not any(b"boiler" in path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert read(folder, options(1)) == [b"%d: %s" % (number, SECRET) for number in range(20)]
    with Buffer.open(folder, options(1)) as buffer:
        block = next(iter(buffer.stream("events").blocks()))
        assert block.header.flags == 0
        assert block.header.key_id == 0
        assert block.columns().payloads[0].endswith(SECRET)
        assert buffer.stream("events").mark("app") == 20


def test_old_blocks_stay_readable_after_the_key_was_changed(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, BufferSettings(group_interval=0.01), count=3)
    write(folder, options(1), count=3)
    write(folder, options(2, 1, 2), count=3)
    assert len(read(folder, options(2, 1, 2))) == 9
    with pytest.raises(DecryptionError, match="key 1, which is not given"):
        read(folder, options(2))


def test_a_wrong_key_is_refused_before_anything_is_written_with_it(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1))
    (tmp_path / "key-1").write_text(KEYS[3])
    with pytest.raises(DecryptionError, match="Key 1 is not the one"):
        Buffer.open(folder, options(1))


def test_a_missing_key_is_named(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1))
    with pytest.raises(DecryptionError, match="key 1") as caught:
        read(folder, BufferSettings())
    assert "buffer.keys" in caught.value.hint


def test_a_segment_of_another_stream_is_refused(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1), "events")
    write(folder, options(1), "other")
    for path in (folder / "streams" / "other").glob("*.seg"):
        shutil.copy(path, folder / "streams" / "events" / path.name)
    with Buffer.open(folder, options(1)) as buffer:
        stream = buffer.stream("events")
        assert [record.payload for record in stream.read()] == []
        stream.flush(5)
        assert stream.ledger().dropped[DropReason.CORRUPT] == 20
        assert stream.ledger().balanced


def test_a_segment_in_another_place_is_refused(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1), count=60)
    first, second = sorted((folder / "streams" / "events").glob("*.seg"))[:2]
    shutil.copy(first, second)
    with Buffer.open(folder, options(1)) as buffer:
        stream = buffer.stream("events")
        payloads = [record.payload for record in stream.read()]
        assert len(payloads) == len(set(payloads)) < 60
        stream.flush(5)
        assert stream.ledger().dropped[DropReason.CORRUPT] == 60 - len(payloads)


def test_a_block_that_is_forged_into_its_place_is_refused(tmp_path, options):
    """Its header is made to fit: epoch, number and checksums; only the key could make the rest."""
    import zlib  # noqa: PLC0415

    from outstation.wire.block import HEADER_BYTES, BlockHeader  # noqa: PLC0415

    folder = tmp_path / "buffer"
    write(folder, options(1), count=2)
    path = next((folder / "streams" / "events").glob("*.seg"))
    data = bytearray(path.read_bytes())
    at = data.find(b"OBLK")
    header = BlockHeader.unpack(bytes(data[at:]))
    forged = header._replace(earliest_unix_nano=1)
    data[at : at + HEADER_BYTES] = forged.pack()
    assert zlib.crc32(data[at + HEADER_BYTES : at + header.block_bytes]) == header.body_crc
    path.write_bytes(data)
    with pytest.raises(DecryptionError, match="moved or forged"):
        read(folder, options(1))


def test_a_replayed_segment_that_was_removed_brings_nothing_back(tmp_path, options):
    folder = tmp_path / "buffer"
    write(folder, options(1), count=60)
    old = min((folder / "streams" / "events").glob("*.seg"))
    shutil.copy(old, tmp_path / "kept")
    with Buffer.open(folder, options(1)) as buffer:
        buffer.stream("events").acknowledge(60)
        buffer.flush(5)
    assert not old.exists()
    shutil.copy(tmp_path / "kept", old)
    with Buffer.open(folder, options(1)) as buffer:
        assert list(buffer.stream("events").read()) == []
        assert buffer.stream("events").ledger().acknowledged == 60
        assert buffer.stream("events").ledger().balanced


def test_a_stream_that_cannot_be_thinned_without_an_old_key_lets_whole_segments_go(tmp_path, options):
    folder = tmp_path / "buffer"
    thinning = StreamSettings(when_full=WhenFull.THIN, max_bytes=48 << 10)
    write(folder, options(1, defaults=thinning), count=150)
    with Buffer.open(folder, options(2, defaults=thinning)) as buffer:
        stream = buffer.stream("events")
        for _ in range(150):
            stream.append(os.urandom(300)).wait(5)
        ledger = stream.ledger()
        assert ledger.dropped[DropReason.EVICTED] > 0
        assert ledger.dropped[DropReason.REJECTED] == ledger.dropped[DropReason.CORRUPT] == 0
        assert ledger.balanced


@pytest.mark.parametrize(
    ("keys", "key_id", "match"),
    [
        ({"1": "file:/nowhere/key"}, 1, "cannot be read"),
        ({"1": "env:NO_SUCH_KEY"}, 1, "NO_SUCH_KEY"),
        ({"1": "deadbeef"}, 1, "names no key"),
        ({"one": "env:X"}, 1, "no number"),
        ({"1": "env:SHORT_KEY"}, 1, "32 bytes"),
        ({"1": "env:SHORT_KEY"}, 2, "has no such key"),
        ({"1": "env:SHORT_KEY"}, 0, "has no such key"),
    ],
)
def test_a_key_that_cannot_be_had_is_a_settings_error(tmp_path, monkeypatch, keys, key_id, match):
    monkeypatch.setenv("SHORT_KEY", "abcd")
    with pytest.raises(SettingsError, match=match):
        Buffer.open(tmp_path, BufferSettings(keys=keys, key_id=key_id))


def test_without_the_package_the_extra_is_named(tmp_path, options, monkeypatch):
    import sys  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtraError, match="signing"):
        Buffer.open(tmp_path, options(1))
