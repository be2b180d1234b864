"""What a manifest declares before and after a model: which types follow from it, and what is refused."""

from __future__ import annotations

import json

import pytest

from outstation.errors import ManifestError
from outstation.models.manifest import (
    Manifest,
    ManifestFile,
    TensorSpec,
    encode_manifest,
    parse_manifest,
    parse_processing,
)

IMAGE = TensorSpec("image", "FP32", (-1, 3, 224, 224))
SCORES = TensorSpec("scores", "FP32", (-1, 1000))
PHOTO = (
    {"step": "image"},
    {"step": "resize", "height": 224, "width": 224, "fit": "cover"},
    {"step": "normalise", "mean": [123.7, 116.3, 103.5], "deviation": [58.4, 57.1, 57.4]},
    {"step": "layout", "from": "NHWC", "to": "NCHW"},
)
NAMED = ({"step": "softmax"}, {"step": "top_k", "k": 5, "gives": "labels", "minimum": 0.1})


def manifest(processing: object, *, takes: TensorSpec = IMAGE, labels: str | None = "labels.txt") -> Manifest:
    return Manifest(
        name="photo",
        version="1.0.0",
        model="model.onnx",
        files=(ManifestFile("model.onnx", "0" * 64, 1), ManifestFile("labels.txt", "1" * 64, 1)),
        inputs=(takes,),
        outputs=(SCORES,),
        labels=labels,
        processing=parse_processing(json.dumps(processing).encode()),
    )


def before(*steps, name="image", **more):
    return {"inputs": [{"name": name, "steps": steps, **more}]}


def after(*steps, **more):
    return {"outputs": [{"name": "label", "of": "scores", "steps": steps, **more}]}


def problem(processing: object, **rest) -> str:
    with pytest.raises(ManifestError) as caught:
        encode_manifest(manifest(processing, **rest))
    return str(caught.value).removeprefix("The manifest is wrong at ")


def test_a_caller_gives_files_and_gets_names():
    made = manifest(before(*PHOTO) | after(*NAMED))
    assert made.call_inputs == (TensorSpec("image", "BYTES", (-1,)),)
    assert made.call_outputs == (TensorSpec("label", "BYTES", (-1, 5)),)
    assert parse_manifest(encode_manifest(made)) == made


def test_a_model_of_one_row_takes_one_file():
    assert manifest(before(*PHOTO), takes=TensorSpec("image", "FP32", (1, 3, 224, 224))).call_inputs[0].shape == (1,)


def test_without_a_file_a_caller_gives_what_is_declared_or_what_the_model_takes():
    pixels = before(*PHOTO[1:], takes={"datatype": "UINT8", "shape": [-1, -1, -1, 3]})
    assert manifest(pixels).call_inputs == (TensorSpec("image", "UINT8", (-1, -1, -1, 3)),)
    assert manifest(before({"step": "scale", "factor": 2})).call_inputs == (IMAGE,)
    assert manifest({}).call_outputs == (SCORES,)


@pytest.mark.parametrize(
    ("processing", "words"),
    [
        (
            before(*PHOTO[:3]),
            "processing.inputs[0].steps: they give FP32 [-1, 224, 224, 3], the model takes FP32 [-1, 3",
        ),
        (before(*PHOTO[1:]), "processing.inputs[0].steps[1]: 3 numbers for a last axis of 224"),
        (before(PHOTO[0], PHOTO[0]), "processing.inputs[0].steps[1]: it reads files, BYTES [n], and must be the first"),
        (before(*PHOTO, name="picture"), "processing.inputs[0].name: the model has no input 'picture'"),
        (before(PHOTO[0], {"step": "layout", "from": "NHW", "to": "NHW"}), "steps[1]: 'NHW' for UINT8"),
        (before(PHOTO[0], {"step": "layout", "from": "NHWC", "to": "NHW"}), "leaves out 'C', which is 3 long"),
        (before(PHOTO[0], {"step": "layout", "from": "NHHC", "to": "NHC"}), "'NHHC' has a letter twice"),
        (before({"step": "normalise", "mean": [1, 2], "deviation": [1]}), "2 numbers for a last axis of 224"),
        (before({"step": "normalise", "mean": [1], "deviation": [0]}), "a deviation of 0"),
        (before({"step": "cast", "datatype": "BYTES"}), "'BYTES' is no type of numbers"),
        (before({"step": "scale"}, takes={"datatype": "FP31", "shape": [1]}), "takes[0].datatype: 'FP31' is none of"),
        (after({"step": "top_k", "k": 1001, "gives": "places"}), "outputs[0].steps[0]: the 1001 highest of 1000"),
        (after({"step": "labels"}), "it takes integers, not FP32 [-1, 1000]"),
        (after({"step": "threshold", "minimum": 1}, {"step": "softmax"}), "takes floating point numbers, not BOOL"),
        (after(of="nothing"), "processing.outputs[0].of: the model has no output 'nothing'"),
        ({"outputs": [{"name": "scores"}, {"name": "scores"}]}, "processing.outputs[1].name: 'scores' is there twice"),
        ({"inputs": before(*PHOTO)["inputs"] * 2}, "processing.inputs[1].name: 'image' is there twice"),
    ],
)
def test_what_does_not_fit_together_is_refused_with_its_place(processing, words):
    assert words in problem(processing)


def test_labels_are_needed_where_they_are_named():
    assert "it names labels, and the bundle has none" in problem(after(*NAMED), labels=None)


@pytest.mark.parametrize(
    ("processing", "words"),
    [
        (before({"step": "python"}), "processing.inputs[0].steps[0].step: invalid value 'python'"),
        (before({"step": "resize", "height": 9}), "processing.inputs[0].steps[0].width: is missing"),
        (before({"step": "resize", "height": 9000, "width": 1}), "steps[0].height: expected `int` <= 8192"),
        (before({"step": "image", "mode": "cmyk"}), "steps[0].mode: invalid enum value 'cmyk'"),
        (before({"step": "image", "exec": ""}), "processing.inputs[0].steps[0].exec: is no field that is known"),
        (before(*({"step": "scale"},) * 17), "inputs[0].steps: expected `array` of length <= 16"),
        ([], "processing: expected `object`, got `array`"),
    ],
)
def test_what_is_not_declared_is_no_step(processing, words):
    with pytest.raises(ManifestError) as caught:
        parse_processing(json.dumps(processing).encode())
    assert words in str(caught.value)


def test_two_keys_of_one_name_and_no_numbers_are_refused():
    for data in (b'{"inputs": [], "inputs": []}', b'{"inputs": NaN}', b"{", b"\xff"):
        with pytest.raises(ManifestError):
            parse_processing(data)
