"""The bytes of a capture: format 1 stays readable."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from outstation.inference.captured import Capture, CapturedTensor, decode_capture, encode_capture, packed, unpacked

GOLDEN = Path(__file__).parents[1] / "golden/capture-1/capture.msgpack"


def test_tensors_come_back_as_they_were_compressed_or_not():
    words = np.array([["é", b"\xff\x00"]], object)
    tensors = {
        "zeros": np.zeros((100, 100), np.float16),
        "noise": np.random.default_rng(1).integers(0, 256, 1000, np.uint8),
        "words": words,
        "none": np.zeros((0, 3), np.int64),
        "one": np.array(3.5),
    }
    for compressed in (True, False):
        made = packed(tensors, compressed=compressed)
        assert made[1].codec == "raw"  # noise becomes no smaller
        assert (made[0].codec == "zstd") == compressed
        back = unpacked(msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=tuple[CapturedTensor, ...]))
        for name, array in tensors.items():
            assert back[name].shape == array.shape
            if name != "words":
                assert back[name].dtype == array.dtype
                assert (back[name] == array).all()
        assert back["words"].tolist() == [["é".encode(), b"\xff\x00"]]


def test_golden_bytes_are_read_and_written_as_ever():
    """Captures lie in hubs for years: format 1 stays readable."""
    tensors = {"image": np.arange(4, dtype=np.uint8).reshape(1, 2, 2)}
    words = {"word": np.array(["é"], object), "scores": np.zeros((1, 40), np.float32)}
    capture = Capture(
        model="digits",
        version="1.0.0",
        reason="low_confidence",
        time_unix_nano=17,
        note="seven",
        classes=("one",),
        scores=(0.5,),
        inputs=packed(tensors, compressed=False),
        outputs=packed(words, compressed=False),
    )
    golden = GOLDEN.read_bytes()
    assert decode_capture(golden) == capture
    assert encode_capture(capture) == golden
    plain = msgspec.msgpack.decode(golden)
    assert plain["format"] == 1
    assert plain["inputs"][0] == {
        "name": "image",
        "datatype": "UINT8",
        "shape": [1, 2, 2],
        "codec": "raw",
        "size": 4,
        "data": b"\0\1\2\3",
    }
