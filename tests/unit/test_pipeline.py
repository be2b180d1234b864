"""Processing carried out: the same numbers as Pillow and plain numpy give, and files that nobody should trust."""

from __future__ import annotations

import io
import json
import random
import struct
import wave
import zlib
from contextlib import suppress

import numpy as np
import pytest
from onnx import TensorProto, helper
from PIL import Image

import tiny_models
from inference_support import HandStore, install
from outstation.errors import CheckFailedError, InferenceError, InvalidInputError, UnreadableFileError
from outstation.inference.check import SubprocessChecker
from outstation.inference.host import ModelHost
from outstation.inference.loading import load_installed
from outstation.inference.model import Version
from outstation.inference.runtime import RuntimeOptions
from outstation.models.bundle import Draft, make_bundle
from outstation.models.manifest import TensorSpec, parse_processing
from outstation.models.pipeline import cast, resized
from outstation.models.processing import Resize

SMALL = TensorSpec("x", "FP32", (-1, 4))
PIXELS = (
    {"step": "image", "mode": "grey", "max_pixels": 10_000},
    {"step": "resize", "height": 2, "width": 2},
    {"step": "scale", "factor": 1 / 255},
    {"step": "layout", "from": "NHWC", "to": "NHW"},
)
PLAIN = TensorSpec("x", "FP32", (-1, 2, 2))


def bundle(tmp_path, before=(), after=None, *, spec=SMALL, model=None, labels="none\nsome\nmore\nmost", **rest):
    """A model that answers its own input, between the steps *before* and the outputs *after*."""
    processing = {"inputs": [{"name": "x", "steps": before, **rest.pop("input", {})}], "outputs": after or []}
    return install(
        tmp_path / "bundle",
        "1.0.0",
        model or identity(spec),
        inputs=(spec,),
        outputs=(TensorSpec("y", spec.datatype, spec.shape),),
        processing=parse_processing(json.dumps(processing).encode()),
        labels=labels,
        **rest,
    )


def identity(spec: TensorSpec) -> bytes:
    kinds = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}
    shape = [None if size < 0 else size for size in spec.shape]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kinds[spec.datatype], shape)],
        [helper.make_tensor_value_info("y", kinds[spec.datatype], shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def loaded(*given, runtime="", **rest) -> Version:
    return load_installed(bundle(*given, **rest), RuntimeOptions(runtime=runtime))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def files(*data: bytes) -> np.ndarray:
    array = np.empty(len(data), object)
    array[:] = data
    return array


def photo(height=37, width=53, channels=3) -> np.ndarray:
    noise = np.random.default_rng(7).integers(0, 256, (height, width, channels), np.uint8)
    return noise if channels == 3 else noise[:, :, 0]


@pytest.mark.parametrize(("height", "width"), [(224, 224), (20, 53), (37, 11), (1, 1), (80, 9)])
def test_resizing_is_pillows_bilinear(height, width):
    pixels = photo()
    ours = resized(pixels, Resize(height, width))
    theirs = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))
    assert ours.dtype == np.uint8
    assert int(np.abs(ours.astype(int) - theirs).max()) <= 1
    floats = resized(pixels.astype(np.float32), Resize(height, width))
    assert float(np.abs(floats - theirs).max()) <= 1.01
    nearest = resized(pixels, Resize(height, width, sampling="nearest"))
    assert (nearest == np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST))).all()


def test_contain_shows_the_whole_image_and_cover_its_middle():
    pixels = np.full((2, 4, 1), 200, np.uint8)
    pixels[:, 0] = 100
    contained = resized(pixels, Resize(4, 4, "contain", "nearest", fill=7))[:, :, 0]
    assert contained.tolist() == [[7] * 4, [100, 200, 200, 200], [100, 200, 200, 200], [7] * 4]
    assert resized(pixels, Resize(2, 2, "cover", "nearest"))[:, :, 0].tolist() == [[200, 200]] * 2


def test_a_cast_to_integers_rounds_and_stays_in_the_range():
    numbers = np.array([-1e30, -1.6, 0.5, 1.5, 254.6, 300.0, np.nan, np.inf])
    assert cast(numbers, np.dtype(np.uint8)).tolist() == [0, 0, 0, 2, 255, 255, 0, 255]
    assert cast(numbers, np.dtype(np.int64))[-1] > 9e18
    assert cast(np.array([-5, 300]), np.dtype(np.uint8)).tolist() == [0, 255]
    assert cast(np.array([1 << 63], np.uint64), np.dtype(np.int64)).tolist() == [(1 << 63) - 1]


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_images_of_several_sizes_and_formats_in_one_call(tmp_path, runtime):
    version = loaded(tmp_path, PIXELS, spec=PLAIN, runtime=runtime)
    assert version.signature.inputs == (TensorSpec("x", "BYTES", (-1,)),)
    jpeg = io.BytesIO()
    Image.fromarray(np.full((9, 5, 3), 51, np.uint8)).save(jpeg, "JPEG")
    answer = version.run({"x": files(png(np.full((3, 7), 255, np.uint8)), jpeg.getvalue())})["y"]
    np.testing.assert_allclose(answer, [np.ones((2, 2)), np.full((2, 2), 0.2)], atol=1e-6)
    assert version.run({"x": files()})["y"].shape == (0, 2, 2)


def test_bytes_of_fixed_width_keep_their_zeros(tmp_path):
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(np.array([16384, -16384, 0, 0], "<i2").tobytes())
    version = loaded(tmp_path, [{"step": "wav", "sample_rate": 8000}])
    for given in (np.array([file.getvalue()]), files(file.getvalue())):
        assert version.run({"x": given})["y"].tolist() == [[0.5, -0.5, 0, 0]]


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_recordings_of_any_width_and_two_channels_are_the_same_sound(tmp_path, width):
    sound = np.array([0.5, -0.25, 0.125, -0.5])
    stereo = np.repeat(sound, 2)
    whole = np.rint(stereo * 2.0 ** (8 * width - 1)).astype(np.int64)
    data = (whole + 128).astype(np.uint8).tobytes() if width == 1 else b""
    if width > 1:
        data = b"".join(int(number).to_bytes(width, "little", signed=True) for number in whole)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((2, width, 16000, 0, "NONE", ""))
        out.writeframes(data)
    version = loaded(tmp_path, [{"step": "wav", "sample_rate": 16000, "samples": 4}])
    assert version.run({"x": files(file.getvalue())})["y"].tolist() == [sound.tolist()]
    long = loaded(tmp_path / "b", [{"step": "wav", "sample_rate": 16000, "samples": 4}])
    assert long.run({"x": files(file.getvalue()[: -2 * width])})["y"][0, 3] == 0  # cut short: filled up
    with pytest.raises(UnreadableFileError, match="16000 samples a second; the model takes 8000"):
        loaded(tmp_path / "c", [{"step": "wav", "sample_rate": 8000, "samples": 4}]).run({"x": files(file.getvalue())})


def test_what_is_no_image_is_the_callers_and_no_fault_of_the_version(tmp_path):
    before = load_installed(bundle(tmp_path, PIXELS, spec=PLAIN), RuntimeOptions())
    version = load_installed(bundle(tmp_path / "b", PIXELS, spec=PLAIN), RuntimeOptions(), replaces=before)
    whole = png(photo())
    for data in (b"", b"GIF89a", whole[:60], whole[:-400], b"\xff\xd8\xff\xe0" + bytes(100)):
        with pytest.raises(UnreadableFileError, match="Image 1 of this call"):
            version.run({"x": files(whole, data)})
    assert version.health.errors == 0
    with pytest.raises(InvalidInputError, match="the model takes BYTES"):
        version.run({"x": np.zeros((1, 2, 2), np.float32)})
    assert version.health.errors == 0


def test_a_decompression_bomb_is_refused_by_its_header(tmp_path):
    version = loaded(tmp_path, PIXELS, spec=PLAIN)
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    bomb = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    with pytest.raises(UnreadableFileError):
        version.run({"x": files(bomb)})
    fine = png(photo(99, 99, 1))
    assert version.run({"x": files(fine)})["y"].shape == (1, 2, 2)
    with pytest.raises(UnreadableFileError, match=r"have 19602 pixels; 10000 is the most"):
        version.run({"x": files(fine, fine)})


def test_random_bytes_are_refused_and_nothing_else_happens(tmp_path):
    image = loaded(tmp_path / "a", PIXELS, spec=PLAIN)
    sound = loaded(tmp_path / "b", [{"step": "wav", "sample_rate": 8000, "samples": 4}])
    chance = random.Random(5)
    start = io.BytesIO()
    with wave.open(start, "wb") as out:
        out.setparams((1, 2, 8000, 0, "NONE", ""))
        out.writeframes(bytes(200))
    for version, seed in ((image, png(photo(20, 20))), (sound, start.getvalue())):
        for _ in range(300):
            data = bytearray(seed[: chance.randrange(len(seed) + 1)])
            for _ in range(chance.randrange(8) if data else 0):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with suppress(UnreadableFileError):
                version.run({"x": files(bytes(data))})


def test_softmax_top_k_threshold_and_names(tmp_path):
    made = [
        {"name": "probabilities", "of": "y", "steps": [{"step": "softmax"}]},
        {"name": "best", "of": "y", "steps": [{"step": "top_k", "k": 2, "gives": "labels", "minimum": 2}]},
        {"name": "place", "of": "y", "steps": [{"step": "top_k", "k": 2, "gives": "places", "minimum": 2}]},
        {"name": "score", "of": "y", "steps": [{"step": "top_k", "k": 2, "gives": "scores"}]},
        {"name": "high", "of": "y", "steps": [{"step": "threshold", "minimum": 1}]},
        {"name": "y"},
    ]
    version = loaded(tmp_path, after=made)
    x = np.array([[1, 3, 3, np.nan], [-1e9, 0, 1, 2]], np.float32)
    result = version.run({"x": x})
    assert list(result) == ["probabilities", "best", "place", "score", "high", "y"]
    np.testing.assert_allclose(result["probabilities"][1], np.exp([-1e9, 0, 1, 2]) / np.exp([0, 1, 2]).sum(), rtol=1e-6)
    assert result["best"].tolist() == [["some", "more"], ["most", ""]]
    assert result["place"].tolist() == [[1, 2], [3, -1]]
    assert result["score"].tolist() == [[3, 3], [2, 1]]
    assert result["high"].tolist() == [[True, True, True, False], [False, False, True, True]]
    assert version.run({"x": x}, ["place"]).keys() == {"place"}
    assert version.run({"x": x[:0]})["best"].shape == (0, 2)


def test_integers_are_named_and_one_without_a_name_is_the_models_failure(tmp_path):
    spec = TensorSpec("x", "INT64", (-1,))
    version = loaded(tmp_path, after=[{"name": "word", "of": "y", "steps": [{"step": "labels"}]}], spec=spec)
    assert version.run({"x": np.array([3, -1, 0])})["word"].tolist() == ["most", "", "none"]
    with pytest.raises(InferenceError, match=r"Output 'word' cannot be made.*there are 4 labels"):
        version.run({"x": np.array([4])})
    assert version.health.errors == 1


def test_golden_answers_are_computed_and_checked_through_the_processing(tmp_path):
    spec = TensorSpec("x", "FP32", (-1, 4))
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(tiny_models.scale(2))
    (source / "labels.txt").write_text("none\nsome\nmore\nmost\n")
    steps = [
        {"step": "image", "mode": "grey"},
        {"step": "resize", "height": 1, "width": 4},
        {"step": "scale", "factor": 1 / 255},
        {"step": "layout", "from": "NHWC", "to": "NW"},
    ]
    made = [{"name": "word", "of": "y", "steps": [{"step": "top_k", "k": 1, "gives": "labels"}]}, {"name": "y"}]
    pictures = [png(np.roll(np.array([[255, 0, 0, 0]], np.uint8), place)) for place in range(4)]
    np.savez(tmp_path / "golden.npz", **{"input/x": np.array(pictures)})
    processing = parse_processing(json.dumps({"inputs": [{"name": "x", "steps": steps}], "outputs": made}).encode())
    draft = Draft(name="pictures", version="1.0.0", golden=tmp_path / "golden.npz", processing=processing)
    (tmp_path / "bundle").mkdir()
    manifest = make_bundle(source, tmp_path / "bundle", draft)
    assert manifest.inputs == (spec,)
    with np.load(tmp_path / "bundle/golden.npz", allow_pickle=False) as golden:
        assert golden["output/word"].tolist() == [["none"], ["some"], ["more"], ["most"]]
        assert golden["output/y"][1].tolist() == [0, 2, 0, 0]
        kept = {key: golden[key] for key in golden.files}
    shared = {
        "inputs": manifest.inputs,
        "outputs": manifest.outputs,
        "processing": processing,
        "labels": "none\nsome\nmore\nmost",
        "name": "pictures",
    }
    good = install(tmp_path / "good", "1.0.0", tiny_models.scale(2), golden=kept, **shared)
    assert SubprocessChecker().check(good, 60).cases == 4
    with pytest.raises(CheckFailedError, match="golden case 0, output 'y'"):
        SubprocessChecker().check(install(tmp_path / "bad", "2.0.0", tiny_models.scale(3), golden=kept, **shared), 60)
    wrong = {**shared, "labels": "some\nnone\nmore\nmost"}
    with pytest.raises(CheckFailedError, match="golden case 0, output 'word'"):
        SubprocessChecker().check(install(tmp_path / "map", "3.0.0", tiny_models.scale(2), golden=kept, **wrong), 60)


def test_a_version_that_takes_files_is_tried_and_warmed_up_without_golden_inputs(tmp_path):
    assert SubprocessChecker().check(bundle(tmp_path / "a", PIXELS, spec=PLAIN), 60).cases == 0
    sound = bundle(tmp_path / "b", [{"step": "wav", "sample_rate": 8000, "samples": 4}])
    assert SubprocessChecker().check(sound, 60).cases == 0
    with ModelHost(HandStore(sound)) as host:
        assert host.get("tiny").labels == ("none", "some", "more", "most")
        assert host.get("tiny").inputs == (TensorSpec("x", "BYTES", (-1,)),)


def test_pieces_of_several_sizes_without_a_resize_are_the_callers(tmp_path):
    spec = TensorSpec("x", "FP32", (-1, -1))
    version = loaded(tmp_path, [{"step": "wav", "sample_rate": 8000}, {"step": "scale", "factor": 2}], spec=spec)
    sounds = []
    for count in (1, 2):
        file = io.BytesIO()
        with wave.open(file, "wb") as out:
            out.setparams((1, 2, 8000, 0, "NONE", ""))
            out.writeframes(b"\0\x20" * count)
        sounds.append(file.getvalue())
    assert version.run({"x": files(sounds[1])})["y"].tolist() == [[0.5, 0.5]]
    with pytest.raises(InvalidInputError, match="pieces of several sizes"):
        version.run({"x": files(*sounds)})
