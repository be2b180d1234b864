from outstation.wire.generated import sync_pb2 as _sync_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetDesiredRequest(_message.Message):
    __slots__ = ("station",)
    STATION_FIELD_NUMBER: _ClassVar[int]
    station: str
    def __init__(self, station: _Optional[str] = ...) -> None: ...

class Desired(_message.Message):
    __slots__ = ("models", "revision")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[DesiredModel]
    revision: int
    def __init__(self, models: _Optional[_Iterable[_Union[DesiredModel, _Mapping]]] = ..., revision: _Optional[int] = ...) -> None: ...

class DesiredModel(_message.Message):
    __slots__ = ("name", "version")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: str
    def __init__(self, name: _Optional[str] = ..., version: _Optional[str] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("station", "reported")
    STATION_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    station: str
    reported: Reported
    def __init__(self, station: _Optional[str] = ..., reported: _Optional[_Union[Reported, _Mapping]] = ...) -> None: ...

class ReportResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Reported(_message.Message):
    __slots__ = ("models", "streams", "link", "revision", "time_unix_nano", "software")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelReport]
    streams: _containers.RepeatedCompositeFieldContainer[_sync_pb2.StreamReport]
    link: Link
    revision: int
    time_unix_nano: int
    software: str
    def __init__(self, models: _Optional[_Iterable[_Union[ModelReport, _Mapping]]] = ..., streams: _Optional[_Iterable[_Union[_sync_pb2.StreamReport, _Mapping]]] = ..., link: _Optional[_Union[Link, _Mapping]] = ..., revision: _Optional[int] = ..., time_unix_nano: _Optional[int] = ..., software: _Optional[str] = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("name", "active", "versions")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    name: str
    active: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersionReport]
    def __init__(self, name: _Optional[str] = ..., active: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersionReport, _Mapping]]] = ...) -> None: ...

class ModelVersionReport(_message.Message):
    __slots__ = ("version", "phase", "since_unix_nano", "reason", "saved_bytes")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SAVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    version: str
    phase: str
    since_unix_nano: int
    reason: str
    saved_bytes: int
    def __init__(self, version: _Optional[str] = ..., phase: _Optional[str] = ..., since_unix_nano: _Optional[int] = ..., reason: _Optional[str] = ..., saved_bytes: _Optional[int] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("state", "since_unix_nano", "reason")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    state: str
    since_unix_nano: int
    reason: str
    def __init__(self, state: _Optional[str] = ..., since_unix_nano: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("station", "path", "offset")
    STATION_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    station: str
    path: str
    offset: int
    def __init__(self, station: _Optional[str] = ..., path: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class FetchResponse(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class SetDesiredRequest(_message.Message):
    __slots__ = ("station", "models")
    STATION_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    station: str
    models: _containers.RepeatedCompositeFieldContainer[DesiredModel]
    def __init__(self, station: _Optional[str] = ..., models: _Optional[_Iterable[_Union[DesiredModel, _Mapping]]] = ...) -> None: ...

class ListStationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListStationsResponse(_message.Message):
    __slots__ = ("stations",)
    STATIONS_FIELD_NUMBER: _ClassVar[int]
    stations: _containers.RepeatedCompositeFieldContainer[StationEntry]
    def __init__(self, stations: _Optional[_Iterable[_Union[StationEntry, _Mapping]]] = ...) -> None: ...

class StationEntry(_message.Message):
    __slots__ = ("station", "reported", "last_seen_unix_nano")
    STATION_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    station: str
    reported: Reported
    last_seen_unix_nano: int
    def __init__(self, station: _Optional[str] = ..., reported: _Optional[_Union[Reported, _Mapping]] = ..., last_seen_unix_nano: _Optional[int] = ...) -> None: ...

class HubStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HubStatus(_message.Message):
    __slots__ = ("software", "connected", "blocks", "records", "duplicates", "refused", "damaged", "sinks")
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    DAMAGED_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    software: str
    connected: int
    blocks: int
    records: int
    duplicates: int
    refused: int
    damaged: int
    sinks: _containers.RepeatedCompositeFieldContainer[SinkStatus]
    def __init__(self, software: _Optional[str] = ..., connected: _Optional[int] = ..., blocks: _Optional[int] = ..., records: _Optional[int] = ..., duplicates: _Optional[int] = ..., refused: _Optional[int] = ..., damaged: _Optional[int] = ..., sinks: _Optional[_Iterable[_Union[SinkStatus, _Mapping]]] = ...) -> None: ...

class SinkStatus(_message.Message):
    __slots__ = ("name", "waiting_blocks", "written_unix_nano", "failure", "failing_since_unix_nano", "set_aside")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WAITING_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    FAILING_SINCE_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    SET_ASIDE_FIELD_NUMBER: _ClassVar[int]
    name: str
    waiting_blocks: int
    written_unix_nano: int
    failure: str
    failing_since_unix_nano: int
    set_aside: int
    def __init__(self, name: _Optional[str] = ..., waiting_blocks: _Optional[int] = ..., written_unix_nano: _Optional[int] = ..., failure: _Optional[str] = ..., failing_since_unix_nano: _Optional[int] = ..., set_aside: _Optional[int] = ...) -> None: ...
