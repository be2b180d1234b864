"""A disk that really fails: EIO from below the file system, slow writes, a device that goes and comes back."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from faults.block_device import block_device
from faults.test_buffer_disk import OPTIONS, payloads, until_taken
from outstation.buffer import Buffer
from outstation.errors import DiskError, StorageError
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
