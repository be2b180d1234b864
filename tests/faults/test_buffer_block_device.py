"""A disk that really fails: EIO from below the file system, slow writes, a device that goes and comes back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from typer.testing import CliRunner

from faults.block_device import block_device
from faults.test_buffer_disk import OPTIONS, payloads, until_taken
from faults.test_buffer_unreadable import until_readable
from outstation.buffer import Buffer, commit
from outstation.buffer import buffer as buffer_module
from outstation.cli.buffer import app
from outstation.errors import DiskError, StorageError
from outstation.settings import BufferSettings
from outstation.types import DropReason

# Without a journal a failed write-back fails its fdatasync and nothing else: the file system stays writable.
NO_JOURNAL = {"mount_options": "errors=continue", "made_with": ("-O", "^has_journal")}


def check_reopened(folder: Path, wanted: list[bytes]) -> None:
    """Everything in *wanted* is there, once and in order, nothing else is, and the ledger knows of no damage."""
    with Buffer.open(folder, OPTIONS) as buffer:
        stream = buffer.stream("events")
        assert payloads(stream) == wanted
        ledger = stream.ledger()
        assert ledger.balanced
        assert (ledger.pending, ledger.dropped[DropReason.CORRUPT]) == (len(wanted), 0)


@pytest.mark.parametrize("fault", ["pwrite", "flush"])
def test_a_failed_write_back_reaches_the_receipt_and_no_later_success_covers_it_up(tmp_path, fault):
    with block_device(tmp_path, **NO_JOURNAL) as device:
        with Buffer.open(device.mount_point / "buffer", OPTIONS) as buffer:
            stream = buffer.stream("events")
            stream.append(b"before").wait(10)
            device.fail(fault)
            receipt = stream.append(b"during")
            with pytest.raises(DiskError) as caught:
                receipt.wait(10)
            assert caught.value.hint
            failed_in = set((device.mount_point / "buffer" / "streams" / "events").glob("*.seg"))
            device.heal()
            until_taken(stream, b"after")
            stream.flush(10)
            assert receipt.error is caught.value
            assert payloads(stream) == [b"before", b"after"]
            assert stream.ledger().balanced
            assert stream.ledger().dropped[DropReason.REJECTED] >= 1
            newest = max((device.mount_point / "buffer" / "streams" / "events").glob("*.seg"))
            assert newest not in failed_in
        device.unmount()  # what the page cache still knew is gone
        device.mount()
        check_reopened(device.mount_point / "buffer", [b"before", b"after"])


def test_writers_on_a_disk_that_fails_now_and_then_are_never_told_what_is_not_so(tmp_path):
    with block_device(tmp_path, **NO_JOURNAL) as device:
        confirmed: list[list[bytes]] = [[], [], [], []]
        stop = threading.Event()

        def write(stream, writer: int) -> None:
            number = 0
            while not stop.is_set():
                payload = b"%d:%06d:" % (writer, number) + os.urandom(100)
                number += 1
                try:
                    stream.append(payload).wait(20)
                except StorageError:
                    stop.wait(0.02)  # the buffer refuses for half a second; no use in asking faster
                else:
                    confirmed[writer].append(payload)

        with Buffer.open(device.mount_point / "buffer", OPTIONS) as buffer:
            stream = buffer.stream("events")
            threads = [threading.Thread(target=write, args=(stream, writer)) for writer in range(len(confirmed))]
            for thread in threads:
                thread.start()
            for fault in ("pwrite", "flush", "pwrite"):
                stop.wait(0.3)
                device.fail(fault)
                stop.wait(0.3)
                device.heal()
            until_taken(stream, b"healed")
            stop.set()
            for thread in threads:
                thread.join()
        device.unmount()
        device.mount()
        with Buffer.open(device.mount_point / "buffer", OPTIONS) as buffer:
            stream = buffer.stream("events")
            found = payloads(stream)
            for writer, wanted in enumerate(confirmed):
                assert [payload for payload in found if payload.startswith(b"%d:" % writer)] == wanted
            assert found.count(b"healed") == 1
            ledger = stream.ledger()
            assert ledger.balanced
            assert ledger.dropped[DropReason.CORRUPT] == 0


def test_a_read_that_fails_is_an_error_of_ours_and_loses_nothing(tmp_path):
    with block_device(tmp_path) as device, Buffer.open(device.mount_point / "buffer", OPTIONS) as buffer:
        stream = buffer.stream("events")
        wanted = [os.urandom(3000) for _ in range(20)]
        for payload in wanted:
            stream.append(payload).wait(10)
        for path in (device.mount_point / "buffer" / "streams" / "events").glob("*.seg"):
            device.forget(path)
        device.fail("pread")
        with pytest.raises(DiskError) as caught:
            payloads(stream)
        assert caught.value.hint
        device.heal()
        assert payloads(stream) == wanted
        assert stream.ledger().pending == len(wanted)


def test_bad_sectors_cost_the_blocks_on_them_and_the_rest_is_delivered(tmp_path, monkeypatch):
    monkeypatch.setattr(commit, "READ_AGAIN", (0.1, 0.1))
    with block_device(tmp_path) as device:
        folder = device.mount_point / "buffer"
        with Buffer.open(folder, OPTIONS) as buffer:
            stream = buffer.stream("events")
            wanted = {number: os.urandom(3000) for number in range(1, 31)}
            for data in wanted.values():
                stream.append(data).wait(10)
            first, second = sorted((folder / "streams" / "events").glob("*.seg"))[:2]
            device.spoil(first, 4096, 8192)
            with pytest.raises(DiskError):
                payloads(stream)
            until_readable(stream)
        device.spoil(second, 0, 1)  # the next opening need not read it, the next reader does
        with Buffer.open(folder, OPTIONS) as buffer:
            stream = buffer.stream("events")
            found = until_readable(stream)
            assert found == {number: wanted[number] for number in found}
            ledger = stream.ledger()
            assert ledger.balanced
            assert ledger.dropped[DropReason.CORRUPT] == len(wanted) - len(found) in range(2, 8)
            until_taken(stream, b"after")
            quarantined = {path.name for path in (folder / "streams" / "events" / "quarantine").iterdir()}
            assert {first.name, second.name} <= quarantined
        device.unmount()
        device.mount()
        with Buffer.open(folder, OPTIONS) as buffer:
            assert payloads(buffer.stream("events")) == [*found.values(), b"after"]


def test_bad_sectors_at_opening_are_verified_and_repaired_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(buffer_module, "LOOK_AGAIN", ())
    with block_device(tmp_path) as device:
        folder = device.mount_point / "buffer"
        options = BufferSettings(min_free_disk_bytes=0)
        settings = tmp_path / "outstation.toml"
        settings.write_text("[buffer]\nmin_free_disk_bytes = 0\n")
        arguments = ["--data", str(device.mount_point), "--settings", str(settings)]
        with Buffer.open(folder, options) as buffer:
            stream = buffer.stream("events")
            for number in range(1, 31):
                stream.append(b"%04d" % number + os.urandom(3000)).wait(10)
        (path,) = (folder / "streams" / "events").glob("*.seg")
        device.spoil(path, 20480, 20481)
        device.spoil(path, path.stat().st_size - 1, path.stat().st_size)  # the seal, by which opening goes
        outstation = CliRunner()
        seen = outstation.invoke(app, ["verify", *arguments])
        assert seen.exit_code == 1
        assert "cannot be read from the disk" in seen.output
        mended = outstation.invoke(app, ["repair", *arguments])
        assert mended.exit_code == 0
        assert "corrupt in all" in mended.output
        assert outstation.invoke(app, ["verify", *arguments]).exit_code == 0
        with Buffer.open(folder, options) as buffer:
            ledger = buffer.stream("events").ledger()
            assert ledger.balanced
            assert ledger.pending == len(payloads(buffer.stream("events"))) in range(22, 30)


def test_a_disk_of_20_ms_a_write_delays_and_loses_nothing(tmp_path):
    with block_device(tmp_path, delay_write="20ms") as device:
        wanted = [b"%d" % number for number in range(3000)]
        with Buffer.open(device.mount_point / "buffer", OPTIONS) as buffer:
            stream = buffer.stream("events")
            for payload in wanted:
                stream.append(payload)
            stream.flush(60)
            assert payloads(stream) == wanted
        device.unmount()
        device.mount()
        check_reopened(device.mount_point / "buffer", wanted)


def test_after_the_device_was_gone_everything_confirmed_is_there(tmp_path):
    with block_device(tmp_path) as device:
        folder = device.mount_point / "buffer"
        with Buffer.open(folder, OPTIONS) as buffer:
            stream = buffer.stream("events")
            wanted = [b"%04d" % number + os.urandom(1000) for number in range(50)]
            for payload in wanted:
                stream.append(payload).wait(10)
            device.fail("pread", "pwrite", "flush")
            with pytest.raises(DiskError):
                stream.append(b"during").wait(10)
            device.heal()
            # The journal was aborted: the file system stays read-only until somebody mounts it again.
            for _ in range(3):
                with pytest.raises(DiskError) as caught:
                    stream.append(b"read-only").wait(10)
                assert caught.value.hint
        device.unmount()
        device.check()
        device.mount()
        check_reopened(folder, wanted)
        with Buffer.open(folder, OPTIONS) as buffer:
            until_taken(buffer.stream("events"), b"after")
        check_reopened(folder, [*wanted, b"after"])
