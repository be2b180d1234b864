"""Clients that never read, claim gigabytes, come by the thousand or leave: an error each, and others are served."""

from __future__ import annotations

import contextlib
import itertools
import json
import queue
import socket
import struct
import threading

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc as triton

import tiny_models
from inference_process import served
from outstation.errors import DeadlineError
from outstation.inference.host import FixedModels
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation.wire.tensors import MODEL_INFER, InferRequest
from outstation_inference import InferenceProcess
from outstation_inference.frames import DATA, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS
from outstation_inference.front import Front
from outstation_inference.hpack import literal
from support import wait_until

BLOCK = b"\x83\x86" + literal(":path", MODEL_INFER.path) + literal("content-type", "application/grpc")
END_STREAM, END_HEADERS = 1, 4
NO_WINDOW = struct.pack(">HI", 4, 0)
MEGABYTE = 1 << 20
X = {"x": np.ones((1, 4), np.float32)}


def write(path, nodes, inputs, outputs, constants=()):
    graph = helper.make_graph(nodes, "m", inputs, outputs, list(constants))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(made.SerializeToString())
    return path


def write_zeros(path):
    """A model that answers with as many zeros as it is asked for: little comes in, much goes out."""
    return write(
        path,
        [helper.make_node("ConstantOfShape", ["n"], ["y"])],
        [helper.make_tensor_value_info("n", TensorProto.INT64, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])],
    )


def write_slow(path, steps=400):
    """A model whose every call takes a while."""
    names = ["x", *(f"x{number}" for number in range(1, steps)), "y"]
    nodes = [helper.make_node("MatMul", [before, "x"], [after]) for before, after in itertools.pairwise(names)]
    return write(
        path,
        nodes,
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 256])],
    )


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "m.onnx").write_bytes(tiny_models.scale(2))
    return tmp_path / "m.onnx"


def connected(address):
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), 10)


def frame(kind, stream=0, payload=b"", flags=0):
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def call(stream, data, claimed=None):
    body = struct.pack(">BI", 0, len(data) if claimed is None else claimed) + data
    return frame(HEADERS, stream, BLOCK, END_HEADERS) + frame(DATA, stream, body, END_STREAM)


def ended(sock):
    """Whether the server has closed the connection; what it sends is read and forgotten."""
    sock.setblocking(False)
    try:
        while sock.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def test_answers_that_a_client_leaves_no_room_for_are_bounded_and_it_is_dropped(tmp_path):
    path = write_zeros(tmp_path / "m.onnx")
    question = InferRequest("m", {"n": np.array([MEGABYTE // 8])}).pack()
    with served(path, "m", max_message_bytes=MEGABYTE, queue=300) as address, RemoteModels(address) as models:
        model = models.get("m")
        with connected(address) as greedy, connected(address) as modest:
            for sock, calls in ((modest, 1), (greedy, 200)):  # 200 half megabytes; four megabytes are the bound
                asked = b"".join(call(1 + 2 * number, question) for number in range(calls))
                sock.sendall(PREFACE + frame(SETTINGS, 0, NO_WINDOW) + asked)
            wait_until(lambda: ended(greedy))
            assert not ended(modest)  # it was the one that held most that had to go
            assert model.run({"n": np.array([3])}, timeout=10)["y"].tolist() == [0.0, 0.0, 0.0]


def test_answers_over_rest_that_nobody_reads_are_bounded_over_all_connections(tmp_path, caplog):
    path = write_zeros(tmp_path / "m.onnx")
    tensor = {"name": "n", "datatype": "INT64", "shape": [1], "data": [4 * MEGABYTE]}
    body = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    request = f"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with served(path, "m", max_message_bytes=8 * MEGABYTE) as address, contextlib.ExitStack() as opened:
        socks = [opened.enter_context(connected(address)) for _ in range(8)]
        for sock in socks:
            sock.sendall(request)  # 16 MB each; 32 MB are the bound
        wait_until(lambda: caplog.text.count("one is dropped") >= 5)
        with RemoteModels(address) as models:
            assert models.get("m").run({"n": np.array([3])}, timeout=10)["y"].shape == (3,)


def test_messages_that_never_become_whole_are_bounded_in_however_small_pieces_they_come(tiny, monkeypatch):
    read = Front._read

    def read_little(front, connection):
        front._buffer = bytearray(16_000)
        read(front, connection)

    monkeypatch.setattr(Front, "_read", read_little)
    claim = struct.pack(">BI", 0, MEGABYTE)
    with served(tiny, "m", max_message_bytes=MEGABYTE) as address, connected(address) as sock:
        sock.sendall(PREFACE + frame(SETTINGS))
        with contextlib.suppress(OSError):  # four megabytes are the bound
            for stream in range(1, 33, 2):
                begun = frame(HEADERS, stream, BLOCK, END_HEADERS) + frame(DATA, stream, claim)
                sock.sendall(begun + frame(DATA, stream, bytes(16_000)) * 40)
        wait_until(lambda: ended(sock))


@pytest.mark.parametrize("claimed", [(1 << 31) - 1, 1 << 31, (1 << 32) - 1])
def test_a_message_that_claims_gigabytes_is_refused_by_its_claim(tiny, claimed):
    with served(tiny, "m") as address, connected(address) as sock, RemoteModels(address) as models:
        sock.sendall(PREFACE + frame(SETTINGS) + call(1, b"\0" * 100, claimed))
        sock.settimeout(10)
        data = b""
        while b"Received message larger than max" not in data:
            data += sock.recv(65_536)
        assert b"grpc-status\x018" in data  # RESOURCE_EXHAUSTED
        assert models.get("m").run(X)["y"].tolist() == [[2.0] * 4]


def test_a_thousand_connections_leave_others_served(tiny):
    with (
        served(tiny, "m", max_connections=500) as address,
        RemoteModels(address) as models,
        contextlib.ExitStack() as opened,
    ):
        model = models.get("m")
        for number in range(1000):
            sock = opened.enter_context(connected(address))
            with contextlib.suppress(OSError):
                sock.sendall(b"PRI * HT")
            if number % 100 == 0:
                assert model.run(X, timeout=10)["y"].tolist() == [[2.0] * 4]


def executions(address):
    with triton.InferenceServerClient(address) as client:
        stats = client.get_inference_statistics("m").model_stats[0]
        return stats.execution_count, stats.inference_stats.fail.count


def test_a_call_whose_deadline_has_come_is_stopped_and_its_worker_takes_the_next(tmp_path):
    x = {"x": np.zeros((256, 256), np.float32)}
    path = write_slow(tmp_path / "m.onnx")
    with served(path, "m", workers=1) as address, RemoteModels(address) as models:
        model = models.get("m")
        with pytest.raises(DeadlineError):
            model.run(x, timeout=0.05)
        wait_until(lambda: executions(address) == (0, 1))  # it ended long before it was computed
        assert model.run(x, timeout=60)["y"].shape == (256, 256)
        wait_until(lambda: executions(address) == (1, 1))


def test_calls_that_were_cancelled_or_whose_client_has_gone_are_not_computed(tiny, monkeypatch):
    version = load_file(tiny)
    begun, hold, run = threading.Event(), threading.Event(), version.run

    def held(*arguments):
        begun.set()
        assert hold.wait(10)
        return run(*arguments)

    monkeypatch.setattr(version, "run", held)
    settings = InferenceSettings(workers=1)
    process = InferenceProcess(FixedModels((Model("m", version),)), settings, ("127.0.0.1:0",))
    address, question = process.addresses[0], InferRequest("m", X).pack()
    try:
        with grpc.insecure_channel(address) as channel, connected(address) as leaving, connected(address) as staying:
            infer = channel.unary_unary(MODEL_INFER.path)
            first = infer.future(question, 60)
            assert begun.wait(10)  # it has the one worker
            asked = PREFACE + frame(SETTINGS) + b"".join(call(1 + 2 * number, question) for number in range(5))
            leaving.sendall(asked)
            leaving.shutdown(socket.SHUT_WR)
            wait_until(lambda: ended(leaving))
            staying.sendall(asked)
            staying.sendall(b"".join(frame(RST_STREAM, 1 + 2 * number, bytes(4)) for number in range(4)))
            staying.sendall(frame(PING, 0, b"are here"))
            staying.settimeout(10)
            data = b""
            while b"are here" not in data:
                data += staying.recv(65_536)
            hold.set()
            assert len(first.result()) == len(infer(question, 60))
            wait_until(lambda: executions(address)[0] == 3)  # the first, the last, and the one that was not cancelled
        assert executions(address) == (3, 0)
    finally:
        hold.set()
        process.close()


def test_a_stream_tells_errors_by_their_call_and_goes_on(tiny):
    answers = queue.SimpleQueue()
    tensor = triton.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X["x"])
    wrong = triton.InferInput("x", [1, 5], "FP32")
    wrong.set_data_from_numpy(np.ones((1, 5), np.float32))
    with served(tiny, "m") as address, triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for at, inputs in enumerate(([tensor], [wrong], [tensor])):
            client.async_stream_infer("m", inputs, request_id=str(at), enable_empty_final_response=True)
        got = [answers.get(timeout=10) for _ in range(3)]
        client.stop_stream()
        good = [result.get_response() for result, error in got if error is None]
        final = {response.id: response.parameters["triton_final_response"].bool_param for response in good}
        assert final == {"0": True, "2": True}  # in whatever order they were computed
        assert ["[1, 5]" in error.message() for _, error in got if error is not None] == [True]


def test_a_stream_that_is_cancelled_or_left_costs_nobody_else_anything(tiny):
    with served(tiny, "m") as address, RemoteModels(address) as models:
        for leave in ("cancel", "close"):
            client = triton.InferenceServerClient(address)
            client.start_stream(lambda result, error: None)
            tensor = triton.InferInput("x", [1, 4], "FP32")
            tensor.set_data_from_numpy(X["x"])
            for _ in range(100):
                client.async_stream_infer("m", [tensor])
            if leave == "cancel":
                client.stop_stream(cancel_requests=True)
            client.close()
            assert models.get("m").run(X, timeout=10)["y"].tolist() == [[2.0] * 4]
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("outstation")] == []
