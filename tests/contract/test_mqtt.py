"""The provider ``mqtt`` against the contract: a real mosquitto on loopback, with a real hub behind it."""

from __future__ import annotations

import pytest

from mqtt_parts import Mosquitto, MqttFarEnd, heard, mqtt_hub, require_mosquitto
from outstation.clock import SystemClock
from outstation.providers.mqtt import MqttProvider
from outstation.testing.contract import ProviderContract

require_mosquitto()


class TestMqttProvider(ProviderContract):
    @pytest.fixture
    def broker(self, tmp_path):
        with Mosquitto(tmp_path / "broker") as broker:
            yield broker

    @pytest.fixture
    def far_end(self, tmp_path, broker):
        with mqtt_hub(tmp_path, broker.address) as hub:
            far_end = MqttFarEnd(heard(hub), broker, self.identity.station)
            yield far_end
            far_end.close()

    @pytest.fixture
    def provider(self, far_end, broker, tmp_path):
        provider = MqttProvider(
            identity=self.identity, options={"address": broker.address}, state_dir=tmp_path, clock=SystemClock()
        )
        yield provider
        provider.close()
