"""Any MQTT 5 broker, with a hub (or a consumer of your own) behind it: one connection for all.

awscrt's own reconnecting and queueing are not used: they would blur what the uplink must know.
"""

from outstation.providers.mqtt.provider import PRESETS, MqttOptions, MqttProvider

__all__ = ["PRESETS", "MqttOptions", "MqttProvider"]
