"""The walk through an ONNX file finds the tensors that onnx put there, where they are, and survives any bytes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from delta_parts import external_model, mobile, net, varints
from outstation.models.tensors import MIN_TENSOR_BYTES, find_tensors

DICE = np.random.default_rng(0)


def model(nodes, initializers=(), functions=()):
    graph = helper.make_graph(nodes, "g", [], [], list(initializers))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(graph, opset_imports=opsets, functions=list(functions)).SerializeToString()


def constant(name, array):
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name))


def test_every_initializer_is_found_with_its_bytes():
    arrays = mobile()
    data = net(arrays)
    found = {tensor.name: tensor for tensor in find_tensors(data)}
    assert set(found) == {name for name, array in arrays.items() if array.nbytes >= MIN_TENSOR_BYTES}
    for name, tensor in found.items():
        assert (tensor.width, tensor.data_type) == (4, TensorProto.FLOAT)
        assert data[tensor.offset : tensor.offset + tensor.size] == arrays[name].tobytes()


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?", "c8", "c16"])
def test_the_width_is_that_of_the_number(kind):
    array = DICE.integers(0, 2, 300).astype(kind)
    (tensor,) = find_tensors(net({"w": array}))
    part = {"c8": 4, "c16": 8}.get(kind, array.itemsize)  # a complex number is two
    assert (tensor.width, tensor.size) == (part, array.nbytes)


def test_tensors_of_attributes_subgraphs_and_functions_are_found():
    arrays = [DICE.standard_normal(100).astype(np.float32) for _ in range(3)]
    then = helper.make_graph([constant("inner", arrays[1])], "then", [], [])
    nodes = [constant("outer", arrays[0]), helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=then)]
    function = helper.make_function("local", "F", [], ["z"], [constant("z", arrays[2])], [helper.make_opsetid("", 17)])
    names = [tensor.name for tensor in find_tensors(model(nodes, functions=[function]))]
    assert sorted(names) == ["inner", "inner", "outer", "z"]


def test_typed_fields_of_one_width_are_found_and_varints_are_not():
    floats = helper.make_tensor("floats", TensorProto.FLOAT, [100], DICE.standard_normal(100))
    doubles = helper.make_tensor("doubles", TensorProto.DOUBLE, [100], DICE.standard_normal(100))
    whole = helper.make_tensor("whole", TensorProto.INT64, [100], DICE.integers(0, 1 << 40, 100))
    words = helper.make_tensor("words", TensorProto.STRING, [100], [b"word"] * 100)
    found = {tensor.name: tensor for tensor in find_tensors(model([], [floats, doubles, whole, words]))}
    assert {name: (tensor.width, tensor.size) for name, tensor in found.items()} == {
        "floats": (4, 400),
        "doubles": (8, 800),
    }


def test_external_data_is_named_with_its_file(tmp_path):
    arrays = mobile()
    found = find_tensors(external_model(tmp_path, arrays).read_bytes())
    blob = (tmp_path / "weights.bin").read_bytes()
    assert {tensor.location for tensor in found} == {"weights.bin"}
    for tensor in found:
        assert blob[tensor.offset : tensor.offset + tensor.size] == arrays[tensor.name].tobytes()


def test_a_place_of_external_data_that_is_no_number_is_left_out():
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[100], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "-4"), ("length", "9" * 5000)):
        tensor.external_data.add(key=key, value=value)
    assert find_tensors(model([], [tensor])) == []


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_looked_through(data):
    for tensor in find_tensors(data):
        assert tensor.size >= MIN_TENSOR_BYTES


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_broken_model_gives_tensors_inside_it_and_none_over_another(data):
    whole = bytearray(net(mobile()))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    end = 0
    for tensor in (tensor for tensor in find_tensors(bytes(whole)) if not tensor.location):
        assert end <= tensor.offset
        end = tensor.offset + tensor.size
        assert end <= len(whole)


def test_graphs_within_graphs_end_somewhere():
    inner = net({"w": np.zeros(100, np.float32)})
    graph = onnx.load_from_string(inner).graph.SerializeToString()
    for _ in range(200):  # graph → node → attribute → graph
        graph = field(1, field(5, field(6, graph)))
    assert find_tensors(inner)
    assert find_tensors(field(7, graph)) == []


def field(number, data):
    return bytes([number << 3 | 2]) + varints(len(data)) + data
