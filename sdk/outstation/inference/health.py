"""Tells the reconciler how each version does on live traffic: its probation is decided by it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from outstation.clock import Clock, SystemClock
from outstation.errors import OutstationError
from outstation.inference.host import Models

log = logging.getLogger("outstation.inference")

INTERVAL = 1.0

Report = Callable[[str, str, int, int], None]  # model, version, calls, errors since it began to answer


class HealthReporter:
    """One thread that reports every second. Counts are totals, so one report that fails costs nothing."""

    def __init__(self, models: Models, report: Report, clock: Clock = SystemClock()) -> None:
        self._models = models
        self._tell = report
        self._clock = clock
        self._closing = threading.Event()
        self._reachable = True
        self._thread = threading.Thread(target=self._run, name="outstation-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report once more, then end. Idempotent."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._clock.wait(self._closing, INTERVAL):
            self._report()
        self._report()

    def _report(self) -> None:
        try:
            for name, health in self._models.healths().items():
                self._tell(name, health.version, health.calls, health.errors)
        except OutstationError as exc:
            if self._reachable:
                log.info("nobody takes the report of a model's health: %s", exc)
            self._reachable = False
        else:
            self._reachable = True
