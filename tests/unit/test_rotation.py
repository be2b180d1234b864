"""Keys of a repository give way to new ones; devices that slept follow, and a revoked key is worth nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import SIGNER_FOR_URI_SCHEME, CryptoSigner, Signer

import tiny_models
from model_parts import Desk, foreign_client, run
from outstation.durable import FILES
from outstation.errors import ConfigurationError, InvalidInputError, RepositoryError, UntrustedError
from outstation.models import publish as publishing
from outstation.models import rotation as rotating
from outstation.models.chain import verify_roots
from outstation.models.fetch import FolderSource
from outstation.models.keyring import NAMES, External, Keyring
from outstation.models.place import open_place
from outstation.models.publish import init_repository, publish, refresh
from outstation.models.repository import Repository, read_metadata
from outstation.models.rotation import rotate_key
from outstation.models.trust import Trust, TrustedRepository
from outstation.testing import FakeClock

ONLINE = ("targets", "snapshot", "timestamp")


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    return desk


class Reader:
    """A device's view of the desk's repository."""

    def __init__(self, desk, folder):
        clock = FakeClock(time_unix_nano=publishing.SystemClock().time_unix_nano())
        self.desk = desk
        self.trusted = TrustedRepository(folder, desk.root.read_bytes(), clock)
        self.trusted.load()

    def refresh(self):
        return self.trusted.refresh(FolderSource(self.desk.repository), 5.0)

    @property
    def versions(self):
        return set(self.trusted.versions("pump"))


def rotate(desk, name, **options):
    return rotate_key(name, desk.repository, keys=desk.keys, **options)


def root(desk):
    return verify_roots(read_metadata(open_place(desk.repository))[0].roots)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_that_slept_through_two_rotations_follows(desk, tmp_path, name):
    reader = Reader(desk, tmp_path / "trust")
    assert reader.refresh().trust is Trust.FRESH
    for version in (2, 3):
        done = rotate(desk, name)
        assert (done.root_version, done.old_keyid != done.new_keyid) == (version, True)
    desk.publish("2.0.0")
    assert reader.refresh().trust is Trust.FRESH
    assert reader.versions == {"1.0.0", "2.0.0"}
    assert Reader(desk, tmp_path / "trust").trusted.standing.trust is Trust.FRESH  # offline, from the first root on
    assert Reader(desk, tmp_path / "new").refresh().trust is Trust.FRESH
    assert list(Repository(desk.repository).problems(publishing.now_of(publishing.SystemClock()))) == []


def test_every_key_can_be_rotated_and_nothing_of_the_old_ones_is_trusted(desk, tmp_path):
    before = set(root(desk).keys)
    reader = Reader(desk, tmp_path / "trust")
    reader.refresh()
    for name in NAMES:
        rotate(desk, name)
    assert not before & set(root(desk).keys)
    assert root(desk).roles["root"].threshold == 2
    assert reader.refresh().trust is Trust.FRESH
    assert sorted(path.name for path in desk.keys.glob("*.old")) == sorted(f"{name}-1.old" for name in NAMES)
    assert not list(desk.keys.glob("*.next.pem"))
    desk.publish("2.0.0")


def test_python_tufs_own_client_follows_the_rotations(desk, tmp_path):
    foreign_client(desk, tmp_path).refresh()
    for name in NAMES:
        rotate(desk, name)
    desk.publish("2.0.0")
    client = foreign_client(desk, tmp_path)
    client.refresh()
    found = client.download_target(client.get_targetinfo("pump/2.0.0/model.onnx"))
    assert Path(found).read_bytes() == desk.file("2.0.0").read_bytes()


@pytest.mark.parametrize("role", ONLINE)
def test_a_stolen_key_is_worth_nothing_after_its_rotation(desk, tmp_path, role):
    thief = tmp_path / "thief"
    shutil.copytree(desk.keys, thief)
    reader = Reader(desk, tmp_path / "trust")
    rotate(desk, role)
    assert reader.refresh().trust is Trust.FRESH
    evil = Keyring(thief)
    _forge(desk, role, evil)
    standing = reader.refresh()
    assert standing.trust is Trust.REFUSED
    assert f"{role}.json is not signed by enough of the trusted keys" in standing.reason
    assert reader.versions == {"1.0.0"}
    with pytest.raises(UntrustedError):
        rotate(desk, "timestamp")  # what the thief left there is not signed anew


def _forge(desk, role, evil):
    """Publish with the keys of the desk, but the old one of *role*."""
    place = open_place(desk.repository)
    metadata, mark = read_metadata(place)
    chain = rotating.verify_chain(metadata)
    signers = {name: (Keyring(desk.keys).signer(name, publishing.trusted_keys(chain.root, name)),) for name in ONLINE}
    old = verify_roots(metadata.roots[:1])
    signers[role] = (evil.signer(role, publishing.trusted_keys(old, role)),)
    chain.targets.version += 1
    chain.targets.targets["pump/6.6.6/manifest.json"] = chain.targets.targets["pump/1.0.0/manifest.json"]
    publishing.write_state(
        place,
        signers,
        chain.targets,
        snapshot_version=chain.snapshot.version + 1,
        timestamp_version=chain.timestamp.version + 1,
        mark=mark,
        now=publishing.now_of(publishing.SystemClock()),
    )


def test_two_of_the_roots_keys_are_enough_and_one_is_not(desk, tmp_path):
    (desk.keys / "root1.pem").rename(tmp_path / "root1.pem")
    rotate(desk, "targets")
    (desk.keys / "root2.pem").rename(tmp_path / "root2.pem")
    with pytest.raises(ConfigurationError, match="needs 2 of the root's 3 keys; 1 of them"):
        rotate(desk, "targets")
    assert root(desk).version == 2
    desk.publish("2.0.0")


def test_a_lost_key_of_the_root_is_replaced_by_means_of_the_other_two(desk):
    gone = {signer.public_key.keyid for signer in [Keyring(desk.keys).signer("root2", root(desk).keys)]}
    (desk.keys / "root2.pem").unlink()
    assert {rotate(desk, "root2").old_keyid} == gone
    assert not gone & set(root(desk).keys)
    (desk.keys / "root3.pem").unlink()
    rotate(desk, "root1")  # root1 and the new root2


@pytest.mark.parametrize("role", ONLINE)
def test_a_lost_online_key_is_replaced_by_means_of_the_roots(desk, tmp_path, role):
    reader = Reader(desk, tmp_path / "trust")
    reader.refresh()
    (desk.keys / f"{role}.pem").unlink()
    rotate(desk, role)
    desk.publish("2.0.0")
    assert reader.refresh().trust is Trust.FRESH
    assert reader.versions == {"1.0.0", "2.0.0"}


def test_the_roots_keys_may_lie_elsewhere(desk, tmp_path):
    safe = tmp_path / "safe"
    safe.mkdir()
    for name in ("root1", "root2", "root3"):
        (desk.keys / f"{name}.pem").rename(safe / f"{name}.pem")
    rotate(desk, "timestamp", root_keys=safe)
    rotate(desk, "root1", root_keys=safe)
    assert sorted(path.name for path in safe.iterdir()) == ["root1-1.old", "root1.pem", "root2.pem", "root3.pem"]
    desk.publish("2.0.0")


def test_a_name_that_is_no_keys_name_is_told(desk):
    with pytest.raises(InvalidInputError, match="'root' is no key's name"):
        rotate(desk, "root")


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("name", ["targets", "timestamp", "root1"])
@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupted_rotation_leaves_a_repository_that_is_read_and_goes_on(desk, tmp_path, monkeypatch, name, lost):
    """Stop before each of the writes, then again without an interruption: done, and every reader follows."""
    kept = tmp_path / "kept"
    if lost:
        (desk.keys / f"{name}.pem").unlink()
    shutil.copytree(tmp_path, kept, ignore=shutil.ignore_patterns("kept"))
    for step in range(20):
        shutil.rmtree(desk.repository)
        shutil.rmtree(desk.keys)
        shutil.copytree(kept / "repository", desk.repository)
        shutil.copytree(kept / "keys", desk.keys)
        reader = Reader(desk, tmp_path / f"trust-{step}")
        reader.refresh()
        with monkeypatch.context() as patch:
            _interrupt(patch, step)
            try:
                rotate(desk, name)
                through = True
            except InterruptError:
                through = False
        if not lost:  # what is in between is read, too
            assert reader.refresh().trust is Trust.FRESH
        rotate(desk, name)
        assert reader.refresh().trust is Trust.FRESH
        desk.publish("2.0.0")
        assert reader.refresh().trust is Trust.FRESH
        assert reader.versions == {"1.0.0", "2.0.0"}
        assert not list(desk.keys.glob("*.next.pem"))
        if through:
            assert step >= 2
            return
    raise AssertionError("more steps than were tested")


def _interrupt(patch, step):
    """Fail at the *step*-th time that something gets its name on the disk."""
    left = [step]
    rename = FILES.rename

    def counting(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise InterruptError
        rename(*arguments)

    patch.setattr(FILES, "rename", counting)


# -- signers elsewhere -------------------------------------------------------------------------------------------


class Vault(Signer):
    """A key store that gives signatures and no keys, as a KMS does; ``vault:NAME``."""

    keys = {}  # one for all, as a KMS is
    calls = 0

    def __init__(self, key, public_key):
        self._signer = CryptoSigner(key, public_key)

    @property
    def public_key(self):
        return self._signer.public_key

    def sign(self, payload):
        Vault.calls += 1
        return self._signer.sign(payload)

    @classmethod
    def from_priv_key_uri(cls, priv_key_uri, public_key, secrets_handler=None):
        name = priv_key_uri.partition(":")[2]
        if name == "locked" and secrets_handler("pin") != "1234":
            raise ValueError("wrong pin")
        return cls(cls.keys[name], public_key)


@pytest.fixture
def vault(monkeypatch):
    monkeypatch.setitem(SIGNER_FOR_URI_SCHEME, "vault", Vault)
    monkeypatch.setattr(Vault, "keys", {name: Ed25519PrivateKey.generate() for name in ("one", "two", "locked")})
    Vault.keys["curve"] = generate_private_key(SECP256R1())
    monkeypatch.setattr(Vault, "calls", 0)
    return Vault


def external(name):
    public = Vault.keys[name].public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return External(f"vault:{name}", public.decode())


def elsewhere(folder, **signers):
    """A desk, some of whose keys are not files."""
    desk = Desk.__new__(Desk)
    desk.folder, desk.repository, desk.keys = folder, folder / "repository", folder / "keys"
    chosen = {name: external(key) for name, key in signers.items()}
    desk.root = init_repository(desk.repository, desk.keys, signers=chosen)
    return desk


def test_keys_may_stay_in_a_vault(vault, tmp_path):
    desk = elsewhere(tmp_path, targets="one", root1="two")
    assert not (desk.keys / "targets.pem").exists()
    desk.publish("1.0.0")  # the folder remembers who signs
    assert vault.calls >= 3
    assert Reader(desk, tmp_path / "trust").refresh().trust is Trust.FRESH
    assert list(Repository(desk.repository).problems(publishing.now_of(publishing.SystemClock()))) == []


def test_a_key_of_another_kind_is_as_good(vault, tmp_path):
    desk = elsewhere(tmp_path, timestamp="curve")
    desk.publish("1.0.0")
    assert Reader(desk, tmp_path / "trust").refresh().trust is Trust.FRESH


def test_a_signer_may_be_named_at_each_call_and_needs_no_public_key_then(vault, tmp_path):
    desk = elsewhere(tmp_path, timestamp="one")
    (desk.keys / "signers.json").unlink()
    with pytest.raises(ConfigurationError, match=r"timestamp\.pem is missing"):
        refresh(desk.repository, keys=desk.keys)
    refresh(desk.repository, keys=desk.keys, signers={"timestamp": External("vault:one")})
    with pytest.raises(RepositoryError, match="not a key that the repository trusts"):
        refresh(desk.repository, keys=desk.keys, signers={"timestamp": external("two")})


def test_a_key_moves_from_a_file_into_a_vault_and_back(vault, tmp_path):
    desk = Desk(tmp_path)
    reader = Reader(desk, tmp_path / "trust")
    reader.refresh()
    rotate(desk, "targets", signer=external("one"))
    assert not (desk.keys / "targets.pem").exists()
    desk.publish("1.0.0")
    assert reader.refresh().trust is Trust.FRESH
    rotate(desk, "root3", signer=external("two"))
    rotate(desk, "targets")
    desk.publish("2.0.0")
    assert (desk.keys / "targets.pem").exists()
    assert reader.refresh().trust is Trust.FRESH
    assert reader.versions == {"1.0.0", "2.0.0"}


def test_a_vault_that_asks_for_a_pin_is_told_the_passphrase(vault, tmp_path):
    desk = elsewhere(tmp_path, timestamp="one")
    with pytest.raises(ConfigurationError, match="asks for pin"):
        rotate(desk, "timestamp", signer=external("locked"))
    rotate(desk, "snapshot", passphrase=None)
    assert root(desk).version == 2


@pytest.mark.parametrize(
    ("signer", "says"),
    [
        (External("nowhere:x", "?"), "no public key in PEM form"),
        (External("vault:one"), "needs its public key"),
        (External("no uri", "?"), "no URI of a signer"),
    ],
)
def test_a_signer_that_cannot_be_used_is_told(vault, tmp_path, signer, says):
    with pytest.raises((ConfigurationError, InvalidInputError), match=says):
        init_repository(tmp_path / "repository", tmp_path / "keys", signers={"targets": signer})
    assert not (tmp_path / "repository" / "metadata" / "1.root.json").exists()


def test_a_vault_that_does_not_sign_leaves_the_old_state(vault, tmp_path, monkeypatch):
    desk = elsewhere(tmp_path, targets="one")
    desk.publish("1.0.0")

    def broken(self, payload):
        raise OSError("the vault does not answer")

    monkeypatch.setattr(Vault, "sign", broken)
    with pytest.raises(ConfigurationError, match="the vault does not answer"):
        desk.publish("2.0.0")
    assert Reader(desk, tmp_path / "trust").refresh().trust is Trust.FRESH


# -- the command -------------------------------------------------------------------------------------------------


def test_the_command_rotates_and_says_what_to_do_next(desk, tmp_path):
    said = run("rotate-key", "timestamp", str(desk.repository), "--keys", str(desk.keys)).output
    assert "root.json is version 2, signed by root1, root2, root3" in said
    assert "stations follow by themselves" in said
    assert "is worth nothing any more" in said
    assert root(desk).version == 2


def test_the_command_takes_signers(vault, tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.pem").write_text(external(name).public_key)
    words = ["--keys", str(tmp_path / "keys"), "--public-key", f"targets={tmp_path / 'one.pem'}"]
    run("init", str(tmp_path / "repository"), *words, "--signer", "targets=vault:one")
    run("refresh", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys"))
    words = ["--keys", str(tmp_path / "keys"), "--public-key", f"targets={tmp_path / 'two.pem'}"]
    run("rotate-key", "targets", str(tmp_path / "repository"), *words, "--signer", "targets=vault:two")
    (tmp_path / "m.onnx").write_bytes(tiny_models.identity())
    words = ["--repository", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys"), "--name", "m"]
    run("publish", str(tmp_path / "m.onnx"), *words, "--version", "1.0.0", "--signer", "targets=vault:two")
    assert Repository(tmp_path / "repository").versions() == [("m", "1.0.0")]


@pytest.mark.parametrize("given", ["targets", "targets=", "nobody=vault:one"])
def test_a_signer_option_that_is_none_is_told(tmp_path, given):
    with pytest.raises(InvalidInputError):
        run("init", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys"), "--signer", given)


def test_publish_needs_only_its_own_signers(desk, tmp_path):
    for name in ("root1", "root2", "root3"):
        (desk.keys / f"{name}.pem").unlink()
    (tmp_path / "m.onnx").write_bytes(tiny_models.identity())
    draft = publishing.Draft(name="m", version="1.0.0")
    publish(tmp_path / "m.onnx", repository=desk.repository, keys=desk.keys, draft=draft)
