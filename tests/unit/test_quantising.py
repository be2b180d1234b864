"""A quantised version keeps the scales of the one before as long as they fit, and says so."""

from __future__ import annotations

import importlib
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

from model_parts import Desk, error_of, run
from outstation.errors import InvalidInputError, MissingExtraError
from outstation.models.delta_encoder import encode_delta
from outstation.models.quantising import _Cases, quantise_like

pytestmark = pytest.mark.filterwarnings("ignore")  # onnxruntime's quantiser has many


def perceptron(step=0, scale=1.0):
    """Two layers of floats, moved a little with each *step*."""
    base, moved = np.random.default_rng(0), np.random.default_rng(step)
    weights = {}
    for name, shape in (("w1", (32, 128)), ("w2", (128, 16))):
        array = base.standard_normal(shape) * 0.2
        array += 1e-3 * step * array.std() * moved.standard_normal(shape)
        weights[name] = (array * scale).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 16])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


@pytest.fixture(params=[False, True], ids=["a tensor", "a channel"])
def files(tmp_path, request):
    """A float model, its quantised form with scales for each of what the parameter says, and data."""
    inputs = np.random.default_rng(3).standard_normal((20, 32)).astype(np.float32)
    np.savez(tmp_path / "data.npz", **{"input/x": inputs})
    (tmp_path / "float.onnx").write_bytes(perceptron())
    cases = _Cases([{"x": row[None]} for row in inputs])
    quantize_static(
        str(tmp_path / "float.onnx"),
        str(tmp_path / "v1.onnx"),
        cases,
        quant_format=QuantFormat.QDQ,
        per_channel=request.param,
        weight_type=QuantType.QInt8,
    )
    return tmp_path


def quantised(files, source):
    (files / "new.onnx").write_bytes(source)
    return quantise_like(files / "new.onnx", files / "v1.onnx", files / "data.npz", files / "v2.onnx")


def test_scales_that_fit_are_kept_and_the_delta_is_small(files):
    found = quantised(files, perceptron(1))
    assert found.kept
    assert found.error_kept <= 1.25 * found.error_fresh
    report = encode_delta(files / "v1.onnx", files / "v2.onnx", files / "delta")
    assert report.size_bytes < 0.1 * report.result_bytes


def test_the_same_model_gives_the_same_file(files):
    quantised(files, perceptron())
    assert (files / "v2.onnx").read_bytes() == (files / "v1.onnx").read_bytes()


def test_scales_that_no_longer_fit_are_made_anew(files):
    found = quantised(files, perceptron(1, scale=3.0))
    assert not found.kept
    assert found.error_kept > 2 * found.error_fresh


def test_a_version_that_is_not_quantised_has_no_scales(files):
    (files / "v1.onnx").write_bytes(perceptron())
    error = error_of(lambda: quantised(files, perceptron(1)))
    assert isinstance(error, InvalidInputError)
    assert "no scales" in str(error)


def test_publish_like_says_which_scales_it_took(files):
    desk = Desk(files)
    where = ("--repository", str(desk.repository), "--keys", str(desk.keys), "--name", "pump")
    like = ("--like", "1.0.0", "--data", str(files / "data.npz"))
    run("publish", str(files / "v1.onnx"), *where, "--version", "1.0.0")
    (files / "new.onnx").write_bytes(perceptron(1))
    output = run("publish", str(files / "new.onnx"), *where, *like, "--version", "1.1.0").output
    assert "quantised with the scales of 1.0.0" in output
    assert b'"scales": "of 1.0.0"' in desk.file("1.1.0", ".manifest.json").read_bytes()
    (files / "new.onnx").write_bytes(perceptron(1, scale=3.0))
    output = run("publish", str(files / "new.onnx"), *where, *like, "--version", "1.2.0").output
    assert "fresh scales, those of 1.0.0 do not fit" in output
    needs = error_of(lambda: run("publish", str(files / "new.onnx"), *where, *like[:2], "--version", "1.3.0"))
    assert isinstance(needs, InvalidInputError)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "outstation.models.quantising")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match="publishing"):
        importlib.import_module("outstation.models.quantising")


def test_data_that_the_model_does_not_take_is_named(files):
    np.savez(files / "data.npz", other=np.zeros((3, 32), np.float32))
    assert "input/x" in str(error_of(lambda: quantised(files, perceptron(1))))
