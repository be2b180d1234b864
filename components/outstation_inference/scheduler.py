"""Who computes which call, when, and together with which others.

A call of a model that is known to be quick is computed right on the thread that read it: handing it to another
thread would cost more than computing it. Everything else goes to the workers, through a bounded queue. Calls of a
model that may be batched and that lie in the queue at the same time are computed together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from outstation.errors import DeadlineError, InferenceError, OutstationError, ProviderUnavailableError
from outstation.inference.deadlines import Deadlines
from outstation.settings import BatchingSettings, InferenceSettings
from outstation_inference.batching import Prepared, batches, compute_together
from outstation_inference.jobs import Job
from outstation_inference.service import InferenceService

log = logging.getLogger("outstation.inference")

# A call whose model usually takes less than this is computed by the thread that read it: a hand-over takes some
# 50 microseconds here, and a millisecond is what other connections may wait.
QUICK = 0.001
# What the reading thread computes before it looks at its connections again; the rest goes to the workers.
MAX_INLINE = 0.005
# What all calls that wait may hold, in messages of the largest size.
_MESSAGES_HELD = 4
# A message that takes long to decode is not for the reading thread, however quick its model.
MAX_INLINE_BYTES = 256 << 10


class Scheduler:
    """Owns the workers. ``submit`` is for one thread; everything else is thread-safe."""

    def __init__(self, service: InferenceService, settings: InferenceSettings) -> None:
        self._service = service
        self._batching: Mapping[str, BatchingSettings] = settings.batching
        self._capacity = settings.workers + settings.queue
        self._deadlines = Deadlines()
        self._typical: dict[str, float] = {}  # seconds a call, by model: a moving mean
        self._state = threading.Condition()
        self._queue: deque[Job] = deque()
        self._held = 0  # bytes of the calls in the queue
        self._max_held = _MESSAGES_HELD * settings.max_message_bytes
        self._running = 0
        self._closing = False
        self._workers = [
            threading.Thread(target=self._work, name=f"outstation-inference-{number}", daemon=True)
            for number in range(settings.workers)
        ]
        for worker in self._workers:
            worker.start()

    @property
    def idle(self) -> bool:
        """No call waits and none is being computed."""
        return not self._queue and not self._running

    def submit(self, jobs: Sequence[Job]) -> None:
        """Compute *jobs*, here if that is quick, else soon; those beyond the bound fail at once."""
        expected = 0.0
        inline: list[Job] = []
        later: list[Job] = []
        for job in jobs:
            batching = self._batching.get(job.model_hint)
            typical = QUICK if batching and batching.delay else self._typical.get(job.model_hint, QUICK)
            if typical < QUICK and expected < MAX_INLINE and not self._queue and _is_small(job):
                expected += typical
                inline.append(job)
            else:
                later.append(job)
        if later:
            self._enqueue(later)
        if inline:
            self._compute(inline, watched=False)

    def close(self) -> None:
        """Compute what was accepted, then end the workers. Idempotent."""
        with self._state:
            self._closing = True
            self._state.notify_all()
        for worker in self._workers:
            worker.join()
        self._deadlines.close()

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        refused: list[Job] = []
        with self._state:
            for job in jobs:
                full = len(self._queue) + self._running >= self._capacity
                if full or (self._queue and self._held + job.size_bytes > self._max_held):
                    refused.append(job)
                else:
                    self._queue.append(job)
                    self._held += job.size_bytes
            self._state.notify(len(jobs))
        for job in refused:
            job.fail(ProviderUnavailableError("As many calls as may wait do already.", hint="Try again in a moment."))

    def _work(self) -> None:
        while True:
            with self._state:
                self._state.wait_for(lambda: self._queue or self._closing)
                if not self._queue:
                    return
                jobs = self._next()
                self._running += len(jobs)
            try:
                self._compute(jobs, watched=True)
            except Exception:  # the next call needs this worker
                log.exception("a worker failed")
            finally:
                with self._state:
                    self._running -= len(jobs)

    def _next(self) -> list[Job]:
        """The oldest call and, of a model with batching, those that may go with it. The lock is held."""
        jobs = self._taken()
        self._held -= sum(job.size_bytes for job in jobs)
        return jobs

    def _taken(self) -> list[Job]:
        first = self._queue.popleft()
        batching = self._batching.get(first.model_hint)
        if batching is None:
            return [first]
        if batching.delay and len(self._queue) + 1 < batching.max_calls and not self._closing:
            self._state.wait_for(lambda: len(self._queue) + 1 >= batching.max_calls or self._closing, batching.delay)
        jobs, others = [first], list[Job]()
        while self._queue and len(jobs) < batching.max_calls:
            job = self._queue.popleft()
            (jobs if job.model_hint == first.model_hint else others).append(job)
        self._queue.extendleft(reversed(others))
        return jobs

    def _compute(self, jobs: Sequence[Job], *, watched: bool) -> None:
        prepared = [ready for ready in map(self._prepare, jobs) if ready is not None]
        for batch in batches(prepared, self._batching):
            begin = time.monotonic()
            waited = sum(begin - ready.job.arrived for ready in batch)
            fine = compute_together(batch) if len(batch) > 1 else self._compute_one(batch[0], watched=watched)
            took = time.monotonic() - begin
            model, version = batch[0].request.model, batch[0].version.version
            self._learn(model, took / len(batch))
            self._service.count(model, version, len(batch), errors=len(batch) - fine, queue=waited, compute=took)

    def _prepare(self, job: Job) -> Prepared | None:
        """*job* decoded and checked, or None when it has failed or nobody waits for it."""
        if job.cancelled:
            return None
        try:
            if job.deadline is not None and job.deadline <= time.monotonic():
                raise DeadlineError("The call's time was up before a worker was free.")
            request = job.request()
            version = self._service.version_for(request)
            if request.shared or request.into:
                request = self._service.located(request)
            return Prepared(job, request, version, self._service.regions)
        except OutstationError as exc:
            job.fail(exc)
        except Exception:  # noqa: BLE001 - told to the caller, kept in the log
            _failed_inside(job)
        return None

    def _compute_one(self, ready: Prepared, *, watched: bool) -> int:
        """How many calls were answered: 1 or 0."""
        deadline = ready.job.deadline
        left = deadline - time.monotonic() if watched and deadline is not None else None
        try:
            result = ready.version.run(ready.request.inputs, ready.request.outputs or None, left, self._deadlines)
            return ready.answer(result)
        except OutstationError as exc:
            ready.job.fail(exc)
        except Exception:  # noqa: BLE001 - told to the caller, kept in the log
            _failed_inside(ready.job)
        return 0

    def _learn(self, model: str, seconds: float) -> None:
        known = self._typical.get(model)
        self._typical[model] = seconds if known is None else known + (seconds - known) / 8


def _is_small(job: Job) -> bool:
    return job.size_bytes <= MAX_INLINE_BYTES and not job.shared


def _failed_inside(job: Job) -> None:
    # The caller learns that it failed, not how we are built; the log knows the rest.
    log.exception("a call failed inside the server")
    job.fail(InferenceError("The call failed inside the server; its log says why."))
