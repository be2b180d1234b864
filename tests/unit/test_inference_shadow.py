"""A version in the shadow sees the live calls, and whoever made them does not notice."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import tiny_models
from inference_support import HandStore, install, scaling
from outstation.errors import InferenceError
from outstation.inference import shadow as shadows
from outstation.inference.deadlines import Deadlines
from outstation.inference.host import ModelHost
from outstation.inference.model import Health
from outstation.inference.shadow import ShadowRun, disagree
from outstation.settings import InferenceSettings
from support import wait_until

X = np.arange(1, 5, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def host():
    store = HandStore()
    with ModelHost(store, InferenceSettings(shadow_tolerance=0.1)) as made:
        made.store = store
        yield made


def shadow(host):
    return host.shadows().get("tiny")


def called(host, model, x=X):
    """Call until one call more was compared; returns how the shadow does."""
    before = shadow(host).calls
    wait_until(lambda: model.run({"x": x}) is not None and shadow(host).calls > before)
    return shadow(host)


def test_a_version_in_the_shadow_computes_live_calls_and_never_answers(host, tmp_path):
    host.store.answer(scaling(tmp_path / "front", 2))
    model = host.get("tiny")
    host.store.put_in_the_shadow(scaling(tmp_path / "behind", 3))
    wait_until(lambda: shadow(host) is not None)
    assert shadow(host) == Health("3.0.0", 0, 0)
    for _ in range(3):
        called(host, model)
        result = model.run({"x": X})
        assert (result.model_version, result["y"].tolist()) == ("2.0.0", (2 * X).tolist())
    found = shadow(host)
    assert found.disagreements == found.calls >= 3
    assert found.errors == 0
    assert host.healths()["tiny"].errors == 0


def test_answers_within_the_tolerance_agree(host, tmp_path):
    host.store.answer(scaling(tmp_path / "front", 2))
    model = host.get("tiny")
    host.store.put_in_the_shadow(install(tmp_path / "behind", "2.1.0", tiny_models.scale(2.1)))
    wait_until(lambda: shadow(host) is not None)
    assert called(host, model).disagreements == 0


def test_what_fails_in_the_shadow_fails_nobody(host, tmp_path):
    host.store.answer(scaling(tmp_path / "front", 2))
    model = host.get("tiny")
    host.store.put_in_the_shadow(install(tmp_path / "behind", "3.0.0", tiny_models.reshape_to_two_rows()))
    wait_until(lambda: shadow(host) is not None)
    found = called(host, model)
    assert (found.errors, found.disagreements) == (found.calls, 0)
    assert host.healths()["tiny"].errors == 0


def test_what_cannot_be_loaded_into_the_shadow_counts_as_failing(host, tmp_path):
    host.store.answer(scaling(tmp_path / "front", 2))
    model = host.get("tiny")
    host.store.put_in_the_shadow(install(tmp_path / "behind", "3.0.0", b"no model"))
    wait_until(lambda: shadow(host) == Health("3.0.0", 1, 1))
    assert model.run({"x": X}).model_version == "2.0.0"


def test_the_shadow_follows_the_store_and_the_version_in_front(host, tmp_path):
    host.store.answer(scaling(tmp_path / "one", 1))
    model = host.get("tiny")
    host.store.put_in_the_shadow(scaling(tmp_path / "three", 3))
    wait_until(lambda: shadow(host) is not None)
    called(host, model)
    host.store.answer(scaling(tmp_path / "two", 2))
    wait_until(lambda: model.version == "2.0.0")
    wait_until(lambda: shadow(host) is not None and shadow(host).calls == 0)  # another comparison
    called(host, model)
    host.store.end_shadow("tiny")
    wait_until(lambda: shadow(host) is None)
    wait_until(lambda: "outstation-shadow" not in {thread.name for thread in threading.enumerate()})


class Slow:
    """A version that computes when it is told to."""

    version = "3.0.0"

    def __init__(self):
        self.go = threading.Semaphore(0)
        self.seen = []

    def run(self, inputs, outputs, timeout, deadlines):
        self.go.acquire()
        self.seen.append(inputs["x"].copy())
        if inputs["x"][0, 0] < 0:
            raise InferenceError("no")
        return {"y": inputs["x"]}


@pytest.fixture
def slow():
    version = Slow()
    with_deadlines = Deadlines()
    run = ShadowRun(version, 0.0, with_deadlines)
    run.slow = version
    yield run
    version.go.release(100)
    run.close()
    with_deadlines.close()


def test_a_shadow_that_cannot_keep_up_passes_calls_over_and_counts_them(slow):
    calls = threading.Thread(target=lambda: [slow.offer({"x": X}, {"y": X}) for _ in range(50)], daemon=True)
    calls.start()
    wait_until(lambda: not calls.is_alive())  # although nothing is computed
    assert 50 - shadows.QUEUE_CALLS - 1 <= slow.health.dropped <= 50 - shadows.QUEUE_CALLS
    slow.slow.go.release(100)
    wait_until(lambda: slow.health.calls + slow.health.dropped == 50)
    assert slow.health.disagreements == 0


def test_the_callers_arrays_may_change_as_soon_as_the_call_returns(slow):
    inputs, outputs = {"x": X.copy()}, {"y": X.copy()}
    slow.offer(inputs, outputs)
    inputs["x"][:] = 9
    outputs["y"][:] = 9
    slow.slow.go.release()
    wait_until(lambda: slow.health.calls == 1)
    assert slow.slow.seen[0].tolist() == X.tolist()
    assert slow.health.disagreements == 0


def test_of_large_calls_one_in_a_hundred_is_copied(slow):
    large = np.zeros((1, shadows.MAX_COPIED_BYTES // 4 + 1), np.float32)
    for _ in range(shadows.LARGE_ONE_IN + 1):
        slow.offer({"x": large}, {"y": X})
    assert slow.health.dropped == shadows.LARGE_ONE_IN - 1


def test_an_array_that_cannot_be_copied_is_passed_over(slow, monkeypatch):
    def no_memory(*arguments, **options):
        raise MemoryError

    monkeypatch.setattr(shadows.np, "array", no_memory)
    for _ in range(shadows.QUEUE_CALLS + 2):
        slow.offer({"x": X}, {"y": X})
    assert slow.health.dropped == shadows.QUEUE_CALLS + 2


@pytest.mark.parametrize(
    ("front", "behind", "differs"),
    [
        ({"score": [1.0, 9.0]}, {"score": [1.5, 9.5]}, False),
        ({"score": [1.0, 9.0]}, {"score": [2.5, 9.0]}, True),
        ({"score": [1.0, np.nan]}, {"score": [1.0, np.nan]}, False),
        ({"score": [1.0, 9.0]}, {"score": [1.0, np.nan]}, True),
        ({"score": [1.0, np.inf]}, {"score": [1.0, np.inf]}, False),
        ({"score": [0.0, 0.0]}, {"score": [0.0, 1e-9]}, True),
        ({"score": [1.0, 9.0]}, {"score": [[1.0, 9.0]]}, True),
        ({"digit": [3], "score": [1.0]}, {"digit": [3], "score": [7.0]}, False),
        ({"digit": [3], "score": [1.0]}, {"digit": [4], "score": [1.0]}, True),
        ({"word": ["good"]}, {"word": ["good"]}, False),
        ({"word": ["good"]}, {"word": ["scrap"]}, True),
        ({"good": [True]}, {"good": [False]}, True),
    ],
)
def test_what_counts_as_a_disagreement(front, behind, differs):
    def arrays(lists):
        return {name: np.asarray(values) for name, values in lists.items()}

    assert disagree(arrays(front), arrays(behind), 0.1) is differs
