"""The moves of versions on this device: by the rollout's table, on the disk before anybody acts on them, then told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping

from outstation.clock import Clock
from outstation.models.rollout import Event, ModelState
from outstation.models.writer import StoreWriter

logger = logging.getLogger(__name__)


class Moves:
    """What may change a version's phase goes through here. Thread-safe.

    Hold :attr:`lock` over a look and the move that follows from it: the reconciler's thread makes moves, and so do
    reports of health on any other. *changed* is called after each, and must only hand over.
    """

    def __init__(self, writer: StoreWriter, clock: Clock, changed: Callable[[], None]) -> None:
        self.lock = threading.RLock()
        self._writer = writer
        self._clock = clock
        self._changed = changed

    def model(self, name: str) -> ModelState:
        """What is remembered of *name*; empty when nothing is."""
        return self._writer.model(name)

    def models(self) -> Mapping[str, ModelState]:
        """All that is remembered, by name."""
        return self._writer.state().models

    def move(
        self,
        name: str,
        version: str,
        event: Event,
        reason: str = "",
        *,
        digest: str | None = None,
        saved_bytes: int | None = None,
    ) -> None:
        """Apply *event*; MoveError when the table has no such move, StorageError and no move at all without a disk."""
        with self.lock:
            at = self._clock.time_unix_nano()
            model = self._writer.move(
                name, version, event, at_unix_nano=at, reason=reason, digest=digest, saved_bytes=saved_bytes
            )
        logger.info("Models: %s %s is %s. %s", name, version, model.versions[version].phase.value, reason)
        self._changed()

    def count_interrupted(self, name: str, version: str, by: int) -> int:
        """Add *by* to how often a trial of *version* was interrupted; how often that is now. Raises StorageError."""
        return self._writer.count_interrupted(name, version, by)

    def note(self, name: str, version: str, reason: str) -> None:
        """Say beside *version* why it waits, or how it does."""
        if self._writer.note(name, version, reason):
            self._changed()
