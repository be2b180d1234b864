"""What operators and a hub say to each other, to values of ours and back; :mod:`outstation.wire.convert` has the rest.

Unknown fields never make a message unreadable, as there.
"""

from __future__ import annotations

from collections.abc import Iterable

from outstation.errors import MissingExtraError
from outstation.wire.convert import codec, reported_from_wire, reported_to_wire
from outstation.wire.convert import stream_report_from_wire as report_from_wire
from outstation.wire.convert import stream_report_to_wire as report_to_wire
from outstation.wire.messages import (
    Account,
    Applied,
    Failure,
    HubStatus,
    ModelWish,
    SinkStatus,
    StationEntry,
    StationsPage,
    StationsRequest,
    Steering,
    Target,
    WishEntry,
    WishName,
    WishStages,
)
from outstation.wire.method import Method

try:
    from outstation.wire.generated import fleet_pb2
except ImportError as exc:
    raise MissingExtraError("hub", "The wire protocol of hub and agent") from exc


# -- wishes ------------------------------------------------------------------------------------------------------


def _target_to_wire(value: Target) -> fleet_pb2.Target:
    return fleet_pb2.Target(station=value.station, where=value.where)


def _target_from_wire(m: fleet_pb2.Target) -> Target:
    return Target(m.station, dict(m.where))


def _name_to_wire(value: WishName) -> fleet_pb2.WishName:
    return fleet_pb2.WishName(model=value.model, target=_target_to_wire(value.target))


def _name_from_wire(m: fleet_pb2.WishName) -> WishName:
    return WishName(m.model, _target_from_wire(m.target))


def _stages_to_wire(value: WishStages | None) -> fleet_pb2.Stages | None:
    if value is None:
        return None
    return fleet_pb2.Stages(
        percent=value.percent, stop_after=value.stop_after, stop_after_percent=value.stop_after_percent
    )


def _stages_from_wire(m: fleet_pb2.Stages) -> WishStages:
    return WishStages(m.percent, m.stop_after, m.stop_after_percent)


def _wish_to_wire(value: ModelWish) -> fleet_pb2.SetModelRequest:
    return fleet_pb2.SetModelRequest(
        wish=_name_to_wire(value.name), version=value.version, stages=_stages_to_wire(value.stages)
    )


def _wish_from_wire(m: fleet_pb2.SetModelRequest) -> ModelWish:
    stages = _stages_from_wire(m.stages) if m.HasField("stages") else None
    return ModelWish(_name_from_wire(m.wish), m.version, stages)


def _steering_to_wire(value: Steering) -> fleet_pb2.SteerRolloutRequest:
    return fleet_pb2.SteerRolloutRequest(wish=_name_to_wire(value.name), action=value.action)


def _steering_from_wire(m: fleet_pb2.SteerRolloutRequest) -> Steering:
    return Steering(_name_from_wire(m.wish), m.action)


def _wish_entry_to_wire(value: WishEntry) -> fleet_pb2.WishEntry:
    failures = [
        fleet_pb2.Failure(station=failure.station, phase=failure.phase, reason=failure.reason)
        for failure in value.failures
    ]
    return fleet_pb2.WishEntry(
        wish=_name_to_wire(value.wish.name),
        version=value.wish.version,
        revision=value.revision,
        since_unix_nano=value.since_unix_nano,
        stages=_stages_to_wire(value.wish.stages),
        state=value.state,
        reason=value.reason,
        matching=value.matching,
        deciding=value.deciding,
        active=value.active,
        failed=value.failed,
        failures=failures,
    )


def _wish_entry_from_wire(m: fleet_pb2.WishEntry) -> WishEntry:
    stages = _stages_from_wire(m.stages) if m.HasField("stages") else None
    return WishEntry(
        ModelWish(_name_from_wire(m.wish), m.version, stages),
        m.revision,
        m.since_unix_nano,
        m.state,
        m.reason,
        m.matching,
        m.deciding,
        m.active,
        m.failed,
        tuple(Failure(failure.station, failure.phase, failure.reason) for failure in m.failures),
    )


def _wishes_to_wire(values: Iterable[WishEntry]) -> fleet_pb2.ListWishesResponse:
    return fleet_pb2.ListWishesResponse(wishes=map(_wish_entry_to_wire, values))


def _wishes_from_wire(m: fleet_pb2.ListWishesResponse) -> tuple[WishEntry, ...]:
    return tuple(map(_wish_entry_from_wire, m.wishes))


# -- stations ----------------------------------------------------------------------------------------------------


def _applied_to_wire(value: Applied) -> fleet_pb2.Applied:
    return fleet_pb2.Applied(
        model=value.model,
        version=value.version,
        target=_target_to_wire(value.target),
        revision=value.revision,
        percent=value.percent,
    )


def _applied_from_wire(m: fleet_pb2.Applied) -> Applied:
    return Applied(m.model, m.version, _target_from_wire(m.target), m.revision, m.percent)


def _account_to_wire(value: Account) -> fleet_pb2.Account:
    return fleet_pb2.Account(
        report=report_to_wire(value.report),
        through=value.through,
        records=value.records,
        refused=value.refused,
        last_unix_nano=value.last_unix_nano,
        earlier=value.earlier,
    )


def _account_from_wire(m: fleet_pb2.Account) -> Account:
    return Account(report_from_wire(m.report), m.through, m.records, m.refused, m.last_unix_nano, m.earlier)


def station_entry_to_wire(value: StationEntry) -> fleet_pb2.StationEntry:
    return fleet_pb2.StationEntry(
        station=value.station,
        reported=reported_to_wire(value.reported),
        last_seen_unix_nano=value.last_seen_unix_nano,
        connected=value.connected,
        applied=map(_applied_to_wire, value.applied),
        accounts=map(_account_to_wire, value.accounts),
        counts=value.counts,
    )


def station_entry_from_wire(m: fleet_pb2.StationEntry) -> StationEntry:
    return StationEntry(
        m.station,
        reported_from_wire(m.reported),
        m.last_seen_unix_nano,
        m.connected,
        tuple(map(_applied_from_wire, m.applied)),
        tuple(map(_account_from_wire, m.accounts)),
        dict(m.counts),
    )


def _page_to_wire(value: StationsPage) -> fleet_pb2.ListStationsResponse:
    return fleet_pb2.ListStationsResponse(stations=map(station_entry_to_wire, value.stations), more=value.more)


def _page_from_wire(m: fleet_pb2.ListStationsResponse) -> StationsPage:
    return StationsPage(tuple(map(station_entry_from_wire, m.stations)), m.more)


def _page_request_to_wire(value: StationsRequest) -> fleet_pb2.ListStationsRequest:
    return fleet_pb2.ListStationsRequest(after=value.after, station=value.station)


def _page_request_from_wire(m: fleet_pb2.ListStationsRequest) -> StationsRequest:
    return StationsRequest(m.after, m.station)


# -- the hub -----------------------------------------------------------------------------------------------------


def _status_to_wire(value: HubStatus) -> fleet_pb2.GetHubStatusResponse:
    return fleet_pb2.GetHubStatusResponse(
        software=value.software,
        started_unix_nano=value.started_unix_nano,
        stations=value.stations,
        connected=value.connected,
        counts=value.counts,
        sinks=[
            fleet_pb2.SinkStatus(
                name=sink.name,
                waiting_blocks=sink.waiting_blocks,
                written_unix_nano=sink.written_unix_nano,
                failure=sink.failure,
                failing_since_unix_nano=sink.failing_since_unix_nano,
                set_aside=sink.set_aside,
            )
            for sink in value.sinks
        ],
    )


def _status_from_wire(m: fleet_pb2.GetHubStatusResponse) -> HubStatus:
    sinks = tuple(
        SinkStatus(s.name, s.waiting_blocks, s.written_unix_nano, s.failure, s.failing_since_unix_nano, s.set_aside)
        for s in m.sinks
    )
    return HubStatus(m.software, m.started_unix_nano, m.stations, m.connected, dict(m.counts), sinks)


_ENTRY = codec(fleet_pb2.WishEntry, _wish_entry_to_wire, _wish_entry_from_wire)

SET_MODEL: Method[ModelWish, WishEntry] = Method(
    "/outstation.v1.Fleet/SetModel", codec(fleet_pb2.SetModelRequest, _wish_to_wire, _wish_from_wire), _ENTRY
)
UNSET_MODEL: Method[WishName, WishEntry] = Method(
    "/outstation.v1.Fleet/UnsetModel", codec(fleet_pb2.WishName, _name_to_wire, _name_from_wire), _ENTRY
)
STEER_ROLLOUT: Method[Steering, WishEntry] = Method(
    "/outstation.v1.Fleet/SteerRollout",
    codec(fleet_pb2.SteerRolloutRequest, _steering_to_wire, _steering_from_wire),
    _ENTRY,
)
LIST_WISHES: Method[None, tuple[WishEntry, ...]] = Method(
    "/outstation.v1.Fleet/ListWishes",
    codec(fleet_pb2.ListWishesRequest, lambda _: fleet_pb2.ListWishesRequest(), lambda _: None),
    codec(fleet_pb2.ListWishesResponse, _wishes_to_wire, _wishes_from_wire),
)
LIST_STATIONS: Method[StationsRequest, StationsPage] = Method(
    "/outstation.v1.Fleet/ListStations",
    codec(fleet_pb2.ListStationsRequest, _page_request_to_wire, _page_request_from_wire),
    codec(fleet_pb2.ListStationsResponse, _page_to_wire, _page_from_wire),
)
GET_HUB_STATUS: Method[None, HubStatus] = Method(
    "/outstation.v1.Fleet/GetHubStatus",
    codec(fleet_pb2.GetHubStatusRequest, lambda _: fleet_pb2.GetHubStatusRequest(), lambda _: None),
    codec(fleet_pb2.GetHubStatusResponse, _status_to_wire, _status_from_wire),
)
