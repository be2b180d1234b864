"""A model on its way to a disk that fills up or loses power: the old version answers, and it goes on from there."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager

import numpy as np
import pytest

from faults.test_buffer_disk import mounted
from faults.test_buffer_power_cut_ext4 import disk
from model_parts import Device, SimulatedRepository
from outstation.errors import DiskError, LinkDownError
from outstation.models import fetch
from outstation.models.bundle import describe_file
from outstation.models.fetch import Download, Expected
from outstation.models.store import verify_installed
from outstation.types import ModelPhase
from support import wait_until

MB = 1 << 20
OLD = np.random.default_rng(1).bytes(1 * MB)
NEW = np.random.default_rng(2).bytes(8 * MB)


class Far(SimulatedRepository):
    """1.0.0 is OLD, 2.0.0 will be NEW; *meanwhile* is called once, when half of NEW was read."""

    def __init__(self):
        super().__init__()
        self.add("1.0.0", OLD)
        self.publish()
        self.meanwhile = None
        self.sent = 0

    def offer(self, folder):
        (folder / "new").write_bytes(NEW)
        entry = describe_file(folder, "new")
        described = type(entry)("model.onnx", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)
        self.add("2.0.0", NEW, files=(described,))
        self.publish()
        return self.place("pump/2.0.0/model.onnx")

    @contextmanager
    def open(self, path, offset, timeout):
        with super().open(path, offset, timeout) as stream:
            yield _Counted(self, stream) if path.startswith("targets/pump/2.0.0") else stream


class _Counted:
    def __init__(self, far, stream):
        self.far, self.stream = far, stream

    def read(self, size):
        piece = self.stream.read(size)
        self.far.sent += len(piece)
        if self.far.meanwhile is not None and self.far.sent > len(NEW) // 2:
            meanwhile, self.far.meanwhile = self.far.meanwhile, None
            meanwhile()
        return piece


@pytest.fixture
def small(tmp_path):
    """A disk of 16 MB."""
    with mounted("tmpfs", "size=16m", tmp_path / "disk") as folder:
        yield folder


@pytest.mark.parametrize("reserve", [2 * MB, 0], ids=["with a reserve", "to the last byte"])
def test_a_disk_that_others_fill_in_mid_download_is_waited_for(small, tmp_path, reserve):
    far = Far()
    other = small / "other"

    def fill():
        with other.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass

    with Device(small / "device", far, far.first_root, min_free_disk_bytes=reserve) as device:
        wait_until(lambda: device.active() == "1.0.0")
        far.meanwhile = fill
        place = far.offer(tmp_path)
        reports = device.reconciler.reports
        wait_until(
            lambda: any("disk" in version.reason or "space" in version.reason for version in reports()[0].versions)
        )
        assert device.phase("2.0.0") is ModelPhase.DOWNLOADING
        assert device.active() == "1.0.0"
        verify_installed(device.store.answering("pump"))
        kept = (device.store.directory / "parts" / hashlib.sha256(NEW).hexdigest()).stat().st_size
        assert kept > len(NEW) // 3
        other.unlink()
        wait_until(lambda: device.active() == "2.0.0")
        assert device.store.answering("pump").model_path.read_bytes() == NEW
    assert far.sent <= 1.05 * len(NEW)
    assert {offset for path, offset in far.opened if path == place} >= {0, kept}


def test_a_version_that_does_not_fit_is_not_begun(small, tmp_path):
    far = Far()
    with Device(small / "device", far, far.first_root, min_free_disk_bytes=7 * MB) as device:
        wait_until(lambda: device.active() == "1.0.0")
        place = far.offer(tmp_path)
        wait_until(lambda: "models.min_free_disk_bytes" in device.reason("2.0.0"))
        assert f"pump 2.0.0 needs {len(NEW)} bytes more" in device.reason("2.0.0")
        assert place not in {path for path, _ in far.opened}


def test_what_nobody_needs_any_more_makes_room(small, tmp_path):
    """A download that was begun for a version that is not wanted now."""
    far = Far()
    with Device(small / "device", far, far.first_root) as device:
        wait_until(lambda: device.active() == "1.0.0")
        device.stop()  # or it is deleted before it is in the way
        with (device.store.directory / "parts" / ("0" * 64)).open("wb") as file:
            file.write(bytes(10 * MB))
        far.offer(tmp_path)
        device.start()
        wait_until(lambda: device.active() == "2.0.0")


@pytest.mark.parametrize("broken", [True, False], ids=["after a broken link", "under way"])
def test_a_power_cut_costs_little_of_a_download(tmp_path, broken):
    (tmp_path / "new").write_bytes(NEW)
    entry = describe_file(tmp_path, "new")
    expected = Expected("new", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)
    with disk(tmp_path) as place, pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "SYNC_BYTES", MB)
        part = place.mount_point / "part"

        class Source:
            offsets: list[int] = []
            power = True

            @contextmanager
            def open(self, path, offset, timeout):
                self.offsets.append(offset)
                yield self
                if self.power:
                    raise LinkDownError("broke")

            def read(self, size):
                at = part.stat().st_size if part.exists() else 0
                if self.power and at >= 5 * MB:
                    if not broken:
                        place.cut()
                    raise LinkDownError("broke")
                return NEW[at : at + size]

        source = Source()
        with pytest.raises((LinkDownError, DiskError)):
            Download(source, "f", part, expected).run(5.0)
        if broken:
            place.cut()
        place.unmount()
        place.mount()
        source.power = False
        Download(source, "f", part, expected).run(5.0)
        assert part.read_bytes() == NEW
        assert source.offsets[-1] >= 5 * MB - MB - entry.chunk_bytes
