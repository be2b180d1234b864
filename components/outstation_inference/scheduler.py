"""Who computes which call, when, and together with which others; and who sees to the sockets meanwhile.

One worker at a time leads: it sees to the sockets. A call of a model that is known to be quick it computes right there:
handing it to another thread would cost more than computing it. Everything else goes through a bounded queue. If no more
compute than may, the leader takes such a call itself and another worker leads on: nobody waits for a thread to wake up
(docs/adr/0060-who-reads-a-call-computes-it.md). Calls of a model that may be batched and that lie in the queue at the
same time are computed together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence

from outstation.errors import (
    DeadlineError,
    InvalidInputError,
    OutstationError,
    ProviderUnavailableError,
)
from outstation.inference.capturing import note_of
from outstation.inference.deadlines import Deadlines
from outstation.settings import BatchingSettings, InferenceSettings
from outstation.wire.tensors import InferRequest
from outstation_inference.batching import Prepared, batches, compute_together, failed_inside, time_left
from outstation_inference.jobs import Job
from outstation_inference.service import InferenceService

log = logging.getLogger("outstation.inference")

# A call whose model usually takes less than this is computed before the sockets are looked at again: a hand-over takes
# some 50 microseconds here, and a millisecond is what other connections may wait.
QUICK = 0.001
# What the leader computes before it looks at the sockets again; the rest goes into the queue.
MAX_INLINE = 0.005
# What all calls that wait may hold, in messages of the largest size.
_MESSAGES_HELD = 4
# A message that takes long to decode goes into the queue, however quick its model.
MAX_INLINE_BYTES = 256 << 10

# Waits for the sockets once and returns the calls that became whole; None when there will be no more.
Turn = Callable[[], Sequence[Job] | None]


class Scheduler:
    """Owns the workers: by turns they see to the sockets, compute what was read, and rest. Thread-safe."""

    def __init__(self, service: InferenceService, settings: InferenceSettings) -> None:
        self._service = service
        self._batching: Mapping[str, BatchingSettings] = settings.batching
        self._max_computing = settings.workers
        self._capacity = settings.workers + settings.queue
        self._deadlines = Deadlines()
        self._typical: dict[str, float] = {}  # seconds a call, by model: a moving mean
        lock = threading.Lock()
        self._work_to_do = threading.Condition(lock)
        self._more_calls = threading.Condition(lock)  # what those who gather a batch wait for
        self._queue: deque[Job] = deque()
        self._gathering: set[str] = set()  # models whose calls in the queue somebody waits for
        self._held = 0  # bytes of the calls in the queue
        self._max_held = _MESSAGES_HELD * settings.max_message_bytes
        self._running = 0  # calls
        self._computing = 0  # workers
        self._turn: Turn | None = None
        self._led = False  # a worker sees to the sockets
        self._closing = False
        self._workers = [
            threading.Thread(target=self._work, name=f"outstation-inference-{number}", daemon=True)
            for number in range(settings.workers + 1)  # while all compute, one still reads
        ]
        for worker in self._workers:
            worker.start()

    @property
    def idle(self) -> bool:
        """No call waits and none is being computed."""
        return not self._queue and not self._computing

    def lead(self, turn: Turn) -> None:
        """Have one worker at a time call *turn*, until it returns None, and compute what it brings."""
        with self._work_to_do:
            self._turn = turn
            self._work_to_do.notify()

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
        """Compute what was accepted, then end the workers. Idempotent; whoever leads must have come to an end."""
        with self._work_to_do:
            self._closing = True
            self._work_to_do.notify_all()
            self._more_calls.notify_all()
        for worker in self._workers:
            worker.join()
        self._deadlines.close()

    def _enqueue(self, jobs: Sequence[Job]) -> None:
        refused: list[Job] = []
        late: list[Job] = []
        with self._work_to_do:
            for job in jobs:
                if self._full(job):
                    late += self._make_room()
                if self._full(job):
                    refused.append(job)
                else:
                    self._queue.append(job)
                    self._held += job.size_bytes
            self._work_to_do.notify(len(jobs))
            if self._gathering:
                self._more_calls.notify_all()
        for job in late:
            self._refuse(job, DeadlineError("The call's time was up before a worker was free."))
        for job in refused:
            error = ProviderUnavailableError("As many calls as may wait do already.", hint="Try again in a moment.")
            self._refuse(job, error)

    def _work(self) -> None:
        while True:
            with self._work_to_do:
                self._work_to_do.wait_for(lambda: self._may_compute() or self._may_lead() or self._closing)
                jobs = self._next()
                leads = not jobs and self._may_lead()
                if leads:
                    self._led = True
                elif not jobs:
                    return
            if leads:
                jobs = self._lead()
            if jobs:
                self._compute_all(jobs)

    def _lead(self) -> list[Job]:
        """See to the sockets until a call takes long: that is for this worker, and the lead for another.

        The one who has read a call has it in its caches, and need not wait until somebody else has woken up.
        """
        while self._turn is not None:
            jobs = self._turn()
            if jobs is None:
                self._turn = None
            elif jobs:
                try:
                    self.submit(jobs)
                except Exception:  # the sockets need this worker
                    log.exception("a worker failed")
            if self._queue:
                with self._work_to_do:
                    if self._may_compute():
                        self._led = False
                        return self._next()
        return []

    def _compute_all(self, jobs: Sequence[Job]) -> None:
        try:
            self._compute(jobs, watched=True)
        except Exception:  # the next call needs this worker
            log.exception("a worker failed")
        finally:
            with self._work_to_do:
                self._computing -= 1
                self._running -= len(jobs)

    # With the lock held:

    def _full(self, job: Job) -> bool:
        """Whether there is no room for *job*; one alone may be of any size."""
        if len(self._queue) + self._running >= self._capacity:
            return True
        return bool(self._queue) and self._held + job.size_bytes > self._max_held

    def _make_room(self) -> list[Job]:
        """Take the calls from the queue for which nobody waits any more; those whose time is up are to be told."""
        now = time.monotonic()
        gone = [job for job in self._queue if job.cancelled or (job.deadline is not None and job.deadline <= now)]
        for job in gone:
            self._queue.remove(job)
            self._held -= job.size_bytes
        return [job for job in gone if not job.cancelled]

    def _may_compute(self) -> bool:
        return self._computing < self._max_computing and any(
            job.model_hint not in self._gathering for job in self._queue
        )

    def _may_lead(self) -> bool:
        return self._turn is not None and not self._led

    def _next(self) -> list[Job]:
        """What this worker computes now: the oldest call and, where its model has batching, those that go with it."""
        if not self._may_compute():
            return []
        first = next(job for job in self._queue if job.model_hint not in self._gathering)
        self._queue.remove(first)
        self._computing += 1
        self._running += 1
        batching = self._batching.get(first.model_hint)
        jobs = [first] if batching is None else [first, *self._companions(first.model_hint, batching)]
        self._held -= sum(job.size_bytes for job in jobs)
        return jobs

    def _companions(self, model: str, batching: BatchingSettings) -> list[Job]:
        """The calls of *model* that are computed together with one; waits for them as long as the settings say."""

        def waiting() -> list[Job]:
            return [job for job in self._queue if job.model_hint == model][: batching.max_calls - 1]

        if batching.delay and not self._closing:
            self._gathering.add(model)
            self._more_calls.wait_for(lambda: len(waiting()) + 1 >= batching.max_calls or self._closing, batching.delay)
            self._gathering.discard(model)
        jobs = waiting()
        for job in jobs:
            self._queue.remove(job)
        self._running += len(jobs)
        if self._queue:
            self._work_to_do.notify()  # what came while it was gathered, and is too much for one batch
        return jobs

    def _compute(self, jobs: Sequence[Job], *, watched: bool) -> None:
        prepared = [ready for ready in map(self._prepare, jobs) if ready is not None]
        for batch in batches(prepared, self._batching):
            begin = time.monotonic()
            waited = sum(begin - ready.job.arrived for ready in batch)
            watch = self._deadlines if watched else None
            fine = compute_together(batch, watch) if len(batch) > 1 else batch[0].run(watch)
            took = time.monotonic() - begin
            model, version = batch[0].request.model, batch[0].version.version
            self._learn(model, took / len(batch))
            self._service.count(model, version, len(batch), errors=len(batch) - fine, queue=waited, compute=took)

    def _prepare(self, job: Job) -> Prepared | None:
        """*job* decoded and checked, or None when it has failed or nobody waits for it."""
        if job.cancelled:
            return None
        try:
            time_left(job.deadline)
            request = job.request()
            deadline = _deadline(job, request)
            time_left(deadline)
            version = self._service.version_for(request)
            if version.sampler is None and note_of(request.parameters) is not None:
                raise InvalidInputError("No call can be kept here: a file is served, and there is no buffer.")
            if request.shared or request.into:
                request = self._service.located(request)
            return Prepared(job, request, version, self._service.regions, deadline)
        except OutstationError as exc:
            self._refuse(job, exc)
        except Exception:  # noqa: BLE001 - told to the caller, kept in the log
            failed_inside(job)
        return None

    def _refuse(self, job: Job, error: OutstationError) -> None:
        """Fail *job*, which nobody has computed."""
        if isinstance(error, DeadlineError | ProviderUnavailableError):
            self._service.count_refused(job.model_hint)
        job.fail(error)

    def _learn(self, model: str, seconds: float) -> None:
        known = self._typical.get(model)
        self._typical[model] = seconds if known is None else known + (seconds - known) / 8


def _is_small(job: Job) -> bool:
    return job.size_bytes <= MAX_INLINE_BYTES and not job.shared


def _deadline(job: Job, request: InferRequest) -> float | None:
    """When the caller stops waiting: by its connection, or by the call's own parameter, in microseconds as Triton's."""
    timeout = request.parameters.get("timeout")
    if type(timeout) is not int or timeout <= 0:
        return job.deadline
    own = job.arrived + timeout / 1e6
    return own if job.deadline is None else min(own, job.deadline)
