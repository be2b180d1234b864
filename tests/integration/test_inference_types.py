"""Every datatype, in every way that it can travel, comes back as bare ONNX Runtime gives it."""

from __future__ import annotations

import contextlib
import http.client
import json

import grpc
import numpy as np
import pytest
from onnx import TensorProto, helper
from tritonclient import grpc as triton

from outstation.inference.host import FixedModels
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation.wire.datatypes import from_raw, object_array, to_raw
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
    kind = np.dtype(helper.tensor_dtype_to_np_dtype(ONNX[datatype]))
    if kind.kind == "f":
        return np.array([0.0, -1.5, np.finfo(kind).max, np.finfo(kind).min, np.finfo(kind).tiny], kind)
    return np.array([0, 1, np.iinfo(kind).max, np.iinfo(kind).min, 7], kind)


def shaped(datatype):
    values = extremes(datatype)
    return [values.reshape(5, 1), values[:1].reshape(1, 1), values[:0].reshape(0, 3), values[:4].reshape(2, 2)]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("types")
    models = []
    for datatype, kind in ONNX.items():
        graph = helper.make_graph(
            [helper.make_node("Identity", ["x"], ["y"])],
            datatype,
            [helper.make_tensor_value_info("x", kind, ["n", "m"])],
            [helper.make_tensor_value_info("y", kind, ["n", "m"])],
        )
        path = folder / f"{datatype}.onnx"
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path.write_bytes(made.SerializeToString())
        models.append(Model(datatype.lower(), load_file(path)))
    process = InferenceProcess(FixedModels(tuple(models)), InferenceSettings(), ("127.0.0.1:0",))
    yield process.addresses[0]
    process.close()


def same(got, sent):
    plain = [[word.encode() if isinstance(word, str) else word for word in row] for row in (got.ravel(), sent.ravel())]
    return got.shape == sent.shape and (plain[0] == plain[1] if sent.dtype.kind == "O" else np.array_equal(got, sent))


@pytest.mark.parametrize("datatype", ONNX)
def test_raw_over_grpc_by_both_clients(server, datatype):
    with triton.InferenceServerClient(server) as client, RemoteModels(server) as models:
        for array in shaped(datatype):
            tensor = triton.InferInput("x", list(array.shape), datatype)
            tensor.set_data_from_numpy(array)
            got = client.infer(datatype.lower(), [tensor]).as_numpy("y")
            assert same(got, array)
            assert same(models.get(datatype.lower()).run({"x": array})["y"], array)


@pytest.mark.parametrize("datatype", [name for name in ONNX if name != "FP16"])
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
            rest.request("POST", path, json.dumps({"inputs": [{**tensor, "data": array.tolist()}]}))
            answer = json.loads(rest.getresponse().read())["outputs"][0]
            assert (answer["datatype"], answer["shape"]) == (datatype, list(array.shape))
            assert same(np.array(answer["data"], array.dtype).reshape(array.shape), array)

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
