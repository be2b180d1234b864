"""Every call of NVIDIA's four Python clients (gRPC and REST, blocking and asyncio) means what it means to Triton."""

from __future__ import annotations

import asyncio
import contextlib
import uuid

import numpy as np
import pytest
from google.protobuf.json_format import MessageToDict
from tritonclient import grpc, http
from tritonclient.grpc import aio as grpc_aio
from tritonclient.http import aio as http_aio
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

import tiny_models
from inference_support import HandStore, install
from outstation._version import __version__
from outstation.inference.host import ModelHost
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation_inference import InferenceProcess
from support import wait_until

X = np.array([[1, 4, 2, 3], [0, -1, 7, 7]], np.float32)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("m") / "1"
    store = HandStore(install(folder, "1.2.0", tiny_models.scale(2), name="m", labels="ant\nbee\ncat\ndog\n"))
    process = InferenceProcess(ModelHost(store, preload=True), InferenceSettings(), ("127.0.0.1:0",))
    with contextlib.closing(process):
        with grpc.InferenceServerClient(process.addresses[0]) as client:
            client.load_model("m")  # returns when it answers
        yield process.addresses[0]


class Waited:
    """A client of asyncio whose calls are waited for."""

    def __init__(self, kind, address):
        async def made():
            return kind.InferenceServerClient(address)

        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(made())

    def __getattr__(self, name):
        call = getattr(self._client, name)
        return lambda *values, **more: self._loop.run_until_complete(call(*values, **more))

    def close(self):
        self._loop.run_until_complete(self._client.close())
        self._loop.run_until_complete(asyncio.sleep(0))  # transports close in the turn after
        self._loop.close()


@pytest.fixture(params=[grpc, http, grpc_aio, http_aio], ids=["grpc", "http", "grpc-aio", "http-aio"])
def kind(request):
    return request.param


@pytest.fixture
def client(kind, address):
    made = Waited(kind, address) if kind in (grpc_aio, http_aio) else kind.InferenceServerClient(address)
    with contextlib.closing(made):
        yield made


@pytest.fixture
def over_rest(kind):
    return kind in (http, http_aio)


@pytest.fixture
def asked(kind):
    def make(x=X, **placed):
        tensor = kind.InferInput("x", list(x.shape), "FP32")
        tensor.set_shared_memory(**placed) if placed else tensor.set_data_from_numpy(x)
        return [tensor]

    return make


def plain(answer):
    """What the client says, whether it gives a message of protobuf or a dictionary."""
    return answer if isinstance(answer, dict | list) else MessageToDict(answer, preserving_proto_field_name=True)


def refused(call):
    """The code of the protocol with which *call* fails."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode.")


def test_server_and_model_are_described(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert [client.is_model_ready("m", version) for version in ("", "1.2.0", "1.1.0")] == [True, True, False]
    assert not client.is_model_ready("other")
    server = plain(client.get_server_metadata())
    assert (server["name"], server["version"]) == ("outstation", __version__)
    model = plain(client.get_model_metadata("m"))
    assert (model["name"], model["versions"], model["inputs"][0]["name"]) == ("m", ["1.2.0"], "x")
    config = plain(client.get_model_config("m"))
    config = config.get("config", config)
    assert (config["name"], config["input"][0]["data_type"]) == ("m", "TYPE_FP32")
    assert config["parameters"] == {"labels": {"string_value": "ant\nbee\ncat\ndog"}}


def test_a_client_of_ours_knows_the_labels_too(address):
    with RemoteModels(address) as models:
        assert models.get("m").labels == ("ant", "bee", "cat", "dog")


def test_a_call_comes_back_with_its_id_and_whatever_is_said_beside_it(client, kind, asked, over_rest):
    more = {"headers": {"x-trace": "7"}, "parameters": {"note": "by hand"}}
    more |= {"query_params": {"a": "b"}} if over_rest else {"client_timeout": 10.0}
    answer = client.infer(
        "m", asked(), request_id="call-7", priority=2, timeout=5_000_000, sequence_id=3, sequence_start=True, **more
    )
    assert np.array_equal(answer.as_numpy("y"), 2 * X)
    said = plain(answer.get_response())
    assert (said["id"], said["model_version"]) == ("call-7", "1.2.0")
    only = client.infer("m", asked(), "1.2.0", outputs=[kind.InferRequestedOutput("y")])
    assert np.array_equal(only.as_numpy("y"), 2 * X)


def test_compressed_calls_are_read(client, asked, over_rest):
    for algorithm in ("gzip", "deflate"):
        how = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
        how = how if over_rest else {"compression_algorithm": algorithm}
        assert np.array_equal(client.infer("m", asked(), **how).as_numpy("y"), 2 * X)


def test_the_best_classes_come_with_their_names(client, kind, asked):
    for _ in range(2):
        answer = client.infer("m", asked(), outputs=[kind.InferRequestedOutput("y", class_count=2)])
        assert [[word.decode() for word in row] for row in answer.as_numpy("y")] == [
            ["8.000000:1:bee", "6.000000:3:dog"],
            ["14.000000:2:cat", "14.000000:3:dog"],
        ]


def test_tensors_in_shared_memory_stay_there(client, kind, asked):
    key = f"/outstation-test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("r", key, 256)
    try:
        shm.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("r", key, 256)
        assert "r" in str(plain(client.get_system_shared_memory_status("r")))
        output = kind.InferRequestedOutput("y")
        output.set_shared_memory("r", X.nbytes, 64)
        for inputs in (asked(region_name="r", byte_size=X.nbytes), asked(), asked()):
            shm.set_shared_memory_region(handle, [np.zeros_like(X)], 64)
            client.infer("m", inputs, outputs=[output])
            assert np.array_equal(shm.get_contents_as_numpy(handle, np.float32, list(X.shape), 64), 2 * X)
        client.unregister_system_shared_memory("r")
        assert refused(lambda: client.get_system_shared_memory_status("r")) in ("NOT_FOUND", "404")
        client.register_system_shared_memory("r", key, 256)
        client.unregister_system_shared_memory()
        assert not plain(client.get_system_shared_memory_status())
    finally:
        shm.destroy_shared_memory_region(handle)


def test_models_are_listed_loaded_and_unloaded(client, asked):
    index = plain(client.get_model_repository_index())
    assert (index if isinstance(index, list) else index["models"])[0]["state"] == "READY"
    client.unload_model("m", unload_dependents=True)
    assert not client.is_model_ready("m")
    assert refused(lambda: client.infer("m", asked())) in ("UNAVAILABLE", "503")
    client.load_model("m")
    assert client.is_model_ready("m")
    assert refused(lambda: client.load_model("m", config='{"name": "m"}')) in ("INVALID_ARGUMENT", "400")


def test_calls_are_counted(client, asked):
    def count():
        (row,) = plain(client.get_inference_statistics("m"))["model_stats"]
        return int(row.get("inference_count", 0))

    before = count()
    client.infer("m", asked())
    client.infer("m", asked())
    assert count() == before + 2
    runs = int(plain(client.get_inference_statistics("m"))["model_stats"][0]["execution_count"])
    assert refused(lambda: client.infer("m", asked(X[:, :2])))
    assert int(plain(client.get_inference_statistics("m"))["model_stats"][0]["execution_count"]) == runs
    assert plain(client.get_inference_statistics())["model_stats"][0]["name"] == "m"


def test_what_is_not_served_is_told(client):
    for call in (
        client.get_trace_settings,
        client.get_log_settings,
        lambda: client.update_trace_settings(settings={"trace_rate": "1"}),
        lambda: client.update_log_settings({"log_info": True}),
    ):
        assert refused(call) in ("UNIMPLEMENTED", "404")
    assert refused(lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 8)) in ("INVALID_ARGUMENT", "400")
    assert not plain(client.get_cuda_shared_memory_status())
    client.unregister_cuda_shared_memory()


def test_who_wants_a_call_kept_where_nothing_is_kept_is_told(client, asked):
    assert refused(lambda: client.infer("m", asked(), parameters={"capture": "bee"})) in ("INVALID_ARGUMENT", "400")
    assert np.array_equal(client.infer("m", asked(), parameters={"capture": False}).as_numpy("y"), 2 * X)


def test_a_call_that_is_wrong_is_told_why(client, kind, asked):
    assert refused(lambda: client.infer("other", asked())) in ("NOT_FOUND", "404")
    assert refused(lambda: client.infer("m", asked(), "9")) in ("NOT_FOUND", "404")
    assert refused(lambda: client.infer("m", asked(X[:, :2]))) in ("INVALID_ARGUMENT", "400")
    wanted = [kind.InferRequestedOutput("z")]
    assert refused(lambda: client.infer("m", asked(), outputs=wanted)) in ("INVALID_ARGUMENT", "400")


@pytest.mark.parametrize("kind", [http, http_aio], ids=["http", "http-aio"], indirect=True)
def test_elements_travel_as_json_or_in_binary_by_tensor(client, kind, address):
    tensor = kind.InferInput("x", list(X.shape), "FP32")
    for sent in (True, False):
        tensor.set_data_from_numpy(X, binary_data=sent)
        for wanted in (True, False):
            outputs = [kind.InferRequestedOutput("y", binary_data=wanted)]
            assert np.array_equal(client.infer("m", [tensor], outputs=outputs).as_numpy("y"), 2 * X)


@pytest.mark.parametrize("kind", [grpc, http], ids=["grpc", "http"], indirect=True)
def test_calls_under_way_together_are_told_apart(client, kind, asked):
    if kind is http:
        waiting = [client.async_infer("m", asked(X + number)) for number in range(8)]
        answers = [one.get_result() for one in waiting]
    else:
        came = {}
        for number in range(8):
            client.async_infer(
                "m", asked(X + number), lambda result, error, n=number: came.update({n: error or result})
            )
        wait_until(lambda: len(came) == 8)
        answers = [came[number] for number in range(8)]
    for number, answer in enumerate(answers):
        assert np.array_equal(answer.as_numpy("y"), 2 * (X + number))


@pytest.mark.parametrize("kind", [grpc_aio], ids=["grpc-aio"], indirect=True)
def test_a_stream_of_calls_is_answered_one_by_one(kind, address, asked):
    async def streamed():
        async with kind.InferenceServerClient(address) as client:

            async def calls():
                for number in range(5):
                    yield {"model_name": "m", "inputs": asked(X + number), "request_id": str(number)}

            return [answer async for answer in client.stream_infer(calls())]

    answers = asyncio.run(streamed())
    assert [error for _, error in answers] == [None] * 5
    for number, (result, _) in enumerate(answers):
        assert result.get_response().id == str(number)
        assert np.array_equal(result.as_numpy("y"), 2 * (X + number))
