"""Time that moves only when a test says so."""

from __future__ import annotations

import threading

# A wait sleeps on the caller's event, which knows nothing of this clock, so it looks up this often (real seconds).
_LOOK_INTERVAL = 0.002
_NANO = 1_000_000_000


class FakeClock:
    """A :class:`outstation.clock.Clock` that a test moves by hand. Thread-safe.

    A :meth:`wait` of the code under test ends when its event is set or when :meth:`advance` has reached its
    deadline; it never ends because real time passed. :meth:`wait_for_waiters` lets a test be sure that a thread
    has begun its wait before the clock is moved.
    """

    def __init__(self, *, time_unix_nano: int = 1_700_000_000 * _NANO, monotonic: float = 1000.0) -> None:
        self._changed = threading.Condition()
        self._wall = time_unix_nano
        self._monotonic = monotonic
        self._deadlines: list[float] = []

    def time_unix_nano(self) -> int:
        with self._changed:
            return self._wall

    def monotonic(self) -> float:
        with self._changed:
            return self._monotonic

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until *event* is set or the clock was advanced by *timeout* seconds; True when it is set."""
        with self._changed:
            deadline = self._monotonic + timeout
            self._deadlines.append(deadline)
            self._changed.notify_all()
        try:
            while not event.is_set() and self.monotonic() < deadline:
                event.wait(_LOOK_INTERVAL)
            return event.is_set()
        finally:
            with self._changed:
                self._deadlines.remove(deadline)
                self._changed.notify_all()

    def advance(self, seconds: float) -> None:
        """Move both clocks forward; every wait whose deadline is reached ends."""
        with self._changed:
            self._monotonic += seconds
            self._wall += round(seconds * _NANO)
            self._changed.notify_all()

    def set_time(self, time_unix_nano: int) -> None:
        """Let the wall clock jump, in either direction; the monotonic clock stays."""
        with self._changed:
            self._wall = time_unix_nano

    @property
    def waiters(self) -> int:
        """How many threads are in a wait that this clock has not ended."""
        with self._changed:
            return self._pending()

    def wait_for_waiters(self, count: int = 1, timeout: float = 5.0) -> None:
        """Block until *count* threads are in a wait; AssertionError after *timeout* real seconds."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._pending() >= count, timeout):
                raise AssertionError(f"{self._pending()} of {count} threads wait on the clock after {timeout} s.")

    def _pending(self) -> int:
        return sum(deadline > self._monotonic for deadline in self._deadlines)
