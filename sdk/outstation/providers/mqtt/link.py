"""The one connection of the provider: made when somebody needs it, shared by all, its end told to all."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Callable

from outstation._version import __version__
from outstation.errors import ClosedError, DeadlineError, LinkDownError, LinkError, WireError
from outstation.wire.broker import Transport
from outstation.wire.mqtt import Connection, Delivery, Publication
from outstation.wire.topics import JSON, Presence, Topics, document

log = logging.getLogger("outstation.providers")

# Garbage is counted, and told at most this often (seconds).
_TELL_INTERVAL = 60.0


class Link:
    """The one connection of the provider, made when somebody needs it. After close there is none."""

    def __init__(self, station: str, topics: Topics, transport: Transport) -> None:
        self.station = station
        self.topics = topics
        self.ignored = 0
        self.max_packet_bytes = 1 << 28  # what MQTT allows, until the broker has said less
        self.hearers: dict[str, Callable[[Delivery], None]] = {}  # by kind of topic; complete before the first call
        self.on_lost: Callable[[Connection, LinkError], None] = lambda connection, error: None
        self.on_fresh: Callable[[], None] = lambda: None  # a connection begins: what came on older ones is stale
        self.changed = threading.Condition()  # told of every answer, every delivery and every loss
        self._transport = transport
        self._opening = threading.Lock()  # one connection is opened at a time
        self._connection: Connection | None = None  # guarded by `changed`; alive, opening, or over
        self._closed = False
        self._canaries: dict[bytes, bool] = {}  # those under way, and whether they have come back
        self._tell_at = 0.0

    @property
    def present(self) -> Connection | None:
        """The connection that lives, if one does."""
        connection = self._connection
        return connection if connection is not None and connection.alive else None

    def connection(self, timeout: float) -> Connection:
        """The connection that lives, or a new one. LinkError, ClosedError."""
        deadline = time.monotonic() + timeout
        if not self._opening.acquire(timeout=max(0.0, timeout)):
            raise DeadlineError("Somebody else waits for the broker, which does not answer.")
        try:
            with self.changed:
                if self._closed:
                    raise ClosedError("The provider is closed.")
                former = self._connection
                if former is not None and former.alive:
                    return former
                fresh = self._connection = Connection(
                    self._transport,
                    on_delivery=self._delivered,
                    on_lost=self._lost,
                    will=self._presence(connected=False),
                )
            if former is not None:
                former.close()
            self._open(fresh, max(0.1, deadline - time.monotonic()))
            return fresh
        finally:
            self._opening.release()

    def _open(self, fresh: Connection, timeout: float) -> None:
        self.on_fresh()
        kinds = ("ack", "desired", "canary")
        filters = [self.topics.of(self.station, kind) for kind in kinds] + [self.topics.command(self.station, "+")]
        fresh.open(filters, timeout)
        self.max_packet_bytes = fresh.max_packet_bytes
        fresh.publish(self._presence(connected=True), lambda error: self._greeted(fresh, error))

    def ask(self, connection: Connection, publication: Publication, timeout: float) -> None:
        """Publish and wait for the PUBACK. LinkError."""
        answers: list[LinkError | None] = []

        def done(error: LinkError | None) -> None:
            with self.changed:
                answers.append(error)
                self.changed.notify_all()

        connection.publish(publication, done)
        self._await(connection, lambda: bool(answers), timeout)
        if answers[0] is not None:
            raise answers[0]

    def canary(self, connection: Connection, timeout: float) -> None:
        """Send a word to ourselves and see it come back: what the broker had for us before has come as well."""
        nonce = secrets.token_bytes(8)
        deadline = time.monotonic() + timeout
        with self.changed:
            self._canaries[nonce] = False
        try:
            self.ask(connection, Publication(self.topics.of(self.station, "canary"), nonce), timeout)
            self._await(connection, lambda: self._canaries[nonce], deadline - time.monotonic())
        finally:
            with self.changed:
                del self._canaries[nonce]

    def drop(self) -> None:
        """End the connection, whether it lives or is being opened. Idempotent; never raises."""
        with self.changed:
            connection = self._connection
            self._connection = None
        if connection is not None:
            connection.close(self._presence(connected=False))
        with self.changed:
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self._closed = True
        self.drop()

    def ignore(self, delivery: Delivery, why: object) -> None:
        """Count a message that is none; say so now and then."""
        self.ignored += 1
        now = time.monotonic()
        if now >= self._tell_at:
            self._tell_at = now + _TELL_INTERVAL
            log.warning("ignored a message on %s (%d so far): %s", delivery.topic, self.ignored, why)

    def _await(self, connection: Connection, condition: Callable[[], bool], timeout: float) -> None:
        with self.changed:
            self.changed.wait_for(lambda: condition() or not connection.alive, max(0.0, timeout))
            if condition():
                return
        if not connection.alive:
            raise connection.ended or LinkDownError(f"The broker at {connection.address} is gone.")
        raise DeadlineError(f"The broker at {connection.address} did not answer in time.")

    def _presence(self, *, connected: bool) -> Publication:
        word = Presence(connected, f"outstation {__version__}" if connected else "")
        return Publication(self.topics.of(self.station, "presence"), document(word), retain=True, content_type=JSON)

    def _greeted(self, connection: Connection, error: LinkError | None) -> None:
        if error is not None:
            connection.fail(error)

    # -- on awscrt's thread --------------------------------------------------------------------------------------

    def _delivered(self, delivery: Delivery) -> None:
        delivery.settle()
        kind = delivery.topic.removeprefix(f"{self.topics.prefix}/{self.station}/").partition("/")[0]
        hear = self._came_back if kind == "canary" else self.hearers.get(kind)
        if hear is None:
            self.ignore(delivery, "nobody listens to that")
            return
        try:
            hear(delivery)
        except WireError as exc:
            self.ignore(delivery, exc)

    def _came_back(self, delivery: Delivery) -> None:
        with self.changed:
            if delivery.payload not in self._canaries:
                raise WireError("That is no canary of ours.")
            self._canaries[delivery.payload] = True
            self.changed.notify_all()

    def _lost(self, connection: Connection, error: LinkError) -> None:
        with self.changed:
            self.changed.notify_all()
        self.on_lost(connection, error)
