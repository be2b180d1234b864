"""Every datatype, in every way that it can travel, comes back as bare ONNX Runtime gives it."""

from __future__ import annotations

import contextlib
import http.client
import json
import uuid

import grpc
import numpy as np
import onnxruntime
import pytest
from ml_dtypes import bfloat16
from onnx import TensorProto, helper
from tritonclient import grpc as triton
from tritonclient.utils import shared_memory as shm

from outstation.errors import ModelLoadError
from outstation.inference.host import FixedModels
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation.wire.datatypes import BF16, DTYPES, datatype_of, from_bf16, from_raw, object_array, to_bf16, to_raw
from outstation.wire.tensors import InferRequest, InferResponse
from outstation_inference import InferenceProcess

ONNX = {
    "BOOL": TensorProto.BOOL,
    "UINT8": TensorProto.UINT8,
    "UINT16": TensorProto.UINT16,
    "UINT32": TensorProto.UINT32,
    "UINT64": TensorProto.UINT64,
    "INT8": TensorProto.INT8,
    "INT16": TensorProto.INT16,
    "INT32": TensorProto.INT32,
    "INT64": TensorProto.INT64,
    "BF16": TensorProto.BFLOAT16,
    "FP16": TensorProto.FLOAT16,
    "FP32": TensorProto.FLOAT,
    "FP64": TensorProto.DOUBLE,
    "BYTES": TensorProto.STRING,
}


def extremes(datatype):
    """Five elements, among them the smallest and the largest that there are."""
    if datatype == "BYTES":
        return object_array(["", "a", "\u00e9\u4e2d\U0001f600", "x" * 300, "\n\0"])
    if datatype == "BOOL":
        return np.array([True, False, True, True, False])
    if datatype == "BF16":
        return to_bf16(np.array([0.0, -1.5, 3.38e38, -3.38e38, 1e-38], np.float32))
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(ONNX[datatype]))
    if kind.kind == "f":
        return np.array([0.0, -1.5, np.finfo(kind).max, np.finfo(kind).min, np.finfo(kind).tiny], kind)
    return np.array([0, 1, np.iinfo(kind).max, np.iinfo(kind).min, 7], kind)


def written(nodes, inputs, outputs):
    graph = helper.make_graph(nodes, "types", inputs, outputs)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return made.SerializeToString()


def casts(datatype, *, bare=False):
    """A model that takes *datatype* and gives every other one; *bare*: FP32 where numpy has no type to feed or read."""
    feed = TensorProto.FLOAT if bare and datatype == "BF16" else ONNX[datatype]
    nodes = [helper.make_node("Cast", ["x"], ["same"], to=ONNX[datatype])]
    outputs = []
    for name, kind in ONNX.items():
        if (datatype, name) == ("BYTES", "BF16"):
            continue  # ONNX Runtime's own tensors, which carry BF16, cannot be made of text
        through_fp32 = bare and name == "BF16"
        nodes.append(helper.make_node("Cast", ["same"], [f"{name}-16" if through_fp32 else name], to=kind))
        if through_fp32:
            nodes.append(helper.make_node("Cast", [f"{name}-16"], [name], to=TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT if through_fp32 else kind, ["n", "m"]))
    return written(nodes, [helper.make_tensor_value_info("x", feed, ["n", "m"])], outputs)


def small(datatype):
    """Six elements that every type can hold."""
    numbers = np.array([[0, 1, 2], [3, 64, 100]])
    if datatype == "BYTES":
        return object_array([str(number) for number in numbers.ravel()]).reshape(2, 3)
    return to_bf16(numbers) if datatype == "BF16" else numbers.astype(DTYPES[datatype])


def shaped(datatype):
    values = extremes(datatype)
    return [values.reshape(5, 1), values[:1].reshape(1, 1), values[:0].reshape(0, 3), values[:4].reshape(2, 2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    models = []
    for datatype, kind in ONNX.items():
        for name, shape in ((datatype.lower(), ["n", "m"]), (f"any-{datatype.lower()}", None)):
            (folder / name).write_bytes(
                written(
                    [helper.make_node("Identity", ["x"], ["y"])],
                    [helper.make_tensor_value_info("x", kind, shape)],
                    [helper.make_tensor_value_info("y", kind, shape)],
                )
            )
            models.append(Model(name, load_file(folder / name)))
        name = f"cast-{datatype.lower()}"
        (folder / name).write_bytes(casts(datatype))
        models.append(Model(name, load_file(folder / name)))
    process = InferenceProcess(FixedModels(tuple(models)), InferenceSettings(), ("127.0.0.1:0",))
    yield process.addresses[0]
    process.close()


def same(got, sent):
    if got.dtype == bfloat16:  # what NVIDIA's client gives
        got = got.view(BF16)
    if sent.dtype == BF16 and got.dtype == np.float32:  # what JSON gives
        got = to_bf16(got)
    plain = [[word.encode() if isinstance(word, str) else word for word in row] for row in (got.ravel(), sent.ravel())]
    return got.shape == sent.shape and (plain[0] == plain[1] if sent.dtype.kind == "O" else np.array_equal(got, sent))


@pytest.mark.parametrize("datatype", ONNX)
def test_raw_over_grpc_by_both_clients(server, datatype):
    with triton.InferenceServerClient(server) as client, RemoteModels(server) as models:
        for array in shaped(datatype):
            tensor = triton.InferInput("x", list(array.shape), datatype)
            tensor.set_data_from_numpy(array.view(bfloat16) if datatype == "BF16" else array)
            got = client.infer(datatype.lower(), [tensor]).as_numpy("y")
            assert same(got, array)
            assert same(models.get(datatype.lower()).run({"x": array})["y"], array)


@pytest.mark.parametrize("datatype", [name for name in ONNX if name not in ("BF16", "FP16")])
def test_typed_over_grpc(server, datatype):
    with grpc.insecure_channel(server) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for array in shaped(datatype):
            request = InferRequest(datatype.lower(), {"x": array}, raw=False)
            response = InferResponse.unpack(call(request.pack(), 10))
            assert not response.raw
            assert same(response.outputs["y"], array)


@pytest.mark.parametrize("datatype", ONNX)
def test_json_and_binary_over_rest(server, datatype):
    host, port = server.split(":")
    path = f"/v2/models/{datatype.lower()}/infer"
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=10)) as rest:
        for array in shaped(datatype):
            tensor = {"name": "x", "datatype": datatype, "shape": list(array.shape)}
            plain = from_bf16(array) if datatype == "BF16" else array
            rest.request("POST", path, json.dumps({"inputs": [{**tensor, "data": plain.tolist()}]}))
            answer = json.loads(rest.getresponse().read())["outputs"][0]
            assert (answer["datatype"], answer["shape"]) == (datatype, list(array.shape))
            assert same(np.array(answer["data"], plain.dtype).reshape(array.shape), array)

            raw = to_raw(array)
            call = {
                "inputs": [{**tensor, "parameters": {"binary_data_size": len(raw)}}],
                "parameters": {"binary_data_output": True},
            }
            text = json.dumps(call).encode()
            rest.request("POST", path, text + raw, {"Inference-Header-Content-Length": str(len(text))})
            response = rest.getresponse()
            body, length = response.read(), int(response.getheader("Inference-Header-Content-Length"))
            described = json.loads(body[:length])["outputs"][0]
            assert same(from_raw("y", described["datatype"], described["shape"], body[length:]), array)


@pytest.mark.parametrize("datatype", ONNX)
def test_every_type_made_of_every_other_is_what_bare_onnx_runtime_makes(server, datatype):
    x = small(datatype)
    bare = onnxruntime.InferenceSession(casts(datatype, bare=True), providers=["CPUExecutionProvider"])
    fed = from_bf16(x) if datatype == "BF16" else x
    names = [output.name for output in bare.get_outputs()]
    expected = dict(zip(names, bare.run(names, {"x": fed}), strict=True))
    with RemoteModels(server) as models:
        result = models.get(f"cast-{datatype.lower()}").run({"x": x})
    assert {name: datatype_of(array) for name, array in result.items()} == {name: name for name in names}
    for name, array in result.items():
        assert same(from_bf16(array) if name == "BF16" else array, expected[name]), name


@pytest.mark.parametrize("datatype", ONNX)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1, 1, 1, 1, 5), (5, *[1] * 15)])
def test_scalars_empty_tensors_and_many_dimensions_keep_their_shape(server, datatype, shape):
    count = int(np.prod(shape))
    array = extremes(datatype)[:count].reshape(shape)
    with RemoteModels(server) as models, grpc.insecure_channel(server) as channel:
        assert same(models.get(f"any-{datatype.lower()}").run({"x": array})["y"], array)
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        request = InferRequest(f"any-{datatype.lower()}", {"x": array}, raw=False)
        assert same(InferResponse.unpack(call(request.pack(), 10)).outputs["y"], array)


@pytest.mark.parametrize("datatype", ONNX)
def test_in_shared_memory(server, datatype):
    key = f"/outstation-test-{uuid.uuid4().hex}"
    handle = shm.create_shared_memory_region(key, key, 4096)
    try:
        with triton.InferenceServerClient(server) as client:
            client.register_system_shared_memory(key, key, 4096)
            for array in shaped(datatype):
                raw = to_raw(array)
                handle._mpsm_handle.buf[: len(raw)] = raw
                tensor, output = triton.InferInput("x", list(array.shape), datatype), triton.InferRequestedOutput("y")
                tensor.set_shared_memory(key, len(raw))
                output.set_shared_memory(key, 2048, 2048)
                client.infer(datatype.lower(), [tensor], outputs=[output])
                got = bytes(handle._mpsm_handle.buf[2048 : 2048 + len(raw)])
                assert same(from_raw("y", datatype, array.shape, got), array)
            client.unregister_system_shared_memory(key)
    finally:
        shm.destroy_shared_memory_region(handle)


def test_text_in_and_bf16_out_is_told_when_the_model_is_loaded(tmp_path):
    inputs = [helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, ["n"])]
    nodes = [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.BFLOAT16)]
    (tmp_path / "m.onnx").write_bytes(written(nodes, inputs, outputs))
    with pytest.raises(ModelLoadError, match="takes text and has tensors of BF16"):
        load_file(tmp_path / "m.onnx")
