"""Two devices of one name: who may take over the connection, decided from what came before. Pure but for its memory.

After a cut the hub may still hold a dead connection, so the newest one takes over at once. A device that was thrown
out by another one and comes back shows that both are alive: a restarted process never comes back as its former self.
From then on each holds the connection for a while before the other may have it, so that both deliver and neither
spends its time on connecting.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

# Seconds that a device keeps the connection once it is known that two want it: long enough to send a good deal, short
# enough that the other one's records are not late by much more than its own backoff makes them.
HOLD = 30.0
# Seconds that it is remembered who was thrown out, and that two devices were seen.
MEMORY = 3600.0
# Stations remembered, and instances of one: only names that were taken over are, and the oldest are forgotten.
MAX_STATIONS = 10_000
MAX_INSTANCES = 8


@dataclass(frozen=True, slots=True)
class Holder:
    """Who has the connection of a station, and since when (monotonic seconds). ``instance`` "" = it did not say."""

    instance: str
    since: float


class Duels:
    """What is remembered of take-overs. Not thread-safe."""

    def __init__(self) -> None:
        self._thrown: OrderedDict[str, OrderedDict[str, float]] = OrderedDict()
        self._seen: OrderedDict[str, float] = OrderedDict()

    def wait(self, station: str, newcomer: str, holder: Holder, now: float) -> float:
        """Seconds that *newcomer* has to wait for the connection that *holder* has; 0.0 = it takes over now."""
        if newcomer and holder.instance and newcomer != holder.instance:
            if now - self._instances(station).get(newcomer, -MEMORY) < MEMORY:
                _remember(self._seen, station, now, MAX_STATIONS)
                left = HOLD - (now - holder.since)
                if left > 0:
                    return left
            _remember(self._instances(station), holder.instance, now, MAX_INSTANCES)
        return 0.0

    def is_doubled(self, station: str, now: float) -> bool:
        """Whether two devices were seen to use the name lately."""
        return now - self._seen.get(station, -MEMORY) < MEMORY

    def _instances(self, station: str) -> OrderedDict[str, float]:
        if station not in self._thrown and len(self._thrown) >= MAX_STATIONS:
            self._thrown.popitem(last=False)
        return self._thrown.setdefault(station, OrderedDict())


def _remember(known: OrderedDict[str, float], name: str, now: float, most: int) -> None:
    known[name] = now
    known.move_to_end(name)
    if len(known) > most:
        known.popitem(last=False)
