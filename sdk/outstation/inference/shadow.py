"""A version in the shadow: it computes what another one has just answered, and the two answers are compared.

The one that answers waits for nothing: a call is copied into a short queue after its answer is there, or passed over
when the queue is full. Everything else happens on a thread of the shadow's own, which computes with one thread of the
runtime and rests as long as it computed, so that it takes half a core at the most.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from outstation.errors import OutstationError
from outstation.inference.deadlines import Deadlines
from outstation.inference.loading import load_installed
from outstation.inference.model import Health, Version
from outstation.inference.runtime import RuntimeOptions
from outstation.models.store import InstalledModel
from outstation.wire.datatypes import Array

log = logging.getLogger("outstation.inference")

# Calls that wait to be compared: enough for a burst, and a sample of the traffic is all that is needed.
QUEUE_CALLS = 4
# A call is copied on the thread of whoever made it: 1 MiB takes some 50 microseconds. A larger one is passed over,
# unless nothing smaller comes: one in a hundred of them is copied.
MAX_COPIED_BYTES = 1 << 20
LARGE_ONE_IN = 100
# A call that takes longer has failed, in the shadow as it would have in front.
CALL_TIMEOUT = 30.0


class _Call(NamedTuple):
    inputs: dict[str, Array]
    outputs: dict[str, Array]


class ShadowRun:
    """*version* beside the one that calls :meth:`offer`. Owns the thread ``outstation-shadow``; ``close`` joins it."""

    def __init__(self, version: Version, tolerance: float, deadlines: Deadlines) -> None:
        self._version = version
        self._tolerance = tolerance
        self._deadlines = deadlines
        self._queue: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(QUEUE_CALLS)
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._health = Health(version.version, 0, 0)
        self._large = 0
        self._thread = threading.Thread(target=self._run, name="outstation-shadow", daemon=True)
        self._thread.start()

    @property
    def health(self) -> Health:
        """Calls computed, those that failed or disagreed among them, and those passed over. Thread-safe."""
        with self._lock:
            return self._health

    def offer(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
        """Take a copy of an answered call, or pass it over. Thread-safe; never waits, never raises."""
        if not self._worth_copying(inputs, outputs) or not self._room.acquire(blocking=False):
            self._count(dropped=1)
            return
        try:
            # Both are the caller's, who may write into them as soon as the call returns.
            self._queue.put(_Call(_copied(inputs), _copied(outputs)))
        except Exception:  # noqa: BLE001 - the call was answered, and must not fail for want of memory
            self._room.release()
            self._count(dropped=1)

    def close(self) -> None:
        """End the thread, after the call that it computes. Idempotent."""
        self._closing.set()
        self._queue.put(None)
        self._thread.join()

    def _worth_copying(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bool:
        size = sum(array.nbytes for part in (inputs, outputs) for array in part.values())
        if size <= MAX_COPIED_BYTES:
            return True
        with self._lock:
            self._large += 1
            return self._large % LARGE_ONE_IN == 1

    def _run(self) -> None:
        while (call := self._queue.get()) is not None and not self._closing.is_set():
            self._room.release()
            begin = time.perf_counter()
            self._compare(call)
            self._closing.wait(time.perf_counter() - begin)

    def _compare(self, call: _Call) -> None:
        try:
            answer = self._version.run(call.inputs, tuple(call.outputs), CALL_TIMEOUT, self._deadlines)
            differs = disagree(call.outputs, answer, self._tolerance)
        except Exception as exc:  # noqa: BLE001 - whatever it is, it would have failed a call
            log.info("%s failed in the shadow: %s", self._version.version, exc)
            self._count(calls=1, errors=1)
        else:
            self._count(calls=1, disagreements=int(differs))

    def _count(self, calls: int = 0, errors: int = 0, disagreements: int = 0, dropped: int = 0) -> None:
        with self._lock:
            old = self._health
            self._health = replace(
                old,
                calls=old.calls + calls,
                errors=old.errors + errors,
                disagreements=old.disagreements + disagreements,
                dropped=old.dropped + dropped,
            )


class Shadow:
    """The place behind one model's answers. Use from one thread, but :attr:`health` from any."""

    def __init__(self, options: RuntimeOptions, tolerance: float, deadlines: Deadlines) -> None:
        self._options = replace(options, threads=1)
        self._tolerance = tolerance
        self._deadlines = deadlines
        self._folder: Path | None = None
        self._front: Version | None = None
        self._run: ShadowRun | None = None
        self._failed: Health | None = None

    @property
    def health(self) -> Health | None:
        """How the version there does; None when there is none."""
        run, failed = self._run, self._failed
        return run.health if run is not None else failed

    def follow(self, installed: InstalledModel | None, front: Version | None) -> None:
        """Let *installed* run behind *front*; with either missing, nothing does. Counts begin anew with each change."""
        folder = installed.folder if installed is not None and front is not None else None
        if (folder, front if folder else None) == (self._folder, self._front):
            return
        self.close()
        if installed is None or front is None:
            return
        self._folder, self._front = folder, front
        try:
            version = load_installed(installed, self._options)
        except OutstationError as exc:
            log.warning("%s %s cannot be loaded into the shadow: %s", installed.name, installed.version, exc)
            self._failed = Health(installed.version, calls=1, errors=1)
            return
        log.info("%s %s runs in the shadow of %s", installed.name, installed.version, front.version)
        self._run = ShadowRun(version, self._tolerance, self._deadlines)
        front.watched_by(self._run.offer)

    def close(self) -> None:
        """Nothing runs there any more. Idempotent."""
        if self._front is not None:
            self._front.watched_by(None)
        run, self._run = self._run, None
        if run is not None:
            run.close()
        self._folder = self._front = self._failed = None


def disagree(front: Mapping[str, Array], shadow: Mapping[str, Array], tolerance: float) -> bool:
    """Whether two answers to one call are different ones.

    Numbers of a class, truth values and texts must be equal, and where there are any they alone decide: scores differ
    from training to training. Of floats alone, one that is off by more than *tolerance* of the largest number in that
    output of *front* is a difference, and so is NaN or a shape on one side only.
    """
    if any(front[name].shape != shadow[name].shape for name in front):
        return True
    exact = [name for name, array in front.items() if array.dtype.kind != "f"]
    if exact:
        return any(bool((_plain(front[name]) != _plain(shadow[name])).any()) for name in exact)
    return any(_far(array, shadow[name], tolerance) for name, array in front.items())


def _far(front: Array, shadow: Array, tolerance: float) -> bool:
    a, b = front.astype(np.float64), shadow.astype(np.float64)
    finite = np.abs(a[np.isfinite(a)])
    allowed = tolerance * (finite.max() if finite.size else 0.0)
    with np.errstate(invalid="ignore"):
        same = (a == b) | (np.abs(a - b) <= allowed) | (np.isnan(a) & np.isnan(b))
    return not bool(same.all())


def _plain(array: Array) -> Array:
    return array.astype(np.str_) if array.dtype.kind in "OSU" else array


def _copied(arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name: np.array(array, copy=True) for name, array in arrays.items()}
