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
