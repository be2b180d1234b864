"""What a hub wants of one station, and what the station reports."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress

from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    LinkError,
    WireError,
)
from outstation.providers.hub.link import Link
from outstation.types import Desired, Reported
from outstation.wire import convert
from outstation.wire.client import Responses
from outstation.wire.messages import StationReport

# Between tries to watch the desired state; an operator's change waits this long at most once the link is back.
_WATCH_BACKOFF = 5.0


class HubDesired:
    """The fleet service's side of one station."""

    def __init__(self, station: str, link: Link, clock: Clock) -> None:
        self._station = station
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._stopped = False

    def current(self, timeout: float) -> Desired:
        return self._link.client().unary(convert.GET_DESIRED)(self._station, timeout)

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        with self._lock:
            if self._stopped:
                raise ClosedError("The provider is closed.")
            watch = _Watch(self._station, self._link, self._clock, callback)
            self._watches.append(watch)
        return watch.stop

    def report(self, state: Reported, timeout: float) -> None:
        self._link.client().unary(convert.REPORT)(StationReport(self._station, state), timeout)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        for watch in self._watches:
            watch.stop()

    def join(self) -> None:
        for watch in self._watches:
            watch.thread.join()
        self._watches.clear()


class _Watch:
    """One watcher of the desired state, on a thread of its own that outlives every loss of the link."""

    def __init__(self, station: str, link: Link, clock: Clock, callback: Callable[[Desired], None]) -> None:
        self._station = station
        self._link = link
        self._clock = clock
        self._callback = callback
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._call: Responses[Desired] | None = None
        self._last: Desired | None = None
        self.thread = threading.Thread(target=self._run, name="outstation-hub-desired", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """No callback begins after the present one. Idempotent; does not wait."""
        with self._lock:
            self._stopping.set()
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(LinkError, WireError):
                try:
                    self._listen()
                except ClosedError:
                    return
            if self._stopping.is_set():
                return
            # A fleet that lost its hub at one instant must not come back at one instant.
            self._clock.wait(self._stopping, _WATCH_BACKOFF * random.uniform(0.1, 1.0))  # noqa: S311

    def _listen(self) -> None:
        client = self._link.client()
        client.wait_ready(_WATCH_BACKOFF, self._stopping)
        with self._lock:
            if self._stopping.is_set():
                return
            self._call = client.stream(convert.WATCH_DESIRED, self._station)
        for state in self._call:
            if self._stopping.is_set():
                return
            if state != self._last:
                self._last = state
                self._callback(state)
