"""Golden cases are read without trust, and a miss is told with case, output, place and difference."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from outstation.errors import CheckFailedError
from outstation.inference.golden import Case, difference, golden_cases
from outstation.models.manifest import Golden, Manifest, ManifestFile, TensorSpec
from outstation.models.store import InstalledModel


def bundle(folder, shape=(-1, 2), **arrays):
    """An installed model with a golden file of *arrays*, whose names have "__" for "/"."""
    path = folder / "golden.npz"
    np.savez(path, **{name.replace("__", "/"): array for name, array in arrays.items()})
    return described(folder, shape)


def described(folder, shape=(-1, 2)):
    path = folder / "golden.npz"
    data = path.read_bytes()
    manifest = Manifest(
        name="m",
        version="1.0.0",
        model="model.onnx",
        files=(ManifestFile("golden.npz", hashlib.sha256(data).hexdigest(), len(data)),),
        inputs=(TensorSpec("x", "FP32", shape),),
        outputs=(TensorSpec("y", "FP32", shape),),
        golden=Golden(),
    )
    return InstalledModel("m", "1.0.0", folder, manifest)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("shape", "rows", "expected"),
    [
        ((-1, 2), (5, 2), (1, 2)),
        ((1, 2), (5, 2), (1, 2)),
        ((5, 2), (10, 2), (5, 2)),
        ((-1, 2), (5, 3, 2), (3, 2)),
        ((), (5,), ()),
        ((2,), (5, 2), (2,)),
    ],
)
def test_the_first_axis_counts_the_cases(tmp_path, shape, rows, expected):
    cases = golden_cases(bundle(tmp_path, shape, input__x=ones(*rows), output__y=ones(*rows)))
    assert [case.number for case in cases] == list(range(len(cases)))
    assert len(cases) == (2 if expected == (5, 2) else 5)
    assert all(case.inputs["x"].shape == expected for case in cases)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"output__y": ones(1, 2)}, "lacks 'input/x'"),
        ({"input__x": ones(1, 2)}, "no output to compare"),
        ({"input__x": ones(1, 2), "output__z": ones(1, 2)}, "has 'output/z', which is no input or output"),
        ({"input__x": ones(1, 2), "other": ones(1)}, "has 'other'"),
        ({"input__x": ones(3, 2), "output__y": ones(2, 2)}, "hold [2, 3] cases"),
        ({"input__x": ones(0, 2), "output__y": ones(0, 2)}, "hold [0] cases"),
        ({"input__x": ones(2000, 2), "output__y": ones(2000, 2)}, "hold [2000] cases"),
        ({"input__x": ones(2), "output__y": ones(1, 2)}, "'input/x' in the golden file has 1 dimensions"),
    ],
)
def test_a_file_that_does_not_fit_the_model_is_refused(tmp_path, arrays, words):
    with pytest.raises(CheckFailedError) as caught:
        golden_cases(bundle(tmp_path, **arrays))
    assert words in str(caught.value)


def test_a_file_that_is_none_or_holds_objects_is_refused(tmp_path):
    (tmp_path / "golden.npz").write_bytes(b"PK no zip")
    with pytest.raises(CheckFailedError, match="cannot be read"):
        golden_cases(described(tmp_path))
    np.savez(tmp_path / "golden.npz", **{"input/x": np.array([{}], dtype=object)})
    with pytest.raises(CheckFailedError, match="cannot be read"):
        golden_cases(described(tmp_path))


def miss(expected, got, **tolerance):
    return difference(Case(3, {}, {"y": expected}), {"y": got}, Golden(**tolerance))


def test_numbers_within_tolerance_pass():
    assert miss(ones(2, 2), ones(2, 2) * 1.00015) is None
    assert miss(np.array([np.nan, np.inf, -np.inf]), np.array([np.nan, np.inf, -np.inf])) is None
    assert miss(ones(0, 3), ones(0, 3)) is None
    assert miss(np.array(["a"]), np.array(["a"], dtype=object)) is None


def test_a_number_that_is_off_is_told_with_its_place():
    got = np.array([[1, 1], [1, 1.5]], np.float32)
    assert miss(ones(2, 2), got) == (
        "golden case 3, output 'y'[1][1] is 1.5 instead of 1, 0.5 off (0.0002 is allowed); 1 of 4 numbers are off."
    )
    assert "is nan instead of 1" in miss(ones(1), np.array([np.nan], np.float32))
    assert "is inf instead of 1" in miss(ones(1), np.array([np.inf], np.float32))


def test_integers_text_and_shapes_must_be_equal():
    assert "[1] is 4 instead of 3; 1 of 2 are wrong" in miss(np.array([1, 3]), np.array([1, 4]))
    assert "[0] is b instead of a" in miss(np.array(["a"]), np.array([b"b"], dtype=object))
    assert "shape is [3] instead of [2]" in miss(ones(2), ones(3))
