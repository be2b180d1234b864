"""The provider ``local`` against the contract: a folder is the far end."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from outstation.clock import SystemClock
from outstation.errors import ProviderUnavailableError, SettingsError
from outstation.providers.local import LocalProvider
from outstation.testing.contract import Arrived, Ear, ProviderContract, message
from outstation.types import Identity, Reported
from outstation.wire import decode


class Folder:
    """The far end of LocalProvider."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.revision = 0

    def arrived(self, station: str) -> list[Arrived]:
        rows = []
        for path in sorted((self.root / "stations" / station / "blocks").rglob("*.oblk")):
            header, columns = decode(path.read_bytes())
            rows += [(path.parent.name, header.epoch, r.sequence, r.payload) for r in columns.records()]
        return rows

    def wish(self, models):
        self.root.mkdir(exist_ok=True)
        self.revision += 1
        wish = {"models": [{"name": m.name, "version": m.version} for m in models], "revision": self.revision}
        (self.root / "desired.json").write_text(json.dumps(wish))

    def reported(self, station):
        path = self.root / "stations" / station / "reported.json"
        return msgspec.json.decode(path.read_bytes(), type=Reported) if path.exists() else None

    def put(self, path, data):
        target = self.root / "repository" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


def made(folder: Path, state_dir: Path, **options) -> LocalProvider:
    return LocalProvider(
        identity=ProviderContract.identity,
        options={"folder": str(folder), "poll_interval": 0.02, **options},
        state_dir=state_dir,
        clock=SystemClock(),
    )


class TestLocalProvider(ProviderContract):
    @pytest.fixture
    def far_end(self, tmp_path):
        return Folder(tmp_path / "cloud")

    @pytest.fixture
    def provider(self, far_end, tmp_path):
        provider = made(far_end.root, tmp_path / "state")
        yield provider
        provider.close()


def test_the_default_folder_is_in_the_providers_own_state(tmp_path):
    provider = LocalProvider(identity=Identity("s"), options={}, state_dir=tmp_path, clock=SystemClock())
    ear = Ear()
    provider.uplink.connect(ear.listener, 1)
    provider.uplink.send(message(1, 2), 1)
    provider.close()
    assert len(Folder(tmp_path / "cloud").arrived("s")) == 2


def test_a_wish_without_a_revision_counts_by_its_time(tmp_path):
    provider = made(tmp_path, tmp_path)
    (tmp_path / "desired.json").write_text('{"models": [{"name": "digits"}]}')
    assert provider.desired.current(1).revision > 0
    provider.close()


def test_a_wish_for_one_station_wins_over_the_common_one(tmp_path):
    provider = made(tmp_path, tmp_path)
    (tmp_path / "desired.json").write_text('{"models": [{"name": "digits"}]}')
    own = tmp_path / "stations" / ProviderContract.identity.station
    own.mkdir(parents=True)
    (own / "desired.json").write_text('{"models": [{"name": "digits", "version": "1.0.0"}]}')
    assert provider.desired.current(1).models[0].version == "1.0.0"
    provider.close()


def test_a_wish_that_is_no_wish_is_said_so(tmp_path):
    provider = made(tmp_path, tmp_path)
    (tmp_path / "desired.json").write_text('{"models": 7}')
    with pytest.raises(ProviderUnavailableError, match="no desired state"):
        provider.desired.current(1)
    provider.close()


def test_an_unknown_option_is_named(tmp_path):
    with pytest.raises(SettingsError, match="foldr"):
        made(tmp_path, tmp_path, foldr="x")
