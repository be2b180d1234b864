"""Tells the reconciler how each version does on live traffic: its probation is decided by it."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from outstation.clock import Clock, SystemClock
from outstation.errors import ModelError, OutstationError
from outstation.inference.host import Models
from outstation.types import Placement

log = logging.getLogger("outstation.inference")

INTERVAL = 1.0

PLACE_INTERVAL = 60.0

Place = Callable[[str, str, Placement], None]  # model, version that answers, where it is computed


class Report(Protocol):
    """Takes the counts of one version since it began to answer, or to run in the shadow."""

    def __call__(
        self,
        model: str,
        version: str,
        calls: int,
        errors: int,
        *,
        disagreements: int = 0,
        dropped: int = 0,
        process: str = "",
    ) -> None: ...


class HealthReporter:
    """One thread that reports every second. Counts are totals, so one report that fails costs nothing."""

    def __init__(
        self, models: Models, report: Report, clock: Clock = SystemClock(), *, place: Place | None = None
    ) -> None:
        """*place* is told where each version is computed: at once, and every minute, for who was restarted since."""
        self._models = models
        self._process = secrets.token_hex(8)  # whoever hears of another one knows that this one has ended
        self._place = place
        self._placed: dict[str, tuple[str, Placement]] = {}
        self._place_again = 0.0
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
                    process=self._process,
                )
            if self._place is not None:
                self._tell_places(self._place)
        except OutstationError as exc:
            self._placed.clear()
            if self._reachable:
                log.info("nobody takes the report of a model's health: %s", exc)
            self._reachable = False
        else:
            self._reachable = True

    def _tell_places(self, tell: Place) -> None:
        now = self._clock.monotonic()
        if now >= self._place_again:
            self._placed.clear()
            self._place_again = now + PLACE_INTERVAL
        for name in self._models.healths():
            with suppress(ModelError):  # its only version cannot be loaded
                current = self._models.get(name, 0.0).current
                place = current.version, current.placement
                if self._placed.get(name) != place:
                    tell(name, *place)
                    self._placed[name] = place
