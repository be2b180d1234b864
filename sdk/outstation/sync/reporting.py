"""Tells the far end how the station is: on every change of a model, and at an interval."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from outstation.clock import Clock
from outstation.errors import OutstationError
from outstation.provider import DesiredState
from outstation.types import Reported

log = logging.getLogger("outstation.sync")

# An operator's table should not be older than this while the link is up; a report is some hundred bytes.
REPORT_INTERVAL = 5.0
REPORT_TIMEOUT = 5.0


class Reporter:
    """One owned thread that hands *state* to the provider. A report that fails is made anew at the next turn."""

    def __init__(
        self,
        desired: DesiredState,
        state: Callable[[], Reported],
        clock: Clock,
        stretched: Callable[[float], float] = float,
    ) -> None:
        """*stretched*: the interval, longer while every byte costs."""
        self._stretched = stretched
        self._desired = desired
        self._state = state
        self._clock = clock
        self._changed = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="outstation-reporter", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def changed(self) -> None:
        """Report soon. From any thread; returns at once."""
        self._changed.set()

    def close(self, timeout: float = REPORT_TIMEOUT + 1.0) -> None:
        self._stopping = True
        self._changed.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._stopping:
            self._changed.clear()
            try:
                self._desired.report(self._state(), REPORT_TIMEOUT)
            except OutstationError as exc:
                log.debug("the far end was not told: %s", exc)
            except Exception:
                log.exception("the report to the far end failed")  # a fault in an adapter must not end the thread
            self._clock.wait(self._changed, self._stretched(REPORT_INTERVAL))
