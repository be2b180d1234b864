"""ONNX files, good and bad, and calls that take too long."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_models
from outstation.errors import DeadlineError, ModelLoadError
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.runtime import RuntimeOptions, runtime


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


def test_an_accelerator_that_is_not_there_is_reported_and_the_processor_computes(tmp_path):
    path = written(tmp_path, tiny_models.scale(1))
    session = runtime("onnx").load(path, RuntimeOptions(accelerators=("cuda", "cpu")))
    assert session.placement.accelerator == "cpu"
    assert session.placement.fallbacks == ("cuda: not in this build of ONNX Runtime",)
    assert runtime("onnx").load(path, RuntimeOptions()).placement.fallbacks == ()
    assert "'abacus'" in refusal(path, RuntimeOptions(accelerators=("abacus",)))


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ModelLoadError, match="'tflite'"):
        runtime("tflite")


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


def endless() -> bytes:
    """A loop of many million steps: what takes too long."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "one"], ["v_next"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_next", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=step)],
        "endless",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("times", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_a_call_ends_at_its_timeout_and_the_next_one_works(tmp_path):
    with Model("slow", load_file(written(tmp_path, endless()))) as model:
        x = np.zeros(1, np.float32)
        for timeout in (0.05, 0.01):
            with pytest.raises(DeadlineError, match="its time was up"):
                model.run({"x": x, "times": np.array(1 << 40)}, timeout=timeout)
        assert model.run({"x": x, "times": np.array(3)}, timeout=60)["y"].tolist() == [3.0]
    assert not any(thread.name == "outstation-deadlines" for thread in threading.enumerate())
