"""Small nets for the tests of deltas, and deltas made by hand: what no honest encoder writes."""

from __future__ import annotations

import hashlib
import itertools
import tracemalloc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from outstation import zstd
from outstation.models.delta import ENTRY, HEADER, MAGIC, PROGRAM, VERSION, Key, apply_delta
from outstation.models.delta_encoder import DeltaReport, encode_delta


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def net(arrays: Mapping[str, np.ndarray], *, doc: str = "") -> bytes:
    """An ONNX file that holds *arrays*; every one is an initializer, and the graph gives back its input."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        doc_string=doc,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def mobile(seed: int = 0, *, channels: Sequence[int] = (8, 16, 32)) -> dict[str, np.ndarray]:
    """Weights of the shape of a small MobileNet: pointwise, depthwise, biases, a head."""
    dice = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for index, (narrow, wide) in enumerate(itertools.pairwise(channels)):
        shapes = {
            "expand": (6 * narrow, narrow, 1, 1),
            "depth": (6 * narrow, 1, 3, 3),
            "project": (wide, 6 * narrow, 1, 1),
        }
        for name, shape in shapes.items():
            arrays[f"{index}.{name}"] = (dice.standard_normal(shape) * 0.1).astype(np.float32)
        arrays[f"{index}.bias"] = np.zeros(wide, np.float32)
    arrays["head"] = (dice.standard_normal((channels[-1], 100)) * 0.1).astype(np.float32)
    return arrays


def tuned(arrays: Mapping[str, np.ndarray], by: float = 1e-3, seed: int = 1) -> dict[str, np.ndarray]:
    """Every weight moved a little."""
    dice = np.random.default_rng(seed)
    return {
        name: (array + by * array.std() * dice.standard_normal(array.shape)).astype(array.dtype)
        for name, array in arrays.items()
    }


def quantised(
    seed: int = 0, changes: int = 300, lanes: int = 30_000
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """int8 weights, and the same with a few of them moved by one."""
    dice = np.random.default_rng(seed)
    old = np.clip(np.rint(dice.standard_normal(lanes) * 30), -127, 126).astype(np.int8)
    new = old.copy()
    places = dice.choice(lanes, changes, replace=False)
    new[places] += dice.choice(np.array([-1, 1], np.int8), changes)
    return {"weights": old}, {"weights": new}


def made(folder: Path, old: bytes, new: bytes) -> tuple[Path, DeltaReport]:
    """The delta from *old* to *new*, and what it says of it; the files lie beside it."""
    (folder / "old").write_bytes(old)
    (folder / "new").write_bytes(new)
    report = encode_delta(folder / "old", folder / "new", folder / "delta")
    return folder / "delta", report


def applied(folder: Path, new: bytes, delta: Path | None = None) -> bytes:
    """What *delta* makes of the file ``old`` when *new* is signed."""
    target = folder / "target"
    apply_delta(delta or folder / "delta", folder / "old", target, sha256=sha256(new), size_bytes=len(new))
    return target.read_bytes()


def varints(*numbers: int) -> bytes:
    data = bytearray()
    for number in numbers:
        rest = number
        while rest >= 0x80:
            data.append(rest & 0x7F | 0x80)
            rest >>= 7
        data.append(rest)
    return bytes(data)


def forged(
    old: bytes,
    new: bytes,
    program: bytes,
    streams: Mapping[Key, bytes] | None = None,
    *,
    version: int = VERSION,
    packed: Mapping[Key, bytes] | None = None,
    result_size: int | None = None,
) -> bytes:
    """A delta with this *program*: plain *streams* are compressed, *packed* ones taken as they are."""
    plain = {(PROGRAM, 1, 0): program, **(streams or {})}
    frames = {key: zstd.compress(data) for key, data in plain.items()} | dict(packed or {})
    size = len(new) if result_size is None else result_size
    hashes = (bytes.fromhex(sha256(old)), bytes.fromhex(sha256(new)))
    head = HEADER.pack(MAGIC, version, len(frames), len(old), size, *hashes)
    table = b"".join(ENTRY.pack(*key, len(frame)) for key, frame in frames.items())
    return head + table + b"".join(frames.values())


def external_model(folder: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """A model whose tensors lie in ``weights.bin`` beside it."""
    model = onnx.load_from_string(net(arrays))
    path = folder / "model.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fails when Python's own memory grew by more than *most* bytes at any time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most
    finally:
        tracemalloc.stop()
