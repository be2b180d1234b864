"""What the Open Inference Protocol and Triton's extensions of it ask besides calls, as values of ours.

Pure and thread-safe. Bytes that are no message are a WireError.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from outstation.errors import WireError
from outstation.wire.generated import open_inference_pb2 as pb
from outstation.wire.method import Codec, Method
from outstation.wire.shared import Region
from outstation.wire.tensors import SERVICE, parsed

T = TypeVar("T")

# The parameter of a model's configuration that has the names of its classes.
LABELS = "labels"


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
    labels: tuple[str, ...] = ()  # of its classes; travels with the configuration, one a line


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """What a server tells of itself."""

    name: str
    version: str
    extensions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """What a version has done since the server started; durations are the sums of its calls, in nanoseconds."""

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


@dataclass(frozen=True, slots=True)
class IndexQuery:
    """Which models the index is asked for; ``ready`` = only those that answer."""

    repository: str = ""
    ready: bool = False


@dataclass(frozen=True, slots=True)
class RepositoryOrder:
    """A model that a client wants loaded or unloaded; ``parameters`` are the names of what it said beside."""

    model: str
    repository: str = ""
    parameters: tuple[str, ...] = ()


def _codec(pack: Callable[[T], Any], message: Any, unpack: Callable[[Any], T]) -> Codec[T]:
    return Codec(lambda value: pack(value).SerializeToString(), lambda data: unpack(parsed(message, data)))


def _pack_config(m: ModelMetadata) -> Any:
    config = pb.ModelConfig(name=m.name, platform=m.platform, backend=m.platform.partition("_")[0])
    for rows, tensors in ((config.input, m.inputs), (config.output, m.outputs)):
        for tensor in tensors:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            rows.add(name=tensor.name, data_type=getattr(pb, f"TYPE_{kind}"), dims=tensor.shape)
    if m.labels:
        config.parameters[LABELS].string_value = "\n".join(m.labels)
    return pb.ModelConfigResponse(config=config)


def _unpack_labels(m: Any) -> tuple[str, ...]:
    return tuple(m.config.parameters[LABELS].string_value.split("\n")) if LABELS in m.config.parameters else ()


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


def _pack_regions(regions: tuple[Region, ...]) -> Any:
    message = pb.SystemSharedMemoryStatusResponse()
    for region in regions:
        row = message.regions[region.name]
        row.name, row.key, row.offset, row.byte_size = region.name, region.key, region.offset, region.size_bytes
    return message


def _written(pack: Callable[[T], Any]) -> Codec[T]:
    def unread(data: bytes) -> T:
        raise WireError(f"These {len(data)} bytes are of an extension that is only served.")

    return Codec(lambda value: pack(value).SerializeToString(), unread)


def _read(message: Any, unpack: Callable[[Any], T]) -> Codec[T]:
    def unwritten(_value: T) -> bytes:
        raise WireError("This is only read.")

    return Codec(unwritten, lambda data: unpack(parsed(message, data)))


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


def _order(message: Any) -> Codec[RepositoryOrder]:
    return _codec(
        lambda order: message(model_name=order.model, repository_name=order.repository),
        message,
        lambda m: RepositoryOrder(m.model_name, m.repository_name, tuple(m.parameters)),
    )


def _name(message: Any) -> Codec[str]:
    return _codec(lambda name: message(name=name), message, lambda m: str(m.name))


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
# Of the extensions we are a server only, so their answers are written and never read.
MODEL_CONFIG: Method[ModelKey, ModelMetadata] = Method(
    _path("ModelConfig"), _key(pb.ModelConfigRequest), _written(_pack_config)
)
# The same question by a client of ours, who wants the names of classes only.
MODEL_LABELS: Method[ModelKey, tuple[str, ...]] = Method(
    MODEL_CONFIG.path, MODEL_CONFIG.request, _read(pb.ModelConfigResponse, _unpack_labels)
)
MODEL_STATISTICS: Method[ModelKey, tuple[ModelStatistics, ...]] = Method(
    _path("ModelStatistics"), _key(pb.ModelStatisticsRequest), _written(_pack_statistics)
)
REPOSITORY_INDEX: Method[IndexQuery, tuple[IndexedModel, ...]] = Method(
    _path("RepositoryIndex"),
    _codec(
        lambda query: pb.RepositoryIndexRequest(repository_name=query.repository, ready=query.ready),
        pb.RepositoryIndexRequest,
        lambda m: IndexQuery(m.repository_name, m.ready),
    ),
    _written(_pack_index),
)
REPOSITORY_LOAD: Method[RepositoryOrder, None] = Method(
    _path("RepositoryModelLoad"), _order(pb.RepositoryModelLoadRequest), _empty(pb.RepositoryModelLoadResponse)
)
REPOSITORY_UNLOAD: Method[RepositoryOrder, None] = Method(
    _path("RepositoryModelUnload"), _order(pb.RepositoryModelUnloadRequest), _empty(pb.RepositoryModelUnloadResponse)
)
# Of regions and their status, name "" is all of them.
SHARED_MEMORY_STATUS: Method[str, tuple[Region, ...]] = Method(
    _path("SystemSharedMemoryStatus"), _name(pb.SystemSharedMemoryStatusRequest), _written(_pack_regions)
)
SHARED_MEMORY_REGISTER: Method[Region, None] = Method(
    _path("SystemSharedMemoryRegister"),
    _codec(
        lambda r: pb.SystemSharedMemoryRegisterRequest(name=r.name, key=r.key, offset=r.offset, byte_size=r.size_bytes),
        pb.SystemSharedMemoryRegisterRequest,
        lambda m: Region(m.name, m.key, m.offset, m.byte_size),
    ),
    _empty(pb.SystemSharedMemoryRegisterResponse),
)
SHARED_MEMORY_UNREGISTER: Method[str, None] = Method(
    _path("SystemSharedMemoryUnregister"),
    _name(pb.SystemSharedMemoryUnregisterRequest),
    _empty(pb.SystemSharedMemoryUnregisterResponse),
)
# Of a GPU's memory, whose requests begin with a name too. None is ever registered.
GPU_MEMORY_STATUS: Method[str, tuple[Region, ...]] = Method(
    _path("CudaSharedMemoryStatus"), SHARED_MEMORY_STATUS.request, SHARED_MEMORY_STATUS.response
)
GPU_MEMORY_REGISTER: Method[str, None] = Method(
    _path("CudaSharedMemoryRegister"), SHARED_MEMORY_UNREGISTER.request, SHARED_MEMORY_REGISTER.response
)
GPU_MEMORY_UNREGISTER: Method[str, None] = Method(
    _path("CudaSharedMemoryUnregister"), SHARED_MEMORY_UNREGISTER.request, SHARED_MEMORY_UNREGISTER.response
)
# Of gRPC's own health service: whether the service of a name answers, "" being the whole server.
HEALTH_CHECK: Method[str, bool] = Method(
    "/grpc.health.v1.Health/Check",
    SHARED_MEMORY_STATUS.request,  # a name, too
    Codec(lambda serves: b"\x08\x01" if serves else b"\x08\x02", lambda data: data == b"\x08\x01"),
)
