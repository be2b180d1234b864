"""A real mosquitto for tests, plain or with mutual TLS, and both ends of it: a provider, and a hub behind it."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from certificates import Authority
from hub_parts import HubFarEnd, hub_settings
from outstation.buffer import Buffer
from outstation.clock import SystemClock
from outstation.errors import OutstationError, WireError
from outstation.providers.mqtt import MqttProvider
from outstation.settings import BufferSettings, UplinkSettings
from outstation.sync.uplink import UplinkThread
from outstation.types import Identity
from outstation.wire.broker import Broker, Credentials, Transport
from outstation.wire.mqtt import Connection, Publication
from outstation.wire.topics import Envelope, read_word
from outstation_hub import Hub
from support import wait_until

EXAMPLE = Path(__file__).parents[1] / "examples/behind-a-broker"
ACL = (EXAMPLE / "outstation.acl").read_text()  # what operators are told to use is what the tests use


def require_mosquitto() -> None:
    """Skip the module when there is no mosquitto; in CI that is a failure of the tests themselves."""
    if shutil.which("mosquitto") is None and not os.environ.get("CI"):
        pytest.skip("needs mosquitto (apt install mosquitto)", allow_module_level=True)


class Mosquitto:
    """A real broker on loopback, which may be killed and started again at the same port."""

    def __init__(self, folder: Path, *, authority: Authority | None = None, passwords=None, extra: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.address = f"127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        lines = ["user root" if os.getuid() == 0 else "", f"listener {self.port} 127.0.0.1", extra]
        if authority is not None:
            certificate, key = authority.issue("broker")
            lines += [f"cafile {authority.ca}", f"certfile {certificate}", f"keyfile {key}"]
            lines += ["require_certificate true", "use_identity_as_username true"]
        elif passwords:
            for name, password in passwords.items():
                made = [] if (folder / "passwords").exists() else ["-c"]
                subprocess.run(["mosquitto_passwd", *made, "-b", folder / "passwords", name, password], check=True)
            lines += [f"password_file {folder / 'passwords'}", "allow_anonymous false"]
        else:
            lines += ["allow_anonymous true"]
        if authority is not None or passwords:
            (folder / "acl").write_text(ACL)
            lines += [f"acl_file {folder / 'acl'}"]
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> Mosquitto:
        with (self.folder / "mosquitto.log").open("ab") as out:
            command = ["mosquitto", "-c", self.folder / "mosquitto.conf"]
            self.process = subprocess.Popen(command, stdout=out, stderr=out)
        wait_until(self._answers)
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def pause(self) -> None:
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        with socket.socket() as end:
            return end.connect_ex(("127.0.0.1", self.port)) == 0

    def __enter__(self) -> Mosquitto:
        return self.start()

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.kill()


def mqtt_provider(address: str, state_dir: Path, *, station: str = "press-7", **options) -> MqttProvider:
    return MqttProvider(
        identity=Identity(station), options={"address": address, **options}, state_dir=state_dir, clock=SystemClock()
    )


def mqtt_hub(folder: Path, address: str, **changes) -> Hub:
    return Hub(hub_settings(folder, mqtt_broker=address, **changes))


def heard(hub: Hub) -> Hub:
    """*hub*, once it is connected to its broker."""
    wait_until(lambda: not hub.mqtt.failure)
    return hub


class Listener:
    """Somebody else at the broker: keeps what comes, and publishes what it is told."""

    def __init__(self, address: str, *filters: str, name: str = "somebody", **credentials) -> None:
        shown = Credentials(**credentials)
        broker = Broker(address, name, shown, tls=shown.tls_for(address, "test"), max_packet_bytes=64 << 20)
        self.heard: queue.Queue = queue.Queue()
        self.connection = Connection(Transport(broker, "test"), on_delivery=self._keep, on_lost=lambda *_: None)
        self.connection.open(filters, 5)

    def _keep(self, delivery) -> None:
        delivery.settle()
        self.heard.put(delivery)

    def next(self, timeout: float = 5.0):
        return self.heard.get(timeout=timeout)

    def publish(self, topic: str, payload: bytes = b"", **rest) -> OutstationError | None:
        """Publish and wait; what the PUBACK said."""
        answers = queue.Queue()
        self.connection.publish(Publication(topic, payload, **rest), answers.put)
        return answers.get(timeout=5)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()


class MqttFarEnd(HubFarEnd):
    """The far end of MqttProvider, for ProviderContract: a hub behind a broker."""

    def __init__(self, hub: Hub, broker: Mosquitto, station: str) -> None:
        super().__init__(hub, hub.settings.data)
        self._station = station
        self._desired = Listener(broker.address, f"outstation/{station}/desired", name="onlooker")

    def wish(self, models) -> None:
        # A hub publishes for stations that it knows; until a test's station has said anything, we say it for it.
        self.hub.stations.seen(self._station)
        super().wish(models)
        wanted = b",".join(model.version.encode() for model in models)
        while wanted not in self._desired.next().payload:
            pass

    def close(self) -> None:
        self._desired.connection.close()


class Sender:
    """Publishes messages as a station does, with any claim of what came before them."""

    def __init__(self, broker: Mosquitto, station: str = "press-7", link: str = "aa") -> None:
        self.station = station
        self.link = link
        self.listener = Listener(broker.address, f"outstation/{station}/ack", name=f"{station}-sender")

    def send(self, message, after: int | None, *, settled: int = 0, block: bytes | None = None) -> None:
        envelope = Envelope(message.epoch, message.first_sequence, message.last_sequence, after, settled, self.link)
        topic = f"outstation/{self.station}/up/{message.stream}"
        payload = message.block if block is None else block
        assert self.listener.publish(topic, payload, properties=envelope.properties()) is None

    def word(self, timeout: float = 8.0):
        """The hub's next word; what is none is passed over, as stations do."""
        while True:
            with suppress(WireError):
                return read_word(self.listener.next(timeout).payload)

    def through(self, last: int, timeout: float = 8.0) -> list:
        """The words until one acknowledges *last*, that one included."""
        words = [self.word(timeout)]
        while words[-1].refused or words[-1].through < last:
            words.append(self.word(timeout))
        return words


class StationRig:
    """A buffer and the real uplink over MQTT: a station without the rest."""

    def __init__(self, folder: Path, address: str, *, station: str = "press-7", acknowledge_timeout=5.0, **options):
        self.provider = mqtt_provider(address, folder, station=station, **options)
        self.buffer = Buffer.open(folder / station, BufferSettings(group_interval=0.01, block_bytes=2000))
        settings = UplinkSettings(backoff_first=0.1, backoff_ceiling=0.5, acknowledge_timeout=acknowledge_timeout)
        self.uplink = UplinkThread(self.buffer, self.provider, settings, SystemClock())
        self.stream = self.buffer.stream("events")
        self.written = 0

    def write(self, count: int) -> None:
        payloads = [f"record {self.written + n + 1} ".encode() + os.urandom(150) for n in range(count)]
        self.stream.append_many(payloads)
        self.buffer.flush()
        self.written += count

    def acknowledged(self, timeout: float = 30.0) -> None:
        """Wait until the far end has everything that was written."""
        wait_until(lambda: self.stream.acknowledged == self.written, timeout)

    def __enter__(self) -> StationRig:
        self.uplink.start()
        return self

    def __exit__(self, *_) -> None:
        self.uplink.close()
        self.provider.close()
        self.buffer.close()
