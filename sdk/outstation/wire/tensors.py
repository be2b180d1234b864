"""The calls of the Open Inference Protocol as values of ours; what else it asks is in ``questions.py``.

Requests and responses carry tensors as numpy arrays; how a tensor travelled (``raw`` bytes, or typed contents) is
kept, so that an answer travels as its question did. Pure and thread-safe. Bytes that are no message are a WireError,
a message that contradicts itself is an InvalidInputError.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from outstation.errors import InvalidInputError, WireError
from outstation.wire.datatypes import (
    DTYPES,
    Array,
    as_bytes,
    datatype_of,
    described,
    element_count,
    from_raw,
    object_array,
    to_raw,
)
from outstation.wire.generated import open_inference_pb2 as pb
from outstation.wire.hot import Answers, Beginnings, Repeats
from outstation.wire.method import Codec, Method
from outstation.wire.shared import SharedTensor, Window, window_of

SERVICE = "inference.GRPCInferenceService"

Parameter = bool | int | str | float

# How a client of streams asks whether an answer is the last one to its call, and how it is told.
ASKS_FOR_FINAL, _FINAL = "triton_enable_empty_final_response", "triton_final_response"
# How a client asks for the best classes of an output.
CLASSIFICATION = "classification"
# Datatypes without a field of InferTensorContents; they travel raw.
_RAW_ONLY = ("BF16", "FP16")
# The field of InferTensorContents for each other one.
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One call. ``version`` "" = the one that answers; ``outputs`` empty = all of them.

    Inputs whose bytes lie in shared memory are in ``shared`` and not in ``inputs``; outputs that are wanted there are
    in ``into``. ``classes`` is of how many classes an output is to tell, the best first, instead of its elements.
    """

    model: str
    inputs: Mapping[str, Array]
    version: str = ""
    id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    raw: bool = True
    shared: Mapping[str, SharedTensor] = field(default_factory=dict)
    into: Mapping[str, Window] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=dict)

    def pack(self) -> bytes:
        message = pb.ModelInferRequest(model_name=self.model, model_version=self.version, id=self.id)
        for name in self.outputs:
            output = message.outputs.add(name=name)
            if name in self.into:
                _set_parameters(output.parameters, self.into[name].parameters)
            if name in self.classes:
                _set_parameters(output.parameters, {CLASSIFICATION: self.classes[name]})
        _set_parameters(message.parameters, self.parameters)
        raw = self.raw or _needs_raw(self.inputs)
        for name, array in self.inputs.items():
            _put(message.inputs.add(), name, array, message.raw_input_contents if raw else None)
        for name, tensor in self.shared.items():
            row = message.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
            _set_parameters(row.parameters, tensor.window.parameters)
        return message.SerializeToString()

    def brought(self, inputs: Mapping[str, Array]) -> InferRequest:
        """The same call with the *inputs* that lay in shared memory."""
        all_of_them = {**self.inputs, **inputs}
        wanted = self.outputs, self.parameters, self.raw
        return InferRequest(
            self.model, all_of_them, self.version, self.id, *wanted, into=self.into, classes=self.classes
        )

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> InferRequest:
        found = _BEGINNINGS.find(data)
        if found is not None:
            head, tensors = found
            more = (head.outputs, head.parameters, head.raw, head.shared, head.into, head.classes)
            return cls(head.model, tensors, head.version, "", *more)
        known = _REPEATS.find(data)
        if known is not None:
            return known
        message = parsed(pb.ModelInferRequest, data)
        raw = message.raw_input_contents
        inputs, shared = _inputs(message)
        request = cls(
            message.model_name,
            inputs,
            message.model_version,
            message.id,
            tuple(output.name for output in message.outputs),
            _parameters(message.parameters),
            raw=bool(raw) or not inputs,
            shared=shared,
            into=_wanted(message.outputs),
            classes=_classes(message.outputs),
        )
        if raw and not message.id and not shared:  # one with an id has a beginning of its own each time
            kinds = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs]
            _BEGINNINGS.learn(data, replace(request, inputs={}), kinds)
        elif shared and not inputs and not message.id:
            _REPEATS.learn(data, request)
        return request


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The answer of ``model`` in ``version``. The bytes of outputs in ``into`` lie there and do not travel."""

    model: str
    version: str
    outputs: Mapping[str, Array]
    id: str = ""
    raw: bool = True
    into: Mapping[str, Window] = field(default_factory=dict)

    def pack(self) -> bytes:
        if self.raw and all(array.dtype.kind in "biufV" for array in self.outputs.values()):
            return _ANSWERS.pack(self.model, self.version, self.id, self.outputs, self.into)
        message = pb.ModelInferResponse()
        self.put(message)
        return message.SerializeToString()

    def put(self, message: Any) -> None:
        """Write it into the generated *message*."""
        message.model_name, message.model_version, message.id = self.model, self.version, self.id
        raw = self.raw or _needs_raw(self.outputs)
        for name, array in self.outputs.items():
            row = message.outputs.add()
            if name not in self.into:
                _put(row, name, array, message.raw_output_contents if raw else None)
                continue
            _describe(row, name, array)
            _set_parameters(row.parameters, self.into[name].parameters)
            if raw:
                message.raw_output_contents.append(b"")  # clients find the others by their place

    @classmethod
    def unpack(cls, data: bytes | bytearray) -> InferResponse:
        message = parsed(pb.ModelInferResponse, data)
        raw = message.raw_output_contents
        if raw and len(raw) != len(message.outputs):
            raise InvalidInputError(f"{len(raw)} raw contents came for {len(message.outputs)} outputs.")
        outputs = {
            tensor.name: _taken(tensor, f"Output {tensor.name!r}", raw[at] if raw else None)
            for at, tensor in enumerate(message.outputs)
        }
        return cls(message.model_name, message.model_version, outputs, message.id, raw=bool(raw))


@dataclass(frozen=True, slots=True)
class StreamAnswer:
    """One answer of a stream of calls: a response, or why there is none to the call ``id``.

    ``final`` is told to clients that ask whether more answers to the same call will come.
    """

    response: InferResponse | None
    error: str = ""
    id: str = ""
    final: bool = False


def _beginning(model: str, version: str, outputs: Mapping[str, Array], into: Mapping[str, Window]) -> bytes:
    """A response but for its id and its elements."""
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, array in outputs.items():
        row = message.outputs.add()
        _describe(row, name, array)
        if name in into:
            _set_parameters(row.parameters, into[name].parameters)
    return message.SerializeToString()


_BEGINNINGS: Beginnings[InferRequest] = Beginnings()
_REPEATS: Repeats[InferRequest] = Repeats()
_ANSWERS = Answers(_beginning)


def _pack_stream_answer(answer: StreamAnswer) -> bytes:
    message = pb.ModelStreamInferResponse(error_message=answer.error)
    if answer.response is not None:
        answer.response.put(message.infer_response)
    elif answer.id:
        message.infer_response.id = answer.id
    if answer.final:
        message.infer_response.parameters[_FINAL].bool_param = True
    return message.SerializeToString()


def _unread(data: bytes) -> StreamAnswer:
    raise WireError(f"These {len(data)} bytes are of an extension that is only served.")


MODEL_INFER: Method[InferRequest, InferResponse] = Method(
    f"/{SERVICE}/ModelInfer",
    Codec(InferRequest.pack, InferRequest.unpack),
    Codec(InferResponse.pack, InferResponse.unpack),
)
MODEL_STREAM_INFER: Method[InferRequest, StreamAnswer] = Method(
    f"/{SERVICE}/ModelStreamInfer",
    MODEL_INFER.request,
    Codec(_pack_stream_answer, _unread),
    streams_requests=True,
    streams_responses=True,
)


def parsed(message: Any, data: bytes | bytearray) -> Any:
    """*data* as the generated class *message*; WireError when it is none."""
    try:
        return message.FromString(data)
    except DecodeError as exc:
        raise WireError(f"These bytes are no {message.DESCRIPTOR.name}: {exc}.") from exc


def _inputs(message: Any) -> tuple[dict[str, Array], dict[str, SharedTensor]]:
    """The inputs of a request: those that it brings, and those that lie in shared memory."""
    windows = [_window(tensor, "Input") for tensor in message.inputs]
    raw, brought = message.raw_input_contents, windows.count(None)
    if raw and len(raw) != brought:
        raise InvalidInputError(f"{len(raw)} raw contents came for {brought} inputs.")
    contents = iter(raw)
    inputs: dict[str, Array] = {}
    shared: dict[str, SharedTensor] = {}
    for tensor, window in zip(message.inputs, windows, strict=True):
        if window is None:
            inputs[tensor.name] = _taken(tensor, f"Input {tensor.name!r}", next(contents, None))
        elif tensor.contents.ListFields():
            raise InvalidInputError(
                f"Input {tensor.name!r} has contents and lies in shared memory; it can be one only."
            )
        else:
            shared[tensor.name] = SharedTensor(tensor.datatype, tuple(tensor.shape), window)
    if len({*inputs, *shared}) != len(message.inputs):
        raise InvalidInputError("Two inputs have the same name.")
    return inputs, shared


def _window(tensor: Any, kind: str) -> Window | None:
    return window_of(_parameters(tensor.parameters), f"{kind} {tensor.name!r}") if tensor.parameters else None


def _wanted(outputs: Any) -> dict[str, Window]:
    windows = {output.name: _window(output, "Output") for output in outputs}
    return {name: window for name, window in windows.items() if window is not None}


def _classes(outputs: Any) -> dict[str, int]:
    counts = {row.name: classes_of(_parameters(row.parameters), f"Output {row.name!r}") for row in outputs}
    return {name: count for name, count in counts.items() if count}


def classes_of(parameters: Mapping[str, Any], where: str) -> int:
    """How many classes the *parameters* of an output ask for; 0 when its elements are wanted."""
    count = parameters.get(CLASSIFICATION, 0)
    if type(count) is not int or count < 0:
        raise InvalidInputError(f"{where} asks for {count!r} classes; it must be a number.")
    return count


def _needs_raw(tensors: Mapping[str, Array]) -> bool:
    return any(datatype_of(array) in _RAW_ONLY for array in tensors.values())


def _put(tensor: Any, name: str, array: Array, raw: Any) -> None:
    """Write *array* into *tensor*: its bytes into the list *raw*, or as typed contents when that is None."""
    datatype = _describe(tensor, name, array)
    if raw is not None:
        raw.append(to_raw(array))
        return
    elements = array.ravel().tolist()
    contents = getattr(tensor.contents, _CONTENTS[datatype])
    contents.extend(map(as_bytes, elements) if datatype == "BYTES" else elements)


def _describe(tensor: Any, name: str, array: Array) -> str:
    """Write name, datatype and shape of *array* into *tensor*; the datatype."""
    datatype = datatype_of(array)
    if not datatype:
        raise InvalidInputError(f"{name!r} has elements of {array.dtype}, for which the protocol has no name.")
    tensor.name, tensor.datatype = name, datatype
    tensor.shape.extend(array.shape)
    return datatype


def _taken(tensor: Any, name: str, raw: bytes | None) -> Array:
    """The array of *tensor*, from *raw* when that is its bytes, else from its typed contents."""
    shape = tuple(tensor.shape)
    if raw is not None:
        if tensor.contents.ListFields():  # empty contents beside raw ones are what some servers send
            raise InvalidInputError(f"{name} has raw and typed contents; the protocol allows one of them.")
        return from_raw(name, tensor.datatype, shape, raw)
    return _typed(name, tensor.datatype, shape, tensor.contents)


def _typed(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array:
    count = element_count(shape, name)
    dtype, column = DTYPES.get(datatype), _CONTENTS.get(datatype)
    if dtype is None or column is None:
        hint = f"{datatype} travels as raw contents." if datatype in _RAW_ONLY else f"Known: {', '.join(DTYPES)}."
        raise InvalidInputError(f"{name} has the datatype {datatype!r}, which has no typed contents.", hint=hint)
    others = [used.name for used, _ in contents.ListFields() if used.name != column]
    if others:
        raise InvalidInputError(f"{name} is {datatype}, but its contents are in {others[0]} instead of {column}.")
    elements = getattr(contents, column)
    if len(elements) != count:
        raise InvalidInputError(f"{name} has {len(elements)} elements; {described(datatype, shape)} needs {count}.")
    if datatype == "BYTES":
        return object_array(list(elements)).reshape(shape)
    wide = np.array(elements)
    array = wide.astype(dtype)
    if dtype.kind in "iu" and not np.array_equal(wide, array):
        raise InvalidInputError(f"{name} holds a value that {datatype} cannot.")
    return array.reshape(shape)


def _parameters(rows: Any) -> dict[str, Parameter]:
    return {key: getattr(row, row.WhichOneof("parameter_choice") or "string_param") for key, row in rows.items()}


def _set_parameters(rows: Any, parameters: Mapping[str, Parameter]) -> None:
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}[type(value)]
        setattr(rows[key], kind, value)
