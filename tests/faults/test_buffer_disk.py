"""A disk that is full, read-only or broken: callers hear of it in our words, nothing confirmed is lost, it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from outstation.buffer import Buffer
from outstation.buffer.stream import UNCOMMITTED_BLOCKS
from outstation.durable import Files
from outstation.errors import DiskError, DiskFullError, StorageError
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import DropReason, WhenFull
from support import wait_until

REJECTING = StreamSettings(when_full=WhenFull.REJECT)
OPTIONS = BufferSettings(
    group_interval=0.01, segment_bytes=16 << 10, block_bytes=4096, min_free_disk_bytes=0, defaults=REJECTING
)


class SickFiles(Files):
    """Fails at the operations named in ``sick``, with the number given there, until cured."""

    def __init__(self) -> None:
        self.sick: dict[str, int] = {}
        self.once: dict[str, int] = {}
        self.failures = 0

    def _check(self, operation: str) -> None:
        if operation in self.once:
            self.failures += 1
            raise OSError(self.once[operation], os.strerror(self.once.pop(operation)))
        if operation in self.sick:
            self.failures += 1
            raise OSError(self.sick[operation], os.strerror(self.sick[operation]))

    def open(self, path, flags, mode=0o640):
        if flags & os.O_CREAT:
            self._check("create")
        return super().open(path, flags, mode)

    def write(self, fd, data, offset):
        if "write" in self.sick:
            super().write(fd, data[: len(data) // 2], offset)  # half of it got through
        self._check("write")
        super().write(fd, data, offset)

    def read(self, fd, size, offset):
        self._check("read")
        return super().read(fd, size, offset)

    def sync_data(self, fd):
        self._check("sync_data")
        super().sync_data(fd)

    def sync(self, fd):
        self._check("sync")
        super().sync(fd)

    def truncate(self, fd, length):
        self._check("truncate")
        super().truncate(fd, length)

    def rename(self, source, target):
        self._check("rename")
        super().rename(source, target)


def payloads(stream) -> list[bytes]:
    return [record.payload for record in stream.read(stream.acknowledged)]


def until_taken(stream, payload: bytes) -> None:
    """Append again until the disk takes it."""
    wait_until(lambda: is_taken(stream, payload))


def is_taken(stream, payload: bytes) -> bool:
    try:
        stream.append(payload).wait(5)
    except StorageError:
        return False
    return True


def fill(stream) -> None:
    while True:
        stream.append(os.urandom(5000)).wait(5)


@pytest.mark.parametrize(
    ("sick", "number", "error"),
    [
        ({"write"}, errno.ENOSPC, DiskFullError),
        ({"write", "truncate"}, errno.ENOSPC, DiskFullError),
        ({"write"}, errno.EIO, DiskError),
        ({"write", "truncate"}, errno.EIO, DiskError),
        ({"sync_data"}, errno.EIO, DiskError),
        ({"sync_data", "truncate"}, errno.EIO, DiskError),
        ({"sync_data"}, errno.ENOSPC, DiskFullError),
        ({"write", "sync_data", "truncate", "create", "sync", "rename"}, errno.EROFS, DiskError),
    ],
)
def test_a_refusal_reaches_the_receipt_and_the_next_append_and_ends(tmp_path, sick, number, error):
    files = SickFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"before", mark=("app", 1)).wait(5)
        files.sick = dict.fromkeys(sick, number)
        receipt = stream.append(b"during", mark=("app", 2))
        with pytest.raises(error) as caught:
            receipt.wait(5)
        assert caught.value.hint
        assert receipt.error is caught.value
        assert stream.mark("app") == 1
        assert stream.ledger().dropped[DropReason.REJECTED] == 1
        with pytest.raises(error):
            stream.append(b"at once")
        files.sick = {}
        until_taken(stream, b"after")
        ledger = stream.ledger()
        assert ledger.balanced
        assert ledger.pending == 2
        assert ledger.dropped[DropReason.REJECTED] >= 2
        assert payloads(stream) == [b"before", b"after"]
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert payloads(stream) == [b"before", b"after"]
        assert stream.ledger() == ledger
        assert stream.mark("app") == 1


def test_after_a_failed_sync_its_segment_is_never_written_again(tmp_path):
    files = SickFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait(5)
        first = max((tmp_path / "streams" / "events").glob("*.seg"))
        size = first.stat().st_size
        files.sick = {"sync_data": errno.EIO, "truncate": errno.EIO}
        with pytest.raises(DiskError):
            stream.append(b"two").wait(5)
        files.sick = {}
        until_taken(stream, b"three")
        assert max((tmp_path / "streams" / "events").glob("*.seg")) != first
        assert first.stat().st_size >= size
        assert payloads(stream) == [b"one", b"three"]
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        assert payloads(buffer.stream("events")) == [b"one", b"three"]
        assert buffer.stream("events").ledger().balanced
        assert buffer.stream("events").ledger().dropped[DropReason.CORRUPT] == 0


def test_a_segment_that_could_not_be_sealed_is_never_written_again(tmp_path):
    files = SickFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait(5)
        (first,) = (tmp_path / "streams" / "events").glob("*.seg")
        files.sick = {"sync_data": errno.EIO}
        stream.suspect({1})  # to be written again it must be closed
        wait_until(lambda: files.failures)
        files.sick = {}
        until_taken(stream, b"two")
        assert max((tmp_path / "streams" / "events").glob("*.seg")) != first
        assert payloads(stream) == [b"one", b"two"]
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        assert payloads(buffer.stream("events")) == [b"one", b"two"]


def test_one_failed_sync_is_made_good_in_a_new_segment(tmp_path):
    class Once(SickFiles):
        def sync_data(self, fd):
            try:
                super().sync_data(fd)
            finally:
                self.sick = {}

    files = Once()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait(5)
        files.sick = {"sync_data": errno.EIO}
        stream.append(b"two").wait(5)
        assert files.failures == 1
        assert payloads(stream) == [b"one", b"two"]
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        assert payloads(buffer.stream("events")) == [b"one", b"two"]


class UnsyncedPlacing(SickFiles):
    """The folder cannot be synced once, when a segment that was written again has taken the place of the old one."""

    armed = False

    def rename(self, source, target):
        super().rename(source, target)
        if self.armed and target.suffix == ".seg":
            self.armed, self.once = False, {"sync_directory": errno.EIO}

    def sync_directory(self, path):
        self._check("sync_directory")
        super().sync_directory(path)


def test_what_was_thinned_into_a_folder_that_cannot_be_synced_is_counted_all_the_same(tmp_path):
    thinned = StreamSettings(when_full=WhenFull.THIN, max_bytes=24 << 10)
    files = UnsyncedPlacing()
    options = BufferSettings(group_interval=600.0, segment_bytes=4096, block_bytes=1024, streams={"events": thinned})
    with Buffer.open(tmp_path, options, files=files) as buffer:
        stream = buffer.stream("events")
        files.armed = True
        while not files.failures:
            stream.append(os.urandom(300)).wait()
        stream.flush(5)
        delivered = [record.sequence for record in stream.read()]
        assert stream.ledger().pending == len(delivered)
        stream.acknowledge(stream.last_sequence)
        assert stream.ledger().acknowledged == len(delivered)
        assert stream.ledger().dropped[DropReason.THINNED] == stream.last_sequence - len(delivered)


def test_an_error_of_reading_is_ours_and_passes(tmp_path):
    files = SickFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait(5)
        files.sick = {"read": errno.EIO}
        with pytest.raises(DiskError):
            payloads(stream)
        files.sick = {}
        assert payloads(stream) == [b"one"]
        assert stream.ledger().pending == 1


def test_a_callback_hears_of_the_refusal(tmp_path):
    files = SickFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        stream.flush()
        files.sick = {"write": errno.ENOSPC}
        heard: list[object] = []
        stream.append(b"x").add_done_callback(lambda receipt: heard.append(receipt.error))
        wait_until(lambda: heard)
        assert isinstance(heard[0], DiskFullError)


def test_a_commit_that_came_through_at_the_second_try_is_told_as_any_other(tmp_path):
    files = SickFiles()
    options = BufferSettings(group_interval=600.0, min_free_disk_bytes=0)
    with Buffer.open(tmp_path, options, files=files) as buffer:
        stream = buffer.stream("events")
        stream.append(b"one").wait()
        told: list[str] = []
        buffer.on_commit(lambda: told.append("committed"))
        files.once = {"write": errno.EIO}
        stream.append(b"two").wait()
        assert files.failures == 1
        wait_until(lambda: told)
        assert payloads(stream) == [b"one", b"two"]


def test_who_flushes_while_it_closes_or_later_hears_how_the_last_commit_ended(tmp_path):
    files = SickFiles()
    buffer = Buffer.open(tmp_path, BufferSettings(group_interval=600.0, defaults=REJECTING), files=files)
    sound, sick = buffer.stream("sound"), buffer.stream("sick")
    sound.append(b"one")
    buffer.flush(5)
    sick.append(b"lost")
    files.sick = dict.fromkeys(("write", "create"), errno.EIO)
    with buffer._passing:  # the last pass is still to come
        closer = threading.Thread(target=buffer.close)
        closer.start()
        wait_until(lambda: sick._closed)
        heard: list[StorageError] = []
        flusher = threading.Thread(target=flush, args=(sick, heard))
        flusher.start()
        flusher.join(0.05)
        assert flusher.is_alive()
    flusher.join(5)
    closer.join(5)
    assert isinstance(heard[0], DiskError)
    with pytest.raises(DiskError):
        sick.flush(5)
    sound.flush(5)


def flush(stream, heard: list[StorageError]) -> None:
    try:
        stream.flush(5)
    except StorageError as exc:
        heard.append(exc)


def test_a_folder_without_permission_is_a_clear_error(tmp_path, monkeypatch):
    def refuse(self, path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Files, "make_directory", refuse)
    with pytest.raises(DiskError, match="no permission"):
        Buffer.open(tmp_path / "new")


# --- real disks ------------------------------------------------------------------------------------------------


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@contextmanager
def mounted(kind: str, options: str, place: Path, device: str = "none") -> Iterator[Path]:
    place.mkdir()
    try:
        run("mount", "-t", kind, "-o", options, device, str(place))
    except (OSError, subprocess.CalledProcessError):
        if os.environ.get("CI"):
            raise
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        run("umount", "-l", str(place))


def test_a_full_tmpfs_refuses_and_goes_on_when_there_is_room(tmp_path):
    with mounted("tmpfs", "size=400k", tmp_path / "disk") as disk:
        options = BufferSettings(group_interval=0.01, min_free_disk_bytes=0, defaults=REJECTING, segment_bytes=32 << 10)
        with Buffer.open(disk / "buffer", options) as buffer:
            stream = buffer.stream("events")
            (disk / "other").write_bytes(bytes(200 << 10))
            with pytest.raises(DiskFullError, match="no space left"):
                fill(stream)
            taken = stream.ledger().pending
            assert taken > 20
            (disk / "other").unlink()
            until_taken(stream, b"room")
            assert [len(data) for data in payloads(stream)] == [5000] * taken + [4]
        with Buffer.open(disk / "buffer", options) as buffer:
            ledger = buffer.stream("events").ledger()
            assert ledger.balanced
            assert (ledger.pending, ledger.dropped[DropReason.CORRUPT]) == (taken + 1, 0)


def test_drop_oldest_goes_on_in_what_a_full_disk_leaves_it(tmp_path):
    with mounted("tmpfs", "size=400k", tmp_path / "disk") as disk:
        options = BufferSettings(group_interval=0.01, min_free_disk_bytes=0, segment_bytes=32 << 10)
        with Buffer.open(disk / "buffer", options) as buffer:
            stream = buffer.stream("events")
            for number in range(200):
                stream.append(b"%04d" % number + os.urandom(5000)).wait(5)
            ledger = stream.ledger()
            assert ledger.balanced
            assert ledger.dropped[DropReason.EVICTED] > 100
            kept = [int(data[:4]) for data in payloads(stream)]
            assert kept == list(range(200 - len(kept), 200))
        with Buffer.open(disk / "buffer", options) as buffer:
            assert buffer.stream("events").ledger() == ledger


def test_a_remount_read_only_is_said_and_passes(tmp_path):
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", str(image))
    with mounted("ext4", "loop", tmp_path / "disk", str(image)) as disk:
        buffer = Buffer.open(disk / "buffer", OPTIONS)
        stream = buffer.stream("events")
        stream.append(b"before").wait(5)
        # A forced one, as the kernel does it after errors: files stay open for writing.
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(buffer.files, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
            patch.setattr(buffer.files, "open", lambda *_: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
            with pytest.raises(DiskError, match="read-only file system"):
                stream.append(b"during").wait(5)
        until_taken(stream, b"after")
        assert payloads(stream) == [b"before", b"after"]
        buffer.close()
        run("mount", "-o", "remount,ro", str(disk))
        with pytest.raises(DiskError):
            Buffer.open(disk / "buffer", OPTIONS)
        run("mount", "-o", "remount,rw", str(disk))
        with Buffer.open(disk / "buffer", OPTIONS) as buffer:
            assert payloads(buffer.stream("events")) == [b"before", b"after"]


class StuckFiles(Files):
    """Syncs nothing until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def sync_data(self, fd):
        self.go.wait(5)
        super().sync_data(fd)


def test_an_append_waits_for_a_disk_that_is_16_blocks_behind(tmp_path):
    files = StuckFiles()
    with Buffer.open(tmp_path, OPTIONS, files=files) as buffer:
        stream = buffer.stream("events")
        count = 0

        def write() -> None:
            nonlocal count
            while count < 200:
                stream.append(os.urandom(1000))
                count += 1

        writer = threading.Thread(target=write)
        writer.start()
        wait_until(lambda: stream.uncommitted_bytes > (UNCOMMITTED_BLOCKS - 1) * 4096)
        writer.join(0.1)
        assert writer.is_alive()
        assert stream.uncommitted_bytes <= (UNCOMMITTED_BLOCKS + 1) * 4096
        files.go.set()
        writer.join(10)
        stream.flush(5)
        assert len(payloads(stream)) == count == 200


def test_a_slow_disk_delays_and_loses_nothing(tmp_path):
    class SlowFiles(Files):
        def sync_data(self, fd):
            threading.Event().wait(0.02)
            super().sync_data(fd)

    with Buffer.open(tmp_path, OPTIONS, files=SlowFiles()) as buffer:
        stream = buffer.stream("events")
        begin = time.monotonic()
        for number in range(5000):
            stream.append(b"%d" % number)
        assert time.monotonic() - begin < 5
        stream.flush(20)
        assert payloads(stream) == [b"%d" % number for number in range(5000)]
