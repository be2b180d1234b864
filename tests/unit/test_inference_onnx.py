"""ONNX Runtime's own words for files that it cannot load, and text."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

import tiny_models
from outstation.errors import ModelLoadError
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.runtime import RuntimeOptions


def written(tmp_path, data, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def refusal(path, options=RuntimeOptions()):
    with pytest.raises(ModelLoadError) as caught:
        load_file(path, options)
    assert "\n" not in str(caught.value)
    return f"{caught.value} {caught.value.hint}"


def test_a_file_that_is_no_onnx_file_is_told_with_a_hint(tmp_path):
    assert "is no ONNX file. Give the path of a model" in refusal(written(tmp_path, b"\x89PNG\r\n" * 100))
    assert "is empty. The export or the copy of it was cut short." in refusal(written(tmp_path, b""))
    assert "There is no file" in refusal(tmp_path / "missing.onnx")
    assert "is no ONNX file" in refusal(written(tmp_path, tiny_models.scale(1)[:-40]))
    assert "is no ONNX file" in refusal(tmp_path)


def test_an_operator_that_the_runtime_has_not_is_named(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Nonsense", ["x"], ["y"], domain="com.example")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("com.example", 1)], ir_version=9)
    assert "Nonsense" in refusal(written(tmp_path, data.SerializeToString()))


def test_an_output_that_is_no_tensor_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    assert "output 'y'" in refusal(written(tmp_path, data.SerializeToString()))
    assert "zipmap=False" in refusal(tmp_path / "model.onnx")


def test_text_goes_in_and_comes_out_as_text(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.STRING, ["n"])],
        [helper.make_tensor_value_info("y", TensorProto.STRING, ["n"])],
    )
    data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with Model("text", load_file(written(tmp_path, data.SerializeToString()))) as model:
        for words in (
            np.array(["\u00e9", "b"]),
            np.array(["\u00e9".encode(), b"b"]),
            np.array(["\u00e9", b"b"], dtype=object),
        ):
            assert model.run({"x": words})["y"].tolist() == ["\u00e9", "b"]
