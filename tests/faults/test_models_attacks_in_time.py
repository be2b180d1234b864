"""Attacks on a device that slept or whose clock is wrong, with keys that were revoked, and files that are bombs."""

from __future__ import annotations

import datetime
import io
import zipfile

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner

import tiny_models
from inference_support import install
from model_parts import Device, SimulatedRepository, repository_with
from outstation.errors import CheckFailedError
from outstation.inference import golden
from outstation.models.fetch import FolderSource
from outstation.models.store import verify_installed
from outstation.models.trust import Trust
from outstation.testing import FakeClock
from outstation.types import ModelPhase
from support import wait_until

EVIL = b"evil weights"
UTC = datetime.timezone.utc


@pytest.fixture
def far():
    return repository_with(b"good weights")


@pytest.fixture
def device(tmp_path, far):
    """Has 1.0.0, and sleeps."""
    device = Device(tmp_path, far, far.first_root)
    with device:
        wait_until(lambda: device.active() == "1.0.0")
    yield device
    device.stop()
    answering = device.store.answering("pump")
    verify_installed(answering)
    assert answering.model_path.read_bytes() != EVIL
    assert "6.6.6" not in device.checker.asked


def replace(far, role):
    """Rotate the key of *role* (the first one of the root), rightly; returns the old one."""
    old, new = far.signers[role], CryptoSigner.generate_ed25519()
    far.root.revoke_key(old.public_key.keyid, role)
    far.root.add_key(new.public_key, role)
    far.root.version += 1
    far.signers[role] = new
    far.write_root(*((old, far.second_root, new) if role == "root" else ()))
    return old


def refused(device, *words):
    wait_until(lambda: device.reconciler.standing().trust is Trust.REFUSED)
    for word in words:
        assert word in device.reconciler.standing().reason


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp"])
def test_two_rotations_in_its_sleep_are_followed_and_the_old_keys_are_worth_nothing(far, device, role):
    stolen = replace(far, role)
    replace(far, role)
    far.add("2.0.0", b"better weights")
    far.publish()
    device.start()
    wait_until(lambda: device.active() == "2.0.0")
    far.add("6.6.6", EVIL)
    if role == "root":
        far.root.version += 1
        far.root.add_key(stolen.public_key, "targets")
        far.write_root(stolen, far.second_root)
        refused(device, "root.json", "not signed by enough")
    else:
        far.signers[role] = stolen
        far.publish()
        refused(device, f"{role}.json", "not signed by enough of the trusted keys")
    assert device.active() == "2.0.0"


def test_a_key_that_was_revoked_in_its_sleep_gets_nothing_past_it(far, device):
    """The thief's state is newer than anything the device has seen; the root that revoked the key is newer, too."""
    stolen = replace(far, "targets")
    far.signers["targets"] = stolen
    far.add("6.6.6", EVIL)
    far.publish()
    device.start()
    refused(device, "targets.json", "not signed by enough of the trusted keys")
    assert device.active() == "1.0.0"


def test_two_stolen_keys_of_an_old_root_make_no_new_one(far, device):
    old = replace(far, "root"), far.second_root
    far.root.revoke_key(far.second_root.public_key.keyid, "root")
    far.second_root = CryptoSigner.generate_ed25519()
    far.root.add_key(far.second_root.public_key, "root")
    far.root.version += 1
    far.write_root(old[1], far.signers["root"], far.second_root)
    device.start()
    wait_until(lambda: device.reconciler.standing().trust is Trust.FRESH)
    far.root.version += 1
    far.write_root(*old)
    refused(device, "root.json", "not signed by enough")


def clock_at(year):
    return FakeClock(time_unix_nano=int(datetime.datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 10**9)


def test_a_clock_at_1970_does_not_bring_a_frozen_state_back_to_life(tmp_path):
    # Ahead of this machine's real clock: so it is our floor that finds out, not python-tuf.
    far = SimulatedRepository(now=datetime.datetime.now(UTC).replace(microsecond=0) + datetime.timedelta(days=1000))
    far.add("1.0.0", b"good weights")
    far.publish()
    device = Device(tmp_path, far, far.first_root, poll_interval=3600.0, retry_interval=3600.0)
    device.start(clock=FakeClock(time_unix_nano=int(far.now.timestamp()) * 10**9))
    wait_until(lambda: device.active() == "1.0.0")
    device.stop()
    far.add("6.6.6", EVIL)
    far.timestamp.expires = far.later(-1)
    far.publish()
    device.start(clock=clock_at(1970))
    try:
        wait_until(lambda: "timestamp.json expired" in device.reconciler.standing().reason)
        assert device.reconciler.standing().trust is Trust.STALE
        assert device.phase("6.6.6") is None
        assert device.store.answering("pump").version == "1.0.0"
    finally:
        device.stop()


def test_a_clock_at_2099_installs_nothing_and_takes_nothing_away(far, device):
    far.add("2.0.0", b"better weights")
    far.publish()
    device.start(clock=clock_at(2099))
    wait_until(lambda: "expired" in device.reconciler.standing().reason)
    assert device.reconciler.standing().trust is Trust.STALE
    assert device.phase("2.0.0") is None
    assert device.store.answering("pump").version == "1.0.0"
    device.stop()
    device.start()  # the clock is set right
    wait_until(lambda: device.active() == "2.0.0")


# -- bombs -------------------------------------------------------------------------------------------------------


def member(shape, size):
    """An .npy that claims *shape* of FP32 and holds *size* bytes."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * size


def zipped(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"input/x.npy": member((1 << 18, 4), 4 << 20)}, "unpacks to"),
        ({"input/x.npy": member((1 << 40, 4), 64), "output/y.npy": member((1 << 40, 4), 64)}, "cannot be read"),
        ({"input/x.npy": member((2, 4), 32), "output/y.npy": b"PK\3\4" * 20}, "cannot be read"),
    ],
)
def test_a_golden_file_that_is_a_bomb_is_not_unpacked(tmp_path, monkeypatch, members, says):
    monkeypatch.setattr(golden, "MAX_UNPACKED_BYTES", 1 << 20)
    model = install(tmp_path / "bundle", "2.0.0", tiny_models.identity(), golden={})
    zipped(model.folder / "golden.npz", members)
    assert (model.folder / "golden.npz").stat().st_size < 1 << 14
    with pytest.raises(CheckFailedError, match=says):
        golden.golden_cases(model)


def test_a_size_in_the_directory_of_the_golden_file_that_lies_is_found_out(tmp_path):
    model = install(tmp_path / "bundle", "2.0.0", tiny_models.identity(), golden={})
    path = model.folder / "golden.npz"
    zipped(path, {"input/x.npy": member((1 << 18, 4), 4 << 20)})
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\1\2") + 24  # the uncompressed size, in the central directory
    data[at : at + 4] = (4096).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(CheckFailedError, match="cannot be read"):
        golden.golden_cases(model)


# -- links -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "says"), [("secret", "sha256"), ("/dev/zero", "longer than")])
def test_a_symlink_on_a_stick_leads_nowhere(tmp_path, far, target, says):
    """The repository lies on a stick, mounted as it is; the link's target is read like any bytes, and has no hash."""
    stick = tmp_path / "stick"
    far.add("2.0.0", EVIL)
    far.publish()
    for place, data in far.files.items():
        (stick / place).parent.mkdir(parents=True, exist_ok=True)
        (stick / place).write_bytes(data)
    model = stick / far.place("pump/2.0.0/model.onnx")
    (tmp_path / "secret").write_bytes(b"s" * len(EVIL))
    model.unlink()
    model.symlink_to(tmp_path / target)
    with Device(tmp_path / "device", FolderSource(stick), far.first_root) as device:
        wait_until(lambda: device.active() == "1.0.0")
        assert device.phase("2.0.0") is ModelPhase.REFUSED
        assert says in device.reason("2.0.0")
        assert not [path for path in device.store.directory.rglob("*") if path.is_symlink()]
        assert not list((device.store.directory / "parts").iterdir())
