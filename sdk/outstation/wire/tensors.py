"""The messages of the Open Inference Protocol as values of ours: the only file that names their generated classes.

Requests and responses carry tensors as numpy arrays; how a tensor travelled (``raw`` bytes, or typed contents) is
kept, so that an answer travels as its question did. Pure and thread-safe. Bytes that are no message are a WireError,
a message that contradicts itself is an InvalidInputError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

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
from outstation.wire.hot import Answers, Beginnings
from outstation.wire.method import Codec, Method

SERVICE = "inference.GRPCInferenceService"

T = TypeVar("T")
Parameter = bool | int | str | float

# The field of InferTensorContents for each datatype; FP16 has none and travels raw.
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
    """One call. ``version`` "" = the one that answers; ``outputs`` empty = all of them."""

    model: str
    inputs: Mapping[str, Array]
    version: str = ""
    id: str = ""
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    raw: bool = True

    def pack(self) -> bytes:
        message = pb.ModelInferRequest(model_name=self.model, model_version=self.version, id=self.id)
        for name in self.outputs:
            message.outputs.add(name=name)
        _set_parameters(message.parameters, self.parameters)
        raw = self.raw or any(array.dtype == np.float16 for array in self.inputs.values())
        for name, array in self.inputs.items():
            _put(message.inputs.add(), name, array, message.raw_input_contents if raw else None)
        return message.SerializeToString()

    @classmethod
    def unpack(cls, data: bytes) -> InferRequest:
        found = _BEGINNINGS.find(data)
        if found is not None:
            head, tensors = found
            return cls(head.model, tensors, head.version, "", head.outputs, head.parameters)
        message = _parsed(pb.ModelInferRequest, data)
        raw = message.raw_input_contents
        if raw and len(raw) != len(message.inputs):
            raise InvalidInputError(f"{len(raw)} raw contents came for {len(message.inputs)} inputs.")
        inputs = {
            tensor.name: _taken(tensor, f"Input {tensor.name!r}", raw[at] if raw else None)
            for at, tensor in enumerate(message.inputs)
        }
        if len(inputs) != len(message.inputs):
            raise InvalidInputError("Two inputs have the same name.")
        request = cls(
            message.model_name,
            inputs,
            message.model_version,
            message.id,
            tuple(output.name for output in message.outputs),
            _parameters(message.parameters),
            raw=bool(raw) or not message.inputs,
        )
        if raw and not message.id:  # one with an id has a beginning of its own each time
            kinds = [(tensor.name, tensor.datatype, tuple(tensor.shape)) for tensor in message.inputs]
            _BEGINNINGS.learn(data, replace(request, inputs={}), kinds)
        return request


@dataclass(frozen=True, slots=True)
class InferResponse:
    """The answer of ``model`` in ``version``."""

    model: str
    version: str
    outputs: Mapping[str, Array]
    id: str = ""
    raw: bool = True

    def pack(self) -> bytes:
        if self.raw and all(array.dtype.kind in "biuf" for array in self.outputs.values()):
            return _ANSWERS.pack(self.model, self.version, self.id, self.outputs)
        message = pb.ModelInferResponse()
        self.put(message)
        return message.SerializeToString()

    def put(self, message: Any) -> None:
        """Write it into the generated *message*."""
        message.model_name, message.model_version, message.id = self.model, self.version, self.id
        raw = self.raw or any(array.dtype == np.float16 for array in self.outputs.values())
        for name, array in self.outputs.items():
            _put(message.outputs.add(), name, array, message.raw_output_contents if raw else None)

    @classmethod
    def unpack(cls, data: bytes) -> InferResponse:
        message = _parsed(pb.ModelInferResponse, data)
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
    """One answer of a stream of calls: a response, or why there is none."""

    response: InferResponse | None
    error: str = ""


@dataclass(frozen=True, slots=True)
class ModelKey:
    """Which model a question is about; ``version`` "" = any."""

    name: str
    version: str = ""


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """One input or output; -1 in ``shape`` is any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """What a server tells of a model."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What a server tells of itself."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a model has done since the server started; durations are the sums of their calls, in nanoseconds."""

    name: str
    version: str
    calls: int = 0  # answered
    executions: int = 0  # runs of the model; fewer than calls where these were batched
    errors: int = 0
    last_unix_nano: int = 0
    queue_nano: int = 0
    compute_nano: int = 0


@dataclass(frozen=True, slots=True)
class IndexedModel:
    """One model that the server knows."""

    name: str
    version: str
    state: str
    reason: str = ""


def _beginning(model: str, version: str, outputs: Mapping[str, Array]) -> bytes:
    """A response but for its id and its elements."""
    message = pb.ModelInferResponse(model_name=model, model_version=version)
    for name, array in outputs.items():
        _describe(message.outputs.add(), name, array)
    return message.SerializeToString()


_BEGINNINGS: Beginnings[InferRequest] = Beginnings()
_ANSWERS = Answers(_beginning)


def _codec(pack: Callable[[T], Any], message: Any, unpack: Callable[[Any], T]) -> Codec[T]:
    return Codec(lambda value: pack(value).SerializeToString(), lambda data: unpack(_parsed(message, data)))


def _pack_stream_answer(answer: StreamAnswer) -> Any:
    message = pb.ModelStreamInferResponse(error_message=answer.error)
    if answer.response is not None:
        answer.response.put(message.infer_response)
    return message


def _pack_config(m: ModelMetadata) -> Any:
    config = pb.ModelConfig(name=m.name, platform=m.platform, backend=m.platform.partition("_")[0])
    for rows, tensors in ((config.input, m.inputs), (config.output, m.outputs)):
        for tensor in tensors:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            rows.add(name=tensor.name, data_type=getattr(pb, f"TYPE_{kind}"), dims=tensor.shape)
    return pb.ModelConfigResponse(config=config)


def _pack_statistics(models: tuple[ModelStatistics, ...]) -> Any:
    message = pb.ModelStatisticsResponse()
    for m in models:
        row = message.model_stats.add(
            name=m.name,
            version=m.version,
            last_inference=m.last_unix_nano // 1_000_000,
            inference_count=m.calls,
            execution_count=m.executions,
        )
        stats = row.inference_stats
        stats.success.count, stats.success.ns = m.calls, m.queue_nano + m.compute_nano
        stats.fail.count = m.errors
        stats.queue.count, stats.queue.ns = m.calls, m.queue_nano
        stats.compute_infer.count, stats.compute_infer.ns = m.calls, m.compute_nano
        stats.compute_input.count = stats.compute_output.count = m.calls
    return message


def _pack_index(models: tuple[IndexedModel, ...]) -> Any:
    message = pb.RepositoryIndexResponse()
    for m in models:
        message.models.add(name=m.name, version=m.version, state=m.state, reason=m.reason)
    return message


def _written(pack: Callable[[T], Any]) -> Codec[T]:
    def unread(data: bytes) -> T:
        raise WireError(f"These {len(data)} bytes are of an extension that is only served.")

    return Codec(lambda value: pack(value).SerializeToString(), unread)


def _tensors(rows: Any) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(row.name, row.datatype, tuple(row.shape)) for row in rows)


def _pack_model_metadata(m: ModelMetadata) -> Any:
    message = pb.ModelMetadataResponse(name=m.name, versions=m.versions, platform=m.platform)
    for rows, tensors in ((message.inputs, m.inputs), (message.outputs, m.outputs)):
        for tensor in tensors:
            rows.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return message


def _unpack_model_metadata(m: Any) -> ModelMetadata:
    return ModelMetadata(m.name, tuple(m.versions), m.platform, _tensors(m.inputs), _tensors(m.outputs))


def _flag(message: Any, name: str) -> Codec[bool]:
    return _codec(lambda value: message(**{name: value}), message, lambda m: bool(getattr(m, name)))


def _empty(message: Any) -> Codec[None]:
    return _codec(lambda _: message(), message, lambda _: None)


def _key(message: Any) -> Codec[ModelKey]:
    return _codec(
        lambda key: message(name=key.name, version=key.version), message, lambda m: ModelKey(m.name, m.version)
    )


def _path(method: str) -> str:
    return f"/{SERVICE}/{method}"


SERVER_LIVE: Method[None, bool] = Method(
    _path("ServerLive"), _empty(pb.ServerLiveRequest), _flag(pb.ServerLiveResponse, "live")
)
SERVER_READY: Method[None, bool] = Method(
    _path("ServerReady"), _empty(pb.ServerReadyRequest), _flag(pb.ServerReadyResponse, "ready")
)
MODEL_READY: Method[ModelKey, bool] = Method(
    _path("ModelReady"), _key(pb.ModelReadyRequest), _flag(pb.ModelReadyResponse, "ready")
)
SERVER_METADATA: Method[None, ServerMetadata] = Method(
    _path("ServerMetadata"),
    _empty(pb.ServerMetadataRequest),
    _codec(
        lambda m: pb.ServerMetadataResponse(name=m.name, version=m.version, extensions=m.extensions),
        pb.ServerMetadataResponse,
        lambda m: ServerMetadata(m.name, m.version, tuple(m.extensions)),
    ),
)
MODEL_METADATA: Method[ModelKey, ModelMetadata] = Method(
    _path("ModelMetadata"),
    _key(pb.ModelMetadataRequest),
    _codec(_pack_model_metadata, pb.ModelMetadataResponse, _unpack_model_metadata),
)
MODEL_INFER: Method[InferRequest, InferResponse] = Method(
    _path("ModelInfer"),
    Codec(InferRequest.pack, InferRequest.unpack),
    Codec(InferResponse.pack, InferResponse.unpack),
)
# Of the extensions we are a server only, so their answers are written and never read.
MODEL_CONFIG: Method[ModelKey, ModelMetadata] = Method(
    _path("ModelConfig"), _key(pb.ModelConfigRequest), _written(_pack_config)
)
MODEL_STATISTICS: Method[ModelKey, tuple[ModelStatistics, ...]] = Method(
    _path("ModelStatistics"), _key(pb.ModelStatisticsRequest), _written(_pack_statistics)
)
REPOSITORY_INDEX: Method[None, tuple[IndexedModel, ...]] = Method(
    _path("RepositoryIndex"), _empty(pb.RepositoryIndexRequest), _written(_pack_index)
)
MODEL_STREAM_INFER: Method[InferRequest, StreamAnswer] = Method(
    _path("ModelStreamInfer"),
    MODEL_INFER.request,
    _written(_pack_stream_answer),
    streams_requests=True,
    streams_responses=True,
)


def _parsed(message: Any, data: bytes) -> Any:
    try:
        return message.FromString(data)
    except DecodeError as exc:
        raise WireError(f"These bytes are no {message.DESCRIPTOR.name}: {exc}.") from exc


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
        hint = "FP16 travels as raw contents." if datatype == "FP16" else f"Known: {', '.join(DTYPES)}."
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
