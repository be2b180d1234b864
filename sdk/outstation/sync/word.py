"""What the provider's threads leave for the uplink's thread: a mailbox that is bounded whatever the far end says."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from outstation.provider import Acknowledgement, UplinkListener

# Refusals, and words of a broker, that wait at once. More than are ever under way, so that only a far end that
# repeats itself reaches it; what is dropped then is said again when the message is sent again.
MAX_WAITING = 10_000


@dataclass(slots=True)
class Heard:
    """What was said since the last look."""

    acknowledged: dict[str, int] = field(default_factory=dict)  # by stream; cumulative, so one entry is enough
    held: dict[tuple[str, int], int] = field(default_factory=dict)  # bytes, by stream and last sequence number
    refused: list[Acknowledgement] = field(default_factory=list)
    accepted: list[Acknowledgement] = field(default_factory=list)  # by the broker
    lost: Exception | None = None

    @property
    def from_far_end(self) -> bool:
        return bool(self.acknowledged or self.held or self.refused)


class Word:
    """Takes the word of one connection at a time; late word of an older one is passed over. Thread-safe."""

    def __init__(self, concerns: Callable[[Acknowledgement], bool], wake: Callable[[], None]) -> None:
        """*concerns*: whether it speaks of what was sent. *wake* is called when there is something to take."""
        self._concerns = concerns
        self._wake = wake
        self._lock = threading.Lock()
        self._connection = 0
        self._heard = Heard()

    def begin(self) -> UplinkListener:
        """Forget what was said, and listen to a new connection."""
        with self._lock:
            self._connection += 1
            self._heard = Heard()
            mine = self._connection

        def lost(exc: Exception) -> None:
            with self._lock:
                if mine == self._connection:
                    self._heard.lost = exc
            self._wake()

        return UplinkListener(
            lambda acknowledgement: self._take(mine, acknowledgement),
            lost,
            lambda acknowledgement: self._take(mine, acknowledgement, by_broker=True),
        )

    def take(self) -> Heard:
        with self._lock:
            heard, self._heard = self._heard, Heard(lost=self._heard.lost)
        return heard

    def _take(self, connection: int, word: Acknowledgement, *, by_broker: bool = False) -> None:
        # On the provider's thread: leave word and return.
        if not self._concerns(word):
            return
        with self._lock:
            if connection != self._connection:
                return
            heard = self._heard
            if by_broker or word.refused:
                waiting = heard.accepted if by_broker else heard.refused
                if len(waiting) < MAX_WAITING:
                    waiting.append(word)
            elif word.held_bytes:
                key = (word.stream, word.through)
                if key in heard.held or len(heard.held) < MAX_WAITING:
                    heard.held[key] = max(word.held_bytes, heard.held.get(key, 0))
            else:
                heard.acknowledged[word.stream] = max(word.through, heard.acknowledged.get(word.stream, 0))
        self._wake()
