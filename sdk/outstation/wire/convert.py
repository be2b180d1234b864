"""Messages between stations and hubs to values of ours and back; :mod:`outstation.wire.fleet` has the operators'.

What comes from outside is checked here for its shape alone (WireError); whether it is allowed is for the receiver.
Unknown fields, and words of an enumeration that a newer side has added, never make a message unreadable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from outstation.errors import InvalidInputError, MissingExtraError, WireError
from outstation.provider import Acknowledgement, Message
from outstation.types import (
    Desired,
    DesiredModel,
    DropReason,
    Ledger,
    Link,
    LinkState,
    ModelPhase,
    ModelReport,
    ModelVersionReport,
    Placement,
    Reported,
    StreamReport,
)
from outstation.wire.messages import (
    Downward,
    EnrollRequest,
    FetchRequest,
    Hello,
    IssuedCertificate,
    Ledgers,
    Messages,
    StationReport,
    Upward,
    Welcome,
    Wish,
)
from outstation.wire.method import Codec, Method

try:
    from google.protobuf.message import DecodeError

    from outstation.wire.generated import enroll_pb2, fleet_pb2, sync_pb2
except ImportError as exc:
    raise MissingExtraError("hub", "The wire protocol of hub and agent") from exc

Parsed = TypeVar("Parsed")
Value = TypeVar("Value")


def parsed(kind: Callable[[], Parsed], data: bytes) -> Parsed:
    """*data* as a generated message; WireError for bytes that are none."""
    message: Any = kind()
    try:
        message.ParseFromString(data)
    except DecodeError as exc:
        raise WireError(f"{len(data)} bytes are no {type(message).DESCRIPTOR.full_name}.") from exc
    result: Parsed = message
    return result


def codec(
    kind: Callable[[], Parsed], to_wire: Callable[[Value], Parsed], from_wire: Callable[[Parsed], Value]
) -> Codec[Value]:
    """The codec of one kind of message, from its two conversions."""

    def encode(value: Value) -> bytes:
        try:
            message: Any = to_wire(value)
            data: bytes = message.SerializeToString()
        except (ValueError, TypeError) as exc:  # a negative size, a text that is not Unicode
            raise InvalidInputError(f"A {type(value).__name__} cannot be sent: {exc}.") from exc
        return data

    return Codec(encode, lambda data: from_wire(parsed(kind, data)))


# -- sync --------------------------------------------------------------------------------------------------------


def upward_to_wire(value: Upward) -> sync_pb2.PushRequest:
    if isinstance(value, Message):
        return sync_pb2.PushRequest(block=_block_to_wire(value))
    if isinstance(value, Messages):
        return sync_pb2.PushRequest(blocks=sync_pb2.Blocks(blocks=map(_block_to_wire, value.messages)))
    if isinstance(value, Ledgers):
        streams = map(stream_report_to_wire, value.reports)
        return sync_pb2.PushRequest(ledgers=sync_pb2.LedgerReport(streams=streams))
    hello = sync_pb2.Hello(station=value.station, software=value.software, instance=value.instance)
    return sync_pb2.PushRequest(hello=hello)


def upward_from_wire(m: sync_pb2.PushRequest) -> Upward | None:
    """None for a kind of message that only newer stations know: it is passed over."""
    kind = m.WhichOneof("kind")
    if kind == "block":
        return _block_from_wire(m.block)
    if kind == "blocks":
        return Messages(tuple(map(_block_from_wire, m.blocks.blocks)))
    if kind == "ledgers":
        return Ledgers(tuple(map(stream_report_from_wire, m.ledgers.streams)))
    if kind == "hello":
        return Hello(m.hello.station, m.hello.software, m.hello.instance)
    return None


def _block_to_wire(value: Message) -> sync_pb2.Block:
    return sync_pb2.Block(
        stream=value.stream,
        epoch=value.epoch,
        first_sequence=value.first_sequence,
        last_sequence=value.last_sequence,
        data=value.block,
    )


def _block_from_wire(m: sync_pb2.Block) -> Message:
    return Message(m.stream, m.epoch, m.first_sequence, m.last_sequence, m.data)


def downward_to_wire(value: Downward) -> sync_pb2.PushResponse:
    if isinstance(value, Welcome):
        return sync_pb2.PushResponse(welcome=sync_pb2.Welcome(hub=value.hub, max_blocks=value.max_blocks))
    if value.refused:
        return sync_pb2.PushResponse(
            refusal=sync_pb2.Refusal(
                stream=value.stream, epoch=value.epoch, through=value.through, reason=value.refused
            )
        )
    if value.held_bytes:
        held = sync_pb2.Held(stream=value.stream, epoch=value.epoch, through=value.through, bytes=value.held_bytes)
        return sync_pb2.PushResponse(held=held)
    return sync_pb2.PushResponse(
        acknowledgement=sync_pb2.Acknowledgement(stream=value.stream, epoch=value.epoch, through=value.through)
    )


def downward_from_wire(m: sync_pb2.PushResponse) -> Downward | None:
    """None for a kind of message that only newer hubs know: it is passed over."""
    kind = m.WhichOneof("kind")
    if kind == "acknowledgement":
        a = m.acknowledgement
        return Acknowledgement(a.stream, a.epoch, a.through)
    if kind == "refusal":
        r = m.refusal
        return Acknowledgement(r.stream, r.epoch, r.through, r.reason or "no reason given")
    if kind == "held":
        h = m.held
        return Acknowledgement(h.stream, h.epoch, h.through, held_bytes=h.bytes)
    if kind == "welcome":
        return Welcome(m.welcome.hub, m.welcome.max_blocks)
    return None


def stream_report_to_wire(value: StreamReport) -> sync_pb2.StreamReport:
    ledger = sync_pb2.Ledger(
        appended=value.ledger.appended,
        acknowledged=value.ledger.acknowledged,
        # A count below nothing cannot be sent, and one wrong account must not keep every record from leaving.
        pending=max(0, value.ledger.pending),
        dropped={reason.value: count for reason, count in value.ledger.dropped.items()},
    )
    return sync_pb2.StreamReport(
        stream=value.stream,
        epoch=value.epoch,
        ledger=ledger,
        pending_bytes=value.pending_bytes,
        oldest_time_unix_nano=value.oldest_time_unix_nano,
    )


def stream_report_from_wire(m: sync_pb2.StreamReport) -> StreamReport:
    dropped: dict[DropReason, int] = {}
    for word, count in m.ledger.dropped.items():
        # A reason that a newer station has added still counts, or the account would not balance.
        reason = DropReason(word) if word in _DROP_REASONS else DropReason.REJECTED
        dropped[reason] = dropped.get(reason, 0) + count
    ledger = Ledger(m.ledger.appended, m.ledger.acknowledged, m.ledger.pending, dropped)
    return StreamReport(m.stream, m.epoch, ledger, m.pending_bytes, m.oldest_time_unix_nano)


_DROP_REASONS = frozenset(reason.value for reason in DropReason)

PUSH: Method[Upward | None, Downward | None] = Method(
    "/outstation.v1.Sync/Push",
    codec(sync_pb2.PushRequest, upward_to_wire, upward_from_wire),  # type: ignore[arg-type]
    codec(sync_pb2.PushResponse, downward_to_wire, downward_from_wire),  # type: ignore[arg-type]
    streams_requests=True,
    streams_responses=True,
)


# -- fleet -------------------------------------------------------------------------------------------------------


def desired_to_wire(value: Desired) -> fleet_pb2.Desired:
    return fleet_pb2.Desired(models=_models_to_wire(value.models), revision=value.revision)


def desired_from_wire(m: fleet_pb2.Desired) -> Desired:
    return Desired(_models_from_wire(m.models), m.revision)


def _models_to_wire(models: Iterable[DesiredModel]) -> list[fleet_pb2.DesiredModel]:
    return [fleet_pb2.DesiredModel(name=model.name, version=model.version) for model in models]


def _models_from_wire(models: Iterable[fleet_pb2.DesiredModel]) -> tuple[DesiredModel, ...]:
    return tuple(DesiredModel(m.name, m.version) for m in models)


def reported_to_wire(value: Reported) -> fleet_pb2.Reported:
    return fleet_pb2.Reported(
        models=map(_model_report_to_wire, value.models),
        streams=map(stream_report_to_wire, value.streams),
        link=None if value.link is None else _link_to_wire(value.link),
        revision=value.revision,
        time_unix_nano=value.time_unix_nano,
        software=value.software,
        labels=value.labels,
    )


def reported_from_wire(m: fleet_pb2.Reported) -> Reported:
    return Reported(
        models=tuple(map(_model_report_from_wire, m.models)),
        streams=tuple(map(stream_report_from_wire, m.streams)),
        link=_link_from_wire(m.link) if m.HasField("link") else None,
        revision=m.revision,
        time_unix_nano=m.time_unix_nano,
        software=m.software,
        labels=dict(m.labels),
    )


def _link_to_wire(value: Link) -> fleet_pb2.Link:
    return fleet_pb2.Link(
        state=value.state.value, since_unix_nano=value.since_unix_nano, reason=value.reason, metered=value.metered
    )


def _link_from_wire(m: fleet_pb2.Link) -> Link:
    state = LinkState(m.state) if m.state in _LINK_STATES else LinkState.OFFLINE
    return Link(state, m.since_unix_nano, m.reason, m.metered)


def _model_report_to_wire(value: ModelReport) -> fleet_pb2.ModelReport:
    versions = [
        fleet_pb2.ModelVersionReport(
            version=version.version,
            phase=version.phase.value,
            since_unix_nano=version.since_unix_nano,
            reason=version.reason,
            saved_bytes=version.saved_bytes,
        )
        for version in value.versions
    ]
    placement = None if value.placement is None else placement_to_wire(value.placement)
    return fleet_pb2.ModelReport(name=value.name, active=value.active, versions=versions, placement=placement)


def _model_report_from_wire(m: fleet_pb2.ModelReport) -> ModelReport:
    versions = tuple(
        ModelVersionReport(v.version, ModelPhase(v.phase), v.since_unix_nano, v.reason, v.saved_bytes)
        for v in m.versions
        if v.phase in _MODEL_PHASES  # a phase of a newer station: we have no word for it
    )
    return ModelReport(
        m.name, m.active, versions, placement_from_wire(m.placement) if m.HasField("placement") else None
    )


def placement_to_wire(value: Placement) -> fleet_pb2.Placement:
    return fleet_pb2.Placement(runtime=value.runtime, accelerator=value.accelerator, fallbacks=value.fallbacks)


def placement_from_wire(m: fleet_pb2.Placement) -> Placement:
    return Placement(m.accelerator, tuple(m.fallbacks), m.runtime)


_LINK_STATES = frozenset(state.value for state in LinkState)
_MODEL_PHASES = frozenset(phase.value for phase in ModelPhase)


def _report_to_wire(value: StationReport) -> fleet_pb2.ReportRequest:
    return fleet_pb2.ReportRequest(station=value.station, reported=reported_to_wire(value.reported))


def _report_from_wire(m: fleet_pb2.ReportRequest) -> StationReport:
    return StationReport(m.station, reported_from_wire(m.reported))


def _fetch_to_wire(value: FetchRequest) -> fleet_pb2.FetchRequest:
    return fleet_pb2.FetchRequest(station=value.station, path=value.path, offset=value.offset)


def _fetch_from_wire(m: fleet_pb2.FetchRequest) -> FetchRequest:
    return FetchRequest(m.station, m.path, m.offset)


def _wish_to_wire(value: Wish) -> fleet_pb2.SetDesiredRequest:
    return fleet_pb2.SetDesiredRequest(station=value.station, models=_models_to_wire(value.models))


def _wish_from_wire(m: fleet_pb2.SetDesiredRequest) -> Wish:
    return Wish(m.station, _models_from_wire(m.models))


_STATION: Codec[str] = codec(
    fleet_pb2.GetDesiredRequest, lambda name: fleet_pb2.GetDesiredRequest(station=name), lambda m: m.station
)
_DESIRED = codec(fleet_pb2.Desired, desired_to_wire, desired_from_wire)
_NOTHING: Codec[None] = codec(fleet_pb2.ReportResponse, lambda _: fleet_pb2.ReportResponse(), lambda _: None)
_CHUNK: Codec[bytes] = codec(fleet_pb2.FetchResponse, lambda data: fleet_pb2.FetchResponse(data=data), lambda m: m.data)

GET_DESIRED: Method[str, Desired] = Method("/outstation.v1.Fleet/GetDesired", _STATION, _DESIRED)
WATCH_DESIRED: Method[str, Desired] = Method(
    "/outstation.v1.Fleet/WatchDesired", _STATION, _DESIRED, streams_responses=True
)
REPORT: Method[StationReport, None] = Method(
    "/outstation.v1.Fleet/Report", codec(fleet_pb2.ReportRequest, _report_to_wire, _report_from_wire), _NOTHING
)
FETCH: Method[FetchRequest, bytes] = Method(
    "/outstation.v1.Fleet/Fetch",
    codec(fleet_pb2.FetchRequest, _fetch_to_wire, _fetch_from_wire),
    _CHUNK,
    streams_responses=True,
)
SET_DESIRED: Method[Wish, Desired] = Method(
    "/outstation.v1.Fleet/SetDesired", codec(fleet_pb2.SetDesiredRequest, _wish_to_wire, _wish_from_wire), _DESIRED
)


# -- enrolment ---------------------------------------------------------------------------------------------------


def _enroll_to_wire(value: EnrollRequest) -> enroll_pb2.EnrollRequest:
    return enroll_pb2.EnrollRequest(station=value.station, secret=value.secret, request=value.request)


def _enroll_from_wire(m: enroll_pb2.EnrollRequest) -> EnrollRequest:
    return EnrollRequest(m.station, m.request, m.secret)


def _renew_to_wire(value: EnrollRequest) -> enroll_pb2.RenewRequest:
    return enroll_pb2.RenewRequest(station=value.station, request=value.request)


def _renew_from_wire(m: enroll_pb2.RenewRequest) -> EnrollRequest:
    return EnrollRequest(m.station, m.request)


def _issued_to_wire(value: IssuedCertificate) -> enroll_pb2.IssuedCertificate:
    return enroll_pb2.IssuedCertificate(certificate=value.certificate, authority=value.authority)


def _issued_from_wire(m: enroll_pb2.IssuedCertificate) -> IssuedCertificate:
    return IssuedCertificate(m.certificate, m.authority)


_ISSUED = codec(enroll_pb2.IssuedCertificate, _issued_to_wire, _issued_from_wire)

ENROLL: Method[EnrollRequest, IssuedCertificate] = Method(
    "/outstation.v1.Enrolment/Enroll", codec(enroll_pb2.EnrollRequest, _enroll_to_wire, _enroll_from_wire), _ISSUED
)
RENEW: Method[EnrollRequest, IssuedCertificate] = Method(
    "/outstation.v1.Enrolment/Renew", codec(enroll_pb2.RenewRequest, _renew_to_wire, _renew_from_wire), _ISSUED
)
