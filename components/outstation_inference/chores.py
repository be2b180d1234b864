"""What takes longer than the reading thread may wait and is no computation: loading and unloading models."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from outstation.errors import ProviderUnavailableError

log = logging.getLogger("outstation.inference")

# A person or a script loads models one by one; more than this at once is a mistake or means harm.
_MAX_WAITING = 8


class Chores:
    """One thread that does one thing after the other. Thread-safe."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(_MAX_WAITING)
        self._thread = threading.Thread(target=self._run, name="outstation-chores", daemon=True)
        self._thread.start()

    def put(self, chore: Callable[[], None]) -> None:
        """Have *chore* done soon; it tells its caller itself. ProviderUnavailableError when too many wait."""
        try:
            self._waiting.put_nowait(chore)
        except queue.Full:
            raise ProviderUnavailableError(
                f"{_MAX_WAITING} models wait to be loaded or unloaded.", hint="Try again in a moment."
            ) from None

    def close(self) -> None:
        """Do what waits, then end. Idempotent."""
        if self._thread.is_alive():
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        while (chore := self._waiting.get()) is not None:
            _do(chore)


def _do(chore: Callable[[], None]) -> None:
    try:
        chore()
    except Exception:  # the next one needs this thread
        log.exception("a chore failed inside the server")
