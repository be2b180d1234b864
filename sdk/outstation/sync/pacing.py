"""How fast, and whose turn: pure decisions of the uplink, testable in a microsecond."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter.

    Full jitter (a uniform draw from zero to the bound) keeps a fleet that lost its link at one instant from coming
    back at one instant. Source: M. Brooker, "Exponential Backoff And Jitter", 2015.
    """

    first: float = 0.5
    ceiling: float = 60.0

    def delay(self, failures: int, jitter: float) -> float:
        """Seconds to wait after *failures* in a row; *jitter* is in [0, 1)."""
        return min(self.ceiling, self.first * 2.0 ** min(failures - 1, 30)) * jitter


@dataclass(frozen=True, slots=True)
class Sent:
    """One message under way."""

    stream: str
    last_sequence: int
    size_bytes: int
    at: float  # monotonic seconds


class Window:
    """What was sent and is not yet acknowledged, bounded in messages and in bytes.

    A message larger than the whole window still goes when nothing else is under way, or it would never go.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._sent: deque[Sent] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    def has_room(self, size_bytes: int = 0) -> bool:
        if not self._sent:
            return True
        return len(self._sent) < self._max_messages and self._bytes + size_bytes <= self._max_bytes

    def add(self, sent: Sent) -> None:
        self._sent.append(sent)
        self._bytes += sent.size_bytes

    def acknowledge(self, stream: str, through: int) -> None:
        """Forget what *through* covers."""
        keep = deque(sent for sent in self._sent if sent.stream != stream or sent.last_sequence > through)
        self._sent = keep
        self._bytes = sum(sent.size_bytes for sent in keep)

    def oldest(self) -> Sent | None:
        """The message that has waited longest."""
        return self._sent[0] if self._sent else None

    def clear(self) -> None:
        self._sent.clear()
        self._bytes = 0


class Turns:
    """Which stream sends next: by priority, but every fourth message goes to whoever has waited longest.

    One in four bounds both sides: the most important stream keeps three quarters of the link under any load, and
    the least important of n streams moves at least once in 4n messages.
    """

    RESERVED_EVERY = 4

    def __init__(self) -> None:
        self._turn = 0
        self._served: dict[str, int] = {}

    def next(self, ready: Iterable[tuple[int, str]]) -> str | None:
        """The name to serve among *ready* = (priority, name), 0 first; None when nobody is ready. Decides only."""
        waiting = list(ready)
        if not waiting:
            return None
        if (self._turn + 1) % self.RESERVED_EVERY == 0:
            _, name = min(waiting, key=lambda entry: (self._served.get(entry[1], 0), entry))
        else:
            _, name = min(waiting, key=lambda entry: (entry[0], self._served.get(entry[1], 0), entry[1]))
        return name

    def served(self, name: str) -> None:
        """*name* was served: a turn that came to nothing, for want of room, is not one."""
        self._turn += 1
        self._served[name] = self._turn
