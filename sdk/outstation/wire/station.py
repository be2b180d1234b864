"""Messages between an application and the agent on its device, as values of ours; serializers for gRPC."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from outstation.errors import WireError
from outstation.types import Placement, Record, StationStatus
from outstation.wire import convert
from outstation.wire.generated import station_pb2 as pb
from outstation.wire.method import Codec, Method

SERVICE = "outstation.v1.Station"


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """Records of one producer for one stream; ``records[i].sequence`` is the producer's number of it."""

    producer: str
    stream: str
    records: tuple[Record, ...]

    @property
    def first_number(self) -> int:
        return self.records[0].sequence

    @property
    def last_number(self) -> int:
        return self.records[-1].sequence

    def pack(self) -> bytes:
        message = pb.AppendRequest(producer=self.producer, stream=self.stream, first_number=self.first_number)
        for record in self.records:
            message.records.add(
                time_unix_nano=record.time_unix_nano,
                content_type=record.content_type,
                attributes=dict(record.attributes),
                payload=record.payload,
            )
        return message.SerializeToString()

    @classmethod
    def unpack(cls, data: bytes) -> AppendRequest:
        message = convert.parsed(pb.AppendRequest, data)
        if not message.records or not message.producer or not message.first_number:
            raise WireError("An AppendRequest needs a producer, numbers from 1 and at least one record.")
        return cls(message.producer, message.stream, tuple(_records(message.first_number, message.records)))


@dataclass(frozen=True, slots=True)
class AppendResponse:
    """``through`` is on the disk. With ``error`` set, the numbers beyond it up to ``refused_through`` were refused."""

    stream: str
    through: int
    refused_through: int = 0
    error: str = ""
    reason: str = ""
    hint: str = ""

    def pack(self) -> bytes:
        return pb.AppendResponse(
            stream=self.stream,
            through=self.through,
            refused_through=self.refused_through,
            error=self.error,
            reason=self.reason,
            hint=self.hint,
        ).SerializeToString()

    @classmethod
    def unpack(cls, data: bytes) -> AppendResponse:
        m = convert.parsed(pb.AppendResponse, data)
        return cls(m.stream, m.through, m.refused_through, m.error, m.reason, m.hint)


@dataclass(frozen=True, slots=True)
class ModelHealth:
    """How a version does on live traffic, counted since it began to answer, or to run in the shadow."""

    model: str
    version: str
    calls: int
    errors: int
    disagreements: int = 0
    dropped: int = 0
    process: str = ""

    def pack(self) -> bytes:
        return pb.ReportHealthRequest(
            model=self.model,
            version=self.version,
            calls=self.calls,
            errors=self.errors,
            disagreements=self.disagreements,
            dropped=self.dropped,
            process=self.process,
        ).SerializeToString()

    @classmethod
    def unpack(cls, data: bytes) -> ModelHealth:
        m = convert.parsed(pb.ReportHealthRequest, data)
        return cls(m.model, m.version, m.calls, m.errors, m.disagreements, m.dropped, m.process)


@dataclass(frozen=True, slots=True)
class ModelPlacement:
    """Where a version that answers is computed."""

    model: str
    version: str
    placement: Placement

    def pack(self) -> bytes:
        return pb.ReportPlacementRequest(
            model=self.model, version=self.version, placement=convert.placement_to_wire(self.placement)
        ).SerializeToString()

    @classmethod
    def unpack(cls, data: bytes) -> ModelPlacement:
        m = convert.parsed(pb.ReportPlacementRequest, data)
        return cls(m.model, m.version, convert.placement_from_wire(m.placement))


def pack_status(status: StationStatus) -> bytes:
    return pb.GetStatusResponse(
        station=status.station,
        provider=status.provider,
        reported=convert.reported_to_wire(status.reported),
        pid=status.pid,
        started_unix_nano=status.started_unix_nano,
    ).SerializeToString()


def unpack_status(data: bytes) -> StationStatus:
    m = convert.parsed(pb.GetStatusResponse, data)
    return StationStatus(m.station, m.provider, m.pid, m.started_unix_nano, convert.reported_from_wire(m.reported))


def _records(first: int, rows: Iterable[pb.AppRecord]) -> Iterable[Record]:
    for number, row in enumerate(rows, first):
        yield Record(number, row.time_unix_nano, row.payload, row.content_type, dict(row.attributes))


def _empty(_: None) -> bytes:
    return b""  # a message without fields


_NOTHING: Codec[None] = Codec(_empty, lambda _: None)

APPEND = Method(
    f"/{SERVICE}/Append",
    Codec(AppendRequest.pack, AppendRequest.unpack),
    Codec(AppendResponse.pack, AppendResponse.unpack),
    streams_requests=True,
    streams_responses=True,
)
GET_STATUS = Method(f"/{SERVICE}/GetStatus", _NOTHING, Codec(pack_status, unpack_status))
REPORT_HEALTH = Method(f"/{SERVICE}/ReportHealth", Codec(ModelHealth.pack, ModelHealth.unpack), _NOTHING)
REPORT_PLACEMENT = Method(f"/{SERVICE}/ReportPlacement", Codec(ModelPlacement.pack, ModelPlacement.unpack), _NOTHING)
SET_METERED: Method[bool, None] = Method(
    f"/{SERVICE}/SetMetered",
    convert.codec(pb.SetMeteredRequest, lambda metered: pb.SetMeteredRequest(metered=metered), lambda m: m.metered),
    _NOTHING,
)
