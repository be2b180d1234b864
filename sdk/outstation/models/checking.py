"""What the reconciler asks before a version may answer. Implemented by ``outstation.inference.check``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from outstation.models.store import InstalledModel


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A version that passed: how many golden cases it met, seconds a call at the 95th percentile, bytes at the peak."""

    cases: int
    p95_latency: float
    peak_memory_bytes: int


class Checker(Protocol):
    """Tries a version. Thread-safe."""

    def check(self, model: InstalledModel, timeout: float) -> CheckResult:
        """Load *model*, run its golden inputs, measure it, all within *timeout* seconds.

        ModelLoadError or CheckFailedError with the reason when it may not answer: that is remembered for good. Any
        other error means that it could not be tried, and it will be again.
        """
        ...
