"""The hub's connection to a broker, and what stations publish on it.

Four threads: *connect* keeps the connection and speaks; *take* feeds the inbox, and waits while that is full, which
stops the broker by its receive window; *state* takes reports, accounts and presence, so that neither waits for the
other; awscrt's own only hands over. What waits between them is bounded in number and bytes.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading

from outstation.clock import Clock
from outstation.errors import ConfigurationError, LinkError, OutstationError, WireError
from outstation.wire.broker import Broker, Credentials, Transport
from outstation.wire.mqtt import Connection, Delivery
from outstation.wire.topics import (
    MAX_DOCUMENT_BYTES,
    Topics,
    read_ledgers,
    read_presence,
    read_reported,
)
from outstation_hub.inbox import Inbox
from outstation_hub.mqtt.speaker import Speaker
from outstation_hub.mqtt.taker import Counts, Inlet, Taker
from outstation_hub.settings import HubSettings
from outstation_hub.stations import MAX_KNOWN, Stations
from outstation_hub.wishes import Wishes

log = logging.getLogger("outstation.hub")

WHERE = "--mqtt"
CONNECT_TIMEOUT = 10.0
# Seconds between tries to reach the broker: soon after a restart, then seldom; with jitter, as there are many hubs.
RETRY_FIRST, RETRY_CEILING = 0.5, 15.0
# Topic and properties of a message, beside its payload.
ENVELOPE_BYTES = 4 << 10
# Deliveries at QoS 1 that are not decided yet; the broker keeps the others. QoS 0 has no such bound, the inlet has.
RECEIVE_MAXIMUM = 64
INLET_BYTES = 128 << 20
STATE_ITEMS, STATE_BYTES = 4096, 32 << 20


class MqttFront:
    """Started and closed once each. Thread-safe. SettingsError when the settings make no sense."""

    def __init__(self, settings: HubSettings, inbox: Inbox, stations: Stations, wishes: Wishes, clock: Clock) -> None:
        self.counts = Counts()
        self._topics = Topics(settings.mqtt_prefix)
        self._filters = (
            f"$share/{_group(settings.mqtt_group)}/{self._topics.up('+', '+')}",
            *(self._topics.of("+", kind) for kind in ("ack", "reported", "ledgers", "presence")),
        )
        self._transport = Transport(_broker(settings), WHERE)
        self._stations = stations
        self._clock = clock
        self._ups = Inlet(4 * RECEIVE_MAXIMUM, INLET_BYTES)
        self._states = Inlet(STATE_ITEMS, STATE_BYTES)
        self._speaker = Speaker(self._topics, wishes, stations)
        self._taker = Taker(
            self._topics, inbox, stations, clock, counts=self.counts, say=self._speaker.say, inlet=self._ups
        )
        self._lock = threading.Lock()
        self._present: set[str] = set()
        self._connection: Connection | None = None
        self._failure = "not connected yet"
        self._stopping = threading.Event()
        self._threads = (
            threading.Thread(target=self._connect, name="outstation-hubserver-mqtt", daemon=True),
            threading.Thread(target=self._take_states, name="outstation-hubserver-mqtt-state", daemon=True),
        )

    @property
    def connected(self) -> tuple[str, ...]:
        """The stations whose presence says that they are connected to the broker."""
        with self._lock:
            return tuple(sorted(self._present))

    @property
    def failure(self) -> str:
        """Why the hub is not connected to the broker; "" when it is."""
        return self._failure

    def start(self) -> None:
        self._taker.start()
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End the connection and every thread; what is not acknowledged is sent again. Idempotent."""
        self._stopping.set()
        self._speaker.wake()
        connection = self._connection
        if connection is not None:
            connection.close()
        self._states.close()
        self._taker.close()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    # -- the connection ------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        failures = 0
        while True:
            connection = self._connection = Connection(self._transport, on_delivery=self._delivered, on_lost=self._lost)
            if self._stopping.is_set():  # in this order, so that `close` finds this connection or we find its word
                return
            try:
                connection.open(self._filters, CONNECT_TIMEOUT, not_own=self._filters[1:2])
                failures, self._failure = 0, ""
                log.info("connected to the broker at %s", connection.address)
                self._speaker.speak(connection, self._stopping)
            except (LinkError, ConfigurationError) as exc:
                failures += 1
                self._fail(exc)
            except Exception as exc:
                # A fault here must not leave every station behind the broker unheard for good.
                failures += 1
                log.exception("the hub's side of the broker failed")
                self._failure = f"{type(exc).__name__}: {exc}"
            connection.close()
            wait = min(RETRY_CEILING, RETRY_FIRST * 2.0 ** min(failures, 10))
            self._clock.wait(self._stopping, wait * random.uniform(0.5, 1.0))  # noqa: S311

    def _fail(self, exc: OutstationError) -> None:
        if str(exc) != self._failure and not self._stopping.is_set():
            log.warning("no station behind the broker is heard: %s", exc)
        self._failure = str(exc)

    # -- on awscrt's thread --------------------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        ups = self._topics.kind(delivery.topic) in ("up", "ack")
        if not ups:
            delivery.settle()
        fits = ups or len(delivery.payload) <= MAX_DOCUMENT_BYTES
        if not fits or not (self._ups if ups else self._states).put(delivery):
            self.counts.overflowed += 1
            delivery.settle()

    def _lost(self, connection: Connection, error: LinkError) -> None:
        with self._lock:
            self._present.clear()  # nobody tells any more; the retained presences come with the next connection
        self._fail(error)
        self._speaker.wake()

    # -- reports, accounts, presence -----------------------------------------------------------------------------

    def _take_states(self) -> None:
        while not self._stopping.is_set():
            delivery = self._states.get(0.5)
            if delivery is None:
                continue
            try:
                self._take_state(delivery)
            except WireError as exc:
                self.counts.garbage_state += 1
                log.debug("garbage on %s: %s", delivery.topic, exc)
            except OutstationError as exc:
                log.warning("what a station told on %s was not taken: %s", delivery.topic, exc)
            except Exception:
                log.exception("what a station told on %s failed", delivery.topic)

    def _take_state(self, delivery: Delivery) -> None:
        station, kind, _ = self._topics.parse(delivery.topic)
        if kind == "presence":
            self._take_presence(station, delivery)
            return
        if delivery.retained and self._stations.knows(station):
            return  # from before this connection: it would pass for a sign of life
        if kind == "reported":
            self._stations.take_report(station, read_reported(delivery.payload))
        else:
            self._stations.take_ledgers(station, read_ledgers(delivery.payload))
        self._speaker.greet(station)

    def _take_presence(self, station: str, delivery: Delivery) -> None:
        presence = read_presence(delivery.payload)
        with self._lock:
            if not presence.connected:
                self._present.discard(station)
            elif len(self._present) < MAX_KNOWN:
                self._present.add(station)
        if presence.connected:
            self._stations.connected(station, presence.software)
            self._speaker.greet(station)


def _group(name: str) -> str:
    """The name of the share group. SettingsError."""
    return Topics(name).prefix.replace("/", "-")


def _broker(settings: HubSettings) -> Broker:
    credentials = Credentials(
        settings.mqtt_ca,
        settings.mqtt_certificate,
        settings.mqtt_key,
        settings.mqtt_user,
        settings.mqtt_password,
        settings.mqtt_insecure,
    )
    return Broker(
        settings.mqtt_broker,
        settings.mqtt_client_id or f"outstation-hub-{secrets.token_hex(4)}",
        credentials,
        tls=credentials.tls_for(settings.mqtt_broker, WHERE),
        max_packet_bytes=settings.mqtt_max_message_bytes + ENVELOPE_BYTES,
        receive_maximum=RECEIVE_MAXIMUM,
        keepalive_interval=settings.keepalive_interval,
        keepalive_timeout=settings.keepalive_timeout,
    )
