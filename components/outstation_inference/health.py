"""Tells the agent how each version does on live traffic: its probation is decided by it."""

from __future__ import annotations

import logging
import threading

from outstation.agent import AgentClient
from outstation.clock import Clock, SystemClock
from outstation.errors import OutstationError
from outstation.inference.host import Models

log = logging.getLogger("outstation.inference")

INTERVAL = 1.0
# An agent on the same device answers in milliseconds; one that does not is asked again a second later.
TIMEOUT = 1.0


class HealthReporter:
    """One thread that reports every second. An agent that is away is asked again; nothing is kept for it."""

    def __init__(self, models: Models, agent: AgentClient, clock: Clock = SystemClock()) -> None:
        self._models = models
        self._agent = agent
        self._clock = clock
        self._closing = threading.Event()
        self._reachable = True
        self._thread = threading.Thread(target=self._run, name="outstation-health", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Report once more, then end. Idempotent."""
        self._closing.set()
        self._thread.join()
        self._agent.close()

    def _run(self) -> None:
        while not self._clock.wait(self._closing, INTERVAL):
            self._report()
        self._report()

    def _report(self) -> None:
        try:
            for name, health in self._models.healths().items():
                self._agent.report_health(name, health.version, health.calls, health.errors, TIMEOUT)
        except OutstationError as exc:
            if self._reachable:
                log.info("The agent takes no report: %s", exc)
            self._reachable = False
        else:
            self._reachable = True
