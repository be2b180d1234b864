"""What may be taken now, what must wait for something before it, and what was waited for in vain. Pure.

A broker may lose a message, and with several hubs in one share group each gets every so many-th message of a station.
So each message says what it follows (``after``), and :class:`Order` keeps what this hub knows beside its own marks:
how far other hubs and the station itself say that everything is decided, and the messages that came too early.
docs/adr/0046 has the reasons.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = tuple[str, str, int]  # station, stream, epoch
T = TypeVar("T")

# Seconds without any progress before something earlier is given up, and the station told to send again. A hub that
# syncs slowly needs a second; a station that hears nothing at all would notice after fifteen.
HOLD = 3.0
# Messages that wait, and their bytes: a few stations' windows. One more is not kept, and sent again.
MAX_EARLY = 1024
MAX_EARLY_BYTES = 64 << 20
# Keys that are remembered. To forget one costs a repetition, never a record.
MAX_KEYS = 100_000


@dataclass(frozen=True, slots=True)
class Early(Generic[T]):
    """A message that came too early."""

    first: int
    size_bytes: int
    item: T


@dataclass(slots=True)
class _Gap(Generic[T]):
    since: float  # monotonic seconds of the last progress
    early: list[Early[T]] = field(default_factory=list)


class Order(Generic[T]):
    """Not thread-safe: one thread takes messages."""

    def __init__(self) -> None:
        self._settled: OrderedDict[Key, int] = OrderedDict()
        self._passed: OrderedDict[Key, tuple[str, int]] = OrderedDict()
        self._gaps: dict[Key, _Gap[T]] = {}
        self._count = 0
        self._bytes = 0

    def settle(self, key: Key, through: int) -> bool:
        """Everything of *key* through this number is decided elsewhere. True when that is news."""
        if through <= self._settled.get(key, 0):
            return False
        _remember(self._settled, key, through)
        return True

    def settled(self, key: Key) -> int:
        return self._settled.get(key, 0)

    def pass_over(self, key: Key, link: str, last: int) -> None:
        """The message that ends at *last* was refused, with nothing missing before it: the next may follow.

        It counts for that *link* only. Should the disk refuse what came before, all of it comes again on another.
        """
        _remember(self._passed, key, (link, last))

    def bound(self, key: Key, link: str) -> int:
        """What may be followed beside this hub's own mark."""
        passed_on, last = self._passed.get(key, ("", 0))
        return max(self.settled(key), last if passed_on == link else 0)

    def keep(self, key: Key, early: Early[T], now: float) -> bool:
        """Keep a message until what is before it has come; False when there is no room."""
        if self._count >= MAX_EARLY or self._bytes + early.size_bytes > MAX_EARLY_BYTES:
            return False
        gap = self._gaps.setdefault(key, _Gap(now))
        gap.early.append(early)
        gap.early.sort(key=lambda one: one.first)  # stable: parts of one record keep their order
        self._count += 1
        self._bytes += early.size_bytes
        return True

    def release(self, key: Key) -> list[Early[T]]:
        """All that waits for *key*, in order, to be tried again: something before it has come."""
        gap = self._gaps.pop(key, None)
        if gap is None:
            return []
        self._count -= len(gap.early)
        self._bytes -= sum(early.size_bytes for early in gap.early)
        return gap.early

    def given_up(self, now: float) -> list[tuple[Key, list[Early[T]]]]:
        """What has waited in vain for :data:`HOLD` seconds; it is kept no longer."""
        stale = [key for key, gap in self._gaps.items() if now - gap.since > HOLD]
        return [(key, self.release(key)) for key in stale]

    @property
    def waiting(self) -> int:
        return self._count


def _remember(known: OrderedDict[Key, T], key: Key, value: T) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > MAX_KEYS:
        known.popitem(last=False)
