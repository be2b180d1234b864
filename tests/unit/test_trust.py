from __future__ import annotations

import datetime

import msgspec
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Key

from model_parts import UTC, Desk, SimulatedRepository
from outstation.errors import LinkDownError, ModelNotFoundError, RepositoryError, UntrustedError
from outstation.models.chain import SIGNED_AT, SIGNED_AT_FORMAT, verify_roots
from outstation.models.fetch import FolderSource
from outstation.models.trust import Trust, TrustedRepository
from outstation.testing import FakeClock

DAY = 24 * 3600.0
NANO = 1_000_000_000


def nano(moment: datetime.datetime) -> int:
    return int(moment.timestamp()) * NANO


class Site:
    """A simulated repository and a device that looks at it by a clock of its own."""

    def __init__(self, folder, **options):
        self.folder = folder
        self.far = SimulatedRepository(**options)
        self.clock = FakeClock(time_unix_nano=nano(self.far.now))
        self.device = self.restarted()

    def restarted(self):
        """The device after a restart, before it has a link."""
        self.device = TrustedRepository(self.folder / "trust", self.far.first_root, self.clock)
        self.device.load()
        return self.device

    def refresh(self):
        standing = self.device.refresh(self.far, 5.0)
        return standing.trust, standing.reason


@pytest.fixture
def site(tmp_path):
    return Site(tmp_path)


FRESH = (Trust.FRESH, "")


@pytest.mark.parametrize("consistent", [True, False])
def test_a_repository_made_with_python_tufs_own_api_is_read(tmp_path, consistent):
    site = Site(tmp_path, consistent=consistent)
    site.far.add("1.0.0")
    site.far.add("1.1.0", name="fan")
    site.far.publish()
    assert site.refresh() == FRESH
    assert site.device.names() == ("fan", "pump")
    assert site.device.versions("pump") == ("1.0.0",)
    signed = site.device.file("pump/1.0.0/model.onnx")
    assert site.far.files[signed.source_path] == b"weights"
    assert signed.size_bytes == 7


def test_our_own_repository_is_read(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    device = TrustedRepository(
        tmp_path / "trust", desk.root.read_bytes(), FakeClock(time_unix_nano=nano(datetime.datetime.now(UTC)))
    )
    assert device.refresh(FolderSource(desk.repository), 5.0).trust is Trust.FRESH
    assert device.versions("pump") == ("1.0.0",)


def test_a_look_without_news_asks_for_two_files_and_writes_nothing(site):
    site.refresh()
    before = {path: path.stat().st_mtime_ns for path in (site.folder / "trust").iterdir()}
    site.far.opened.clear()
    assert site.refresh() == FRESH
    assert [path for path, _ in site.far.opened] == ["metadata/2.root.json", "metadata/timestamp.json"]
    assert {path: path.stat().st_mtime_ns for path in (site.folder / "trust").iterdir()} == before


def test_what_is_trusted_survives_a_restart_without_a_link(site):
    site.far.add("1.0.0")
    site.far.publish()
    site.refresh()
    site.far.down = True
    assert site.restarted().standing.trust is Trust.FRESH
    assert site.device.versions("pump") == ("1.0.0",)
    with pytest.raises(LinkDownError):
        site.refresh()
    assert site.device.versions("pump") == ("1.0.0",)


def test_before_the_first_look_nothing_is_trusted(site):
    assert site.device.standing.trust is Trust.STALE
    assert site.device.versions("pump") == ()
    with pytest.raises(ModelNotFoundError):
        site.device.file("pump/1.0.0/model.onnx")


def test_an_empty_source_is_a_repository_error_with_a_hint(site):
    site.far.files.clear()
    with pytest.raises(RepositoryError, match="no repository") as caught:
        site.refresh()
    assert "outstation model init" in caught.value.hint


def test_a_root_that_is_no_root_is_refused_at_once(tmp_path, site):
    for wrong in (b"", b"{}", b"not json", site.far.files["metadata/timestamp.json"]):
        with pytest.raises(UntrustedError, match="first trusted root"):
            TrustedRepository(tmp_path / "other", wrong, site.clock)


def test_stored_metadata_that_was_damaged_is_refused_and_fetched_again(site):
    site.far.add("1.0.0")
    site.far.publish()
    site.refresh()
    path = site.folder / "trust" / "trusted.json"
    for change in (lambda data: data[:100], lambda data: data.replace(b'"targets":"', b'"targets":"AAAA', 1)):
        whole = path.read_bytes()
        path.write_bytes(change(whole))
        assert site.restarted().standing.trust is Trust.REFUSED
        assert site.device.versions("pump") == ()
        assert not path.exists()
        assert site.refresh() == FRESH
        assert path.read_bytes() == whole


def test_stored_metadata_of_another_repository_is_refused(tmp_path, site):
    site.refresh()
    other = SimulatedRepository()
    device = TrustedRepository(site.folder / "trust", other.first_root, site.clock)
    assert device.load().trust is Trust.REFUSED
    assert "does not begin at the first trusted root" in device.standing.reason
    assert device.refresh(other, 5.0).trust is Trust.FRESH


def test_stored_metadata_with_a_wrong_signature_is_refused(site):
    site.refresh()
    path = site.folder / "trust" / "trusted.json"
    stored = msgspec.json.decode(path.read_bytes(), type=dict)
    other = SimulatedRepository()
    forged = msgspec.json.decode(msgspec.json.encode(other.files["metadata/1.targets.json"]))
    path.write_bytes(msgspec.json.encode({**stored, "targets": forged}))
    assert site.restarted().standing.trust is Trust.REFUSED
    assert "targets.json" in site.device.standing.reason


# -- time --------------------------------------------------------------------------------------------------------


def test_a_repository_that_stands_still_turns_stale_and_stays_trusted(site):
    site.far.add("1.0.0")
    site.far.publish()
    assert site.refresh() == FRESH
    site.clock.advance(31 * DAY)
    trust, reason = site.refresh()
    assert trust is Trust.STALE
    assert "expired on" in reason
    assert site.device.versions("pump") == ("1.0.0",)
    assert site.restarted().standing.trust is Trust.STALE
    assert site.device.versions("pump") == ("1.0.0",)


def test_a_repository_that_goes_on_is_fresh_again(site):
    site.refresh()
    site.clock.advance(31 * DAY)
    for part in (site.far.targets, site.far.snapshot, site.far.timestamp):
        part.expires = site.far.later(90)
    site.far.publish()
    assert site.refresh() == FRESH


def test_a_clock_at_1970_does_not_make_old_metadata_fresh(tmp_path):
    # All of it lies ahead of the machine's real clock: so it is our floor that finds out, not python-tuf.
    site = Site(tmp_path, now=datetime.datetime.now(UTC).replace(microsecond=0) + datetime.timedelta(days=1000))
    site.refresh()
    site.far.timestamp.expires = site.far.later(-1)
    site.far.publish()
    site.clock.set_time(0)
    site.restarted()
    trust, reason = site.refresh()
    assert trust is Trust.STALE
    assert "timestamp.json expired" in reason
    assert site.device.time_unix_nano() >= nano(site.far.now)


def test_a_clock_at_1970_is_no_hindrance_to_what_is_fresh(site):
    site.clock.set_time(0)
    site.restarted()
    assert site.refresh() == FRESH


def test_a_clock_at_2099_installs_nothing_new_and_forgets_nothing(site):
    site.far.add("1.0.0")
    site.far.publish()
    site.refresh()
    site.clock.set_time(nano(datetime.datetime(2099, 1, 1, tzinfo=UTC)))
    site.far.add("2.0.0")
    site.far.publish()
    assert site.refresh()[0] is Trust.STALE
    assert site.device.versions("pump") == ("1.0.0",)
    site.clock.set_time(nano(site.far.now))  # the clock is set right: nothing of 2099 was believed
    assert site.refresh() == FRESH
    assert set(site.device.versions("pump")) == {"1.0.0", "2.0.0"}


def test_the_publishers_own_time_is_a_floor_for_clocks_that_stand_still(site):
    site.clock.set_time(0)
    site.far.timestamp.unrecognized_fields[SIGNED_AT] = site.far.now.strftime(SIGNED_AT_FORMAT)
    site.far.publish()
    assert site.refresh() == FRESH
    assert site.device.time_unix_nano() == nano(site.far.now)
    assert site.restarted().time_unix_nano() == nano(site.far.now)


@pytest.mark.parametrize("said", ["yesterday", "", 7, "9999-99-99T00:00:00Z"])
def test_a_publishers_time_that_is_no_time_is_passed_over(site, said):
    site.far.timestamp.unrecognized_fields[SIGNED_AT] = said
    site.far.publish()
    assert site.refresh() == FRESH


# -- keys --------------------------------------------------------------------------------------------------------


def test_a_root_that_was_rotated_twice_while_the_device_slept_is_followed(site):
    site.refresh()
    far = site.far
    for _ in range(2):
        old = far.signers["root"]
        far.signers["root"] = CryptoSigner.generate_ed25519()
        far.root.revoke_key(old.public_key.keyid, "root")
        far.root.add_key(far.signers["root"].public_key, "root")
        far.root.version += 1
        far.write_root(old, far.second_root, far.signers["root"])
    far.add("1.0.0")
    far.publish()
    site.restarted()
    assert site.refresh() == FRESH
    assert site.device.versions("pump") == ("1.0.0",)
    assert site.restarted().standing.trust is Trust.FRESH


def test_a_revoked_key_is_worth_nothing_any_more(site):
    far = site.far
    site.refresh()
    stolen = far.signers["targets"]
    far.signers["targets"] = CryptoSigner.generate_ed25519()
    far.root.revoke_key(stolen.public_key.keyid, "targets")
    far.root.add_key(far.signers["targets"].public_key, "targets")
    far.root.version += 1
    far.write_root()
    far.publish()
    assert site.refresh() == FRESH
    far.add("6.6.6", b"evil")
    far.signers["targets"] = stolen
    far.publish()
    trust, reason = site.refresh()
    assert trust is Trust.REFUSED
    assert "targets.json is not signed by enough of the trusted keys" in reason
    assert site.device.versions("pump") == ()


def test_a_stored_root_that_its_own_keys_did_not_sign_is_refused(site):
    """Signed by the keys before, so that it follows; but whoever is named in it has never agreed."""
    first = site.far.first_root
    old = site.far.signers["root"], site.far.second_root
    for signer in old:
        site.far.root.revoke_key(signer.public_key.keyid, "root")
    new = CryptoSigner.generate_ed25519(), CryptoSigner.generate_ed25519()
    for signer in new:
        site.far.root.add_key(signer.public_key, "root")
    site.far.root.version += 1
    site.far.write_root(*old)
    with pytest.raises(UntrustedError, match="not signed by enough"):
        verify_roots((first, site.far.files["metadata/2.root.json"]))
    site.far.write_root(*old, *new)
    assert verify_roots((first, site.far.files["metadata/2.root.json"])).version == 2


def test_a_stored_chain_goes_on_when_the_device_is_given_a_later_root(site):
    site.refresh()
    site.far.root.version += 1
    site.far.write_root()
    site.refresh()
    later = site.far.files["metadata/2.root.json"]
    device = TrustedRepository(site.folder / "trust", later, site.clock)
    assert device.load().trust is Trust.FRESH
    assert device.refresh(site.far, 5.0).trust is Trust.FRESH


def test_keys_of_an_unknown_kind_are_refused_not_crashed_on(site):
    key: Key = site.far.signers["timestamp"].public_key
    site.far.change_json(
        "metadata/1.root.json", lambda tree: tree["signed"]["keys"][key.keyid].update(keytype="quantum", scheme="q")
    )
    with pytest.raises(UntrustedError):
        TrustedRepository(site.folder / "other", site.far.first_root, site.clock)


def test_a_withdrawn_version_is_not_offered_and_says_why(site):
    site.far.add("1.0.0")
    site.far.add("2.0.0")
    site.far.targets.targets["pump/2.0.0/manifest.json"].unrecognized_fields["custom"] = {"yanked": "wrong scaler"}
    site.far.publish()
    site.refresh()
    assert site.device.versions("pump") == ("1.0.0",)
    assert site.device.withdrawn("pump", "2.0.0") == "wrong scaler"
