"""REST, batches, streams of calls, extensions and abuse: the front of the inference component, a real process."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import queue
import socket
import struct
import threading
from pathlib import Path

import grpc
import numpy as np
import pytest
from tritonclient import grpc as triton

import tiny_models
from inference_process import InferenceServer, served
from outstation.inference.remote import RemoteModels

EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading"
INFER = "/v2/models/meter-digits/infer"


@pytest.fixture(scope="module")
def scans():
    with np.load(EXAMPLE / "digits.npz") as file:
        return file["images"][file["held_out"]].astype(np.float32)


@pytest.fixture(scope="module")
def server():
    arguments = (
        "--model",
        EXAMPLE / "models/v2.onnx",
        "--name",
        "meter-digits",
        "--listen",
        "127.0.0.1:0",
        "--batch",
        "8",
    )
    with InferenceServer(*arguments) as made:
        yield made


@pytest.fixture(scope="module")
def expected(server, scans):
    with RemoteModels(server.address) as models:
        return models.get("meter-digits").run({"image": scans})


@pytest.fixture
def rest(server):
    host, port = server.address.split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as connection:
        yield connection


def asked(rest, method, path, body=None, headers=None):
    rest.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), headers or {})
    response = rest.getresponse()
    return response.status, response.read(), response


def image(scans, **rest):
    return {
        "inputs": [{"name": "image", "datatype": "FP32", "shape": list(scans.shape), "data": scans.tolist()}],
        **rest,
    }


def test_rest_tells_of_server_and_model(rest):
    for path, expected in (
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/meter-digits/ready", {"name": "meter-digits", "ready": True}),
        ("/v2/models/meter-digits/versions/1/ready", {"name": "meter-digits", "ready": True}),
    ):
        status, body, _ = asked(rest, "GET", path)
        assert (status, json.loads(body)) == (200, expected)
    about = json.loads(asked(rest, "GET", "/v2")[1])
    assert about["name"] == "outstation"
    model = json.loads(asked(rest, "GET", "/v2/models/meter-digits")[1])
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}]
    config = json.loads(asked(rest, "GET", "/v2/models/meter-digits/config")[1])
    assert config["output"][0] == {"name": "digit", "data_type": "TYPE_INT64", "dims": [-1]}
    index = json.loads(asked(rest, "POST", "/v2/repository/index")[1])
    assert index == [{"name": "meter-digits", "version": "1", "state": "READY", "reason": ""}]


def test_rest_answers_json_with_json_nested_or_flat(rest, scans, expected):
    for call in (image(scans[:3], id="a"), image(scans[:3].reshape(-1), id="a")):
        call["inputs"][0]["shape"] = [3, 8, 8]
        status, body, _ = asked(rest, "POST", INFER, call)
        answer = json.loads(body)
        assert (status, answer["model_name"], answer["model_version"], answer["id"]) == (200, "meter-digits", "1", "a")
        digit, probabilities = answer["outputs"]
        assert digit == {"name": "digit", "datatype": "INT64", "shape": [3], "data": expected["digit"][:3].tolist()}
        assert np.allclose(probabilities["data"], expected["probabilities"][:3].ravel(), atol=1e-6)


def test_rest_takes_and_gives_tensors_in_binary(rest, scans, expected):
    raw = scans[:5].tobytes()
    call = {
        "inputs": [
            {"name": "image", "datatype": "FP32", "shape": [5, 8, 8], "parameters": {"binary_data_size": len(raw)}}
        ],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}, {"name": "digit"}],
    }
    text = json.dumps(call).encode()
    headers = {"Inference-Header-Content-Length": str(len(text))}
    for encode, more in ((bytes, {}), (gzip.compress, {"Content-Encoding": "gzip"})):
        status, body, response = asked(rest, "POST", INFER, encode(text + raw), {**headers, **more})
        assert status == 200
        length = int(response.getheader("Inference-Header-Content-Length"))
        first, second = json.loads(body[:length])["outputs"]
        assert first["parameters"] == {"binary_data_size": 200}
        got = np.frombuffer(body[length:], np.float32).reshape(5, 10)
        assert np.allclose(got, expected["probabilities"][:5], atol=1e-6)
        assert second["data"] == expected["digit"][:5].tolist()


def test_rest_answers_requests_that_were_sent_without_waiting_in_their_order(server, scans, expected):
    requests = b""
    for at in range(5):
        body = json.dumps(image(scans[at : at + 1])).encode()
        requests += f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), 10) as sock, sock.makefile("rb") as stream:
        sock.sendall(requests)
        digits = []
        for _ in range(5):
            length = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
            digits += json.loads(stream.read(length))["outputs"][0]["data"]
    assert digits == expected["digit"][:5].tolist()


def without(call, **changes):
    call["inputs"][0].update(changes)
    return call


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "words"),
    [
        ("GET", "/nowhere", None, 404, "nothing at /nowhere"),
        ("GET", INFER, None, 405, "POST"),
        ("POST", "/v2", b"{}", 405, "GET"),
        ("GET", "/v2/models/other", None, 404, "no model 'other'"),
        ("GET", "/v2/models/other/ready", None, 503, '"ready":false'),
        ("POST", "/v2/models/meter-digits/versions/9/infer", "call", 404, "not in '9'"),
        ("POST", INFER, b"{", 400, "is no inference request"),
        ("POST", INFER, b'{"inputs": 3}', 400, "$.inputs"),
        ("POST", INFER, b"[" * 100_000, 400, "request"),
        ("POST", INFER, b" " * (9 << 20), 400, "8388608 is the most"),
        ("POST", INFER, {"datatype": "FP12"}, 400, "unknown datatype 'FP12'"),
        ("POST", INFER, {"datatype": "INT32"}, 400, "is INT32; its data is something else"),
        ("POST", INFER, {"datatype": "FP64"}, 400, "is FP64; the model takes FP32"),
        ("POST", INFER, {"shape": [2, 8, 8]}, 400, "has 64 elements; FP32 [2, 8, 8] needs 128"),
        ("POST", INFER, {"shape": [-1, 8, 8]}, 400, "negative dimension"),
        ("POST", INFER, {"data": [[1.0], [1.0, 2.0]]}, 400, "rows of different lengths"),
        ("POST", INFER, {"data": "text"}, 400, "no list of data"),
        ("POST", INFER, {"name": "imagee"}, 400, "no input 'imagee'"),
        ("POST", INFER, {"parameters": {"binary_data_size": 1 << 31}}, 400, "claims 2147483648 bytes; 0 are left"),
    ],
)
def test_rest_refuses_a_wrong_call_with_the_right_code(request, rest, scans, method, path, body, status, words):  # noqa: PLR0917
    if body == "call":
        body = image(scans[:1])
    elif isinstance(body, dict):
        body = without(image(scans[:1] + 0.5), **body)
    got, answer, _ = asked(rest, method, path, body)
    assert (got, words in answer.decode().replace('\\"', '"')) == (status, True), answer
    assert asked(rest, "GET", "/v2/health/live")[0] == 200  # on the same connection


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTP/3\r\n\r\n", b"400"),
        (b"GET /\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000, b"431"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Encoding: br\r\nContent-Length: 1\r\n\r\na", b"415"),
        (b"\x16\x03\x01\x02\x00 a greeting in TLS\r\n\r\n", b"400"),
        (b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + b"\0" * 30, b""),
    ],
)
def test_what_is_no_request_ends_the_connection_with_a_reason(server, sent, status):
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(sent)
        data = b""
        while more := sock.recv(65_536):
            data += more
    assert status in data.split(b"\r\n")[0]


def test_calls_of_many_clients_are_computed_together_and_each_gets_its_own_answer(server, scans, expected):
    with triton.InferenceServerClient(server.address) as client:

        def executions():
            stats = client.get_inference_statistics("meter-digits").model_stats[0]
            return stats.inference_count, stats.execution_count

        before = executions()
        wrong = []

        def call(first):
            with RemoteModels(server.address) as models:
                model = models.get("meter-digits")
                for at in range(first, first + 60):
                    result = model.run({"image": scans[at : at + 1 + at % 3]})
                    if result["digit"].tolist() != expected["digit"][at : at + 1 + at % 3].tolist():
                        wrong.append(at)

        threads = [threading.Thread(target=call, args=(first,)) for first in range(0, 480, 60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        calls, runs = (after - then for after, then in zip(executions(), before, strict=True))
    assert wrong == []
    assert calls == 480
    assert runs < 480


def test_a_stream_of_calls_is_answered_in_one(server, scans, expected):
    answers = queue.SimpleQueue()
    with triton.InferenceServerClient(server.address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at in range(10):
            tensor = triton.InferInput("image", [1, 8, 8], "FP32")
            tensor.set_data_from_numpy(scans[at : at + 1])
            client.async_stream_infer("meter-digits", [tensor], request_id=str(at))
        client.async_stream_infer("other", [tensor])
        got = [answers.get(timeout=10) for _ in range(11)]
        client.stop_stream()
    digits = {int(r.get_response().id): int(r.as_numpy("digit")[0]) for r, error in got if error is None}
    assert digits == dict(enumerate(expected["digit"][:10].tolist()))
    assert ["no model 'other'" in error.message() for _, error in got if error is not None] == [True]


def test_tritonclients_extensions_and_grpcs_health_are_answered(server):
    with triton.InferenceServerClient(server.address) as client:
        config = client.get_model_config("meter-digits").config
        assert (config.name, config.max_batch_size, config.backend) == ("meter-digits", 0, "onnxruntime")
        assert [(row.name, list(row.dims)) for row in config.input] == [("image", [-1, 8, 8])]
        assert client.get_model_repository_index().models[0].state == "READY"


def test_grpcs_health_service_knows_the_server_and_each_model(server):
    with grpc.insecure_channel(server.address) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        for service in ("", "inference.GRPCInferenceService", "meter-digits"):
            assert check(bytes((10, len(service))) + service.encode(), timeout=10) == b"\x08\x01"
        with pytest.raises(grpc.RpcError) as caught:
            check(b"\x0a\x05other", timeout=10)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_messages_compressed_by_the_client_are_read(server, scans, expected):
    with triton.InferenceServerClient(server.address) as client:
        tensor = triton.InferInput("image", [50, 8, 8], "FP32")
        tensor.set_data_from_numpy(scans[:50])
        for algorithm in ("gzip", "deflate"):
            result = client.infer("meter-digits", [tensor], compression_algorithm=algorithm)
            assert result.as_numpy("digit").tolist() == expected["digit"][:50].tolist()


def test_large_tensors_cross_in_both_directions(tmp_path):
    (tmp_path / "big.onnx").write_bytes(tiny_models.scale(2, width=1024))
    x = np.arange(4 << 20, dtype=np.float32).reshape(-1, 1024)  # 16 MiB: many frames, many windows
    with served(tmp_path / "big.onnx", "big") as address, RemoteModels(address) as models:
        model = models.get("big")
        for _ in range(3):
            assert np.array_equal(model.run({"x": x}, timeout=30)["y"], 2 * x)


def test_prometheus_reads_a_page(rest):
    status, body, response = asked(rest, "GET", "/metrics")
    assert status == 200
    assert response.getheader("Content-Type").startswith("text/plain")
    assert '\noutstation_inference_calls_total{model="meter-digits",version="1"} ' in body.decode()


def test_more_connections_than_the_bound_leave_the_server_answering(scans):
    with served(EXAMPLE / "models/v2.onnx", "m", max_connections=20) as address, contextlib.ExitStack() as opened:
        host, port = address.split(":")
        for _ in range(200):  # each sends half a request and holds on
            sock = opened.enter_context(socket.create_connection((host, int(port)), 10))
            with contextlib.suppress(OSError):
                sock.sendall(b"POST /v2 HTTP/1.1\r\n")
        with RemoteModels(address) as models:
            assert models.get("m").run({"image": scans[:1]}, timeout=10)["digit"].shape == (1,)


def test_a_client_that_never_reads_holds_up_nobody(server, scans):
    host, port = server.address.split(":")
    request = json.dumps(image(scans)).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n".encode()
    with socket.create_connection((host, int(port)), 10) as sock, RemoteModels(server.address) as models:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(0.5)
        with contextlib.suppress(TimeoutError):
            for _ in range(200):
                sock.sendall(head + request)
        model = models.get("meter-digits")
        for at in range(20):
            assert model.run({"image": scans[at : at + 1]}, timeout=5)["digit"].shape == (1,)


def test_frames_that_break_http2_end_with_goaway(server):
    host, port = server.address.split(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">IBI", 4, 0, 0)
    for frame in (
        struct.pack(">IBI", (2 << 20) << 8, 0, 1),  # larger than agreed
        struct.pack(">IBI", 8 << 8 | 6, 0, 0)[:8]
        + b"\0"
        + b"12345678"
        + struct.pack(">IBI", 3 << 8 | 6, 0, 0)
        + b"abc",
        struct.pack(">IBI", 1 << 8 | 1, 4, 2) + b"\x82",  # an even stream
        struct.pack(">IBI", 1 << 8 | 1, 4, 1) + b"\xff",  # headers that are none
        struct.pack(">IBI", 4 << 8 | 8, 0, 0) + b"\0\0\0\0",  # a window update of nothing
    ):
        with socket.create_connection((host, int(port)), 10) as sock:
            sock.sendall(preface + frame)
            data = b""
            while more := sock.recv(65_536):
                data += more
        assert struct.pack(">B", 7) + b"\0" + struct.pack(">I", 0) in data, frame
