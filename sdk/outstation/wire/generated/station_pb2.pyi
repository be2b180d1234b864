from outstation.wire.generated import fleet_pb2 as _fleet_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AppendRequest(_message.Message):
    __slots__ = ("producer", "stream", "first_number", "records")
    PRODUCER_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    FIRST_NUMBER_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    producer: str
    stream: str
    first_number: int
    records: _containers.RepeatedCompositeFieldContainer[AppRecord]
    def __init__(self, producer: _Optional[str] = ..., stream: _Optional[str] = ..., first_number: _Optional[int] = ..., records: _Optional[_Iterable[_Union[AppRecord, _Mapping]]] = ...) -> None: ...

class AppRecord(_message.Message):
    __slots__ = ("time_unix_nano", "content_type", "attributes", "payload")
    class AttributesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    TIME_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    time_unix_nano: int
    content_type: str
    attributes: _containers.ScalarMap[str, str]
    payload: bytes
    def __init__(self, time_unix_nano: _Optional[int] = ..., content_type: _Optional[str] = ..., attributes: _Optional[_Mapping[str, str]] = ..., payload: _Optional[bytes] = ...) -> None: ...

class AppendResponse(_message.Message):
    __slots__ = ("stream", "through", "refused_through", "error", "reason", "hint")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    REFUSED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    HINT_FIELD_NUMBER: _ClassVar[int]
    stream: str
    through: int
    refused_through: int
    error: str
    reason: str
    hint: str
    def __init__(self, stream: _Optional[str] = ..., through: _Optional[int] = ..., refused_through: _Optional[int] = ..., error: _Optional[str] = ..., reason: _Optional[str] = ..., hint: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("station", "provider", "reported", "pid", "started_unix_nano")
    STATION_FIELD_NUMBER: _ClassVar[int]
    PROVIDER_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    station: str
    provider: str
    reported: _fleet_pb2.Reported
    pid: int
    started_unix_nano: int
    def __init__(self, station: _Optional[str] = ..., provider: _Optional[str] = ..., reported: _Optional[_Union[_fleet_pb2.Reported, _Mapping]] = ..., pid: _Optional[int] = ..., started_unix_nano: _Optional[int] = ...) -> None: ...

class ReportHealthRequest(_message.Message):
    __slots__ = ("model", "version", "calls", "errors", "disagreements", "dropped", "process")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    DISAGREEMENTS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    PROCESS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    calls: int
    errors: int
    disagreements: int
    dropped: int
    process: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., calls: _Optional[int] = ..., errors: _Optional[int] = ..., disagreements: _Optional[int] = ..., dropped: _Optional[int] = ..., process: _Optional[str] = ...) -> None: ...

class ReportHealthResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportPlacementRequest(_message.Message):
    __slots__ = ("model", "version", "placement")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    placement: _fleet_pb2.Placement
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., placement: _Optional[_Union[_fleet_pb2.Placement, _Mapping]] = ...) -> None: ...

class ReportPlacementResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetMeteredRequest(_message.Message):
    __slots__ = ("metered",)
    METERED_FIELD_NUMBER: _ClassVar[int]
    metered: bool
    def __init__(self, metered: _Optional[bool] = ...) -> None: ...

class SetMeteredResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
