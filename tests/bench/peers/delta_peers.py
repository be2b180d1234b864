"""The nets of the delta benchmark, and every way to send the new one to who has the old one.

``python delta_peers.py WAY make|apply BASE RESULT DELTA`` does one of them in this process, and prints the seconds it
took and the peak of the memory, interpreter and libraries included.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FINE = 1e-3  # of a tensor's standard deviation: how far a fine-tune moves its weights

Way = tuple[Callable[[Path, Path, Path], None], Callable[[Path, Path, Path], None]]


# -- nets ----------------------------------------------------------------------------------------------------------


def write_columns(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The three columns: old file and new file of each."""
    import numpy as np  # noqa: PLC0415  the measured processes must not load it for nothing
    import onnx  # noqa: PLC0415
    from inference_peers import write_mobilenet  # noqa: PLC0415
    from onnx import numpy_helper  # noqa: PLC0415

    dice = np.random.default_rng(4)
    old = folder / "v1.onnx"
    write_mobilenet(old)

    def changed(name: str, change: Callable[[str, np.ndarray], np.ndarray]) -> Path:
        model = onnx.load(old)
        for tensor in model.graph.initializer:
            array = change(tensor.name, numpy_helper.to_array(tensor)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        path = folder / f"{name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    def retrained(name: str, array: np.ndarray) -> np.ndarray:
        return dice.standard_normal(array.shape) * 0.03 if name == "head" else array

    def tuned(_: str, array: np.ndarray) -> np.ndarray:
        return array + FINE * array.std() * dice.standard_normal(array.shape)

    head, fine = changed("head", retrained), changed("fine", tuned)
    whole_numbers = folder / "v1.int8.onnx"
    quantise(old, whole_numbers)
    return {
        "head retrained": (old, head),
        "fp32 fine-tune": (old, fine),
        "int8 fine-tune, scales kept": (whole_numbers, requantise(whole_numbers, fine, folder / "fine.int8.onnx")),
    }


def quantise(source: Path, target: Path) -> None:
    """Weights and activations as int8, by onnxruntime and a few random pictures."""
    import numpy as np  # noqa: PLC0415
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # noqa: PLC0415

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            dice = np.random.default_rng(5)
            shape = (1, 3, 224, 224)
            self.left = [{"image": dice.standard_normal(shape).astype(np.float32)} for _ in range(2)]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    options = {"quant_format": QuantFormat.QDQ, "per_channel": True, "weight_type": QuantType.QInt8}
    quantize_static(str(source), str(target), Pictures(), **options)


def requantise(quantised: Path, source: Path, target: Path) -> Path:
    """The weights of *source* in the scales of *quantised*."""
    import numpy as np  # noqa: PLC0415
    import onnx  # noqa: PLC0415
    from onnx import numpy_helper  # noqa: PLC0415

    model = onnx.load(quantised)
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(source).graph.initializer}
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    axes = {
        node.input[0]: next((a.i for a in node.attribute if a.name == "axis"), 1)
        for node in model.graph.node
        if node.op_type == "DequantizeLinear"
    }
    for name, array in floats.items():
        scale = numpy_helper.to_array(tensors[f"{name}_scale"])
        if scale.size > 1:
            shape = [1] * array.ndim
            shape[axes[f"{name}_quantized"]] = -1
            scale = scale.reshape(shape)
        numbers = np.clip(np.rint(array / scale), -128, 127).astype(np.int8)
        tensors[f"{name}_quantized"].CopyFrom(numpy_helper.from_array(numbers, f"{name}_quantized"))
    target.write_bytes(model.SerializeToString())
    return target


# -- ways ----------------------------------------------------------------------------------------------------------


def _whole_make(_base: Path, result: Path, delta: Path) -> None:
    from outstation import zstd  # noqa: PLC0415

    delta.write_bytes(zstd.compress(result.read_bytes(), 19))


def _whole_apply(_base: Path, result: Path, delta: Path) -> None:
    result.write_bytes(_zstd().decompress(delta.read_bytes()))


def _prefix_make(base: Path, result: Path, delta: Path) -> None:
    from outstation import zstd  # noqa: PLC0415

    old, new = base.read_bytes(), result.read_bytes()
    parameter = zstd.CompressionParameter
    options = {parameter.compression_level: 19, parameter.window_log: (len(old) + len(new)).bit_length()}
    packed = zstd.compress(new, options=options, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix)
    delta.write_bytes(packed)


def _prefix_apply(base: Path, result: Path, delta: Path) -> None:
    prefix = _zstd().ZstdDict(base.read_bytes(), is_raw=True).as_prefix
    result.write_bytes(_zstd().decompress(delta.read_bytes(), zstd_dict=prefix))


def _bsdiff_make(base: Path, result: Path, delta: Path) -> None:
    import bsdiff4  # noqa: PLC0415

    bsdiff4.file_diff(str(base), str(result), str(delta))


def _bsdiff_apply(base: Path, result: Path, delta: Path) -> None:
    import bsdiff4  # noqa: PLC0415

    bsdiff4.file_patch(str(base), str(result), str(delta))


def _chunks_make(base: Path, result: Path, delta: Path) -> None:
    """What is sent: the number of each chunk that is there, and the new ones, compressed."""
    known = {hashlib.sha256(chunk).digest(): at for at, chunk in enumerate(chunks(base.read_bytes()))}
    order, fresh = [], []
    for chunk in chunks(result.read_bytes()):
        at = known.get(hashlib.sha256(chunk).digest())
        order.append(len(chunk) << 32 if at is None else at)
        fresh.append(chunk if at is None else b"")
    head = json.dumps(order).encode()
    delta.write_bytes(len(head).to_bytes(4, "big") + _zstd().compress(head + b"".join(fresh), 19))


def _chunks_apply(base: Path, result: Path, delta: Path) -> None:
    known = list(chunks(base.read_bytes()))
    packed = delta.read_bytes()
    size = int.from_bytes(packed[:4], "big")
    data = _zstd().decompress(packed[4:])
    with result.open("wb") as file:
        at = size
        for entry in json.loads(data[:size]):
            file.write(data[at : at + (entry >> 32)] if entry >> 32 else known[entry])
            at += entry >> 32


def chunks(data: bytes, average_log: int = 16) -> Iterator[bytes]:
    """FastCDC: cuts where the bytes say so, about every 64 KiB, so that what moved is found again.

    The gear hash of a place is a sum over the 32 bytes before it, so numpy gives that of all places at once.
    """
    import numpy as np  # noqa: PLC0415

    gear = np.random.default_rng(6).integers(0, 1 << 32, 256, dtype=np.uint32)
    harder, easier = (np.uint32((1 << (average_log + step)) - 1 << 8) for step in (1, -1))
    low, average, high = (1 << average_log >> 2, 1 << average_log, 1 << average_log + 2)
    start = 0
    while start < len(data):
        window = np.frombuffer(data, np.uint8, min(high, len(data) - start), start)
        sums = gear[window]
        for shift in (1, 2, 4, 8, 16):  # doubles how far back it reaches
            sums[shift:] = sums[shift:] + (sums[:-shift] << np.uint32(shift))
        hard = np.flatnonzero(sums[low:average] & harder == 0)
        easy = np.flatnonzero(sums[average:] & easier == 0)
        size = low + hard[0] + 1 if len(hard) else average + easy[0] + 1 if len(easy) else len(window)
        yield data[start : start + size]
        start += int(size)


def _ours_make(base: Path, result: Path, delta: Path) -> None:
    from outstation.models.delta_encoder import encode_delta  # noqa: PLC0415

    encode_delta(base, result, delta)


def _ours_apply(base: Path, result: Path, delta: Path) -> None:
    from outstation.models.delta import apply_delta, read_header  # noqa: PLC0415

    with delta.open("rb") as file:
        header = read_header(file, delta.stat().st_size)
    apply_delta(delta, base, result, sha256=header.result_sha256, size_bytes=header.result_size)


def _zstd() -> object:
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415
    else:
        from backports import zstd  # noqa: PLC0415
    return zstd


WAYS: dict[str, Way] = {
    "ours": (_ours_make, _ours_apply),
    "zstd -19": (_whole_make, _whole_apply),
    "chunks": (_chunks_make, _chunks_apply),
    "bsdiff4": (_bsdiff_make, _bsdiff_apply),
    "zstd prefix": (_prefix_make, _prefix_apply),
}
# What each way loads, before the clock starts: a process that does this for a living has it loaded.
LOADS = {
    "ours": {"make": ("numpy", "outstation.models.delta_encoder"), "apply": ("outstation.models.delta",)},
    "bsdiff4": {"make": ("bsdiff4",), "apply": ("bsdiff4",)},
    "chunks": {"make": ("numpy",), "apply": ("numpy",)},
}


def measured(way: str, what: str, base: Path, result: Path, delta: Path) -> dict[str, float]:
    for module in (*LOADS.get(way, {}).get(what, ()), "outstation.zstd"):
        __import__(module)
    make, apply = WAYS[way]
    begin = time.perf_counter()
    (make if what == "make" else apply)(base, result, delta)
    seconds = time.perf_counter() - begin
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return {"seconds": seconds, "peak_mb": peak * 1024 / 1e6}


if __name__ == "__main__":
    print(json.dumps(measured(sys.argv[1], sys.argv[2], *map(Path, sys.argv[3:]))))
