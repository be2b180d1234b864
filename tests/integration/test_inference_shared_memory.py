"""Tensors in shared memory, as Triton's clients use it: over gRPC and REST, in a batch, and what lies about it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import threading
import uuid
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

import tiny_models
from inference_process import served
from outstation.settings import BatchingSettings

X = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    path.write_bytes(tiny_models.scale(2))
    with served(path, "m", batching={"m": BatchingSettings(max_calls=8)}) as made:
        yield made


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as made:
        yield made
        made.unregister_system_shared_memory()


@pytest.fixture
def rest(address):
    host, port = address.split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:

        def ask(method, path, body=None):
            connection.request(method, f"/v2/{path}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

        yield ask
        ask("POST", "systemsharedmemory/unregister")


@contextlib.contextmanager
def memory(size):
    """Shared memory that tritonclient made, and its key."""
    key = f"/outstation-test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region("region", key, size)
    try:
        yield handle, key
    finally:
        shm.destroy_shared_memory_region(handle)


def lying(name, size, offset=0, shape=(3, 4)):
    tensor = triton.InferInput("x", list(shape), "FP32")
    tensor.set_shared_memory(name, size, offset)
    return tensor


def wanted(name, size, offset=0):
    output = triton.InferRequestedOutput("y")
    output.set_shared_memory(name, size, offset)
    return output


def code(call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    return caught.value.status().removeprefix("StatusCode.")


def test_tritonclient_sends_and_takes_tensors_in_shared_memory(client):
    with memory(256) as (handle, key):
        shm.set_shared_memory_region(handle, [X])
        client.register_system_shared_memory("in", key, 128)
        client.register_system_shared_memory("out", key, 128, offset=128)
        regions = client.get_system_shared_memory_status().regions
        assert {name: (r.key, r.offset, r.byte_size) for name, r in regions.items()} == {
            "in": (key, 0, 128),
            "out": (key, 128, 128),
        }
        result = client.infer("m", [lying("in", X.nbytes)], outputs=[wanted("out", 100, 8)], request_id="7")
        output = result.get_output("y")
        assert (list(output.shape), output.datatype, result.get_response().id) == ([3, 4], "FP32", "7")
        assert output.parameters["shared_memory_byte_size"].int64_param == X.nbytes
        assert np.array_equal(shm.get_contents_as_numpy(handle, np.float32, [3, 4], 136), 2 * X)
        # Only the input there, then only the output.
        assert np.array_equal(client.infer("m", [lying("in", X.nbytes)]).as_numpy("y"), 2 * X)
        tensor = triton.InferInput("x", [3, 4], "FP32")
        tensor.set_data_from_numpy(X + 1)
        client.infer("m", [tensor], outputs=[wanted("out", X.nbytes)])
        assert np.array_equal(shm.get_contents_as_numpy(handle, np.float32, [3, 4], 128), 2 * (X + 1))
        client.unregister_system_shared_memory("in")
        assert list(client.get_system_shared_memory_status().regions) == ["out"]
        assert code(lambda: client.infer("m", [lying("in", X.nbytes)])) == "NOT_FOUND"


def test_rest_sends_and_takes_tensors_in_shared_memory(rest):
    with memory(256) as (handle, key):
        shm.set_shared_memory_region(handle, [X])
        assert rest("POST", "systemsharedmemory/region/r%20s/register", {"key": key, "byte_size": 256}) == (200, {})
        described = {"name": "r s", "key": key, "offset": 0, "byte_size": 256}
        assert rest("GET", "systemsharedmemory/status") == (200, [described])
        assert rest("GET", "systemsharedmemory/region/r%20s/status") == (200, [described])
        place = {"shared_memory_region": "r s", "shared_memory_byte_size": 48}
        call = {
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [3, 4], "parameters": place}],
            "outputs": [{"name": "y", "parameters": {**place, "shared_memory_offset": 100}}],
        }
        status, answer = rest("POST", "models/m/infer", call)
        assert (status, answer["outputs"]) == (
            200,
            [{"name": "y", "datatype": "FP32", "shape": [3, 4]}],
        )
        assert np.array_equal(shm.get_contents_as_numpy(handle, np.float32, [3, 4], 100), 2 * X)
        assert rest("POST", "systemsharedmemory/region/r%20s/unregister") == (200, {})
        assert rest("GET", "systemsharedmemory/status") == (200, [])


def test_who_asks_for_a_gpus_memory_hears_that_there_is_none(client, rest):
    assert not client.get_cuda_shared_memory_status().regions
    client.unregister_cuda_shared_memory()
    client.unregister_cuda_shared_memory("r")
    assert code(lambda: client.register_cuda_shared_memory("r", b"aGFuZGxl", 0, 64)) == "INVALID_ARGUMENT"
    assert code(lambda: client.get_cuda_shared_memory_status("r")) == "NOT_FOUND"
    assert rest("GET", "cudasharedmemory/status") == (200, [])
    assert rest("POST", "cudasharedmemory/unregister") == (200, {})
    handle = {"raw_handle": {"b64": "aGFuZGxl"}, "device_id": 0, "byte_size": 64}
    status, answer = rest("POST", "cudasharedmemory/region/r/register", handle)
    assert (status, "GPU" in answer["error"]) == (400, True)
    assert rest("GET", "cudasharedmemory/region/r/status")[0] == 404


def test_calls_that_are_computed_together_each_use_their_own_memory(address):
    problems = []

    def call(number):
        x = X + number
        with memory(128) as (handle, key), triton.InferenceServerClient(address) as client:
            shm.set_shared_memory_region(handle, [x])
            client.register_system_shared_memory(key, key, 128)
            for _ in range(50):
                client.infer("m", [lying(key, x.nbytes)], outputs=[wanted(key, x.nbytes, 64)])
                if not np.array_equal(shm.get_contents_as_numpy(handle, np.float32, [3, 4], 64), 2 * x):
                    problems.append(number)
            client.unregister_system_shared_memory(key)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []


def test_what_lies_about_shared_memory_is_refused_with_a_code_each_and_others_are_served(client, rest):
    with memory(64) as (handle, key):
        client.register_system_shared_memory("r", key, 64)
        register = client.register_system_shared_memory
        assert code(lambda: register("r", key, 64)) == "ALREADY_EXISTS"
        assert code(lambda: register("s", key, 65)) == "INVALID_ARGUMENT"
        assert code(lambda: register("s", "/../etc/passwd", 1)) == "INVALID_ARGUMENT"
        assert code(lambda: register("s", "/nobody-made-this", 1)) == "INVALID_ARGUMENT"
        assert code(lambda: client.get_system_shared_memory_status("s")) == "NOT_FOUND"
        calls = (
            ([lying("s", 48)], None, "NOT_FOUND"),
            ([lying("r", 65)], None, "INVALID_ARGUMENT"),
            ([lying("r", 48, 17)], None, "INVALID_ARGUMENT"),
            ([lying("r", 48, shape=(2, 4))], None, "INVALID_ARGUMENT"),
            ([lying("r", 2 << 30, shape=(1 << 27, 4))], None, "INVALID_ARGUMENT"),
            ([lying("r", 48)], [wanted("s", 48)], "NOT_FOUND"),
            ([lying("r", 48)], [wanted("r", 47)], "INVALID_ARGUMENT"),
        )
        for inputs, outputs, expected in calls:
            assert code(lambda i=inputs, o=outputs: client.infer("m", i, outputs=o)) == expected
        os.truncate(Path("/dev/shm", key[1:]), 16)
        assert code(lambda: client.infer("m", [lying("r", 48)])) == "INVALID_ARGUMENT"
        for path, body, status in (
            ("systemsharedmemory/region/s/register", {"key": key, "byte_size": 1 << 40}, 400),
            ("systemsharedmemory/region/s/register", {"key": "\ud800", "byte_size": 1}, 400),
            ("systemsharedmemory/region/s/register", {"key": key, "byte_size": -1}, 400),
            ("systemsharedmemory/region/s/register", {"key": key}, 400),
            ("systemsharedmemory/region/s/register", [], 400),
        ):
            assert rest("POST", path, body)[0] == status
        assert rest("GET", "systemsharedmemory/region/s/status")[0] == 404
        assert rest("GET", "systemsharedmemory/region/r/unregister")[0] == 405
        os.truncate(Path("/dev/shm", key[1:]), 64)
        shm.set_shared_memory_region(handle, [X])
        assert np.array_equal(client.infer("m", [lying("r", 48)]).as_numpy("y"), 2 * X)


def test_more_regions_than_the_bound_are_refused(client):
    with memory(8) as (_, key):
        for number in range(64):
            client.register_system_shared_memory(f"r{number}", key, 8)
        assert code(lambda: client.register_system_shared_memory("more", key, 8)) == "RESOURCE_EXHAUSTED"


def test_a_server_that_other_machines_reach_takes_no_shared_memory(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_models.scale(2))
    with served(tmp_path / "m.onnx", "m", listen="0.0.0.0:0") as address, memory(8) as (_, key):
        port = address.rpartition(":")[2]
        with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
            assert code(lambda: client.register_system_shared_memory("r", key, 8)) == "RESOURCE_EXHAUSTED"
