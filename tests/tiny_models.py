"""The smallest ONNX models that still are models: made in a millisecond, for tests of delivery and of inference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Old enough for every onnxruntime that we support.
OPSET = 17
IR_VERSION = 9


def linear(weights: object, bias: object, name_in: str = "x", name_out: str = "y") -> bytes:
    """``y = x @ weights + bias`` in FP32; *weights* is (inputs, outputs), x is (any, inputs), y is (any, outputs)."""
    w = np.asarray(weights, dtype=np.float32)
    b = np.asarray(bias, dtype=np.float32)
    nodes = [
        helper.make_node("MatMul", [name_in, "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], [name_out]),
    ]
    constants = [numpy_helper.from_array(w, "weights"), numpy_helper.from_array(b, "bias")]
    return _model(nodes, (name_in, [None, w.shape[0]]), (name_out, [None, w.shape[1]]), constants)


def identity(width: int = 4, name_in: str = "x", name_out: str = "y") -> bytes:
    """``y = x``, both FP32 of shape (any, *width*)."""
    nodes = [helper.make_node("Identity", [name_in], [name_out])]
    return _model(nodes, (name_in, [None, width]), (name_out, [None, width]))


def scale(factor: float, width: int = 4, name_in: str = "x", name_out: str = "y") -> bytes:
    """``y = factor * x``, both FP32 of shape (any, *width*)."""
    nodes = [helper.make_node("Mul", [name_in, "factor"], [name_out])]
    constants = [numpy_helper.from_array(np.asarray(factor, dtype=np.float32), "factor")]
    return _model(nodes, (name_in, [None, width]), (name_out, [None, width]), constants)


def slow(width: int = 4, rounds: int = 60, name_in: str = "x", name_out: str = "y") -> bytes:
    """``y = x``, after *rounds* products of two matrices of 256 by 256: some ten milliseconds."""
    side = [numpy_helper.from_array(np.eye(256, dtype=np.float32), "side")]
    nodes = [helper.make_node("ReduceMean", [name_in], ["mean"], keepdims=0)]
    nodes += [helper.make_node("Add", ["side", "mean"], ["m0"])]
    nodes += [helper.make_node("MatMul", [f"m{n}", "side"], [f"m{n + 1}"]) for n in range(rounds)]
    nodes += [helper.make_node("ReduceMax", [f"m{rounds}"], ["most"], keepdims=0)]
    nodes += [
        helper.make_node("Sub", ["most", "most"], ["nothing"]),
        helper.make_node("Add", [name_in, "nothing"], [name_out]),
    ]
    return _model(nodes, (name_in, [None, width]), (name_out, [None, width]), side)


def hungry(megabytes: int, width: int = 4, name_in: str = "x", name_out: str = "y") -> bytes:
    """``y = x``, by way of *megabytes* of zeros that every call makes anew."""
    lengths = numpy_helper.from_array(np.asarray([megabytes << 18], dtype=np.int64), "lengths")
    nodes = [
        helper.make_node("ReduceMean", [name_in], ["mean"], keepdims=0),
        helper.make_node("Expand", ["mean", "lengths"], ["many"]),
        helper.make_node("ReduceMax", ["many"], ["most"], keepdims=0),
        helper.make_node("Sub", ["most", "most"], ["nothing"]),
        helper.make_node("Add", [name_in, "nothing"], [name_out]),
    ]
    return _model(nodes, (name_in, [None, width]), (name_out, [None, width]), [lengths])


def reshape_to_two_rows(name_in: str = "x", name_out: str = "y") -> bytes:
    """Loads, and fails on every call that has not two rows of four: ``y`` is ``x`` in the shape (2, 4)."""
    nodes = [helper.make_node("Reshape", [name_in, "shape"], [name_out])]
    constants = [numpy_helper.from_array(np.asarray([2, 4], dtype=np.int64), "shape")]
    return _model(nodes, (name_in, [None, 4]), (name_out, [None, 4]), constants)


def _model(
    nodes: Sequence[onnx.NodeProto],
    entry: tuple[str, list[int | None]],
    result: tuple[str, list[int | None]],
    constants: Sequence[onnx.TensorProto] = (),
) -> bytes:
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info(entry[0], TensorProto.FLOAT, entry[1])],
        [helper.make_tensor_value_info(result[0], TensorProto.FLOAT, result[1])],
        list(constants),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return model.SerializeToString()
