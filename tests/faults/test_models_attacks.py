"""A repository that attacks: each attack is refused with its own reason, and the active model goes on answering."""

from __future__ import annotations

import datetime
import hashlib
import json

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, TargetFile

from model_parts import Device, SimulatedRepository, repository_with
from outstation.models.manifest import MAX_MANIFEST_BYTES, encode_manifest
from outstation.models.store import verify_installed
from outstation.models.trust import Trust
from outstation.testing import FakeClock
from outstation.types import ModelPhase
from support import wait_until

EVIL = b"evil weights"


@pytest.fixture
def far():
    return repository_with(b"good weights")


@pytest.fixture
def device(tmp_path, far):
    device = Device(tmp_path, far, far.first_root)
    with device:
        wait_until(lambda: device.active() == "1.0.0")
        yield device
        # Whatever the attack was: the good version answers, whole, and nothing else ever did.
        assert device.active() == "1.0.0"
        answering = device.store.answering("pump")
        assert answering.version == "1.0.0"
        verify_installed(answering)
        assert answering.model_path.read_bytes() == b"good weights"
        assert device.checker.asked == ["1.0.0"]


def refused(device, *words, trust=Trust.REFUSED):
    """Wait until the repository's last answer was refused, for a reason with these words."""
    wait_until(lambda: device.reconciler.standing().trust is trust)
    reason = device.reconciler.standing().reason
    for word in words:
        assert word in reason


def turned_down(device, *words, version="2.0.0"):
    wait_until(lambda: device.phase(version) is ModelPhase.REFUSED)
    for word in words:
        assert word in device.reason(version)


def flipped(data: bytes, at: int | None = None) -> bytes:
    wrong = bytearray(data)
    wrong[len(data) // 2 if at is None else at] ^= 0x01
    return bytes(wrong)


# -- flipped bytes -----------------------------------------------------------------------------------------------


def test_flipped_bytes_in_the_model(far, device):
    far.add("2.0.0", EVIL)
    far.change(far.place("pump/2.0.0/model.onnx"), flipped)
    far.publish()
    signed, found = (hashlib.sha256(data).hexdigest()[:12] for data in (EVIL, flipped(EVIL)))
    turned_down(device, "pump/2.0.0/model.onnx", signed, found)


def test_flipped_bytes_in_the_manifest(far, device):
    far.add("2.0.0", EVIL)
    far.change(far.place("pump/2.0.0/manifest.json"), flipped)
    far.publish()
    turned_down(device, "pump/2.0.0/manifest.json", "sha256")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_flipped_signature_in_each_metadata_file(far, device, role):
    def change(tree):
        signature = tree["signatures"][0]
        signature["sig"] = ("0" if signature["sig"][0] != "0" else "1") + signature["sig"][1:]

    far.add("2.0.0", EVIL)
    far.publish()
    far.change_json(far.metadata_place(role), change)
    refused(device, f"{role}.json")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_flipped_contents_in_each_metadata_file(far, device, role):
    def change(tree):
        tree["signed"]["expires"] = "2098-01-01T00:00:00Z"

    far.add("2.0.0", EVIL)
    far.publish()
    far.change_json(far.metadata_place(role), change)
    refused(device, f"{role}.json")


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_every_byte_of_a_metadata_file_counts(far, device, role):
    """A byte flipped at six places; what parses to the same signed bytes may pass, and nothing else."""
    far.add("2.0.0", EVIL)
    far.publish()
    place = far.metadata_place(role)
    whole = far.files.pop(place)
    for step in range(6):
        far.files[place] = flipped(whole, at=len(whole) * step // 6)
        before = len(far.opened)
        wait_until(lambda before=before: sum(p == "metadata/timestamp.json" for p, _ in far.opened[before:]) >= 2)
        assert device.phase("2.0.0") is None
    far.files[place] = b""


def test_a_flipped_root_rotation(far, device):
    far.root.version += 1
    far.write_root()
    far.change_json("metadata/2.root.json", lambda tree: tree["signed"].update(expires="2098-01-01T00:00:00Z"))
    refused(device, "root.json", "not signed by enough")


# -- old metadata ------------------------------------------------------------------------------------------------


def test_rollback_to_an_older_timestamp(far, device):
    old = dict(far.files)
    far.add("1.0.1", b"never built")
    far.files.pop(far.place("pump/1.0.1/model.onnx"))
    far.publish()
    wait_until(lambda: device.phase("1.0.1") is ModelPhase.DOWNLOADING)
    far.files = old
    refused(device, "timestamp.json", "rollback")


def test_rollback_of_the_snapshot_behind_a_newer_timestamp(far, device):
    old = far.files[far.metadata_place("snapshot")]
    far.add("1.0.1", b"never built")
    far.files.pop(far.place("pump/1.0.1/model.onnx"))
    far.publish()
    wait_until(lambda: device.phase("1.0.1") is ModelPhase.DOWNLOADING)
    far.snapshot.version -= 1
    far.files[far.metadata_place("snapshot")] = old
    far.timestamp.version += 1
    far.timestamp.snapshot_meta.version -= 1
    far.timestamp.snapshot_meta.length = far.timestamp.snapshot_meta.hashes = None
    far.put("timestamp", far.timestamp)
    refused(device, "timestamp.json", "rollback")


def test_freeze(tmp_path, far):
    """The attacker shows the same state for ever: it turns stale by the device's clock."""
    clock = FakeClock(time_unix_nano=int(far.now.timestamp()) * 1_000_000_000)
    device = Device(tmp_path, far, far.first_root, poll_interval=3600.0, retry_interval=3600.0)
    device.start(clock=clock)
    try:
        wait_until(lambda: device.active() == "1.0.0")
        clock.wait_for_waiters()
        clock.advance(40 * 24 * 3600.0)
        wait_until(lambda: device.reconciler.standing().trust is Trust.STALE)
        assert "expired" in device.reconciler.standing().reason
        assert device.store.answering("pump").version == "1.0.0"
    finally:
        device.stop()


def test_metadata_that_was_expired_when_it_was_signed(far, device):
    far.add("2.0.0", EVIL)
    far.targets.expires = far.now - datetime.timedelta(days=1)
    far.publish()
    refused(device, "targets", "expired", trust=Trust.STALE)
    assert device.phase("2.0.0") is None


def test_mix_and_match_of_snapshot_and_targets(far, device):
    """Targets of one state beside the snapshot of another, each with a good signature."""
    far.add("2.0.0", EVIL)
    far.publish()
    far.files.pop(far.metadata_place("timestamp"))
    far.targets.targets.pop("pump/2.0.0/model.onnx")
    far.put("targets", far.targets)  # the same version number, other contents
    far.put("timestamp", far.timestamp)
    refused(device, "targets.json", "signed together")


def test_mix_and_match_of_a_manifest_and_another_versions_model(far, device):
    far.add("2.0.0", EVIL)
    far.add_target("pump/2.0.0/model.onnx", b"good weights")
    far.publish()
    turned_down(device, "pump/2.0.0/model.onnx", "its manifest says")


def test_a_manifest_that_was_signed_for_another_version(far, device):
    manifest = far.add("1.0.0", b"good weights")
    far.add_target("pump/2.0.0/manifest.json", encode_manifest(manifest))
    far.publish()
    turned_down(device, "is that of pump 1.0.0")


# -- keys --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_wrong_key(far, device, role):
    far.signers[role] = CryptoSigner.generate_ed25519()
    far.add("2.0.0", EVIL)
    far.publish()
    refused(device, f"{role}.json", "not signed by enough of the trusted keys")


def test_a_root_with_fewer_signatures_than_the_threshold(far, device):
    mine = {role: CryptoSigner.generate_ed25519() for role in ("targets", "snapshot", "timestamp")}
    for role, signer in mine.items():
        far.root.revoke_key(far.signers[role].public_key.keyid, role)
        far.root.add_key(signer.public_key, role)
    far.root.version += 1
    far.write_root(far.signers["root"])  # one of two: a single stolen key
    far.signers |= mine
    far.add("2.0.0", EVIL)
    far.publish()
    refused(device, "root.json", "1/2")


def test_one_key_counted_twice_is_one_signature(far, device):
    far.root.version += 1
    far.write_root(far.signers["root"])

    def double(tree):
        tree["signatures"].append(dict(tree["signatures"][0]))

    far.change_json("metadata/2.root.json", double)
    refused(device, "root.json")


def test_another_repository_altogether(far, device):
    other = SimulatedRepository()
    other.add("2.0.0", EVIL)
    for _ in range(3):
        other.publish()
    far.files = other.files
    refused(device, "timestamp.json", "not signed by enough")


def test_a_root_that_skips_a_version(far, device):
    far.root.version += 2
    far.write_root()
    far.files["metadata/2.root.json"] = far.files.pop("metadata/3.root.json")
    refused(device, "root.json")


def test_a_file_of_another_role_under_the_name_of_one(far, device):
    far.files["metadata/timestamp.json"] = far.files[far.metadata_place("snapshot")]
    refused(device, "timestamp.json")


# -- size --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_endless_metadata(far, device, role):
    if role == "root":
        far.endless.add("metadata/2.root.json")
    else:
        far.publish()
        far.endless.add(far.metadata_place(role))
    refused(device, f"{role}.json", "longer than any such file")


@pytest.mark.parametrize("file", ["model.onnx", "manifest.json"])
def test_endless_targets(far, device, file):
    far.add("2.0.0", EVIL)
    far.endless.add(far.place(f"pump/2.0.0/{file}"))
    far.publish()
    turned_down(device, f"pump/2.0.0/{file}", "longer than the")


def test_a_manifest_larger_than_any_manifest_is_not_even_fetched(far, device):
    far.add("2.0.0", EVIL)
    place = far.add_target("pump/2.0.0/manifest.json", b" " * (MAX_MANIFEST_BYTES + 1))
    far.publish()
    turned_down(device, "is the most")
    assert place not in {path for path, _ in far.opened}


def test_metadata_nested_deeper_than_any_parser_goes(far, device):
    far.files["metadata/timestamp.json"] = b'{"signed":' + b"[" * 8000 + b"]" * 4000
    refused(device, "timestamp.json")


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["../../escaped", "/tmp/escaped", "a\\..\\escaped", ".ssh", "a\nb", "Manifest.JSON"])
def test_a_name_that_leaves_the_folder(far, device, tmp_path, path):
    data = encode_manifest(far.add("2.0.0", EVIL))
    tree = json.loads(data)
    tree["files"].append({"path": path, "sha256": hashlib.sha256(EVIL).hexdigest(), "size_bytes": len(EVIL)})
    far.add_target("pump/2.0.0/manifest.json", json.dumps(tree).encode())
    far.targets.targets[f"pump/2.0.0/{path}"] = TargetFile.from_data(f"pump/2.0.0/{path}", EVIL, ["sha256"])
    far.publish()
    turned_down(device, "files[1].path")
    assert not [found for found in tmp_path.rglob("*") if found.name == "escaped"]


@pytest.mark.parametrize(
    "path", ["pump/../../x/manifest.json", "pump/9.9.9/../manifest.json", "/pump/9.9.9/manifest.json"]
)
def test_a_target_that_leaves_the_folder_is_no_version(far, device, path):
    far.targets.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])
    far.publish()
    before = len(far.opened)
    wait_until(lambda: sum(p == "metadata/timestamp.json" for p, _ in far.opened[before:]) >= 2)
    assert [report.version for report in device.store.reports()[0].versions] == ["1.0.0"]


def test_a_version_that_is_no_version_is_not_seen(far, device):
    for version in ("latest", "9.9", "../9.9.9", "9.9.9+evil"):
        path = f"pump/{version}/manifest.json"
        far.targets.targets[path] = TargetFile.from_data(path, b"{}", ["sha256"])
    far.publish()
    before = len(far.opened)
    wait_until(lambda: sum(p == "metadata/timestamp.json" for p, _ in far.opened[before:]) >= 2)
    assert len(device.store.reports()[0].versions) == 1


def test_a_manifest_of_the_future_is_refused_and_named_so(far, device):
    tree = json.loads(encode_manifest(far.add("2.0.0", EVIL)))
    far.add_target("pump/2.0.0/manifest.json", json.dumps({**tree, "format": 2, "sparkles": True}).encode())
    far.publish()
    turned_down(device, "of the future")


def test_a_target_signed_without_sha256_is_refused(far, device):
    far.add("2.0.0", EVIL)
    far.targets.targets["pump/2.0.0/model.onnx"] = TargetFile.from_data("pump/2.0.0/model.onnx", EVIL, ["sha512"])
    far.publish()
    turned_down(device, "without a sha256")


def test_the_first_root_alone_decides_whom_to_trust(far, device):
    """A repository of the attacker's own, with a root of the same version, is not the one we were given."""
    theirs = SimulatedRepository()
    assert Metadata[Root].from_bytes(theirs.first_root).signed.version == 1
    far.files["metadata/1.root.json"] = theirs.first_root
    far.add("2.0.0", EVIL)
    far.files["metadata/timestamp.json"] = theirs.files["metadata/timestamp.json"]
    refused(device, "timestamp.json")


def test_a_model_with_an_odd_signature_does_not_hold_up_another(tmp_path, far):
    """Signed without a sha256 after the version is known here: that model waits, the other goes on."""
    far.add("1.0.0", b"fan", name="fan")
    far.publish()
    with Device(tmp_path, far, far.first_root, names=("fan", "pump")) as device:
        wait_until(lambda: device.active("fan") == device.active("pump") == "1.0.0")
        far.targets.targets["fan/1.0.0/manifest.json"] = TargetFile.from_data(
            "fan/1.0.0/manifest.json", b"", ["sha512"]
        )
        far.add("2.0.0", b"better", name="pump")
        far.publish()
        wait_until(lambda: device.active("pump") == "2.0.0")
        assert device.active("fan") == "1.0.0"
