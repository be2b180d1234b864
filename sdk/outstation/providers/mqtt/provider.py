"""The provider ``mqtt``: its options, and its parts put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from outstation.clock import Clock
from outstation.provider import Limits
from outstation.providers.mqtt.link import Link
from outstation.providers.mqtt.state import MqttCommands, MqttDesired, State
from outstation.providers.mqtt.uplink import MqttUplink
from outstation.settings import Seconds, Size, Table, decoded
from outstation.shapes import learn
from outstation.types import STREAM_NAME, Identity, checked_name
from outstation.wire.broker import Broker, Credentials, Transport
from outstation.wire.topics import MAX_DOCUMENT_BYTES, Topics

WHERE = "[options.mqtt]"
# Of a packet, beside the payload: topic and properties of ours have at most some 600 bytes.
_ENVELOPE_BYTES = 1 << 10


@dataclass(frozen=True, slots=True)
class Preset:
    """What one kind of broker carries. Payloads leave room for topic and properties where those count too."""

    max_message_bytes: int
    messages_per_second: float | None = None
    iot_core_limits: bool = False
    tells_subscribers: bool = True  # "no matching subscribers" means that nobody got the message


PRESETS = {
    "broker": Preset(1 << 20),
    # 128 KB a message and 100 publications a second; rules consume without a subscription.
    "aws-iot-core": Preset(127 << 10, 100.0, iot_core_limits=True, tells_subscribers=False),
    "iot-hub": Preset(255 << 10, tells_subscribers=False),
}


class MqttOptions(Table, frozen=True):
    """``[options.mqtt]``: where the broker is and how each side knows the other. Paths are PEM files."""

    address: str = "127.0.0.1:1883"  # host:port
    prefix: str = "outstation"  # topics begin with PREFIX/STATION/
    client_id: str = ""  # "" = the station's name
    ca: str = ""  # who signed the broker's certificate; "" = the authorities this machine trusts
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = ""  # "env:NAME" or "file:PATH"
    insecure: bool = False  # plain text to another machine: for private networks only
    preset: Literal["broker", "aws-iot-core", "iot-hub"] = "broker"  # the limits below, of one kind of broker
    max_message_bytes: Size | None = None  # of one payload; none = the preset's. The broker's own word may lower it
    messages_per_second: Seconds | None = None  # none = the preset's
    json_streams: tuple[str, ...] = ()  # streams that go up as JSON documents instead of blocks
    keepalive_interval: Seconds = 7.0  # seconds of silence before the broker is asked whether it lives
    keepalive_timeout: Seconds = 3.0  # seconds it has to answer
    session_expiry: int = 0  # seconds that the broker keeps commands for us, and tells nobody that we have gone


class MqttProvider:
    """The provider ``mqtt``. Thread-safe. Nothing is connected, and no thread started, before the first call."""

    name = "mqtt"
    artifacts = None
    secrets = None
    lifecycle = None

    def __init__(self, *, identity: Identity, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> None:
        checked = decoded(options, MqttOptions, where=WHERE)
        for name in checked.json_streams:
            checked_name(STREAM_NAME, name, "stream")
        preset = PRESETS[checked.preset]
        self.identity = identity
        self._max_message_bytes = checked.max_message_bytes or preset.max_message_bytes
        self._per_second = checked.messages_per_second or preset.messages_per_second
        self._link = Link(identity.station, Topics(checked.prefix), Transport(_broker(identity, checked), WHERE))
        self.uplink = MqttUplink(
            self._link, clock, lambda: self.limits, checked.json_streams, tells_subscribers=preset.tells_subscribers
        )
        self._state = State(self._link, clock)
        self.desired = MqttDesired(self._link, self._state, clock)
        self.commands = MqttCommands(self._link, self._state)

    @property
    def limits(self) -> Limits:
        """Those of the settings, and the broker's own where they are narrower, as far as it is known."""
        largest = min(self._max_message_bytes, self._link.max_packet_bytes - _ENVELOPE_BYTES)
        return Limits(max_message_bytes=max(1, largest), messages_per_second=self._per_second)

    @property
    def ignored(self) -> int:
        """Messages on our own topics that were none: garbage, or somebody else's."""
        return self._link.ignored

    def close(self) -> None:
        self._state.stop()
        self.uplink.disconnect()
        self._link.close()
        self.commands.close()
        self._state.join()


def _broker(identity: Identity, options: MqttOptions) -> Broker:
    credentials = Credentials(
        options.ca, options.certificate, options.key, options.user, options.password, options.insecure
    )
    return Broker(
        options.address,
        options.client_id or identity.station,
        credentials,
        tls=credentials.tls_for(options.address, WHERE),
        keepalive_interval=options.keepalive_interval,
        keepalive_timeout=options.keepalive_timeout,
        session_expiry=max(0, options.session_expiry),
        max_packet_bytes=MAX_DOCUMENT_BYTES + _ENVELOPE_BYTES,
        iot_core_limits=PRESETS[options.preset].iot_core_limits,
    )


learn(MqttOptions)
