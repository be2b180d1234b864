"""Messages up, the far end's word down.

A message's way: ``MqttUplink.send`` cuts it into pieces if it goes as JSON; ``_Session.publish`` waits for its turn
and for room in the broker's receive window; the PUBACK comes back to ``_Session.confirmed``, which says ``accepted``
and no more; the far end's word comes on the topic ``ack`` to ``MqttUplink.hear``, which hands it to the listener.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from outstation.clock import Clock
from outstation.errors import CorruptBlockError, DeadlineError, LinkDownError, LinkError, RefusedError
from outstation.provider import Acknowledgement, Limits, Message, UplinkListener
from outstation.providers.mqtt.link import Link
from outstation.types import StreamReport
from outstation.wire.block import MAGIC
from outstation.wire.jsonblock import block_of, documents
from outstation.wire.mqtt import Connection, Delivery, Publication
from outstation.wire.topics import BLOCK, JSON, Envelope, document, read_word

# Publications that wait for their PUBACK, if the broker lets us: enough for a long link, few enough to be resent.
_UNCONFIRMED = 64


class MqttUplink:
    """Messages up, the far end's word down. One session for each ``connect``."""

    def __init__(
        self,
        link: Link,
        clock: Clock,
        limits: Callable[[], Limits],
        json_streams: tuple[str, ...],
        *,
        tells_subscribers: bool,
    ) -> None:
        """*tells_subscribers*: a broker that says "no matching subscribers" means that nobody got the message."""
        self._limits = limits
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
            pace = Pace(self._limits().messages_per_second)
            session = self._session = _Session(connection, listener, pace, self._clock)
        if not connection.alive:  # lost before there was a session to tell
            session.end()
            raise connection.ended or LinkDownError(f"The broker at {connection.address} is gone again.")

    def send(self, message: Message, timeout: float) -> None:
        session = self._alive()
        largest = self._limits().max_message_bytes or 0
        pieces = list(self._pieces(message, largest))
        if any(len(piece.payload) > largest for piece in pieces):
            raise RefusedError(f"A message of {len(message.block)} bytes; this broker carries {largest}.")
        session.send(message, pieces, self._clock.monotonic() + timeout)

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        session = self._alive()
        payload = document(reports)
        while len(payload) > (self._limits().max_message_bytes or 0) and reports:
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
            return
        session.hear(Acknowledgement(word.stream, word.epoch_number, word.through, word.refused))
        if word.held is not None:
            key = (word.stream, word.epoch_number)
            session.listener.acknowledged(Acknowledgement(*key, word.held.last, held_bytes=word.held.bytes))

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
            ended = session.connection.ended if session is not None else None
            raise ended or LinkDownError("There is no connection to the broker.")
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
                raise self.connection.ended or LinkDownError("The uplink was disconnected.")
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
