"""A call that does not fit is refused with the name, the type or the shape that is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from outstation.errors import InvalidInputError
from outstation.inference.signature import Signature
from outstation.models.manifest import TensorSpec

SIGNATURE = Signature(
    (TensorSpec("image", "FP32", (-1, 8, 8)), TensorSpec("words", "BYTES", (-1,))),
    (TensorSpec("digit", "INT64", (-1,)),),
)
IMAGE = np.zeros((2, 8, 8), np.float32)
WORDS = np.array(["a", "b"])


def refusal(**inputs):
    with pytest.raises(InvalidInputError) as caught:
        SIGNATURE.check(inputs)
    return f"{caught.value} {caught.value.hint}"


def test_a_call_that_fits_passes_whatever_its_text_is_held_in():
    for words in (WORDS, np.array([b"a"]), np.array(["a", b"b"], dtype=object)):
        SIGNATURE.check({"image": IMAGE, "words": words})


def test_a_wrong_name_is_told_with_the_nearest_one():
    assert "no input 'imagee'. Did you mean 'image'?" in refusal(imagee=IMAGE, words=WORDS)
    assert "It has: 'image', 'words'" in refusal(q=IMAGE)


def test_a_missing_input_is_told_with_what_the_model_takes():
    assert "Input 'words' is missing (given: 'image')" in refusal(image=IMAGE)
    assert "takes 'image' as FP32 [-1, 8, 8]" in refusal()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (IMAGE.astype(np.float64), "is FP64; the model takes FP32 [-1, 8, 8]. Convert it with .astype(numpy.float32)"),
        (IMAGE.astype(">f4"), "is >f4; the model takes FP32"),
        (IMAGE.astype(np.complex64), "is <c8; the model takes FP32"),
        (IMAGE[0], "has the shape [8, 8]; the model takes FP32 [-1, 8, 8]"),
        (IMAGE[:, :7], "has the shape [2, 7, 8]"),
        (IMAGE.tolist(), "is list; it must be a numpy array. numpy.asarray(value, dtype=numpy.float32)"),
        (None, "is NoneType"),
    ],
)
def test_a_wrong_type_or_shape_is_told_beside_the_right_one(image, words):
    assert words in refusal(image=image, words=WORDS)


def test_numbers_are_no_text():
    assert "Input 'words' is FP32; the model takes BYTES [-1]" in refusal(image=IMAGE, words=np.zeros(1, np.float32))


def test_bytes_reach_the_runtime_as_text_and_only_as_text():
    feed = SIGNATURE.feed({"image": IMAGE, "words": np.array(["\u00e9", b"b"], dtype=object)})
    assert feed["words"].tolist() == ["\u00e9", "b"]
    assert feed["image"] is IMAGE
    with pytest.raises(InvalidInputError, match="'words' holds bytes that are not UTF-8"):
        SIGNATURE.feed({"words": np.array([b"\xff"], dtype=object)})


def test_an_unknown_output_is_told_with_the_nearest_one():
    with pytest.raises(InvalidInputError, match="no output 'digits'"):
        SIGNATURE.check_outputs(("digits",))


def test_a_model_of_unknown_rank_leaves_the_shape_to_the_runtime():
    anything = Signature((TensorSpec("x", "FP32", ()),), ())
    anything.check({"x": np.zeros((2, 3), np.float32)})


def test_zeros_fit():
    SIGNATURE.check(SIGNATURE.zeros())
    assert SIGNATURE.zeros()["image"].shape == (1, 8, 8)
