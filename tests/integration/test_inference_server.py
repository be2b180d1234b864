"""The inference component, a real process: NVIDIA's client and ours call it over TCP and a unix socket."""

from __future__ import annotations

import itertools
import queue
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc as triton
from tritonclient.utils import InferenceServerException

import tiny_models
from inference_process import COMMAND, InferenceServer, served
from outstation._version import __version__
from outstation.errors import (
    ConfigurationError,
    DeadlineError,
    InvalidInputError,
    InvalidNameError,
    LinkDownError,
    ModelLoadError,
    ModelNotReadyError,
    ProviderUnavailableError,
)
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation.wire.generated import open_inference_pb2 as pb
from outstation_inference import InferenceProcess
from support import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading"
INFER = "/inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="module")
def scans():
    with np.load(EXAMPLE / "digits.npz") as file:
        return file["images"][file["held_out"]].astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    socket = tmp_path_factory.mktemp("s") / "i.sock"
    model = EXAMPLE / "models/v2.onnx"
    with InferenceServer(
        "--model", model, "--name", "meter-digits", "--listen", "127.0.0.1:0", "--socket", socket
    ) as made:
        made.socket = f"unix:{socket}"
        yield made


@pytest.fixture(params=["tcp", "unix"])
def client(server, request):
    with triton.InferenceServerClient(server.address if request.param == "tcp" else server.socket) as made:
        yield made


def asked(images, name="image", datatype="FP32"):
    tensor = triton.InferInput(name, list(images.shape), datatype)
    tensor.set_data_from_numpy(images)
    return tensor


def test_tritonclient_finds_server_and_model(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("meter-digits")
    assert client.is_model_ready("meter-digits", "1")
    assert not client.is_model_ready("meter-digits", "2")
    assert not client.is_model_ready("other")
    about = client.get_server_metadata()
    assert (about.name, about.version) == ("outstation", __version__)
    model = client.get_model_metadata("meter-digits")
    assert list(model.versions) == ["1"]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [("image", "FP32", [-1, 8, 8])]
    assert [(t.name, t.datatype, list(t.shape)) for t in model.outputs] == [
        ("digit", "INT64", [-1]),
        ("probabilities", "FP32", [-1, 10]),
    ]


def test_tritonclient_gets_the_answers_of_bare_onnx_runtime(client, scans):
    bare = onnxruntime.InferenceSession(EXAMPLE / "models/v2.onnx", providers=["CPUExecutionProvider"])
    for batch in (scans, scans[:1], scans[:0]):
        digit, probabilities = bare.run(["digit", "probabilities"], {"image": batch})
        result = client.infer("meter-digits", [asked(batch)], request_id="7")
        assert result.get_response().id == "7"
        assert result.get_response().model_version == "1"
        assert (result.as_numpy("digit") == digit).all()
        assert (result.as_numpy("probabilities") == probabilities).all()


def test_only_the_outputs_asked_for_come_back_in_that_order(client, scans):
    outputs = [triton.InferRequestedOutput("probabilities"), triton.InferRequestedOutput("digit")]
    result = client.infer("meter-digits", [asked(scans[:2])], outputs=outputs)
    assert [output.name for output in result.get_response().outputs] == ["probabilities", "digit"]
    assert result.as_numpy("digit").shape == (2,)
    only = client.infer("meter-digits", [asked(scans[:2])], outputs=outputs[:1])
    assert only.as_numpy("digit") is None


def test_tritonclient_calls_asynchronously(client, scans):
    answers = queue.SimpleQueue()
    for at in range(20):
        client.async_infer(
            "meter-digits",
            [asked(scans[at : at + 1])],
            lambda result, error, at=at: answers.put((at, error or int(result.as_numpy("digit")[0]))),
        )
    digits = [digit for _, digit in sorted(answers.get(timeout=10) for _ in range(20))]
    assert digits == client.infer("meter-digits", [asked(scans[:20])]).as_numpy("digit").tolist()


def test_typed_contents_are_answered_with_typed_contents(server, scans):
    request = pb.ModelInferRequest(model_name="meter-digits")
    tensor = request.inputs.add(name="image", datatype="FP32", shape=[1, 8, 8])
    tensor.contents.fp32_contents.extend(scans[0].ravel())
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(INFER)
        response = pb.ModelInferResponse.FromString(call(request.SerializeToString(), 10))
    assert not response.raw_output_contents
    assert len(response.outputs[0].contents.int64_contents) == 1
    assert len(response.outputs[1].contents.fp32_contents) == 10


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda c, x: c.infer("other", [asked(x)]), "NOT_FOUND", "no model 'other'"),
        (lambda c, x: c.infer("meter-digits", [asked(x)], "9"), "NOT_FOUND", "version 1, not in '9'"),
        (lambda c, x: c.infer("meter-digits", [asked(x, "imagee")]), "INVALID_ARGUMENT", "no input 'imagee'"),
        (lambda c, x: c.infer("meter-digits", []), "INVALID_ARGUMENT", "Input 'image' is missing"),
        (lambda c, x: c.infer("meter-digits", [asked(x[0])]), "INVALID_ARGUMENT", "has the shape [8, 8]"),
        (
            lambda c, x: c.infer("meter-digits", [asked(x.astype(np.float64), datatype="FP64")]),
            "INVALID_ARGUMENT",
            "is FP64; the model takes FP32 [-1, 8, 8]",
        ),
        (
            lambda c, x: c.infer("meter-digits", [asked(x)], outputs=[triton.InferRequestedOutput("digits")]),
            "INVALID_ARGUMENT",
            "no output 'digits'",
        ),
        (lambda c, x: c.get_model_metadata("other"), "NOT_FOUND", "no model 'other'"),
        (lambda c, x: c.load_model("other"), "NOT_FOUND", "no model 'other'"),
        (lambda c, x: c.get_trace_settings(), "UNIMPLEMENTED", "no method"),
    ],
)
def test_a_wrong_call_is_refused_with_the_protocols_code(server, scans, call, code, words):
    with (
        triton.InferenceServerClient(server.address) as client,
        pytest.raises(InferenceServerException) as caught,
    ):
        call(client, scans[:1])
    assert caught.value.status() == f"StatusCode.{code}"
    assert words in caught.value.message()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff\xff\xff", grpc.StatusCode.INVALID_ARGUMENT),
        (
            pb.ModelInferRequest(
                model_name="meter-digits",
                inputs=[{"name": "image", "datatype": "FP32", "shape": [1 << 40, 8, 8]}],
                raw_input_contents=[b"\0" * 256],
            ).SerializeToString(),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (b"\0" * (65 << 20), grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
    ids=["garbage", "claims-more-than-it-brings", "larger-than-the-bound"],
)
def test_abuse_is_an_error_and_the_next_call_works(server, scans, data, code):
    with grpc.insecure_channel(server.address, [("grpc.max_send_message_length", -1)]) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(INFER)(data, 20)
        assert caught.value.code() is code
    with RemoteModels(server.address) as models:
        assert models.get("meter-digits").run({"image": scans[:1]})["digit"].shape == (1,)


def test_our_client_has_the_face_of_a_model_in_the_process(server, scans):
    with RemoteModels(server.socket) as models:
        model = models.get("meter-digits")
        result = model.run({"image": scans[:3]}, timeout=10)
        assert result["probabilities"].dtype == np.float32
        assert result.model_version == model.version == "1"
        assert [spec.name for spec in model.inputs] == ["image"]
        assert [spec.name for spec in model.outputs] == ["digit", "probabilities"]
        with pytest.raises(InvalidInputError, match="no input 'x'") as caught:
            model.run({"x": scans[:1]})
        assert "'image'" in caught.value.hint
        with pytest.raises(ModelNotReadyError, match="no version of 'other'"):
            models.get("other", timeout=0.01)
        with pytest.raises(DeadlineError):
            model.run({"image": np.tile(scans, (200, 1, 1))}, timeout=0.001)


def test_nobody_at_the_address_is_told_as_such(tmp_path):
    with (
        RemoteModels(f"unix:{tmp_path}/nobody.sock") as models,
        pytest.raises(LinkDownError, match="No inference server answers on") as caught,
    ):
        models.get("meter-digits", timeout=0.2)
    assert "outstation inference" in caught.value.hint


def test_a_call_survives_a_restart_of_the_server(tmp_path, scans):
    arguments = ("--model", EXAMPLE / "models/v2.onnx", "--name", "m", "--listen", "", "--socket", tmp_path / "s")
    with RemoteModels(f"unix:{tmp_path / 's'}") as models:
        with InferenceServer(*arguments) as first:
            model = models.get("m", timeout=10)
            model.run({"image": scans[:1]}, timeout=10)
            first.kill()
        starter = threading.Thread(target=lambda: started.append(InferenceServer(*arguments)))
        started = []
        starter.start()
        try:
            assert model.run({"image": scans[:1]}, timeout=10)["digit"].shape == (1,)
        finally:
            starter.join()
            for server in started:
                with server:
                    assert server.stop() == 0


def write_slow(path, steps):
    """A model whose every call takes a while: *steps* multiplications of a matrix."""
    names = ["x", *(f"x{number}" for number in range(1, steps)), "y"]
    nodes = [helper.make_node("MatMul", [before, "x"], [after]) for before, after in itertools.pairwise(names)]
    graph = helper.make_graph(
        nodes,
        "slow",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [256, 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [256, 256])],
    )
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


def listens(host, port):
    with socket.socket() as sock:
        return sock.connect_ex((host, port)) == 0


def test_sigterm_answers_every_accepted_call_and_ends_with_0(tmp_path):
    write_slow(tmp_path / "slow.onnx", 200)
    x = np.zeros((256, 256), np.float32)
    with InferenceServer("--model", tmp_path / "slow.onnx", "--listen", "127.0.0.1:0") as server:
        request = pb.ModelInferRequest(model_name="slow", raw_input_contents=[x.tobytes()])
        request.inputs.add(name="x", datatype="FP32", shape=x.shape)
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(INFER)
            call(request.SerializeToString(), 60)
            pending = [call.future(request.SerializeToString(), 60) for _ in range(12)]
            pending[0].result()  # all are accepted: they came on the one connection before this answer
            server.process.send_signal(signal.SIGTERM)
            host, port = server.address.split(":")
            wait_until(lambda: not listens(host, int(port)))  # nobody new is let in
            assert [len(future.result()) > x.nbytes for future in pending] == [True] * 12
        begin = time.monotonic()
        assert server.process.wait(30) == 0
        assert time.monotonic() - begin < 5
        assert server.process.stderr.read() == ""


def test_a_full_queue_refuses_instead_of_growing(tmp_path):
    write_slow(tmp_path / "slow.onnx", 200)
    with served(tmp_path / "slow.onnx", "slow", workers=1, queue=2) as address, RemoteModels(address) as models:
        model = models.get("slow")
        outcomes = []

        def call():
            try:
                outcomes.append(model.run({"x": np.zeros((256, 256), np.float32)}, timeout=60))
            except ProviderUnavailableError as exc:
                outcomes.append(exc)

        threads = [threading.Thread(target=call) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        answered = [outcome for outcome in outcomes if isinstance(outcome, dict)]
        assert 3 <= len(answered) < 20
        assert len(outcomes) == 20


def test_a_start_with_a_file_that_is_no_model_ends_with_a_sentence_and_a_hint(tmp_path):
    (tmp_path / "no-model.onnx").write_bytes(b"GIF89a" * 50)
    command = [*COMMAND, "--model", "no-model.onnx", "--listen", "127.0.0.1:0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: no-model.onnx is no ONNX file.",
        "hint: Give the path of a model that was exported as ONNX.",
    ]


@pytest.mark.parametrize(
    "case",
    [
        ("missing.onnx", "m", {}, ModelLoadError, "There is no file"),
        ("tiny.onnx", "m", {"listen": ""}, ConfigurationError, "has no address"),
        ("tiny.onnx", "m", {"listen": "SERVER"}, ConfigurationError, "Could not listen on 127.0.0.1:"),
        ("tiny.onnx", "m", {"listen": "", "socket": "tiny.onnx"}, ConfigurationError, "is no socket"),
        ("tiny.onnx", "m", {"listen": "", "socket": "SERVER"}, ConfigurationError, "Somebody listens on"),
        ("tiny.onnx", "No Name", {}, InvalidNameError, "is no name of a model"),
    ],
)
def test_a_start_that_cannot_be_is_refused(server, tmp_path, monkeypatch, case):
    file, name, settings, error, words = case
    monkeypatch.chdir(tmp_path)
    Path("tiny.onnx").write_bytes(tiny_models.scale(2))
    taken = {"listen": server.address, "socket": server.socket.removeprefix("unix:")}
    chosen = {key: taken[key] if value == "SERVER" else value for key, value in settings.items()}
    with pytest.raises(error, match=words):
        InferenceProcess.of_file(Path(file), name, InferenceSettings(**chosen))
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("outstation")] == []
