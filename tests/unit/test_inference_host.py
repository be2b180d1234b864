"""Versions take over under load without a failed or mixed call; what cannot be loaded changes nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_models
from inference_support import HandStore, install, scaling
from outstation.errors import (
    ClosedError,
    InferenceError,
    InvalidInputError,
    InvalidNameError,
    ModelLoadError,
    ModelNotFoundError,
    ModelNotReadyError,
)
from outstation.inference.host import FixedModels, ModelHost
from outstation.inference.model import Health
from outstation.models.manifest import RuntimeRequirement, TensorSpec
from support import wait_until

X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def host():
    store = HandStore()
    with ModelHost(store) as made:
        made.store = store
        yield made


def test_a_call_is_answered_by_the_version_that_the_store_names(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 3))
    model = host.get("tiny")
    result = model.run({"x": X})
    assert result["y"].tolist() == (3 * X).tolist()
    assert (result.model_version, model.version, model.name) == ("3.0.0", "3.0.0", "tiny")
    assert model.placement.accelerator == "cpu"
    assert host.get("tiny") is model


def test_eight_threads_see_every_swap_and_never_a_failed_or_mixed_call(host, tmp_path):
    versions = {f"{number}.0.0": scaling(tmp_path / str(number), number) for number in range(1, 9)}
    host.store.answer(versions["1.0.0"])
    model = host.get("tiny")
    done = threading.Event()
    problems, seen = [], set()

    def call(seed):
        x = np.full((1, 4), seed + 1, np.float32)
        while not done.is_set():
            try:
                result = model.run({"x": x})
            except Exception as exc:  # noqa: BLE001 - any is one too many
                problems.append(exc)
                return
            seen.add(result.model_version)
            if result["y"][0, 0] != (seed + 1) * float(result.model_version.partition(".")[0]):
                problems.append(result)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for version, installed in list(versions.items())[1:]:
        host.store.answer(installed)
        wait_until(lambda version=version: version in seen, timeout=10)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []
    assert seen == set(versions)


def test_get_waits_for_the_first_version(host, tmp_path):
    installed = scaling(tmp_path / "a", 1)
    timer = threading.Timer(0.1, host.store.answer, (installed,))
    timer.start()
    assert host.get("tiny", timeout=10).version == "1.0.0"
    timer.join()


def test_get_says_after_its_timeout_that_no_version_answers(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1, name="other"))
    with pytest.raises(ModelNotReadyError, match=r"No version of 'tiny' answers on this device \(answering: other\)"):
        host.get("tiny", timeout=0.01)
    with pytest.raises(InvalidNameError):
        host.get("No Name")


def test_a_version_that_cannot_be_loaded_leaves_the_one_before_and_counts_as_failing(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1))
    model = host.get("tiny")
    model.run({"x": X})
    host.store.answer(install(tmp_path / "b", "2.0.0", b"no model"))
    wait_until(lambda: host.health("tiny") == Health("2.0.0", 1, 1), timeout=10)
    assert model.run({"x": X}).model_version == "1.0.0"
    host.store.answer(scaling(tmp_path / "c", 3))
    wait_until(lambda: model.version == "3.0.0", timeout=10)
    assert host.health("tiny") == Health("3.0.0", 0, 0)


def test_get_raises_at_once_what_keeps_the_only_version_from_loading(host, tmp_path):
    host.store.answer(install(tmp_path / "a", "1.0.0", b"no model"))
    with pytest.raises(ModelLoadError, match="is no ONNX file"):
        host.get("tiny", timeout=60)


def test_a_model_that_is_withdrawn_answers_no_more_until_it_comes_back(host, tmp_path):
    installed = scaling(tmp_path / "a", 1)
    host.store.answer(installed)
    model = host.get("tiny")
    host.store.withdraw("tiny")
    wait_until(lambda: not model.ready, timeout=10)
    with pytest.raises(ModelNotReadyError, match="No version of 'tiny' may answer"):
        model.run({"x": X})
    host.store.answer(installed)
    wait_until(lambda: model.ready, timeout=10)


def test_health_counts_what_the_version_did_and_not_what_callers_did_wrong(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1))
    model = host.get("tiny")
    model.run({"x": X})
    with pytest.raises(InvalidInputError):
        model.run({"x": X.astype(np.int64)})
    assert host.healths() == {"tiny": Health("1.0.0", 1, 0)}


def test_on_trial_an_answer_of_nothing_but_nan_is_a_failure(host, tmp_path):
    host.store.try_out(install(tmp_path / "a", "2.0.0", tiny_models.scale(np.nan)))
    model = host.get("tiny")
    wait_until(lambda: model.current.on_trial)
    assert np.isnan(model.run({"x": X})["y"]).all()  # it is answered all the same: nobody knows better
    assert host.healths() == {"tiny": Health("2.0.0", 1, 1)}
    host.store.prove("tiny")
    wait_until(lambda: not model.current.on_trial)
    model.run({"x": X})
    assert host.healths() == {"tiny": Health("2.0.0", 2, 1)}


def test_on_trial_a_nan_among_numbers_is_an_answer(host, tmp_path):
    host.store.try_out(scaling(tmp_path / "a", 2))
    model = host.get("tiny")
    wait_until(lambda: model.current.on_trial)
    model.run({"x": np.array([[1, np.nan, 3, 4]], np.float32)})
    assert host.healths() == {"tiny": Health("2.0.0", 1, 0)}


def test_a_version_that_refuses_what_the_one_before_took_fails(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1))
    model = host.get("tiny")
    host.store.answer(
        install(tmp_path / "b", "2.0.0", tiny_models.scale(2, name_in="z"), inputs=(TensorSpec("z", "FP32", (-1, 4)),))
    )
    wait_until(lambda: model.version == "2.0.0", timeout=10)
    with pytest.raises(InvalidInputError):
        model.run({"x": X})
    with pytest.raises(InvalidInputError):
        model.run({"neither": X})
    assert model.health == Health("2.0.0", 1, 1)


def test_a_file_other_than_its_manifest_promises_is_not_loaded(host, tmp_path):
    host.store.answer(
        install(tmp_path / "a", "1.0.0", tiny_models.scale(1), inputs=(TensorSpec("x", "FP64", (-1, 4)),))
    )
    with pytest.raises(ModelLoadError, match=r"promises the input 'x' as FP64 \[-1, 4\]; the file has FP32 \[-1, 4\]"):
        host.get("tiny", timeout=60)


def test_a_runtime_older_than_the_manifest_asks_for_is_told(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1, runtime=RuntimeRequirement("onnx", "99.1")))
    with pytest.raises(ModelLoadError, match=r"needs onnx 99.1; \d"):
        host.get("tiny", timeout=60)


def test_a_host_that_preloads_answers_only_for_what_the_store_knows(tmp_path):
    store = HandStore(scaling(tmp_path / "a", 1, name="one"), scaling(tmp_path / "b", 2, name="two"))
    with ModelHost(store, preload=True) as host:
        assert host.wait_settled(30)
        assert host.settled
        assert host.names() == ("one", "two")
        assert host.get("two", 0).version == "2.0.0"
        with pytest.raises(ModelNotFoundError, match="'three' is known"):
            host.get("three", 60)


def test_after_close_the_handle_says_so(tmp_path):
    host = ModelHost(HandStore(scaling(tmp_path / "a", 1)))
    model = host.get("tiny")
    host.close()
    host.close()
    with pytest.raises(ModelNotReadyError):
        model.run({"x": X})
    with pytest.raises(ClosedError):
        host.get("tiny")


def test_many_calls_at_once_are_all_of_one_version(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 3))
    results = host.get("tiny").run_many([{"x": X}, {"x": X + 1}], timeout=10)
    assert [result["y"].tolist() for result in results] == [(3 * X).tolist(), (3 * X + 3).tolist()]
    assert {result.model_version for result in results} == {"3.0.0"}


def test_labels_come_with_the_version(host, tmp_path):
    host.store.answer(scaling(tmp_path / "a", 1, labels="zero\none\n"))
    assert host.get("tiny").labels == ("zero", "one")


def test_fixed_models_name_what_there_is():
    with pytest.raises(ModelNotFoundError) as caught:
        FixedModels(()).get("m")
    assert caught.value.hint == "There is: none."


def test_a_failure_while_computing_is_an_error_of_the_version(host, tmp_path):
    host.store.answer(install(tmp_path / "a", "1.0.0", pairs(), outputs=(TensorSpec("y", "FP32", (-1, 7)),)))
    model = host.get("tiny")
    with pytest.raises(InferenceError, match="failed while computing"):
        model.run({"x": X})
    assert model.health == Health("1.0.0", 1, 1)


def pairs():
    """``y = x`` in rows of seven: a size that is no multiple of it fails inside the runtime."""
    rows = numpy_helper.from_array(np.array([-1, 7]), "rows")
    graph = helper.make_graph(
        [helper.make_node("Reshape", ["x", "rows"], ["y"])],
        "pairs",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["m", 7])],
        [rows],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
