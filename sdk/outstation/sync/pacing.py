"""How fast, and whose turn: pure decisions of the uplink, testable in a microsecond."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from outstation.errors import SettingsError


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
    """One message under way, or one part of a record that is larger than a message."""

    stream: str
    last_sequence: int
    size_bytes: int
    at: float  # monotonic seconds
    end: int = 0  # of a part: where it ends in its block


class Window:
    """What was sent and is not yet acknowledged, bounded in messages and in bytes.

    ``max_bytes`` follows the link (:class:`Flow`). A message larger than the whole window still goes when nothing
    else is under way, or it would never go.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self.max_bytes = max_bytes
        self._sent: deque[Sent] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._sent)

    def has_room(self, size_bytes: int = 0) -> bool:
        if not self._sent:
            return True
        return len(self._sent) < self._max_messages and self._bytes + size_bytes <= self.max_bytes

    def add(self, sent: Sent) -> None:
        self._sent.append(sent)
        self._bytes += sent.size_bytes

    def acknowledge(self, stream: str, through: int) -> list[Sent]:
        """Forget what *through* covers, and return it."""
        return self._forget(lambda sent: sent.stream == stream and sent.last_sequence <= through)

    def hold(self, stream: str, last_sequence: int, held_bytes: int) -> list[Sent]:
        """Forget the parts of one record that the far end holds, and return them."""
        return self._forget(
            lambda sent: (sent.stream, sent.last_sequence) == (stream, last_sequence) and 0 < sent.end <= held_bytes
        )

    def oldest(self) -> Sent | None:
        """The message that has waited longest."""
        return self._sent[0] if self._sent else None

    def clear(self) -> None:
        self._sent.clear()
        self._bytes = 0

    def _forget(self, arrived: Callable[[Sent], bool]) -> list[Sent]:
        gone = [sent for sent in self._sent if arrived(sent)]
        if gone:
            self._sent = deque(sent for sent in self._sent if not arrived(sent))
            self._bytes = sum(sent.size_bytes for sent in self._sent)
        return gone


class Flow:
    """How much may be under way, learned from how long acknowledgements take.

    As long as an answer comes hardly later than the fastest did, the window grows with each; once answers wait for
    each other by more than ``DELAY``, the link is full and the window shrinks. So a fast link is filled within a few
    round trips, and on a slow one nothing of ours makes a keepalive or an alarm wait for longer than that. The idea is
    that of LEDBAT (RFC 6817).
    """

    DELAY = 1.0  # seconds that our own data may wait for itself; a keepalive waits as long, and has 10
    FLOOR_BYTES = 8 << 10  # at 4,000 bytes a second two seconds
    FIRST_BYTES = 128 << 10  # on a link that nothing is known of
    SMALLEST_MESSAGE_BYTES = 4 << 10

    RELEARN_INTERVAL = 120.0  # seconds after which a fastest answer is no longer believed of a slow link

    def __init__(self, ceiling_bytes: int) -> None:
        self._ceiling_bytes = ceiling_bytes
        self._floor_bytes = min(self.FLOOR_BYTES, ceiling_bytes)
        self._fastest = float("inf")  # seconds
        self._learned_at = float("-inf")
        self._changed_at = float("-inf")  # answers to what was sent before tell of another window
        self.window_bytes = min(self.FIRST_BYTES, ceiling_bytes)

    @property
    def message_bytes(self) -> int:
        """How large a message may be: several to a window, so that an answer comes before it is empty."""
        return max(self.SMALLEST_MESSAGE_BYTES, self.window_bytes // 2)

    def acknowledged(self, size_bytes: int, sent_at: float, now: float) -> None:
        """An answer has come to *size_bytes*, the newest of them sent at *sent_at*."""
        took = now - sent_at
        if took <= self.DELAY:
            self._grow(size_bytes)
        elif sent_at < self._changed_at:
            return
        elif now - self._learned_at > self.RELEARN_INTERVAL and self._fastest < took:
            # The way may have become longer, or all answers wait for each other: an almost empty link tells which.
            self._fastest = float("inf")
            self._change(self._floor_bytes, now)
            return
        elif took - min(took, self._fastest) <= self.DELAY:
            self._grow(size_bytes)
        else:
            self._change(round(self.window_bytes * max(0.5, self.DELAY / (took - self._fastest))), now)
        if took <= self._fastest:
            self._fastest, self._learned_at = took, now

    def lost(self) -> None:
        """The link failed with data under way: begin with less, and learn anew how fast it is."""
        self._fastest = float("inf")
        self.window_bytes = max(self._floor_bytes, min(self.FIRST_BYTES, self.window_bytes // 2))

    def _grow(self, size_bytes: int) -> None:
        self.window_bytes = min(self._ceiling_bytes, self.window_bytes + size_bytes)

    def _change(self, window_bytes: int, now: float) -> None:
        self._changed_at = now
        self.window_bytes = max(self._floor_bytes, window_bytes)


_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")


@dataclass(frozen=True, slots=True)
class Hours:
    """Times of the day at which records may leave; none = always. In minutes since local midnight, end excluded."""

    spans: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, texts: Iterable[str]) -> Hours:
        """From "02:00-04:00"; "22:00-02:00" goes over midnight. SettingsError for anything else."""
        spans = []
        for text in texts:
            found = _WINDOW.fullmatch(text.strip())
            if found is None:
                raise SettingsError(f"{text!r} is no time of the day to send at.", hint='Write "02:00-04:00".')
            start, end = (
                60 * int(hour or 24) + int(minute or 0) for hour, minute in (found.group(1, 2), found.group(3, 4))
            )
            if start == end:
                raise SettingsError(f"{text!r} begins when it ends.", hint='Write "00:00-24:00" for the whole day.')
            spans.append((start, end))
        return cls(tuple(spans))

    def are_open(self, minute: int) -> bool:
        """Whether records may leave in that *minute* of the day."""
        return not self.spans or any(
            start <= minute < end if start < end else minute >= start or minute < end for start, end in self.spans
        )


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
