"""Ends calls whose time is up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from outstation.clock import Clock, SystemClock
from outstation.inference.runtime import Stop

# With nothing to watch the thread sleeps until it is woken; this only bounds one wait.
_IDLE = 3600.0


class Deadlines:
    """Sets a :class:`Stop` when its time has come. Thread-safe; its thread starts with the first deadline."""

    def __init__(self, clock: Clock = SystemClock()) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._watched: dict[int, tuple[float, Stop]] = {}  # as many as there are calls at this moment
        self._thread: threading.Thread | None = None
        self._closed = False

    @contextmanager
    def limit(self, stop: Stop, timeout: float) -> Iterator[None]:
        """Set *stop* if the body has not ended within *timeout* seconds."""
        due = self._clock.monotonic() + timeout
        with self._lock:
            first = all(due < other for other, _ in self._watched.values())
            self._watched[id(stop)] = (due, stop)
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="outstation-deadlines", daemon=True)
                self._thread.start()
        if first:
            self._wake.set()
        try:
            yield
        finally:
            with self._lock:
                del self._watched[id(stop)]

    def close(self) -> None:
        """End the thread. Idempotent; what runs is watched no more."""
        with self._lock:
            self._closed = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            with self._lock:
                if self._closed:
                    return
                now = self._clock.monotonic()
                for due, stop in self._watched.values():
                    if due <= now:
                        stop.set()
                wait = min((due - now for due, _ in self._watched.values() if due > now), default=_IDLE)
            self._clock.wait(self._wake, min(wait, _IDLE))
