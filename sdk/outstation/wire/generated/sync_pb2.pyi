from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PushRequest(_message.Message):
    __slots__ = ("hello", "block", "ledgers", "blocks")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    BLOCK_FIELD_NUMBER: _ClassVar[int]
    LEDGERS_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    block: Block
    ledgers: LedgerReport
    blocks: Blocks
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., block: _Optional[_Union[Block, _Mapping]] = ..., ledgers: _Optional[_Union[LedgerReport, _Mapping]] = ..., blocks: _Optional[_Union[Blocks, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("station", "software", "instance")
    STATION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_FIELD_NUMBER: _ClassVar[int]
    station: str
    software: str
    instance: str
    def __init__(self, station: _Optional[str] = ..., software: _Optional[str] = ..., instance: _Optional[str] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("stream", "epoch", "first_sequence", "last_sequence", "data")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    first_sequence: int
    last_sequence: int
    data: bytes
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., first_sequence: _Optional[int] = ..., last_sequence: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Blocks(_message.Message):
    __slots__ = ("blocks",)
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    def __init__(self, blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ...) -> None: ...

class LedgerReport(_message.Message):
    __slots__ = ("streams",)
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[StreamReport]
    def __init__(self, streams: _Optional[_Iterable[_Union[StreamReport, _Mapping]]] = ...) -> None: ...

class StreamReport(_message.Message):
    __slots__ = ("stream", "epoch", "ledger", "pending_bytes", "oldest_time_unix_nano")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    PENDING_BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_TIME_UNIX_NANO_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    ledger: Ledger
    pending_bytes: int
    oldest_time_unix_nano: int
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., ledger: _Optional[_Union[Ledger, _Mapping]] = ..., pending_bytes: _Optional[int] = ..., oldest_time_unix_nano: _Optional[int] = ...) -> None: ...

class Ledger(_message.Message):
    __slots__ = ("appended", "acknowledged", "pending", "dropped")
    class DroppedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    APPENDED_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGED_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FIELD_NUMBER: _ClassVar[int]
    appended: int
    acknowledged: int
    pending: int
    dropped: _containers.ScalarMap[str, int]
    def __init__(self, appended: _Optional[int] = ..., acknowledged: _Optional[int] = ..., pending: _Optional[int] = ..., dropped: _Optional[_Mapping[str, int]] = ...) -> None: ...

class PushResponse(_message.Message):
    __slots__ = ("welcome", "acknowledgement", "refusal", "held")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ACKNOWLEDGEMENT_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    acknowledgement: Acknowledgement
    refusal: Refusal
    held: Held
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., acknowledgement: _Optional[_Union[Acknowledgement, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., held: _Optional[_Union[Held, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("hub", "max_blocks")
    HUB_FIELD_NUMBER: _ClassVar[int]
    MAX_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    hub: str
    max_blocks: int
    def __init__(self, hub: _Optional[str] = ..., max_blocks: _Optional[int] = ...) -> None: ...

class Acknowledgement(_message.Message):
    __slots__ = ("stream", "epoch", "through")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    through: int
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., through: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("stream", "epoch", "through", "reason")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    through: int
    reason: str
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., through: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class Held(_message.Message):
    __slots__ = ("stream", "epoch", "through", "bytes")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    THROUGH_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    stream: str
    epoch: int
    through: int
    bytes: int
    def __init__(self, stream: _Optional[str] = ..., epoch: _Optional[int] = ..., through: _Optional[int] = ..., bytes: _Optional[int] = ...) -> None: ...
