"""Train the meter reader's models and write them as ONNX, each with its golden inputs and outputs.

    python examples/meter-reading/train.py --out DIR

Needs numpy and onnx, no more. The data is ``digits.npz`` beside this file: ``images`` uint8 [1797, 8, 8] with values
0 to 16, ``labels`` uint8 [1797], and ``held_out`` bool [1797], the split that :func:`split` makes. Nothing here is
left to chance: the same machine writes the same bytes, another one the same accuracy.

v1 is a linear model and v2 a small network. v4 is v2 with a bad label map, every class off by one: what a wrong
line in a training pipeline makes. It is published with v2's golden outputs, and must never answer on a device.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

DATA = Path(__file__).with_name("digits.npz")
CLASSES = 10
GOLDEN_CASES = 12


class Layer(NamedTuple):
    """Weights [inputs, outputs] and bias [outputs], float64 while training."""

    weight: np.ndarray
    bias: np.ndarray


class Digits(NamedTuple):
    """Scans [n, 8, 8] with values 0 to 16, float32, and the digit that each shows."""

    images: np.ndarray
    labels: np.ndarray


def load() -> tuple[Digits, Digits]:
    """The scans to train on, and those held out."""
    with np.load(DATA) as file:
        images, labels, held_out = file["images"].astype(np.float32), file["labels"].astype(np.int64), file["held_out"]
    return Digits(images[~held_out], labels[~held_out]), Digits(images[held_out], labels[held_out])


def split(labels: np.ndarray) -> np.ndarray:
    """Which scans to hold out: three in ten of every digit, always the same ones."""
    generator = np.random.Generator(np.random.PCG64(1797))
    held_out = np.zeros(len(labels), dtype=bool)
    for digit in range(CLASSES):
        members = generator.permutation(np.flatnonzero(labels == digit))
        held_out[members[: round(0.3 * len(members))]] = True
    return held_out


def train(digits: Digits, hidden: tuple[int, ...], epochs: int) -> list[Layer]:
    """A network with *hidden* layers of rectified units (none: a linear model), fitted with Adam.

    Every epoch sees each scan moved by at most one pixel when there are hidden layers; a linear model has no use
    for it.
    """
    generator = np.random.Generator(np.random.PCG64(8))
    sizes = (64, *hidden, CLASSES)
    layers = [
        Layer(generator.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out)), np.zeros(fan_out))
        for fan_in, fan_out in itertools.pairwise(sizes)
    ]
    moments = [[Layer(np.zeros_like(w), np.zeros_like(b)) for w, b in layers] for _ in range(2)]
    targets = np.eye(CLASSES)
    step = 0
    for epoch in range(epochs):
        rate = 3e-3 * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        images = _moved(digits.images, generator) if hidden else digits.images
        for batch in np.array_split(generator.permutation(len(images)), max(1, len(images) // 64)):
            step += 1
            slopes = _gradients(layers, images[batch].reshape(-1, 64) / 16.0, targets[digits.labels[batch]])
            layers = _adam(layers, slopes, moments, rate, step)
    return layers


def _moved(images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    down, right = generator.choice(3, (2, len(images)), p=[0.1, 0.8, 0.1])
    rows, columns = down[:, None] + np.arange(8), right[:, None] + np.arange(8)
    return padded[np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]]


def _gradients(layers: list[Layer], inputs: np.ndarray, targets: np.ndarray, decay: float = 1e-3) -> list[Layer]:
    activations = [inputs]
    for weight, bias in layers[:-1]:
        activations.append(np.maximum(activations[-1] @ weight + bias, 0))
    scores = activations[-1] @ layers[-1].weight + layers[-1].bias
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    error = (odds / odds.sum(axis=1, keepdims=True) - targets) / len(inputs)
    slopes: list[Layer] = []
    for at in range(len(layers) - 1, -1, -1):
        slopes.append(Layer(activations[at].T @ error + decay * layers[at].weight, error.sum(axis=0)))
        error = (error @ layers[at].weight.T) * (activations[at] > 0)
    return slopes[::-1]


def _adam(layers: list[Layer], slopes: list[Layer], moments: list[list[Layer]], rate: float, step: int) -> list[Layer]:
    moved = []
    for layer, slope, first, second in zip(layers, slopes, *moments, strict=True):
        for value, gradient, mean, square in zip(layer, slope, first, second, strict=True):
            mean += 0.1 * (gradient - mean)  # noqa: PLW2901 - in place: the moments live on
            square += 0.001 * (gradient * gradient - square)  # noqa: PLW2901
            value -= rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)  # noqa: PLW2901
        moved.append(layer)
    return moved


def exported(layers: list[Layer], name: str) -> bytes:
    """The ONNX file of *layers*: image FP32 [-1, 8, 8] in; digit INT64 [-1] and probabilities FP32 [-1, 10] out."""
    nodes = [
        helper.make_node("Flatten", ["image"], ["pixels"], axis=1),
        helper.make_node("Mul", ["pixels", "scale"], ["x0"]),
    ]
    weights = [numpy_helper.from_array(np.array(1 / 16, np.float32), "scale")]
    for at, (weight, bias) in enumerate(layers):
        last = at == len(layers) - 1
        weights.append(numpy_helper.from_array(weight.astype(np.float32), f"w{at}"))
        weights.append(numpy_helper.from_array(bias.astype(np.float32), f"b{at}"))
        nodes.append(helper.make_node("Gemm", [f"x{at}", f"w{at}", f"b{at}"], ["scores" if last else f"y{at}"]))
        if not last:
            nodes.append(helper.make_node("Relu", [f"y{at}"], [f"x{at + 1}"]))
    nodes.append(helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1))
    nodes.append(helper.make_node("ArgMax", ["scores"], ["digit"], axis=1, keepdims=0))
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 8, 8])],
        [
            helper.make_tensor_value_info("digit", TensorProto.INT64, ["n"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES]),
        ],
        weights,
    )
    # Opset 17 and IR 9: read by every ONNX Runtime since 1.15.
    model = helper.make_model(graph, producer_name="meter-reading", opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.checker.check_model(model, full_check=True)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def answers(layers: list[Layer], images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the exported file answers to *images*, computed here: digits int64 [n], probabilities float32 [n, 10]."""
    values = images.reshape(-1, 64) / 16.0
    for weight, bias in layers[:-1]:
        values = np.maximum(values @ weight + bias, 0)
    scores = values @ layers[-1].weight + layers[-1].bias
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    return scores.argmax(axis=1), (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)


def accuracy(layers: list[Layer], digits: Digits) -> float:
    """The share of *digits* that *layers* read rightly."""
    return float(np.mean(answers(layers, digits.images)[0] == digits.labels))


def with_bad_label_map(layers: list[Layer]) -> list[Layer]:
    """The same network whose classes are named one too high: it reads 4 where a 3 stands."""
    *hidden, last = layers
    return [*hidden, Layer(np.roll(last.weight, 1, axis=1), np.roll(last.bias, 1))]


def golden(layers: list[Layer], digits: Digits) -> dict[str, np.ndarray]:
    """Cases for the check on the device: the first scans of the training split, so that held-out ones stay unseen."""
    images = digits.images[:GOLDEN_CASES]
    digit, probabilities = answers(layers, images)
    return {"input/image": images, "output/digit": digit, "output/probabilities": probabilities}


def main() -> None:
    """Train all three and write them to the folder that ``--out`` names."""
    parser = argparse.ArgumentParser(description="Train the meter reader's models again.")
    parser.add_argument("--out", type=Path, required=True, help="folder for vN.onnx and vN.golden.npz")
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    training, held_out = load()
    v1 = train(training, hidden=(), epochs=60)
    v2 = train(training, hidden=(96,), epochs=150)
    for name, layers, cases in (
        ("v1", v1, golden(v1, training)),
        ("v2", v2, golden(v2, training)),
        ("v4", with_bad_label_map(v2), golden(v2, training)),
    ):
        (out / f"{name}.onnx").write_bytes(exported(layers, f"meter-digits-{name}"))
        np.savez_compressed(out / f"{name}.golden.npz", **cases)
        print(f"{name}: {accuracy(layers, held_out):.4f} of {len(held_out.labels)} held-out scans read rightly")


if __name__ == "__main__":
    main()
