"""Tells the reconciler how each version does on live traffic: its probation is decided by it."""

from __future__ import annotations

import logging
import threading
from typing import Protocol

from outstation.clock import Clock, SystemClock
from outstation.errors import OutstationError
from outstation.inference.host import Models

log = logging.getLogger("outstation.inference")

INTERVAL = 1.0


class Report(Protocol):
    """Takes the counts of one version since it began to answer, or to run in the shadow."""

    def __call__(
        self, model: str, version: str, calls: int, errors: int, *, disagreements: int = 0, dropped: int = 0
    ) -> None: ...


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
            for name, health in (*self._models.healths().items(), *self._models.shadows().items()):
                self._tell(
                    name,
                    health.version,
                    health.calls,
                    health.errors,
                    disagreements=health.disagreements,
                    dropped=health.dropped,
                )
        except OutstationError as exc:
            if self._reachable:
                log.info("nobody takes the report of a model's health: %s", exc)
            self._reachable = False
        else:
            self._reachable = True
