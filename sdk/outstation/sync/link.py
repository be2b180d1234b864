"""What the uplink knows of the far end, as a table of moves; the uplink does, this decides and remembers.

::

    offline ──try──▶ probing ──connected──▶ online
       ▲                │                     │
       └────failed──────┴────────lost─────────┘

A connection proves little: a broker may accept and lose. Failures are forgotten only when the far end has
acknowledged something, so a far end that accepts connections and then drops them is backed off from as well.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from outstation.clock import Clock
from outstation.sync.pacing import Backoff
from outstation.types import Link, LinkState


class LinkMonitor:
    """The state of the link, since when and why. Moved by the uplink's thread alone; read from any."""

    def __init__(self, clock: Clock, backoff: Backoff, on_change: Callable[[Link], None] = lambda _: None) -> None:
        """*on_change* hears of a link that has come or gone, not of each try; it must not raise."""
        self._clock = clock
        self._backoff = backoff
        self._on_change = on_change
        self._failures = 0
        self._lock = threading.Lock()
        self._link = Link(LinkState.OFFLINE, clock.time_unix_nano(), "not tried yet")

    @property
    def link(self) -> Link:
        with self._lock:
            return self._link

    @property
    def failures(self) -> int:
        """Failures in a row since the far end last acknowledged."""
        return self._failures

    def trying(self) -> None:
        self._move(LinkState.PROBING, self.link.reason)

    def connected(self) -> None:
        self._move(LinkState.ONLINE, "")

    def acknowledged(self) -> None:
        """The far end has what it said it has: the link is as good as it looks."""
        self._failures = 0

    def failed(self, reason: str, jitter: float) -> float:
        """The attempt or the connection failed; returns the seconds to wait before the next try."""
        self._failures += 1
        self._move(LinkState.OFFLINE, reason)
        return self._backoff.delay(self._failures, jitter)

    def _move(self, state: LinkState, reason: str) -> None:
        with self._lock:
            # While it stays away, "since" is when it went away: probing in between does not start it anew.
            both_away = LinkState.ONLINE not in (state, self._link.state)
            since = self._link.since_unix_nano if both_away else self._clock.time_unix_nano()
            self._link = link = Link(state, since, reason)
        if not both_away:
            self._on_change(link)
