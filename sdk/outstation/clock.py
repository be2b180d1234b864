"""Time as an argument: everything that needs it takes a :class:`Clock`; tests pass ``outstation.testing.FakeClock``."""

from __future__ import annotations

import threading
import time
from typing import Protocol

# How long the first thread may not have looked for a signal, in seconds.
_SIGNAL_INTERVAL = 0.5


class Clock(Protocol):
    """Wall time for stamps, monotonic time for durations, and a wait that a test can shorten."""

    def time_unix_nano(self) -> int:
        """Nanoseconds since 1970-01-01 UTC; may jump in either direction."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back; the zero is arbitrary."""
        ...

    def wait(self, event: threading.Event, timeout: float) -> bool:
        """Wait until *event* is set or *timeout* seconds have passed; True when it is set."""
        ...


class SystemClock:
    """The machine's clocks."""

    def time_unix_nano(self) -> int:
        return time.time_ns()

    def monotonic(self) -> float:
        return time.monotonic()

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.wait(timeout)


def wait_for_signal(stopping: threading.Event) -> None:
    """Sleep on the first thread of a process until a signal's handler sets *stopping*.

    A wait without a bound could sleep through it: the kernel may give the signal to any thread, as it does after
    SIGCONT, and Python runs the handler when the first thread next runs anything.
    """
    while not stopping.wait(_SIGNAL_INTERVAL):
        pass
