"""From the shared subscription into the inbox: in order, without holes, each message once."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    StorageError,
    WireError,
)
from outstation.provider import Message
from outstation.wire.jsonblock import read_document
from outstation.wire.mqtt import Delivery
from outstation.wire.topics import JSON, MAX_REASON, Envelope, Held, Topics, Word, read_word
from outstation_hub.inbox import Inbox, MissingRecordsError
from outstation_hub.mqtt.order import MAX_KEYS, Early, Key, Order
from outstation_hub.stations import Stations

log = logging.getLogger("outstation.hub")

_LOOK_INTERVAL = 0.5  # seconds between looks for what was waited for in vain

_TELL_INTERVAL = 10.0  # seconds between warnings of refused blocks


@dataclass(slots=True)
class Counts:
    """What came over MQTT since the hub started, beside what the inbox counts. Each field has one thread that counts.

    ``garbage`` are messages that were none, ``holes`` those that were let go, as something before them did not come,
    ``overflowed`` deliveries beyond what the hub keeps waiting.
    """

    garbage_up: int = 0
    garbage_state: int = 0
    holes: int = 0
    overflowed: int = 0

    @property
    def garbage(self) -> int:
        return self.garbage_up + self.garbage_state


class Inlet:
    """Deliveries between awscrt's thread and one of ours; bounded in number and bytes. Thread-safe."""

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: deque[Delivery] = deque()
        self._bytes = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, delivery: Delivery) -> bool:
        """False when there is no room."""
        with self._changed:
            if len(self._items) >= self._max_items or self._bytes + len(delivery.payload) > self._max_bytes:
                return False
            self._items.append(delivery)
            self._bytes += len(delivery.payload)
            self._changed.notify()
            return True

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def get(self, timeout: float) -> Delivery | None:
        """The next one; None when none comes in time, or once :meth:`close` was called."""
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed, timeout)
            if self._closed or not self._items:
                return None
            delivery = self._items.popleft()
            self._bytes -= len(delivery.payload)
            return delivery


@dataclass(frozen=True, slots=True)
class _Arrival:
    station: str
    message: Message
    link: str
    is_json: bool
    settle: Callable[[], None]

    @property
    def key(self) -> Key:
        return self.station, self.message.stream, self.message.epoch

    def word(self, through: int, *, refused: str = "", missing: str = "", held_bytes: int = 0) -> Word:
        held = Held(self.message.last_sequence, held_bytes) if held_bytes else None
        return Word(self.message.stream, f"{self.message.epoch:016x}", through, refused[:MAX_REASON], missing, held)


class Taker:
    """One thread that takes what stations send. *say* sends a word to a station; it must only hand over."""

    def __init__(
        self,
        topics: Topics,
        inbox: Inbox,
        stations: Stations,
        clock: Clock,
        *,
        counts: Counts,
        say: Callable[[str, Word], None],
        inlet: Inlet,
    ) -> None:
        self._topics = topics
        self._inbox = inbox
        self._stations = stations
        self._clock = clock
        self._counts = counts
        self._say = say
        self._inlet = inlet
        self._order: Order[_Arrival] = Order()
        self._links: OrderedDict[str, str] = OrderedDict()  # by station: the link of its last message
        self._tell_at = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outstation-hubserver-mqtt-take", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it has not taken is sent again. Idempotent."""
        self._stop.set()
        self._inlet.close()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        look_at = 0.0
        while not self._stop.is_set():
            delivery = self._inlet.get(_LOOK_INTERVAL)
            if delivery is not None:
                try:
                    self._hear(delivery)
                except WireError as exc:
                    self._counts.garbage_up += 1
                    log.debug("garbage on %s: %s", delivery.topic, exc)
                    delivery.settle()
                except ClosedError:
                    return
                except OutstationError as exc:
                    log.warning("a message on %s was not taken: %s", delivery.topic, exc)
                    delivery.settle()
                except Exception:
                    # A fault in what one message holds must not end the thread that takes all of them.
                    log.exception("a message on %s failed", delivery.topic)
                    delivery.settle()
            now = self._clock.monotonic()
            if now >= look_at:
                look_at = now + _LOOK_INTERVAL
                self._give_up(now)

    def _hear(self, delivery: Delivery) -> None:
        station, kind, rest = self._topics.parse(delivery.topic)
        if kind == "ack":  # the word of another hub of the group, or of an earlier life of this one
            delivery.settle()
            word = read_word(delivery.payload)
            key = (station, word.stream, word.epoch_number)
            if not word.refused and not word.missing and self._order.settle(key, word.through):
                self._retry(key)
            return
        envelope = Envelope.read(delivery.properties)
        message = envelope.message(rest, delivery.payload)
        arrival = _Arrival(station, message, envelope.link, delivery.content_type == JSON, delivery.settle)
        self._stations.seen(station)
        self._note_link(station, envelope.link)
        news = self._order.settle(arrival.key, message.settled)
        if self._take(arrival) or news:
            self._retry(arrival.key)

    def _note_link(self, station: str, link: str) -> None:
        """Another connection of the station: what failed on the one before comes again."""
        if self._links.get(station) != link:
            self._inbox.forget(station)
            self._links[station] = link
            if len(self._links) > MAX_KEYS:
                self._links.popitem(last=False)

    def _retry(self, key: Key) -> None:
        """Something of *key* has come: so may what waits for it, one after the other."""
        while waiting := self._order.release(key):
            moved = [self._take(early.item) for early in waiting]
            if not any(moved):
                return

    def _take(self, arrival: _Arrival) -> bool:
        """Take, refuse or keep a message. True when something that follows it may now be taken."""
        message, settled = arrival.message, self._order.settled(arrival.key)
        if message.last_sequence <= settled:
            self._inbox.counts.duplicates += 1
            self._say(arrival.station, arrival.word(message.last_sequence))
            arrival.settle()
            return False
        message = replace(message, settled=self._order.bound(arrival.key, arrival.link))
        try:
            if arrival.is_json:
                message = replace(message, block=_block(message, arrival.station))
            held = self._inbox.take(arrival.station, message, self._stop, lambda error: self._done(arrival, error))
        except MissingRecordsError:
            self._keep(arrival)
            return False
        except RefusedError as exc:
            return self._refuse(arrival, message, exc)
        except ProviderUnavailableError as exc:
            log.info("a block of %r must come again: %s", arrival.station, exc)
            self._say(arrival.station, arrival.word(settled, missing=arrival.link))
            arrival.settle()
            return False
        if held:
            self._say(arrival.station, arrival.word(settled, held_bytes=held))
            arrival.settle()
        return True

    def _done(self, arrival: _Arrival, error: StorageError | None) -> None:
        # On the commit thread: leave word and return.
        if error is None:
            self._say(arrival.station, arrival.word(arrival.message.last_sequence))
        else:
            self._say(arrival.station, arrival.word(0, missing=arrival.link))
        arrival.settle()

    def _refuse(self, arrival: _Arrival, message: Message, reason: RefusedError) -> bool:
        self._inbox.counts.refused += 1
        now = self._clock.monotonic()
        if now >= self._tell_at:  # whoever floods the hub must not fill its log as well
            self._tell_at = now + _TELL_INTERVAL
            log.warning("refused a block of %r (%d so far): %s", arrival.station, self._inbox.counts.refused, reason)
        follows = self._inbox.follows(arrival.station, message)
        if follows:
            self._order.pass_over(arrival.key, arrival.link, message.last_sequence)
        self._say(arrival.station, arrival.word(message.last_sequence, refused=str(reason)))
        arrival.settle()
        return follows

    def _keep(self, arrival: _Arrival) -> None:
        """It came too early. The broker has done its part; if what is before it never comes, the station repeats."""
        early = Early(arrival.message.first_sequence, len(arrival.message.block), arrival)
        arrival.settle()
        if not self._order.keep(arrival.key, early, self._clock.monotonic()):
            self._miss([early])

    def _give_up(self, now: float) -> None:
        for _, early in self._order.given_up(now):
            self._miss(early)

    def _miss(self, early: list[Early[_Arrival]]) -> None:
        self._counts.holes += len(early)
        for arrival in {one.item.link: one.item for one in early}.values():
            log.info("something before a block of %r did not come; it must send again", arrival.station)
            self._say(arrival.station, arrival.word(self._order.settled(arrival.key), missing=arrival.link))


def _block(message: Message, station: str) -> bytes:
    try:
        return read_document(message.block, station=station, message=message)
    except WireError as exc:
        raise RefusedError(str(exc)) from exc
