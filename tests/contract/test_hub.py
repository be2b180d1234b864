"""The provider ``hub`` against the contract: a real hub on loopback, with its real inbox and Parquet files."""

from __future__ import annotations

import pytest

from hub_parts import HubFarEnd, hub_settings
from outstation.clock import SystemClock
from outstation.providers.hub import HubProvider
from outstation.testing.contract import ProviderContract
from outstation_hub import Hub


class TestHubProvider(ProviderContract):
    @pytest.fixture
    def far_end(self, tmp_path):
        repository = tmp_path / "repository"
        repository.mkdir()
        with Hub(hub_settings(tmp_path, repository=str(repository))) as hub:
            yield HubFarEnd(hub, repository)

    @pytest.fixture
    def provider(self, far_end, tmp_path):
        provider = HubProvider(
            identity=self.identity,
            options={"address": far_end.hub.address},
            state_dir=tmp_path,
            clock=SystemClock(),
        )
        yield provider
        provider.close()
