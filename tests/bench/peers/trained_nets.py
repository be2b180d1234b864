"""Nets that were really trained, for the delta benchmark: two wide layers that read digits, and what comes after them.

A network trained from scratch; the same with a head of its own for other labels; the same trained on a little longer,
as a fine-tune is; and both of the last in int8 with the first one's scales.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

WIDTH = 1024  # 1.1 million weights: 4.5 MB as float32
FIRST_EPOCHS, MORE_EPOCHS = 12, 2
FINE_RATE = 1e-5  # a hundredth of the first learning rate

Layers = list[tuple[np.ndarray, np.ndarray]]  # weight [in, out] and bias [out], float32


def write_trained(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Old file and new file of each column."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    half = len(images) // 2
    network = MLPClassifier((WIDTH, WIDTH), max_iter=1, random_state=3, learning_rate_init=1e-3)
    for _ in range(FIRST_EPOCHS):
        network.partial_fit(images[:half], labels[:half], classes=np.arange(10))
    first = layers_of(network)
    before_head = images
    for weight, bias in first[:-1]:
        before_head = np.maximum(before_head @ weight + bias, 0)
    others = labels * 7 % 10  # another task on the same digits
    odd = LogisticRegression(C=0.01, max_iter=1000).fit(before_head, others)
    head = [*first[:-1], (odd.coef_.T.astype(np.float32), odd.intercept_.astype(np.float32))]
    network.learning_rate_init = FINE_RATE
    network._optimizer.learning_rate_init = FINE_RATE  # partial_fit goes on with the optimiser that it has
    for _ in range(MORE_EPOCHS):
        network.partial_fit(images, labels)
    fine = layers_of(network)
    scales = [np.float32(np.abs(weight).max() / 127) for weight, _ in first]
    return {
        "trained: head retrained": (_floats(folder / "t1.onnx", first), _floats(folder / "t-head.onnx", head)),
        "trained: fp32 fine-tune": (folder / "t1.onnx", _floats(folder / "t-fine.onnx", fine)),
        "trained: int8, scales kept": (
            _whole(folder / "t1.int8.onnx", first, scales),
            _whole(folder / "t-fine.int8.onnx", fine, scales),
        ),
    }


def layers_of(network: MLPClassifier) -> Layers:
    return [
        (weight.astype(np.float32), bias.astype(np.float32))
        for weight, bias in zip(network.coefs_, network.intercepts_, strict=True)
    ]


def _floats(path: Path, layers: Layers) -> Path:
    tensors = {f"w{n}": weight for n, (weight, _) in enumerate(layers)}
    return _write(path, layers, tensors, [])


def _whole(path: Path, layers: Layers, scales: list[np.float32]) -> Path:
    tensors: dict[str, np.ndarray] = {}
    nodes = []
    for n, ((weight, _), scale) in enumerate(zip(layers, scales, strict=True)):
        tensors[f"q{n}"] = np.clip(np.rint(weight / scale), -127, 127).astype(np.int8)
        tensors[f"s{n}"] = np.array(scale, np.float32)
        nodes.append(helper.make_node("DequantizeLinear", [f"q{n}", f"s{n}"], [f"w{n}"]))
    return _write(path, layers, tensors, nodes)


def _write(path: Path, layers: Layers, tensors: dict[str, np.ndarray], nodes: list[onnx.NodeProto]) -> Path:
    flow = "image"
    for n, (_, bias) in enumerate(layers):
        tensors[f"b{n}"] = bias
        nodes += [
            helper.make_node("MatMul", [flow, f"w{n}"], [f"m{n}"]),
            helper.make_node("Add", [f"m{n}", f"b{n}"], [f"a{n}"]),
            helper.make_node("Relu", [f"a{n}"], [f"h{n}"]),
        ]
        flow = f"h{n}"
    nodes.pop()  # nothing bends the answer
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [None, 64])],
        [helper.make_tensor_value_info(f"a{len(layers) - 1}", TensorProto.FLOAT, [None, 10])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path
