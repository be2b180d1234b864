"""What the hub has to say to stations: acknowledgements, refusals, desired state. Bounded; published by one thread."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Iterator

from outstation.errors import DeadlineError, LinkError
from outstation.types import Desired
from outstation.wire.mqtt import Connection, Publication
from outstation.wire.topics import JSON, Topics, Word, document
from outstation_hub.stations import Stations
from outstation_hub.wishes import Wishes

log = logging.getLogger("outstation.hub")

# Acknowledgements are one a stream, as they are cumulative; a station that is not told sends again.
MAX_ACKNOWLEDGED = 100_000
# Refusals and requests to send again: forgotten beyond that, and earned again by the next repetition.
MAX_WORDS = 1000
# Publications that wait for their PUBACK; the broker's receive maximum bounds what awscrt has on the way.
MAX_UNCONFIRMED = 256
# Seconds between looks at the operators' wishes: one comparison of two numbers.
LOOK_INTERVAL = 0.25
# Seconds that a stuck broker may hold the speaker up before the connection is taken for lost.
PATIENCE = 15.0


class Speaker:
    """Keeps what is to be said; :meth:`speak` says it. Thread-safe, but for ``speak``, which one thread calls."""

    def __init__(self, topics: Topics, wishes: Wishes, stations: Stations) -> None:
        self._topics = topics
        self._wishes = wishes
        self._stations = stations
        self._changed = threading.Condition()
        self._through: OrderedDict[tuple[str, str, str], int] = OrderedDict()  # station, stream, epoch
        self._held: OrderedDict[tuple[str, str, str], Word] = OrderedDict()  # the latest of each says all
        self._words: deque[tuple[str, Word]] = deque(maxlen=MAX_WORDS)
        self._greeted: set[str] = set()  # stations whose desired state is to be looked at
        self._under_way: dict[int, tuple[str, Word]] = {}  # words that the broker has not confirmed, by a number
        self._unconfirmed = 0
        self._number = 0
        self._told: dict[str, Desired] = {}  # on this connection
        self._told_revision = 0

    def say(self, station: str, word: Word) -> None:
        """Leave a word for *station*. Never waits."""
        with self._changed:
            if word.refused or word.missing:
                if (station, word) not in self._words:
                    self._words.append((station, word))
            elif word.held is not None:
                self._held[station, word.stream, word.epoch] = word
                if len(self._held) > MAX_ACKNOWLEDGED:
                    self._held.popitem(last=False)
            else:
                key = (station, word.stream, word.epoch)
                self._through[key] = max(word.through, self._through.get(key, 0))
                if len(self._through) > MAX_ACKNOWLEDGED:
                    self._through.popitem(last=False)
            self._changed.notify_all()

    def greet(self, station: str) -> None:
        """*station* is there: what operators want of it may have to be published."""
        with self._changed:
            self._greeted.add(station)  # at most as many as there are known stations
            self._changed.notify_all()

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def speak(self, connection: Connection, stopping: threading.Event) -> None:
        """Say what there is on *connection*, until it is lost or the hub stops."""
        self._unconfirmed = 0
        lost, self._under_way = self._under_way, {}
        for station, word in lost.values():  # the connection before took them along
            self.say(station, word)
        self._told.clear()
        self._told_revision = 0  # whatever the broker keeps, it is told anew
        while connection.alive and not stopping.is_set():
            for said, publication in self._next():
                self._publish(connection, said, publication, stopping)
            with self._changed:
                if not (self._through or self._held or self._words or self._greeted):
                    self._changed.wait(LOOK_INTERVAL)

    def _next(self) -> Iterator[tuple[tuple[str, Word] | None, Publication]]:
        """What is to be published now, with the word that it is, if it is one."""
        with self._changed:
            words, self._words = self._words, deque(maxlen=MAX_WORDS)
            through, self._through = self._through, OrderedDict()
            held, self._held = self._held, OrderedDict()
            greeted, self._greeted = self._greeted, set()
        # Refusals first: an acknowledgement of a later block covers what was refused before it.
        for station, word in [*words, *((key[0], word) for key, word in held.items())]:
            yield (station, word), self._word(station, word)
        for (station, stream, epoch), last in through.items():
            word = Word(stream, epoch, last)
            yield (station, word), self._word(station, word)
        if (revision := self._wishes.revision) != self._told_revision:
            self._told_revision = revision
            greeted = {entry.station for entry in self._stations.list()}
        for station in greeted:
            wish = self._wishes.get(station)
            # A hub of which nobody has wished anything is silent: another of the group may have a wish.
            if wish.revision and self._told.get(station) != wish:
                self._told[station] = wish
                topic = self._topics.of(station, "desired")
                yield None, Publication(topic, document(wish), retain=True, content_type=JSON)

    def _word(self, station: str, word: Word) -> Publication:
        return Publication(self._topics.of(station, "ack"), document(word), content_type=JSON)

    def _publish(
        self,
        connection: Connection,
        said: tuple[str, Word] | None,
        publication: Publication,
        stopping: threading.Event,
    ) -> None:
        self._number += 1
        number = self._number

        def done(error: LinkError | None) -> None:
            with self._changed:
                self._unconfirmed -= 1
                self._under_way.pop(number, None)
                self._changed.notify_all()
            if error is not None:
                log.warning("the broker did not take a message to %s: %s", publication.topic, error)

        with self._changed:
            if said is not None:
                self._under_way[number] = said
            free = self._changed.wait_for(
                lambda: self._unconfirmed < MAX_UNCONFIRMED or not connection.alive or stopping.is_set(), PATIENCE
            )
            if free:
                self._unconfirmed += 1
        if not free:
            connection.fail(DeadlineError("The broker confirmed nothing in time."))
            return
        try:
            connection.publish(publication, done)
        except LinkError as exc:
            log.debug("not said on %s: %s", publication.topic, exc)
