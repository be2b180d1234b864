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
    __slots__ = ("models", "streams", "link", "revision", "time_unix_nano", "software", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MODELS_FIELD_NUMBER: _ClassVar[int]
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    TIME_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[ModelReport]
    streams: _containers.RepeatedCompositeFieldContainer[_sync_pb2.StreamReport]
    link: Link
    revision: int
    time_unix_nano: int
    software: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, models: _Optional[_Iterable[_Union[ModelReport, _Mapping]]] = ..., streams: _Optional[_Iterable[_Union[_sync_pb2.StreamReport, _Mapping]]] = ..., link: _Optional[_Union[Link, _Mapping]] = ..., revision: _Optional[int] = ..., time_unix_nano: _Optional[int] = ..., software: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class ModelReport(_message.Message):
    __slots__ = ("name", "active", "versions", "placement")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PLACEMENT_FIELD_NUMBER: _ClassVar[int]
    name: str
    active: str
    versions: _containers.RepeatedCompositeFieldContainer[ModelVersionReport]
    placement: Placement
    def __init__(self, name: _Optional[str] = ..., active: _Optional[str] = ..., versions: _Optional[_Iterable[_Union[ModelVersionReport, _Mapping]]] = ..., placement: _Optional[_Union[Placement, _Mapping]] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("runtime", "accelerator", "fallbacks")
    RUNTIME_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    FALLBACKS_FIELD_NUMBER: _ClassVar[int]
    runtime: str
    accelerator: str
    fallbacks: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, runtime: _Optional[str] = ..., accelerator: _Optional[str] = ..., fallbacks: _Optional[_Iterable[str]] = ...) -> None: ...

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
    __slots__ = ("state", "since_unix_nano", "reason", "metered")
    STATE_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METERED_FIELD_NUMBER: _ClassVar[int]
    state: str
    since_unix_nano: int
    reason: str
    metered: bool
    def __init__(self, state: _Optional[str] = ..., since_unix_nano: _Optional[int] = ..., reason: _Optional[str] = ..., metered: _Optional[bool] = ...) -> None: ...

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

class Target(_message.Message):
    __slots__ = ("station", "where")
    class WhereEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    STATION_FIELD_NUMBER: _ClassVar[int]
    WHERE_FIELD_NUMBER: _ClassVar[int]
    station: str
    where: _containers.ScalarMap[str, str]
    def __init__(self, station: _Optional[str] = ..., where: _Optional[_Mapping[str, str]] = ...) -> None: ...

class WishName(_message.Message):
    __slots__ = ("model", "target")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    model: str
    target: Target
    def __init__(self, model: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ...) -> None: ...

class SetModelRequest(_message.Message):
    __slots__ = ("wish", "version", "stages")
    WISH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    wish: WishName
    version: str
    stages: Stages
    def __init__(self, wish: _Optional[_Union[WishName, _Mapping]] = ..., version: _Optional[str] = ..., stages: _Optional[_Union[Stages, _Mapping]] = ...) -> None: ...

class Stages(_message.Message):
    __slots__ = ("percent", "stop_after", "stop_after_percent")
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    STOP_AFTER_FIELD_NUMBER: _ClassVar[int]
    STOP_AFTER_PERCENT_FIELD_NUMBER: _ClassVar[int]
    percent: float
    stop_after: int
    stop_after_percent: float
    def __init__(self, percent: _Optional[float] = ..., stop_after: _Optional[int] = ..., stop_after_percent: _Optional[float] = ...) -> None: ...

class SteerRolloutRequest(_message.Message):
    __slots__ = ("wish", "action")
    WISH_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    wish: WishName
    action: str
    def __init__(self, wish: _Optional[_Union[WishName, _Mapping]] = ..., action: _Optional[str] = ...) -> None: ...

class ListWishesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListWishesResponse(_message.Message):
    __slots__ = ("wishes",)
    WISHES_FIELD_NUMBER: _ClassVar[int]
    wishes: _containers.RepeatedCompositeFieldContainer[WishEntry]
    def __init__(self, wishes: _Optional[_Iterable[_Union[WishEntry, _Mapping]]] = ...) -> None: ...

class WishEntry(_message.Message):
    __slots__ = ("wish", "version", "revision", "since_unix_nano", "stages", "state", "reason", "matching", "deciding", "active", "failed", "failures")
    WISH_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SINCE_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MATCHING_FIELD_NUMBER: _ClassVar[int]
    DECIDING_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    wish: WishName
    version: str
    revision: int
    since_unix_nano: int
    stages: Stages
    state: str
    reason: str
    matching: int
    deciding: int
    active: int
    failed: int
    failures: _containers.RepeatedCompositeFieldContainer[Failure]
    def __init__(self, wish: _Optional[_Union[WishName, _Mapping]] = ..., version: _Optional[str] = ..., revision: _Optional[int] = ..., since_unix_nano: _Optional[int] = ..., stages: _Optional[_Union[Stages, _Mapping]] = ..., state: _Optional[str] = ..., reason: _Optional[str] = ..., matching: _Optional[int] = ..., deciding: _Optional[int] = ..., active: _Optional[int] = ..., failed: _Optional[int] = ..., failures: _Optional[_Iterable[_Union[Failure, _Mapping]]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("station", "phase", "reason")
    STATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    station: str
    phase: str
    reason: str
    def __init__(self, station: _Optional[str] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ListStationsRequest(_message.Message):
    __slots__ = ("after", "station")
    AFTER_FIELD_NUMBER: _ClassVar[int]
    STATION_FIELD_NUMBER: _ClassVar[int]
    after: str
    station: str
    def __init__(self, after: _Optional[str] = ..., station: _Optional[str] = ...) -> None: ...

class ListStationsResponse(_message.Message):
    __slots__ = ("stations", "more")
    STATIONS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    stations: _containers.RepeatedCompositeFieldContainer[StationEntry]
    more: bool
    def __init__(self, stations: _Optional[_Iterable[_Union[StationEntry, _Mapping]]] = ..., more: _Optional[bool] = ...) -> None: ...

class StationEntry(_message.Message):
    __slots__ = ("station", "reported", "last_seen_unix_nano", "connected", "applied", "accounts", "counts")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATION_FIELD_NUMBER: _ClassVar[int]
    REPORTED_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    station: str
    reported: Reported
    last_seen_unix_nano: int
    connected: bool
    applied: _containers.RepeatedCompositeFieldContainer[Applied]
    accounts: _containers.RepeatedCompositeFieldContainer[Account]
    counts: _containers.ScalarMap[str, int]
    def __init__(self, station: _Optional[str] = ..., reported: _Optional[_Union[Reported, _Mapping]] = ..., last_seen_unix_nano: _Optional[int] = ..., connected: _Optional[bool] = ..., applied: _Optional[_Iterable[_Union[Applied, _Mapping]]] = ..., accounts: _Optional[_Iterable[_Union[Account, _Mapping]]] = ..., counts: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Applied(_message.Message):
    __slots__ = ("model", "version", "target", "revision", "percent")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    target: Target
    revision: int
    percent: float
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., target: _Optional[_Union[Target, _Mapping]] = ..., revision: _Optional[int] = ..., percent: _Optional[float] = ...) -> None: ...

class Account(_message.Message):
    __slots__ = ("report", "through", "records", "refused", "last_unix_nano", "earlier")
    REPORT_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    LAST_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    EARLIER_FIELD_NUMBER: _ClassVar[int]
    report: _sync_pb2.StreamReport
    through: int
    records: int
    refused: int
    last_unix_nano: int
    earlier: bool
    def __init__(self, report: _Optional[_Union[_sync_pb2.StreamReport, _Mapping]] = ..., through: _Optional[int] = ..., records: _Optional[int] = ..., refused: _Optional[int] = ..., last_unix_nano: _Optional[int] = ..., earlier: _Optional[bool] = ...) -> None: ...

class GetHubStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetHubStatusResponse(_message.Message):
    __slots__ = ("software", "started_unix_nano", "stations", "connected", "counts", "sinks")
    class CountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    STARTED_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    STATIONS_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SINKS_FIELD_NUMBER: _ClassVar[int]
    software: str
    started_unix_nano: int
    stations: int
    connected: int
    counts: _containers.ScalarMap[str, int]
    sinks: _containers.RepeatedCompositeFieldContainer[SinkStatus]
    def __init__(self, software: _Optional[str] = ..., started_unix_nano: _Optional[int] = ..., stations: _Optional[int] = ..., connected: _Optional[int] = ..., counts: _Optional[_Mapping[str, int]] = ..., sinks: _Optional[_Iterable[_Union[SinkStatus, _Mapping]]] = ...) -> None: ...

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
