"""The hub behind a broker: takes what stations publish, and answers on their topics."""

from outstation_hub.mqtt.front import MqttFront

__all__ = ["MqttFront"]
