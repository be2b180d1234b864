"""Tensors cross the wire unchanged, and what is no tensor is refused with a reason."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from outstation.errors import InvalidInputError, OutstationError, WireError
from outstation.wire import questions
from outstation.wire.datatypes import DTYPES, datatype_of, from_bf16, from_raw, object_array, to_bf16, to_raw
from outstation.wire.generated import open_inference_pb2 as pb
from outstation.wire.shared import SharedTensor, Window, window_of
from outstation.wire.tensors import InferRequest, InferResponse, classes_of

FIXED = {name: dtype for name, dtype in DTYPES.items() if name != "BYTES"}
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@st.composite
def arrays(draw):
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(SHAPES)
    if datatype != "BYTES":
        return draw(npst.arrays(DTYPES[datatype], shape))
    count = int(np.prod(shape))
    return object_array(draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))).reshape(shape)


def same(left, right):
    if left.dtype.kind == "f":
        return left.dtype == right.dtype and left.shape == right.shape and np.array_equal(left, right, equal_nan=True)
    return left.dtype == right.dtype and left.shape == right.shape and left.tolist() == right.tolist()


@settings(deadline=None)
@given(arrays())
def test_raw_bytes_become_the_same_array_again(array):
    assert same(from_raw("x", datatype_of(array), array.shape, to_raw(array)), array)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=5), arrays(), max_size=3), st.booleans())
def test_a_request_arrives_as_it_was_sent_raw_or_typed(inputs, raw):
    request = InferRequest("m", inputs, "1.2.0", "id-7", ("a", "b"), {"k": 1, "s": "x", "f": 0.5, "b": True}, raw)
    arrived = InferRequest.unpack(request.pack())
    assert (arrived.model, arrived.version, arrived.id, arrived.outputs) == ("m", "1.2.0", "id-7", ("a", "b"))
    assert arrived.parameters == request.parameters
    assert list(arrived.inputs) == list(inputs)
    assert all(same(arrived.inputs[name], inputs[name]) for name in inputs)


@settings(deadline=None)
@given(st.data(), st.lists(st.tuples(st.sampled_from(sorted(FIXED)), SHAPES), min_size=1, max_size=3))
def test_a_client_that_repeats_itself_is_read_as_well_each_time(data, tensors):
    for _ in range(3):
        inputs = {f"x{n}": data.draw(npst.arrays(FIXED[kind], shape)) for n, (kind, shape) in enumerate(tensors)}
        arrived = InferRequest.unpack(InferRequest("m", inputs, "1", "", ("y",), {"k": 1}).pack())
        assert (arrived.model, arrived.version, arrived.outputs, arrived.parameters) == ("m", "1", ("y",), {"k": 1})
        assert list(arrived.inputs) == list(inputs)
        assert all(same(arrived.inputs[name], inputs[name]) for name in inputs)


@settings(deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=5), arrays(), max_size=3), st.booleans())
def test_a_response_arrives_as_it_was_sent_raw_or_typed(outputs, raw):
    arrived = InferResponse.unpack(InferResponse("m", "2", outputs, "7", raw).pack())
    assert (arrived.model, arrived.version, arrived.id) == ("m", "2", "7")
    assert all(same(arrived.outputs[name], outputs[name]) for name in outputs)


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_bytes_from_anywhere_raise_errors_of_ours_or_are_a_message(data):
    for message in (InferRequest, InferResponse):
        with contextlib.suppress(OutstationError):
            message.unpack(data)


def test_text_is_utf8_and_undecodable_bytes_come_back_as_they_were():
    words = object_array(["\u00e9t\u00e9", b"\xff\xfe".decode("utf-8", "surrogateescape"), b"plain"])
    assert from_raw("x", "BYTES", (3,), to_raw(words)).tolist() == ["\u00e9t\u00e9".encode(), b"\xff\xfe", b"plain"]
    assert from_raw("x", "BYTES", (2,), to_raw(np.array(["a", "bc"]))).tolist() == [b"a", b"bc"]


def test_fixed_width_arrays_in_other_layouts_are_sent_in_row_major_order():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert same(from_raw("x", "FP32", (3, 2), to_raw(array)), array)


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "words"),
    [
        ("FP32", (2, 2), b"\0" * 15, "has 15 bytes; FP32 [2, 2] needs 16"),
        ("FP32", (1 << 29,), b"\0" * 8, "needs 2147483648"),
        ("FP32", (1 << 62, 1 << 62), b"", "has 0 bytes"),
        ("FP32", (-1,), b"", "negative dimension"),
        ("FP32", (1,) * 33, b"\0" * 4, "33 dimensions"),
        ("FP12", (1,), b"\0", "unknown datatype 'FP12'"),
        ("BYTES", (1 << 40,), b"\0" * 4, "too few for 1099511627776"),
        ("BYTES", (1,), b"\xff\xff\xff\x7f", "claims 2147483647 bytes for element 0; 0 are left"),
        ("BYTES", (2,), b"\x04\0\0\0abcd\x01\0", "ends inside element 1 of 2"),
        ("BYTES", (1,), b"\x01\0\0\0abcd", "3 bytes after its last element"),
    ],
)
def test_bytes_that_do_not_fit_the_claim_are_refused_without_allocating(datatype, shape, data, words):
    with pytest.raises(InvalidInputError) as caught:
        from_raw("Input 'x'", datatype, shape, data)
    assert words in str(caught.value)
    assert "Input 'x'" in str(caught.value)


def typed(datatype, shape, **contents):
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, values in contents.items():
        getattr(tensor.contents, name).extend(values)
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (typed("INT8", [1], int_contents=[300]), "a value that INT8 cannot"),
        (typed("UINT8", [2], uint_contents=[1]), "has 1 elements; UINT8 [2] needs 2"),
        (typed("FP16", [1], fp32_contents=[1]), "no typed contents"),
        (typed("FP32", [1], fp64_contents=[1]), "in fp64_contents instead of fp32_contents"),
        (typed("NOPE", [0]), "'NOPE'"),
    ],
)
def test_typed_contents_that_contradict_their_datatype_are_refused(message, words):
    with pytest.raises(InvalidInputError) as caught:
        InferRequest.unpack(message.SerializeToString())
    assert words in str(caught.value)


def test_raw_and_typed_contents_at_once_are_refused():
    message = typed("FP32", [1], fp32_contents=[1])
    message.raw_input_contents.append(b"\0" * 4)
    with pytest.raises(InvalidInputError, match="raw and typed"):
        InferRequest.unpack(message.SerializeToString())


def test_a_different_number_of_raw_contents_and_a_name_twice_are_refused():
    message = pb.ModelInferRequest(raw_input_contents=[b"", b""])
    message.inputs.add(name="x", datatype="FP32", shape=[0])
    with pytest.raises(InvalidInputError, match="2 raw contents came for 1 inputs"):
        InferRequest.unpack(message.SerializeToString())
    message.inputs.add(name="x", datatype="FP32", shape=[0])
    with pytest.raises(InvalidInputError, match="same name"):
        InferRequest.unpack(message.SerializeToString())


def test_bytes_that_are_no_message_are_a_wire_error():
    with pytest.raises(WireError, match="ModelInferRequest"):
        InferRequest.unpack(b"\xff\xff")


def test_an_array_that_the_protocol_cannot_name_is_refused():
    with pytest.raises(InvalidInputError, match="complex64"):
        InferRequest("m", {"x": np.zeros(1, np.complex64)}).pack()
    with pytest.raises(InvalidInputError, match="must be bytes or str"):
        InferRequest("m", {"x": object_array([1])}).pack()


def test_metadata_and_flags_survive_the_wire():
    model = questions.ModelMetadata(
        "m",
        ("1", "2"),
        "onnx",
        (questions.TensorMetadata("x", "FP32", (-1, 8)),),
        (questions.TensorMetadata("y", "BYTES", ()),),
    )
    for method, request, response in (
        (questions.SERVER_LIVE, None, True),
        (questions.SERVER_READY, None, False),
        (questions.MODEL_READY, questions.ModelKey("m", "1"), True),
        (questions.SERVER_METADATA, None, questions.ServerMetadata("s", "1", ("e",))),
        (questions.MODEL_METADATA, questions.ModelKey("m"), model),
    ):
        assert method.request.decode(method.request.encode(request)) == request
        assert method.response.decode(method.response.encode(response)) == response


def test_labels_travel_with_the_configuration():
    for labels in ((), ("ant",), ("ant", "honey bee", "")):
        model = questions.ModelMetadata("m", ("1",), "onnx", (), (), labels)
        assert questions.MODEL_LABELS.response.decode(questions.MODEL_CONFIG.response.encode(model)) == labels


def test_bf16_is_fp32_rounded_to_its_upper_half():
    exact = np.array([[0.0, -1.5], [np.inf, -np.inf]], np.float32)
    assert np.array_equal(from_bf16(to_bf16(exact)), exact)
    ties = np.array([0x3F808000, 0x3F818000, 0x3F818001], np.uint32).view(np.float32)
    assert to_bf16(ties).view(np.uint16).tolist() == [0x3F80, 0x3F82, 0x3F82]
    assert np.isnan(from_bf16(to_bf16(np.array([0x7F800001, 0xFFFFFFFF], np.uint32).view(np.float32)))).all()
    for shape in ((), (0, 2), (2, 1, 2)):
        assert from_bf16(to_bf16(np.ones(shape, np.float32))).shape == shape


def test_tensors_in_shared_memory_are_named_and_not_sent_each_time():
    x, window = np.ones((2, 2), np.float32), Window("r", 8, 16)
    for inputs in ({}, {"x": x}):
        for raw in (True, False):
            shared = {"s": SharedTensor("FP32", (2, 2), window)}
            request = InferRequest("m", inputs, "1", outputs=("y", "z"), raw=raw, shared=shared, into={"z": window})
            for _ in range(3):  # the first is parsed, the others may be known
                arrived = InferRequest.unpack(request.pack())
                assert (arrived.shared, arrived.into, arrived.outputs) == (shared, {"z": window}, ("y", "z"))
                assert list(arrived.inputs) == list(inputs)
                assert all(same(arrived.inputs[name], array) for name, array in inputs.items())


def test_what_is_wanted_of_outputs_is_the_same_each_time():
    request = InferRequest(
        "m", {"x": np.ones((2, 4), np.float32)}, outputs=("y", "z"), into={"y": Window("r", 0, 32)}, classes={"z": 3}
    )
    for _ in range(3):  # the second is recognised by its beginning
        arrived = InferRequest.unpack(request.pack())
        assert (arrived.outputs, arrived.into, arrived.classes) == (("y", "z"), request.into, {"z": 3})
        assert arrived.brought({"w": np.zeros(1)}).classes == {"z": 3}


@pytest.mark.parametrize("count", [-1, True, "3", 1.0])
def test_a_number_of_classes_that_cannot_be_is_refused(count):
    with pytest.raises(InvalidInputError, match="Output 'y' asks for"):
        classes_of({"classification": count}, "Output 'y'")


def test_outputs_in_shared_memory_leave_the_others_in_their_places():
    outputs = {"a": np.ones(2, np.float32), "b": np.ones(3, np.float32), "c": np.ones(4, np.float32)}
    for raw in (True, False):
        packed = InferResponse("m", "1", outputs, "", raw, {"b": Window("r", 0, 12)}).pack()
        message = pb.ModelInferResponse.FromString(packed)
        assert dict(message.outputs[1].parameters)["shared_memory_byte_size"].int64_param == 12
        assert [len(part) for part in message.raw_output_contents] == ([8, 0, 16] if raw else [])
        assert list(message.outputs[2].contents.fp32_contents) == ([] if raw else [1.0] * 4)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"shared_memory_byte_size": 4}, "but no shared_memory_region"),
        ({"shared_memory_region": "", "shared_memory_byte_size": 4}, "that is no name"),
        ({"shared_memory_region": 4, "shared_memory_byte_size": 4}, "that is no name"),
        ({"shared_memory_region": "r"}, "shared_memory_byte_size None"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": -1}, "shared_memory_byte_size -1"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": "4"}, "shared_memory_byte_size '4'"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": 4, "shared_memory_offset": 1 << 63}, "_offset"),
        ({"shared_memory_region": "r", "shared_memory_byte_size": True}, "shared_memory_byte_size True"),
    ],
)
def test_places_in_shared_memory_that_cannot_be_are_refused(parameters, words):
    with pytest.raises(InvalidInputError) as caught:
        window_of(parameters, "Input 'x'")
    assert words in str(caught.value)


def test_a_tensor_in_shared_memory_with_contents_is_refused():
    message = typed("FP32", [1], fp32_contents=[1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    message.inputs[0].parameters["shared_memory_byte_size"].int64_param = 4
    with pytest.raises(InvalidInputError, match="has contents and lies in shared memory"):
        InferRequest.unpack(message.SerializeToString())
