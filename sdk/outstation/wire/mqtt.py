"""One MQTT 5 connection over awscrt, with errors of ours. Both ends use it: the provider, and the hub behind a broker.

awscrt's client reconnects by itself and queues while it is offline. Both would blur what an uplink must know, so a
:class:`Connection` is one connection and no more: the first loss stops its client, and the owner makes another.
Callbacks come on awscrt's event-loop thread and must only hand over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    LinkDownError,
    LinkError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
)
from outstation.wire.broker import AwsCrtError, Transport, mqtt5

# How long a client that was told to stop may take to say goodbye; afterwards it ends on its own thread.
_FAREWELL_SECONDS = 2.0
_COMPARE = "If the broker is up, compare both sides' certificates and their authorities."
_DENIED_AT_CONNECT = frozenset({133, 134, 135, 138, 140})  # client id, password, authorisation, ban, method
_NO_SUBSCRIBER, _DENIED = 16, 135
_NEVER = frozenset({144, 153})  # topic name invalid, payload format invalid
_TAKEN_OVER, _TOO_LARGE = 142, 149


@dataclass(frozen=True, slots=True)
class Publication:
    """One message to send, at QoS 1."""

    topic: str
    payload: bytes
    retain: bool = False
    content_type: str = ""
    properties: tuple[tuple[str, str], ...] = ()  # MQTT's user properties
    response_topic: str = ""
    correlation: bytes = b""
    needs_subscriber: bool = False  # a broker that tells of none took nothing


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message that came. ``settle`` sends its PUBACK, once; until then it counts against the receive maximum."""

    topic: str
    payload: bytes
    retained: bool  # it lay there when the subscription was made
    content_type: str = ""
    properties: Mapping[str, str] = field(default_factory=dict)
    response_topic: str = ""
    correlation: bytes = b""
    settle: Callable[[], None] = lambda: None


class Connection:
    """One connection, from CONNECT to its end. Thread-safe; ``open`` once.

    *on_lost* is called once, on awscrt's thread or the caller's of :meth:`fail`; not when :meth:`close` ended the
    connection, nor before :meth:`open` has returned.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        on_delivery: Callable[[Delivery], None],
        on_lost: Callable[[Connection, LinkError], None],
        will: Publication | None = None,
    ) -> None:
        self.address = transport.broker.address
        self._transport = transport
        self._on_delivery = on_delivery
        self._on_lost = on_lost
        self._will = will
        self._changed = threading.Condition()
        self._client: mqtt5.Client | None = None
        self._connected = False
        self._open = False  # connected, and subscribed
        self._ended: LinkError | None = None
        self._stopped = threading.Event()
        self._max_packet_bytes = transport.broker.max_packet_bytes
        self._receive_maximum = 1

    @property
    def alive(self) -> bool:
        return self._open and self._ended is None

    @property
    def ended(self) -> LinkError | None:
        """Why the connection is over; None while it is not."""
        return self._ended

    @property
    def max_packet_bytes(self) -> int:
        """What the broker takes in one packet, topic and properties included."""
        return self._max_packet_bytes

    @property
    def receive_maximum(self) -> int:
        """How many publications the broker lets wait for its PUBACK."""
        return self._receive_maximum

    def open(self, filters: Sequence[str], timeout: float, *, not_own: Collection[str] = ()) -> None:
        """Connect and subscribe to *filters* (at most eight) at QoS 1. LinkError; then the connection is over.

        A filter of a shared subscription begins with ``$share/``. Those in *not_own* bring nothing that was
        published on this connection itself.
        """
        deadline = time.monotonic() + timeout
        try:
            self._start()
            with self._changed:
                self._changed.wait_for(lambda: self._connected or self._ended, timeout)
                if self._ended is not None:
                    raise self._ended
                if not self._connected:
                    raise DeadlineError(
                        f"The broker at {self.address} did not answer within {timeout:g} s.",
                        hint=_COMPARE if self._transport.broker.tls else None,
                    )
            self._subscribe(filters, not_own, max(0.25, deadline - time.monotonic()))
        except OutstationError:
            self.close()
            raise
        with self._changed:
            if self._ended is not None:
                raise self._ended
            self._open = True

    def publish(self, publication: Publication, done: Callable[[LinkError | None], None]) -> None:
        """Hand *publication* to awscrt. *done* hears of the PUBACK: None, or RefusedError, or another LinkError.

        *done* is called at most once, on awscrt's thread; not at all when the connection ends before. Raises
        LinkDownError, and RefusedError for what awscrt cannot encode.
        """
        client = self._living()
        try:
            future = client.publish(_packet(publication))
        except (RuntimeError, ValueError, TypeError, AwsCrtError) as exc:
            raise RefusedError(f"MQTT cannot carry this message: {exc}") from exc

        def completed(future: Any) -> None:
            error = _publish_error(future, publication)
            # A publication that a lost connection took along says nothing that `on_lost` does not.
            if self.alive or not isinstance(error, LinkDownError):
                done(error)

        future.add_done_callback(completed)

    def fail(self, error: LinkError) -> None:
        """End the connection because of *error*; the owner hears it as a loss. The first end counts."""
        self._end(error, tell=True)

    def close(self, farewell: Publication | None = None) -> None:
        """End the connection without a word to *on_lost*. Waits a little for awscrt, unless on its own thread.

        A *farewell* is sent before, as an orderly end makes the broker forget the will.
        """
        if farewell is not None and self.alive:
            with suppress(LinkError):
                sent = threading.Event()
                self.publish(farewell, lambda _: sent.set())
                sent.wait(_FAREWELL_SECONDS)
        self._end(LinkDownError(f"The connection to {self.address} is closed."), tell=False)
        self._stopped.wait(_FAREWELL_SECONDS)
        self._client = None  # it holds this object, which holds it: nothing of awscrt is left to the garbage collector

    # -- within --------------------------------------------------------------------------------------------------

    def _start(self) -> None:
        callbacks = {
            "on_publish_callback_fn": self._delivered,
            "on_lifecycle_event_connection_success_fn": self._succeeded,
            "on_lifecycle_event_connection_failure_fn": self._failed,
            "on_lifecycle_event_disconnection_fn": self._disconnected,
            "on_lifecycle_event_stopped_fn": lambda _: self._stopped.set(),
        }
        with self._changed:
            if self._ended is not None:
                raise self._ended
            try:
                self._client = self._transport.client(callbacks, _packet(self._will) if self._will else None)
            except (RuntimeError, ValueError, TypeError, AwsCrtError) as exc:
                raise LinkDownError(f"No connection to {self.address} can be made: {exc}") from exc
            self._client.start()

    def _subscribe(self, filters: Sequence[str], not_own: Collection[str], timeout: float) -> None:
        if not filters:
            return
        wanted = [
            mqtt5.Subscription(topic_filter=one, qos=mqtt5.QoS.AT_LEAST_ONCE, no_local=one in not_own)
            for one in filters
        ]
        answered = threading.Event()
        future = self._living().subscribe(mqtt5.SubscribePacket(subscriptions=wanted))
        future.add_done_callback(lambda _: self._notify(answered))
        with self._changed:
            if not self._changed.wait_for(lambda: answered.is_set() or self._ended, timeout):
                raise DeadlineError(f"The broker at {self.address} did not answer a subscription.")
            if self._ended is not None:
                raise self._ended
        if (failure := future.exception()) is not None:
            raise LinkDownError(f"The broker at {self.address} took no subscription: {failure}") from failure
        for one, code in zip(filters, future.result().reason_codes, strict=True):
            if code is None or code >= 128:
                raise AccessDeniedError(f"The broker refuses a subscription to {one} ({_named(code)}).")

    def _notify(self, event: threading.Event) -> None:
        with self._changed:
            event.set()
            self._changed.notify_all()

    def _living(self) -> mqtt5.Client:
        client = self._client
        if self._ended is not None:
            raise self._ended
        if client is None or not self._connected:
            raise LinkDownError(f"There is no connection to the broker at {self.address}.")
        return client

    def _end(self, error: LinkError, *, tell: bool) -> None:
        with self._changed:
            if self._ended is not None:
                return
            self._ended = error
            client = self._client
            told = tell and self._open
            self._changed.notify_all()
        if client is None:
            self._stopped.set()
        else:
            with suppress(RuntimeError, AwsCrtError):
                client.stop()
        if told:
            self._on_lost(self, error)

    # -- on awscrt's thread --------------------------------------------------------------------------------------

    def _succeeded(self, data: Any) -> None:
        settings = data.negotiated_settings
        with self._changed:
            self._max_packet_bytes = settings.maximum_packet_size_to_server
            self._receive_maximum = settings.receive_maximum_from_server
            self._connected = True
            self._changed.notify_all()

    def _failed(self, data: Any) -> None:
        self._end(_connect_error(self.address, data), tell=True)

    def _disconnected(self, data: Any) -> None:
        self._end(_disconnect_error(self.address, data), tell=True)

    def _delivered(self, data: Any) -> None:
        packet = data.publish_packet
        settle = _settler(self._client, data)
        if self._ended is not None:
            return
        self._on_delivery(
            Delivery(
                packet.topic,
                packet.payload if isinstance(packet.payload, bytes) else bytes(packet.payload or b""),
                packet.retain,
                packet.content_type or "",
                {one.name: one.value for one in packet.user_properties or ()},
                packet.response_topic or "",
                packet.correlation_data_bytes or b"",
                settle,
            )
        )


def _settler(client: mqtt5.Client | None, data: Any) -> Callable[[], None]:
    """Take the PUBACK into our hands where awscrt lets us; a delivery at QoS 0 has none."""
    acquire = data.acquire_publish_acknowledgement_control
    if acquire is None or client is None:
        return lambda: None
    handles = [acquire()]

    def settle() -> None:
        if not handles:
            return
        handle = handles.pop()
        with suppress(RuntimeError, AwsCrtError):  # the connection it came on is over
            client.invoke_publish_acknowledgement(handle)

    return settle


def _packet(publication: Publication) -> mqtt5.PublishPacket:
    return mqtt5.PublishPacket(
        topic=publication.topic,
        payload=publication.payload,
        qos=mqtt5.QoS.AT_LEAST_ONCE,
        retain=publication.retain,
        content_type=publication.content_type or None,
        response_topic=publication.response_topic or None,
        correlation_data_bytes=publication.correlation or None,
        user_properties=[mqtt5.UserProperty(name=name, value=value) for name, value in publication.properties] or None,
    )


# -- errors -------------------------------------------------------------------------------------------------------


def _named(code: Any) -> str:
    return "unknown reason" if code is None else f"{int(code)} {code.name.lower().replace('_', ' ')}"


def _publish_error(future: Any, publication: Publication) -> LinkError | None:
    """What the PUBACK of *publication* says, in an error of ours."""
    failure = future.exception()
    if failure is not None:
        if "VALIDATION" in str(failure) or "ENCODE" in str(failure):
            return RefusedError(f"{len(publication.payload)} bytes to {publication.topic} cannot be sent: {failure}")
        return LinkDownError(f"A message to {publication.topic} was not confirmed: {failure}")
    return _puback_error(future.result().puback.reason_code, publication)


def _puback_error(code: Any, publication: Publication) -> LinkError | None:
    if code == 0 or (code == _NO_SUBSCRIBER and not publication.needs_subscriber):
        return None
    topic = publication.topic
    if code == _NO_SUBSCRIBER:
        return LinkDownError(f"Nobody has subscribed to {topic}.", hint="Is the hub connected to the broker?")
    if code == _DENIED:
        return AccessDeniedError(f"The broker lets nobody of this name publish to {topic}.")
    if code in _NEVER:
        return RefusedError(f"The broker refuses {topic} ({_named(code)}).")
    return ProviderUnavailableError(f"The broker took no message to {topic} ({_named(code)}).")


def _connect_error(address: str, data: Any) -> LinkError:
    packet = data.connack_packet
    if packet is not None:
        code = packet.reason_code
        why = f"The broker at {address} takes no connection ({_named(code)})."
        return AccessDeniedError(why) if code in _DENIED_AT_CONNECT else ProviderUnavailableError(why)
    text = str(data.exception)
    if "TLS" in text:
        return AccessDeniedError(f"TLS with the broker at {address} failed: {text}", hint=_COMPARE)
    return LinkDownError(f"The broker at {address} cannot be reached: {text}")


def _disconnect_error(address: str, data: Any) -> LinkError:
    packet = data.disconnect_packet
    if packet is None:
        return LinkDownError(f"The connection to the broker at {address} was lost: {data.exception}")
    code = packet.reason_code
    why = f"The broker at {address} ended the connection ({_named(code)})."
    if code == _TAKEN_OVER:
        return ProviderUnavailableError(f"{why} Another device has the same client id.")
    if code == _TOO_LARGE:
        return ProviderUnavailableError(why, hint="Set max_message_bytes to what the broker takes.")
    return AccessDeniedError(why) if code == _DENIED else ProviderUnavailableError(why)
