"""Which calls are computed where and together; and that no caller suffers from another's input."""

from __future__ import annotations

import queue
import threading
import time

import numpy as np
import pytest

import tiny_models
from outstation.errors import (
    DeadlineError,
    InferenceError,
    InvalidInputError,
    ModelNotFoundError,
    ProviderUnavailableError,
)
from outstation.inference.host import FixedModels
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.settings import BatchingSettings, InferenceSettings
from outstation.wire.tensors import InferRequest
from outstation_inference.batching import Prepared, compute_together
from outstation_inference.scheduler import Scheduler
from outstation_inference.service import InferenceService
from support import wait_until


class Job:
    """A call that remembers what became of it."""

    def __init__(self, x, *, model="m", outputs=(), deadline=None, shared=False, **parameters):
        self.arrived = time.monotonic()
        self.model_hint = model
        self.size_bytes = 100
        self.shared = shared
        self.deadline = deadline
        self.cancelled = False
        self.outcome = None
        self._request = InferRequest(model, {"x": np.asarray(x, np.float32)}, outputs=outputs, parameters=parameters)

    def request(self):
        return self._request

    def answer(self, response):
        assert self.outcome is None
        self.outcome = response

    def fail(self, error):
        assert self.outcome is None
        self.outcome = error


@pytest.fixture
def version(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_models.scale(2))
    return load_file(path)


@pytest.fixture
def scheduled(version):
    made = []

    def make(**settings):
        service = InferenceService(FixedModels((Model("m", version),)))
        scheduler = Scheduler(service, InferenceSettings(**settings))
        made.append(scheduler)
        return scheduler, service

    yield make
    for scheduler in made:
        scheduler.close()


def rows(*lengths):
    return [np.full((length, 4), number, np.float32) for number, length in enumerate(lengths, 1)]


def runs(service):
    return service._counts["m", "1"].executions


BATCHED = {"m": BatchingSettings(max_calls=4)}


def quick(scheduler):
    """The model was called often enough to be known as quick."""
    scheduler._typical["m"] = 1e-5


def test_calls_that_came_together_run_together_and_keep_their_rows(scheduled):
    scheduler, service = scheduled(batching=BATCHED)
    quick(scheduler)
    jobs = [Job(x) for x in rows(1, 3, 2, 0, 1)]
    scheduler.submit(jobs)
    for number, (job, length) in enumerate(zip(jobs, (1, 3, 2, 0, 1), strict=True), 1):
        assert job.outcome.outputs["y"].tolist() == [[2.0 * number] * 4] * length
    assert runs(service) == 2
    assert service._counts["m", "1"].calls == 5


def test_without_the_setting_nothing_runs_together(scheduled):
    scheduler, service = scheduled()
    quick(scheduler)
    scheduler.submit([Job(x) for x in rows(1, 1, 1)])
    assert runs(service) == 3


def test_calls_that_differ_in_shape_or_outputs_run_apart(scheduled):
    scheduler, service = scheduled(batching=BATCHED)
    quick(scheduler)
    jobs = [Job(np.ones((1, 4))), Job(np.ones((1, 4)), outputs=("y",)), Job(np.ones((1, 5)))]
    scheduler.submit(jobs)
    assert [type(job.outcome).__name__ for job in jobs] == ["InferResponse", "InferResponse", "InvalidInputError"]
    assert runs(service) == 2  # the third was refused before it could run


def test_one_wrong_call_fails_alone(scheduled):
    scheduler, _ = scheduled(batching=BATCHED)
    quick(scheduler)
    jobs = [Job(np.ones((1, 4))), Job(np.ones((1, 3))), Job(np.ones((1, 4)), model="other"), Job(np.ones((1, 4)))]
    scheduler.submit(jobs)
    wait_until(lambda: all(job.outcome for job in jobs))  # the unknown model's goes to a worker
    assert isinstance(jobs[1].outcome, InvalidInputError)
    assert isinstance(jobs[2].outcome, ModelNotFoundError)
    assert jobs[0].outcome.outputs["y"].tolist() == jobs[3].outcome.outputs["y"].tolist() == [[2.0] * 4]


def test_a_call_whose_caller_has_gone_or_whose_time_is_up_is_not_computed(scheduled):
    scheduler, service = scheduled()
    quick(scheduler)
    gone, late = Job(np.ones((1, 4))), Job(np.ones((1, 4)), deadline=time.monotonic() - 1)
    gone.cancelled = True
    scheduler.submit([gone, late])
    assert gone.outcome is None
    assert isinstance(late.outcome, DeadlineError)
    counts = service._counts["m", "1"]
    assert (counts.calls, counts.executions, counts.errors) == (0, 0, 1)  # who has gone is no error


def test_the_time_that_a_call_names_itself_bounds_it_too(scheduled):
    scheduler, _ = scheduled()
    quick(scheduler)
    jobs = [Job(np.ones((1, 4)), timeout=timeout) for timeout in (1, 60_000_000, 0, "soon")]
    for job in jobs:
        job.arrived -= 1
    patient = Job(np.ones((1, 4)), deadline=time.monotonic() - 1, timeout=60_000_000)
    scheduler.submit([*jobs, patient])
    assert [isinstance(job.outcome, DeadlineError) for job in (*jobs, patient)] == [True, False, False, False, True]


def test_a_batch_ends_when_nobody_waits_for_it_and_what_failed_is_not_computed_for_nobody(version, monkeypatch):
    ran, deadlines = [], object()

    def run(inputs, outputs, timeout, watch, calls=1):
        ran.append((calls, None if timeout is None else round(timeout), watch))
        if calls > 1:
            raise DeadlineError("too late")
        return {"y": np.ones((1, 4), np.float32)}

    monkeypatch.setattr(version, "run", run)
    now = time.monotonic()
    jobs = [Job(np.ones((1, 4)), deadline=now + left) for left in (60, 20, -1, 40)]
    jobs[3].cancelled = True
    ready = [Prepared(job, job.request(), version, None, job.deadline) for job in jobs]
    assert compute_together(ready, deadlines) == 2
    assert ran == [(4, 60, deadlines), (1, 60, deadlines), (1, 20, deadlines)]
    assert isinstance(jobs[2].outcome, DeadlineError)
    assert jobs[3].outcome is None
    ran.clear()
    jobs[2].outcome = None
    ready = [Prepared(job, job.request(), version, None, None) for job in (Job(np.ones((1, 4))), jobs[2])]
    compute_together(ready, deadlines)
    assert ran[0] == (2, None, deadlines)  # one of them waits for ever


def test_what_is_not_known_to_be_quick_goes_to_the_workers_and_those_to_a_bounded_queue(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1, queue=2)
    hold = threading.Event()
    on = []
    find = service.version_for

    def held(request):
        on.append(threading.current_thread().name)
        hold.wait(10)
        return find(request)

    monkeypatch.setattr(service, "version_for", held)
    jobs = [Job(np.ones((1, 4))) for _ in range(6)]
    scheduler.submit(jobs[:1])
    wait_until(lambda: on)
    scheduler.submit(jobs[1:])
    assert [isinstance(job.outcome, ProviderUnavailableError) for job in jobs] == [False] * 3 + [True] * 3
    assert service._counts["m", "1"].errors == 3
    hold.set()
    wait_until(lambda: scheduler.idle)
    assert threading.current_thread().name not in on
    assert all(job.outcome.outputs["y"].tolist() == [[2.0] * 4] for job in jobs[:3])


def test_calls_for_which_nobody_waits_any_more_take_nobodys_place(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1, queue=3)
    hold, on = held_back(service, monkeypatch)
    first, gone, late, new, newer = (Job(np.ones((1, 4))) for _ in range(5))
    patient, beyond = Job(np.ones((1, 4)), deadline=time.monotonic() + 60), Job(np.ones((1, 4)))
    scheduler.submit([first])
    wait_until(lambda: on)
    late.deadline = time.monotonic() - 1
    scheduler.submit([gone, late, patient])
    gone.cancelled = True
    scheduler.submit([new, newer])
    scheduler.submit([beyond])
    assert isinstance(late.outcome, DeadlineError)
    assert isinstance(beyond.outcome, ProviderUnavailableError)
    hold.set()
    wait_until(lambda: scheduler.idle)
    assert all(job.outcome.outputs["y"].shape == (1, 4) for job in (first, patient, new, newer))
    assert gone.outcome is None
    assert scheduler._held == 0


def test_tensors_in_shared_memory_and_large_messages_are_not_for_the_thread_that_reads(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1)
    quick(scheduler)
    on, find = [], service.version_for
    monkeypatch.setattr(
        service, "version_for", lambda request: (on.append(threading.current_thread().name), find(request))[1]
    )
    large = Job(np.ones((1, 4)))
    large.size_bytes = 1 << 20
    for job in (Job(np.ones((1, 4))), Job(np.ones((1, 4)), shared=True), large):
        scheduler.submit([job])
        wait_until(lambda: scheduler.idle)
    here = threading.current_thread().name
    assert [name == here for name in on] == [True, False, False]


def test_calls_that_wait_hold_no_more_than_four_of_the_largest_messages(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1, queue=100, max_message_bytes=100)  # a call here has 100 bytes
    hold = threading.Event()
    find = service.version_for
    monkeypatch.setattr(service, "version_for", lambda request: (hold.wait(10), find(request))[1])
    jobs = [Job(np.ones((1, 4))) for _ in range(8)]
    scheduler.submit(jobs[:1])
    wait_until(lambda: not scheduler._queue)
    scheduler.submit(jobs[1:])
    assert [isinstance(job.outcome, ProviderUnavailableError) for job in jobs] == [False] * 5 + [True] * 3
    hold.set()
    wait_until(lambda: scheduler.idle)
    again = [Job(np.ones((1, 4))) for _ in range(4)]
    scheduler.submit(again)
    wait_until(lambda: all(job.outcome for job in again))
    assert not any(isinstance(job.outcome, ProviderUnavailableError) for job in again)


def test_a_delay_gathers_calls_that_come_one_after_the_other(scheduled):
    scheduler, service = scheduled(batching={"m": BatchingSettings(max_calls=3, delay=30.0)})
    jobs = [Job(x) for x in rows(1, 1, 1)]
    for job in jobs:
        scheduler.submit([job])
    wait_until(lambda: all(job.outcome for job in jobs))  # the third makes it full: nobody waits 30 s
    assert runs(service) == 1


def test_calls_beyond_a_full_batch_wait_for_nobody(scheduled):
    scheduler, service = scheduled(workers=2, batching={"m": BatchingSettings(max_calls=2, delay=30.0)})
    jobs = [Job(x) for x in rows(1, 1, 1, 1)]
    scheduler.submit(jobs)
    wait_until(lambda: all(job.outcome for job in jobs))
    assert runs(service) == 2


class Sockets:
    """Brings what the test puts in, one list a turn, and remembers who took the turns."""

    def __init__(self):
        self.brought = queue.SimpleQueue()
        self.by = []

    def turn(self):
        self.by.append(threading.current_thread().name)
        return self.brought.get(timeout=10)


def held_back(service, monkeypatch):
    """Computations wait for the event; the names of the threads that were about to begin one."""
    hold, on, find = threading.Event(), [], service.version_for

    def held(request):
        on.append(threading.current_thread().name)
        assert hold.wait(10)
        return find(request)

    monkeypatch.setattr(service, "version_for", held)
    return hold, on


def test_who_brings_a_slow_call_computes_it_and_another_leads(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=2)
    hold, on = held_back(service, monkeypatch)
    sockets, jobs = Sockets(), [Job(np.ones((1, 4))) for _ in range(2)]
    scheduler.lead(sockets.turn)
    for number, job in enumerate(jobs, 1):
        sockets.brought.put([job])
        wait_until(lambda number=number: len(sockets.by) == len(on) + 1 == number + 1)
    assert on == sockets.by[:2]
    assert len(set(sockets.by)) == 3
    hold.set()
    sockets.brought.put(None)
    scheduler.close()
    assert all(job.outcome.outputs["y"].shape == (1, 4) for job in jobs)


def test_the_sockets_are_seen_to_while_as_many_compute_as_may(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1, queue=1)
    hold, on = held_back(service, monkeypatch)
    sockets, jobs = Sockets(), [Job(np.ones((1, 4))) for _ in range(3)]
    scheduler.lead(sockets.turn)
    for turns, job in enumerate(jobs, 2):
        sockets.brought.put([job])
        wait_until(lambda turns=turns: len(sockets.by) == turns)
    assert isinstance(jobs[2].outcome, ProviderUnavailableError)
    assert on == sockets.by[:1]
    hold.set()
    wait_until(lambda: jobs[1].outcome)
    sockets.brought.put(None)
    scheduler.close()
    assert on == sockets.by[:1] * 2  # the second waited for the one who computed, and nobody else began it


def test_who_waits_for_a_batch_leads_no_more(scheduled):
    scheduler, service = scheduled(workers=2, batching={"m": BatchingSettings(max_calls=3, delay=30.0)})
    sockets, jobs = Sockets(), [Job(x) for x in rows(1, 1, 1)]
    scheduler.lead(sockets.turn)
    for turns, job in enumerate(jobs, 2):
        sockets.brought.put([job])
        wait_until(lambda turns=turns: len(sockets.by) == turns)
    wait_until(lambda: all(job.outcome for job in jobs))
    assert runs(service) == 1
    sockets.brought.put(None)


@pytest.mark.parametrize("known", [False, True])
def test_a_batch_that_fails_inside_the_server_is_computed_call_by_call(scheduled, monkeypatch, known):
    def full(*_):
        raise MemoryError

    scheduler, _ = scheduled(batching=BATCHED)
    if known:
        quick(scheduler)
    monkeypatch.setattr(np, "concatenate", full)
    jobs = [Job(x) for x in rows(1, 1)]
    scheduler.submit(jobs)
    wait_until(lambda: all(job.outcome for job in jobs))
    assert [job.outcome.outputs["y"].tolist() for job in jobs] == [[[2.0] * 4], [[4.0] * 4]]


def test_a_call_that_cannot_be_answered_costs_the_others_of_its_batch_nothing(scheduled):
    class Unanswerable(Job):
        def answer(self, _):
            raise ValueError

    scheduler, service = scheduled(batching=BATCHED)
    quick(scheduler)
    jobs = [Unanswerable(np.ones((1, 4))), Job(np.ones((1, 4)))]
    scheduler.submit(jobs)
    assert isinstance(jobs[0].outcome, InferenceError)
    assert jobs[1].outcome.outputs["y"].tolist() == [[2.0] * 4]
    assert service._counts["m", "1"].errors == 1


def test_a_failure_of_ours_costs_the_sockets_nobody_who_sees_to_them(scheduled, monkeypatch):
    scheduler, service = scheduled(workers=1)
    quick(scheduler)
    monkeypatch.setattr(service, "count", lambda *_, **__: 1 / 0)
    sockets = Sockets()
    scheduler.lead(sockets.turn)
    for turns in (2, 3):
        sockets.brought.put([Job(np.ones((1, 4)))])
        wait_until(lambda turns=turns: len(sockets.by) == turns)
    sockets.brought.put(None)


def test_close_computes_what_was_accepted(scheduled):
    scheduler, _ = scheduled(workers=1)
    jobs = [Job(np.ones((1, 4))) for _ in range(20)]
    scheduler.submit(jobs)
    scheduler.close()
    assert all(job.outcome.outputs["y"].shape == (1, 4) for job in jobs)
