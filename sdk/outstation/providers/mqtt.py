"""Any MQTT 5 broker, with a hub (or a consumer of your own) behind it: one connection for all.

A message's way up: ``MqttUplink.send`` waits for its turn and for room in the broker's receive window, and publishes;
the PUBACK comes back to ``_Session.confirmed``, which says ``accepted`` and no more; the far end's word comes on the
topic ``ack`` to ``MqttUplink.hear``, which hands it to the listener. When the connection ends, ``_Link`` tells the
uplink once and stops the client: awscrt's own reconnecting and queueing are not used.
"""

from __future__ import annotations

import logging
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from outstation._version import __version__
from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    CorruptBlockError,
    DeadlineError,
    InvalidNameError,
    LinkDownError,
    LinkError,
    ProviderUnavailableError,
    RefusedError,
    WireError,
)
from outstation.provider import Acknowledgement, Limits, Message, UplinkListener
from outstation.settings import Seconds, Size, Table, decoded
from outstation.types import STREAM_NAME, Desired, Identity, Reported, StreamReport, checked_name
from outstation.wire.block import MAGIC
from outstation.wire.jsonblock import block_of, documents
from outstation.wire.mqtt import Broker, Connection, Credentials, Delivery, Publication, Transport
from outstation.wire.topics import (
    BLOCK,
    JSON,
    MAX_DOCUMENT_BYTES,
    Envelope,
    Presence,
    Topics,
    document,
    read_desired,
    read_word,
)

log = logging.getLogger("outstation.providers")

WHERE = "[options.mqtt]"
# Of a packet, beside the payload: topic and properties of ours have at most some 600 bytes.
_ENVELOPE_BYTES = 1 << 10
# Publications that wait for their PUBACK, if the broker lets us: enough for a long link, few enough to be resent.
_UNCONFIRMED = 64
# Between tries to come back for the desired state and for commands, when no uplink connects.
_STATE_BACKOFF = 5.0
_STATE_TIMEOUT = 5.0
# Calls that wait for their handler. A caller gets "busy" beyond that, and may ask again.
_WAITING_COMMANDS = 16
# Garbage is counted, and told at most this often (seconds).
_TELL_INTERVAL = 60.0


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
    """The provider ``mqtt``. Thread-safe. Nothing is connected before the first call."""

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
        self._link = _Link(identity.station, Topics(checked.prefix), Transport(_broker(identity, checked), WHERE))
        self.uplink = MqttUplink(self, checked.json_streams, preset.tells_subscribers, self._link, clock)
        self._state = _State(self._link, clock)
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


class _Link:
    """The one connection of the provider, made when somebody needs it. After close there is none."""

    def __init__(self, station: str, topics: Topics, transport: Transport) -> None:
        self.station = station
        self.topics = topics
        self.ignored = 0
        self.max_packet_bytes = 1 << 28  # what MQTT allows, until the broker has said less
        self.hearers: dict[str, Callable[[Delivery], None]] = {}  # by kind of topic; complete before the first call
        self.on_lost: Callable[[Connection, LinkError], None] = lambda connection, error: None
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
        with self._opening:
            with self.changed:
                connection = self._connection
                if self._closed:
                    raise ClosedError("The provider is closed.")
                if connection is not None and connection.alive:
                    return connection
                fresh = self._connection = Connection(
                    self._transport,
                    on_delivery=self._delivered,
                    on_lost=self._lost,
                    will=self._presence(connected=False),
                )
            if connection is not None:
                connection.close()
            kinds = ("ack", "desired", "canary")
            filters = [self.topics.of(self.station, kind) for kind in kinds] + [self.topics.command(self.station, "+")]
            fresh.open(filters, timeout)
            self.max_packet_bytes = fresh.max_packet_bytes
            fresh.publish(self._presence(connected=True), lambda error: self._greeted(fresh, error))
            return fresh

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
        self._canaries[nonce] = False
        try:
            self.ask(connection, Publication(self.topics.of(self.station, "canary"), nonce), timeout)
            self._await(connection, lambda: self._canaries[nonce], deadline - time.monotonic())
        finally:
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
            raise LinkDownError(f"The connection to the broker at {connection.address} was lost.")
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
        if delivery.payload not in self._canaries:
            raise WireError("That is no canary of ours.")
        with self.changed:
            self._canaries[delivery.payload] = True
            self.changed.notify_all()

    def _lost(self, connection: Connection, error: LinkError) -> None:
        with self.changed:
            self.changed.notify_all()
        self.on_lost(connection, error)


class MqttUplink:
    """Messages up, the far end's word down. One session for each ``connect``."""

    def __init__(
        self, provider: MqttProvider, json_streams: tuple[str, ...], tells_subscribers: bool, link: _Link, clock: Clock
    ) -> None:
        self._provider = provider
        self._json_streams = frozenset(json_streams)
        self._tells_subscribers = tells_subscribers
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._session: _Session | None = None
        link.hearers["ack"] = self.hear
        link.on_lost = self._lost

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        with self._lock:
            if self._session is not None and self._session.alive:
                return
            connection = self._link.connection(timeout)
            pace = Pace(self._provider.limits.messages_per_second)
            session = self._session = _Session(connection, listener, pace, self._clock)
        if not connection.alive:  # lost before there was a session to tell
            session.end()
            raise LinkDownError(f"The connection to the broker at {connection.address} was lost.")

    def send(self, message: Message, timeout: float) -> None:
        session = self._alive()
        largest = self._provider.limits.max_message_bytes or 0
        pieces = list(self._pieces(message, largest))
        if any(len(piece.payload) > largest for piece in pieces):
            raise RefusedError(f"A message of {len(message.block)} bytes; this broker carries {largest}.")
        session.send(message, pieces, self._clock.monotonic() + timeout)

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        session = self._alive()
        payload = document(reports)
        while len(payload) > (self._provider.limits.max_message_bytes or 0) and reports:
            reports = reports[: len(reports) // 2]  # thousands of streams: the first ones are better than none
            payload = document(reports)
        publication = Publication(self._topic("ledgers"), payload, content_type=JSON)
        session.publish(publication, session.confirmed, self._clock.monotonic() + timeout)

    def probe(self, timeout: float) -> None:
        self._link.canary(self._alive().connection, timeout)

    def disconnect(self) -> None:
        self._forget()
        self._link.drop()  # first: a connect that waits ends now
        with self._lock:
            pass  # and is over
        self._forget()

    def hear(self, delivery: Delivery) -> None:
        """The far end's word, on awscrt's thread. WireError when it is none."""
        word = read_word(delivery.payload)
        session = self._session
        if session is None or not session.alive:
            return
        if word.missing:
            session.missed(word.missing, word.through)
        else:
            session.hear(Acknowledgement(word.stream, word.epoch_number, word.through, word.refused))

    def _pieces(self, message: Message, largest: int) -> Iterator[_Piece]:
        """*message* as it goes over the wire: as it is, or as JSON in as many pieces as it takes."""
        needs, topic = self._tells_subscribers, self._link.topics.up(self._link.station, message.stream)
        if message.stream not in self._json_streams or not message.block.startswith(MAGIC):
            yield _Piece(topic, message.first_sequence, message.last_sequence, message.block, BLOCK, needs)
            return
        try:
            for first, last, text in documents(message, self._link.station, largest):
                if text is not None:
                    yield _Piece(topic, first, last, text, JSON, needs)
                else:
                    yield _Piece(topic, first, last, block_of(message, first, last), BLOCK, needs)
        except CorruptBlockError as exc:
            raise RefusedError(f"The block cannot be read, to be sent as JSON: {exc}") from exc

    def _lost(self, connection: Connection, error: LinkError) -> None:
        session = self._session
        if session is not None and session.connection is connection:
            session.lost(error)

    def _forget(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.end()

    def _topic(self, kind: str) -> str:
        return self._link.topics.of(self._link.station, kind)

    def _alive(self) -> _Session:
        session = self._session
        if session is None or not session.alive:
            raise LinkDownError("There is no connection to the broker.")
        return session


@dataclass(frozen=True, slots=True)
class _Piece:
    """One publication of a message."""

    topic: str
    first: int
    last: int
    payload: bytes
    content_type: str
    needs_subscriber: bool


@dataclass(slots=True)
class Pace:
    """At most so many a second, with a quarter of a second's worth at once. Pure; None = no bound."""

    per_second: float | None
    _due: float = 0.0  # when the next one would go if none were early

    def wait(self, now: float) -> float:
        """Seconds until one more may go; 0 means now, and counts it."""
        if self.per_second is None:
            return 0.0
        early = max(self._due, now) - now - max(0.25, 1.0 / self.per_second) + 1.0 / self.per_second
        if early > 1e-9:
            return early
        self._due = max(self._due, now) + 1.0 / self.per_second
        return 0.0


@dataclass(slots=True, eq=False)
class _Session:
    """What one ``connect`` of the uplink has sent and heard."""

    connection: Connection
    listener: UplinkListener
    pace: Pace
    clock: Clock
    link: str = field(default_factory=lambda: secrets.token_hex(4))  # the hub's name for this session
    _over: bool = False
    _unconfirmed: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _chain: dict[tuple[str, int], int] = field(default_factory=dict)  # last number sent, by (stream, epoch)
    _whole: dict[tuple[str, int, int], int] = field(default_factory=dict)  # last number of a message in pieces

    @property
    def alive(self) -> bool:
        return not self._over and self.connection.alive

    def send(self, message: Message, pieces: list[_Piece], deadline: float) -> None:
        """Publish *pieces* of *message*; ``accepted`` follows when the broker has taken every one."""
        key = (message.stream, message.epoch)
        waiting = len(pieces)

        def confirmed(piece: _Piece, error: LinkError | None) -> None:
            nonlocal waiting  # on awscrt's one thread
            self.confirmed(error, message)
            waiting -= error is None
            if not waiting and not self._over:
                self.listener.accepted(Acknowledgement(*key, message.last_sequence))

        if len(pieces) > 1:
            self._whole.update({(*key, piece.last): message.last_sequence for piece in pieces})
        after = message.after
        if after is not None:
            # What was refused on the way here was never sent, and what is sent again follows what it followed then.
            after = min(after, self._chain.get(key, after))
        for piece in pieces:
            before = None if after is None else min(after, piece.first - 1)
            envelope = Envelope(message.epoch, piece.first, piece.last, before, message.settled, self.link)
            publication = Publication(
                piece.topic,
                piece.payload,
                content_type=piece.content_type,
                properties=envelope.properties(),
                needs_subscriber=piece.needs_subscriber,
            )
            self.publish(publication, lambda error, piece=piece: confirmed(piece, error), deadline)  # type: ignore[misc]
            if after is not None:
                after = self._chain[key] = piece.last

    def publish(self, publication: Publication, done: Callable[[LinkError | None], None], deadline: float) -> None:
        """When there is room and it is time; DeadlineError when that is not before *deadline* (monotonic seconds)."""
        with self._changed:
            room = min(self.connection.receive_maximum, _UNCONFIRMED)
            free = self._changed.wait_for(
                lambda: not self.alive or self._unconfirmed < room, max(0.0, deadline - self.clock.monotonic())
            )
            if not free:
                raise DeadlineError("The broker confirmed nothing in time.")
            while self.alive and (wait := self.pace.wait(now := self.clock.monotonic())):
                if now + wait > deadline:
                    raise DeadlineError(
                        f"The broker takes {self.pace.per_second:g} messages a second, and no more now."
                    )
                self._changed.wait(wait)
            if not self.alive:
                raise LinkDownError("The connection to the broker was lost.")
            self._unconfirmed += 1
        try:
            self.connection.publish(publication, done)
        except LinkError:
            self._release()
            raise

    def confirmed(self, error: LinkError | None, message: Message | None = None) -> None:
        """The PUBACK of one publication: room for another, or a refusal, or the end of the connection."""
        self._release()
        if error is None or self._over:
            return
        if isinstance(error, RefusedError) and message is not None:
            refusal = Acknowledgement(message.stream, message.epoch, message.last_sequence, str(error))
            self.listener.acknowledged(refusal)
        else:
            self.connection.fail(error)

    def hear(self, word: Acknowledgement) -> None:
        key = (word.stream, word.epoch)
        if word.refused:  # of a piece: the uplink knows the whole message only
            through = self._whole.get((*key, word.through), word.through)
            word = Acknowledgement(word.stream, word.epoch, through, word.refused)
        elif self._whole:
            for known in [known for known in self._whole if known[:2] == key and known[2] <= word.through]:
                del self._whole[known]
        self.listener.acknowledged(word)

    def missed(self, link: str, through: int) -> None:
        """The far end sees a hole in what the session *link* sent: everything unacknowledged goes again."""
        if link == self.link:
            self.connection.fail(LinkDownError(f"Something that was sent after number {through} got lost on the way."))

    def lost(self, error: LinkError) -> None:
        if not self._over:
            self.end()
            self.listener.lost(error)

    def end(self) -> None:
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _release(self) -> None:
        with self._changed:
            self._unconfirmed -= 1
            self._changed.notify_all()


class _State:
    """The thread that keeps the connection for those who only listen, and calls them. Started when it is needed."""

    def __init__(self, link: _Link, clock: Clock) -> None:
        self.news = threading.Event()
        self.deliver: Callable[[], None] = lambda: None  # calls the watchers; on this thread
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Idempotent. ClosedError."""
        with self._lock:
            if self._stopping.is_set():
                raise ClosedError("The provider is closed.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outstation-mqtt-state", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping.set()
        self.news.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        first = True
        while not self._stopping.is_set():
            if self._link.present is None:
                # A fleet that lost its broker at one instant must not come back at one instant; and an uplink that
                # backs off is not to be overtaken.
                if not first:
                    self._clock.wait(self._stopping, _STATE_BACKOFF * random.uniform(0.1, 1.0))  # noqa: S311
                first = False
                with suppress(LinkError, ClosedError):
                    self._link.connection(_STATE_TIMEOUT)
            self.news.clear()
            self.deliver()
            self._clock.wait(self.news, 1.0)  # a loss needs no word of its own: it is seen within the second


class MqttDesired:
    """The retained topics ``desired`` and ``reported``."""

    def __init__(self, link: _Link, state: _State, clock: Clock) -> None:
        self._link = link
        self._state = state
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Desired | None = None  # what came last; None = nothing has, on any connection
        self._flaw = ""  # why what came last is no desired state
        self._watchers: dict[object, tuple[Callable[[Desired], None], Desired | None]] = {}
        link.hearers["desired"] = self._hear
        state.deliver = self._deliver

    def current(self, timeout: float) -> Desired:
        deadline = self._clock.monotonic() + timeout
        connection = self._link.connection(timeout)
        # A retained message comes with the subscription, so it has come when a canary is back.
        self._link.canary(connection, max(0.0, deadline - self._clock.monotonic()))
        if self._flaw:
            raise ProviderUnavailableError(f"What the broker keeps is no desired state: {self._flaw}")
        return self._known or Desired()

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        self._state.start()
        key = object()
        with self._lock:
            self._watchers[key] = (callback, None)
        self._state.news.set()

        def stop() -> None:
            with self._lock:
                self._watchers.pop(key, None)

        return stop

    def report(self, state: Reported, timeout: float) -> None:
        deadline = self._clock.monotonic() + timeout
        connection = self._link.connection(timeout)
        topic = self._link.topics.of(self._link.station, "reported")
        report = Publication(topic, document(state), retain=True, content_type=JSON)
        self._link.ask(connection, report, max(0.0, deadline - self._clock.monotonic()))

    def _hear(self, delivery: Delivery) -> None:
        try:
            self._known, self._flaw = read_desired(delivery.payload), ""
        except WireError as exc:
            self._flaw = str(exc)
            raise
        self._state.news.set()

    def _deliver(self) -> None:
        known = self._known
        with self._lock:
            due = [(key, call) for key, (call, told) in self._watchers.items() if known is not None and told != known]
            for key, call in due:
                self._watchers[key] = (call, known)
        for key, call in due:
            if known is not None and key in self._watchers:
                call(known)


class MqttCommands:
    """Calls from the far end: ``cmd/NAME`` in, the request's response topic out, with its correlation data."""

    def __init__(self, link: _Link, state: _State) -> None:
        self._link = link
        self._state = state
        self._handlers: dict[str, Callable[[bytes], bytes]] = {}
        self._waiting: queue.Queue[Delivery | None] = queue.Queue(_WAITING_COMMANDS)
        self._thread = threading.Thread(target=self._run, name="outstation-mqtt-commands", daemon=True)
        link.hearers["cmd"] = self._hear

    def serve(self, name: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer calls of *name*, one at a time, on a thread of the provider. InvalidNameError, ClosedError."""
        if STREAM_NAME.fullmatch(name) is None:
            raise InvalidNameError(f"{name!r} is no name of a command.", hint=f"It must match {STREAM_NAME.pattern}.")
        self._handlers[name] = handler
        self._state.start()
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            self._waiting.put(None)
            self._thread.join()

    def _hear(self, delivery: Delivery) -> None:
        if not delivery.response_topic.startswith(self._link.topics.replies(self._link.station)):
            raise WireError("A command must ask for its answer below the station's own topic `reply`.")
        try:
            self._waiting.put_nowait(delivery)
        except queue.Full:
            self._reply(delivery, "busy", b"")

    def _run(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            handler = self._handlers.get(delivery.topic.rpartition("/")[2])
            if handler is None:
                self._reply(delivery, "unknown", b"")
                continue
            try:
                answer = handler(delivery.payload)
            except Exception as exc:
                # The caller hears of it; a handler's fault must not end the thread that serves the others.
                log.exception("the command %s failed", delivery.topic)
                self._reply(delivery, "failed", f"{type(exc).__name__}: {exc}".encode())
            else:
                self._reply(delivery, "done", answer)

    def _reply(self, delivery: Delivery, status: str, payload: bytes) -> None:
        connection = self._link.present
        reply = Publication(
            delivery.response_topic, payload, properties=(("status", status),), correlation=delivery.correlation
        )
        if connection is not None:
            with suppress(LinkError):  # the caller has a timeout, and asks again
                connection.publish(reply, lambda _: None)
