"""The other servers of the inference benchmark, and the models that all of them serve."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import venv
from concurrent import futures
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).resolve()
BUILD = HERE.parents[3] / "build/bench"

# MLServer has no runtime for ONNX files of its own: this is the shortest that computes as we do, with one thread.
_MLSERVER_RUNTIME = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Onnx(MLModel):
    async def load(self) -> bool:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        path, providers = self.settings.parameters.uri, ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        feed = {tensor.name: NumpyCodec.decode_input(tensor) for tensor in payload.inputs}
        values = self._session.run(self._names, feed)
        outputs = [NumpyCodec.encode_output(name, value) for name, value in zip(self._names, values)]
        return InferenceResponse(model_name=self.name, model_version=self.version, id=payload.id, outputs=outputs)
"""


# LitServe and BentoML as their first pages show them: one worker, JSON in and out.
_LITSERVE = """
import sys
import litserve
import numpy as np
import onnxruntime


class Onnx(litserve.LitAPI):
    def setup(self, device):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request):
        return np.asarray(request["image"], np.float32)

    def predict(self, image):
        return self._session.run(["digit"], {"image": image})[0]

    def encode_response(self, digit):
        return {"digit": digit.tolist()}


if __name__ == "__main__":
    server = litserve.LitServer(Onnx(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[2]), num_api_servers=1, generate_client_file=False)
"""
_BENTOML = """
import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Onnx:
    def __init__(self):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(MODEL, options, providers=["CPUExecutionProvider"])

    @bentoml.api
    def predict(self, image: list) -> dict:
        digit = self._session.run(["digit"], {"image": np.asarray(image, np.float32)})[0]
        return {"digit": digit.tolist()}
"""


def installed(name: str, *packages: str) -> Path | None:
    """The folder of programs of an environment of its own with *packages*; None, and a word, if it cannot be."""
    python = BUILD / name / "venv/bin/python"
    if not python.exists():
        venv.create(python.parents[1], with_pip=True)
    if not (python.parent / name).exists():
        install = [python, "-m", "pip", "install", "-q", *packages, "onnxruntime", "numpy"]
        if subprocess.run(install, check=False).returncode != 0:
            print(f"{name} could not be installed: its rows are left out", file=sys.stderr)
            return None
    return python.parent


def litserve_command(model: Path, port: int) -> list[str] | None:
    """The command that starts LitServe with the digits' model; None if it cannot be."""
    programs = installed("litserve", "litserve")
    if programs is None:
        return None
    (BUILD / "litserve/server.py").write_text(_LITSERVE)
    return [str(programs / "python"), str(BUILD / "litserve/server.py"), str(model.resolve()), str(port)]


def bentoml_command(model: Path, port: int) -> list[str] | None:
    """The command that starts BentoML with the digits' model, telling nobody of it; None if it cannot be."""
    programs = installed("bentoml", "bentoml")
    if programs is None:
        return None
    (BUILD / "bentoml/service.py").write_text(_BENTOML.replace("MODEL", repr(str(model.resolve()))))
    serve = [str(programs / "bentoml"), "serve", "service:Onnx", "--working-dir", str(BUILD / "bentoml")]
    return ["env", "BENTOML_DO_NOT_TRACK=True", *serve, "--host", "127.0.0.1", "--port", str(port)]


def mlserver_command(model: Path, name: str, port: int) -> list[str] | None:
    """The command that starts MLServer with the file *model*; None if it cannot be."""
    programs = installed("mlserver", "mlserver==1.7.1")
    if programs is None:
        return None
    folder = BUILD / "mlserver" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "onnx_runtime.py").write_text(_MLSERVER_RUNTIME)
    parameters = {"uri": str(model.resolve()), "version": "1"}
    settings = {"name": name, "implementation": "onnx_runtime.Onnx", "parameters": parameters}
    (folder / "model-settings.json").write_text(json.dumps(settings))
    ports = {
        "http_port": port + 1,
        "grpc_port": port,
        "metrics_port": port + 2,
        "parallel_workers": 0,
        "host": "127.0.0.1",
    }
    (folder / "settings.json").write_text(json.dumps({**ports, "debug": False, "metrics_endpoint": None}))
    return [str(programs / "mlserver"), "start", str(folder)]


def minimal_command(model: Path, name: str, port: int) -> list[str]:
    """The command that starts the minimal grpcio server of this file."""
    return [sys.executable, str(HERE), str(model), name, str(port)]


def floor_command(model: Path, port: int) -> list[str]:
    """The command that starts what only computes: the model on one image of its own for each byte that comes."""
    return [sys.executable, str(HERE), str(model), "", str(port)]


def serve_bytes(path: str, port: int) -> None:
    """What no server of this model in a process of Python can be below."""
    import onnxruntime  # noqa: PLC0415 - only this process needs it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (image,) = session.get_inputs()
    feed = {image.name: np.ones(image.shape, np.float32)}
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            client, _ = listener.accept()
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while client.recv(1):
                session.run(None, feed)
                client.send(b"!")


def serve_minimally(path: str, name: str, port: int) -> None:
    """What one writes in an hour: grpcio's server, tritonclient's messages, ONNX Runtime; one method.

    And what ``perf_analyzer`` asks before it begins.
    """
    import grpc  # noqa: PLC0415 - only this process needs them
    import onnxruntime  # noqa: PLC0415
    from tritonclient.grpc import service_pb2 as pb  # noqa: PLC0415
    from tritonclient.utils import np_to_triton_dtype, triton_to_np_dtype  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def infer(request: pb.ModelInferRequest, _: grpc.ServicerContext) -> pb.ModelInferResponse:
        feed = {
            tensor.name: np.frombuffer(raw, triton_to_np_dtype(tensor.datatype)).reshape(tuple(tensor.shape))
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        response = pb.ModelInferResponse(model_name=name, model_version="1", id=request.id)
        for output, value in zip(names, session.run(names, feed), strict=True):
            response.outputs.add(name=output, datatype=np_to_triton_dtype(value.dtype), shape=value.shape)
            response.raw_output_contents.append(value.tobytes())
        return response

    def metadata(_: pb.ModelMetadataRequest, __: grpc.ServicerContext) -> pb.ModelMetadataResponse:
        made = pb.ModelMetadataResponse(name=name, versions=["1"])
        for kind, tensors in ((made.inputs, session.get_inputs()), (made.outputs, session.get_outputs())):
            for tensor in tensors:
                datatype = {"tensor(float)": "FP32", "tensor(int64)": "INT64"}[tensor.type]
                shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
                kind.add(name=tensor.name, datatype=datatype, shape=shape)
        return made

    def config(_: pb.ModelConfigRequest, __: grpc.ServicerContext) -> pb.ModelConfigResponse:
        return pb.ModelConfigResponse(config={"name": name})

    def about(_: pb.ServerMetadataRequest, __: grpc.ServicerContext) -> pb.ServerMetadataResponse:
        return pb.ServerMetadataResponse(name="minimal")

    methods = {
        "ModelInfer": (infer, pb.ModelInferRequest),
        "ModelMetadata": (metadata, pb.ModelMetadataRequest),
        "ModelConfig": (config, pb.ModelConfigRequest),
        "ServerMetadata": (about, pb.ServerMetadataRequest),
    }
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            function, request.FromString, lambda response: response.SerializeToString()
        )
        for method, (function, request) in methods.items()
    }
    server = grpc.server(futures.ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 << 20)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


def write_mobilenet(path: Path) -> None:
    """A network of MobileNetV2's shape (14 MB, 0.3 GFLOP) with random weights; image FP32 [1, 3, 224, 224]."""
    random = np.random.default_rng(2)
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def convolution(
        source: str, channels: int, out: int, *, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True
    ) -> str:
        number = len(nodes)
        shape = (out, channels // groups, kernel, kernel)
        scale = (2 / (shape[1] * kernel * kernel)) ** 0.5
        weights.append(
            numpy_helper.from_array((random.standard_normal(shape) * scale).astype(np.float32), f"w{number}")
        )
        pad = kernel // 2
        nodes.append(
            helper.make_node(
                "Conv", [source, f"w{number}"], [f"c{number}"],
                kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4, group=groups,
            )
        )  # fmt: skip
        if not relu:
            return f"c{number}"
        nodes.append(helper.make_node("Relu", [f"c{number}"], [f"r{number}"]))
        return f"r{number}"

    at, channels = convolution("image", 3, 32, kernel=3, stride=2), 32
    blocks = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, out, repeats, first_stride in blocks:
        for repeat in range(repeats):
            stride = first_stride if repeat == 0 else 1
            wide = channels * expansion
            inner = convolution(at, channels, wide) if expansion > 1 else at
            inner = convolution(inner, wide, wide, kernel=3, stride=stride, groups=wide)
            inner = convolution(inner, wide, out, relu=False)
            if stride == 1 and channels == out:
                nodes.append(helper.make_node("Add", [at, inner], [f"a{len(nodes)}"]))
                inner = nodes[-1].output[0]
            at, channels = inner, out
    at = convolution(at, channels, 1280)
    weights.append(numpy_helper.from_array((random.standard_normal((1280, 1000)) * 0.03).astype(np.float32), "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes, "mobilenet",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 224, 224])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 1000])],
        weights,
    )  # fmt: skip
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()
    )


if __name__ == "__main__":
    if sys.argv[2]:
        serve_minimally(sys.argv[1], sys.argv[2], int(sys.argv[3]))
    else:
        serve_bytes(sys.argv[1], int(sys.argv[3]))
