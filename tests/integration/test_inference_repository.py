"""Clients list, unload and load models; which version of one answers stays the store's to say."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

import tiny_models
from inference_process import served
from inference_support import HandStore, install, scaling
from outstation.inference.host import ModelHost
from outstation.settings import InferenceSettings
from outstation_inference import InferenceProcess
from support import wait_until

X = np.ones((1, 4), np.float32)


@pytest.fixture
def store(tmp_path):
    return HandStore(scaling(tmp_path / "1", 1, name="a"), scaling(tmp_path / "3", 3, name="b"))


@pytest.fixture
def address(store):
    process = InferenceProcess(ModelHost(store, preload=True), InferenceSettings(), ("127.0.0.1:0",))
    try:
        yield process.addresses[0]
    finally:
        process.close()


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as made:
        wait_until(made.is_server_ready)
        yield made


def infer(client, name):
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    result = client.infer(name, [tensor])
    return result.get_response().model_version, float(result.as_numpy("y")[0, 0])


def outcome(client, name):
    try:
        return infer(client, name)
    except InferenceServerException as exc:
        return exc.status()


def refused(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode."), caught.value.message()


def index(client):
    return {model.name: (model.version, model.state) for model in client.get_model_repository_index().models}


def test_an_unloaded_model_answers_no_more_until_it_is_loaded_and_others_go_on(client):
    assert index(client) == {"a": ("1.0.0", "READY"), "b": ("3.0.0", "READY")}
    client.unload_model("a")
    assert index(client) == {"a": ("", "UNAVAILABLE"), "b": ("3.0.0", "READY")}
    assert refused(lambda: infer(client, "a")) == ("UNAVAILABLE", "'a' was unloaded here.")
    assert not client.is_model_ready("a")
    assert client.is_server_ready()  # it does what it was told
    assert infer(client, "b") == ("3.0.0", 3.0)
    assert [row.name for row in client.get_inference_statistics().model_stats] == ["b"]
    client.unload_model("a")
    client.load_model("a")
    client.load_model("a")
    assert infer(client, "a") == ("1.0.0", 1.0)


def test_a_version_that_comes_while_its_model_is_unloaded_waits_until_it_is_loaded(client, store, tmp_path):
    client.unload_model("a")
    store.answer(scaling(tmp_path / "2", 2, name="a"))
    client.unload_model("b")  # the store has been looked at since
    assert not client.is_model_ready("a")
    client.load_model("a")
    assert infer(client, "a") == ("2.0.0", 2.0)


def test_loading_tries_a_version_again_that_could_not_be_loaded(client, store, tmp_path):
    broken = install(tmp_path / "2", "2.0.0", b"no model", name="a")
    store.answer(broken)
    status, words = refused(lambda: client.load_model("a"))
    assert (status, "is no ONNX file" in words) == ("UNAVAILABLE", True)
    assert infer(client, "a") == ("1.0.0", 1.0)  # the version before goes on
    (broken.folder / "model.onnx").write_bytes(tiny_models.scale(2))
    client.load_model("a")
    assert infer(client, "a") == ("2.0.0", 2.0)


def test_a_model_that_no_version_may_answer_for_is_not_loaded(client, store):
    store.withdraw("b")
    wait_until(lambda: not client.is_model_ready("b"))
    assert refused(lambda: client.load_model("b"))[0] == "UNAVAILABLE"
    assert refused(lambda: client.load_model("c"))[0] == "NOT_FOUND"
    assert refused(lambda: client.unload_model("c"))[0] == "NOT_FOUND"
    assert refused(lambda: client.load_model("../c"))[0] == "INVALID_ARGUMENT"


def test_what_a_model_is_no_caller_says(client):
    for more in ({"config": "{}"}, {"config": "{}", "files": {"file:1/model.onnx": b"\0"}}):
        status, words = refused(lambda more=more: client.load_model("a", **more))
        assert (status, "is not taken" in words) == ("INVALID_ARGUMENT", True)


def test_rest_lists_unloads_and_loads(address, client):
    host, port = address.split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as rest:

        def ask(path, body=""):
            rest.request("POST", f"/v2/repository/{path}", body)
            response = rest.getresponse()
            return response.status, json.loads(response.read())

        assert ask("models/a/unload", '{"parameters": {"unload_dependents": false}}') == (200, {})
        assert [(row["name"], row["state"]) for row in ask("index")[1]] == [("a", "UNAVAILABLE"), ("b", "READY")]
        assert [row["name"] for row in ask("index", '{"ready": true}')[1]] == ["b"]
        assert ask("models/a/load", '{"parameters": {"config": "{}"}}')[0] == 400
        assert ask("models/a/load", "[")[0] == 400
        assert ask("models/a/load", "{}") == (200, {})
        assert ask("models/c/load")[0] == 404
        assert ask("index", "3")[0] == 400
    assert infer(client, "a") == ("1.0.0", 1.0)


def test_a_bare_file_is_read_again_when_it_is_loaded(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(tiny_models.scale(2))
    with served(path, "m") as address, triton.InferenceServerClient(address) as client:
        client.unload_model("m")
        assert refused(lambda: infer(client, "m"))[0] == "UNAVAILABLE"
        path.write_bytes(tiny_models.scale(5))
        client.load_model("m")
        assert infer(client, "m") == ("1", 5.0)
        client.unload_model("m")
        path.unlink()
        assert refused(lambda: client.load_model("m"))[0] == "UNAVAILABLE"


def test_loading_and_unloading_under_load_ends_each_call_with_an_answer_or_with_unavailable(client, address):
    done, outcomes = threading.Event(), []

    def call():
        with triton.InferenceServerClient(address) as own:
            while not done.is_set():
                outcomes.append(outcome(own, "a"))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10):
        client.unload_model("a")
        client.load_model("a")
    done.set()
    for thread in threads:
        thread.join()
    assert set(outcomes) <= {("1.0.0", 1.0), "StatusCode.UNAVAILABLE"}
    assert ("1.0.0", 1.0) in outcomes
