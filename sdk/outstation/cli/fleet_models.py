"""What is wanted of a fleet: ``outstation fleet set-model``, ``unset-model`` and the rollouts in stages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from outstation.cli import fleet_view as view
from outstation.cli.fleet_access import (
    HUB,
    TIMEOUT,
    Access,
    Ca,
    Cert,
    HubAddress,
    Json,
    Key,
    Where,
    connected,
    labels_of,
    print_json,
    print_table,
    wishes_at,
)
from outstation.errors import InvalidInputError
from outstation.types import LATEST

if TYPE_CHECKING:
    from outstation.wire.messages import Target, WishEntry, WishStages


ModelName = Annotated[str, typer.Argument(help="The model's name.")]
ForStation = Annotated[str, typer.Option("--station", help="For this station alone.", show_default=False)]


def set_model(
    name: ModelName,
    version: Annotated[
        str, typer.Argument(help="A version, or 'latest': the newest that passes every check.")
    ] = LATEST,
    *,
    station: ForStation = "",
    where: Where = None,
    percent: Annotated[
        float | None, typer.Option("--percent", help="In stages: to so many of them first.", show_default=False)
    ] = None,
    stop_after: Annotated[
        str,
        typer.Option(
            "--stop-after",
            help="With --percent: stop when so many stations ('3'), or such a share of those chosen ('5%'), failed.",
        ),
    ] = "1",
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Want a version of a model for a station, for labels, or for every station; other models stay as they are.

    The wish for a station decides before those for labels, they before that for every station. Among those for
    labels the one with more conditions decides, then the later one.

    Example: outstation fleet set-model meter-digits 2.0.0 --where line=3 --percent 10
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import ModelWish, WishName  # noqa: PLC0415

    stages = None if percent is None else _stages(percent, stop_after)
    wish = ModelWish(WishName(name, _target(station, where)), version, stages)
    with connected(Access(hub, ca, cert, key)) as client:
        entry = client.unary(fleet.SET_MODEL)(wish, TIMEOUT)
    _say(entry, as_json)


def unset_model(
    name: ModelName,
    *,
    station: ForStation = "",
    where: Where = None,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Take a wish back; the next one decides where it did. A station without any keeps the version it has.

    Example: outstation fleet unset-model meter-digits --station press-7
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import WishName  # noqa: PLC0415

    with connected(Access(hub, ca, cert, key)) as client:
        entry = client.unary(fleet.UNSET_MODEL)(WishName(name, _target(station, where)), TIMEOUT)
    _say(entry, as_json, "taken back: ")


def show_rollout(
    name: ModelName,
    *,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show the rollouts of a model: how far each is, whether it was stopped and why, who turned it down.

    Example: outstation fleet show-rollout meter-digits
    """
    wishes = wishes_at(Access(hub, ca, cert, key))
    entries = [entry for entry in wishes if entry.wish.stages is not None and entry.wish.name.model == name]
    if as_json:
        print_json(entries)
        return
    if not entries:
        raise InvalidInputError(f"There is no rollout of {name!r}.", hint="`outstation fleet wishes` lists them.")
    for entry in entries:
        print(f"{view.sentence(entry)}; {view.bound(entry)}")
        print(f"  {entry.state}{f': {entry.reason}' if entry.reason else ''}; answers at {entry.active:,} stations")
        rows = [(failure.station, failure.phase, failure.reason or view.NOTHING) for failure in entry.failures]
        print_table(view.FAILURE_COLUMNS, rows)


def resume_rollout(
    name: ModelName,
    *,
    where: Where = None,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Let a rollout that was stopped go on; stations that failed so far are not counted again.

    Example: outstation fleet resume-rollout meter-digits --where line=3
    """
    _say(_steer(Access(hub, ca, cert, key), name, where, "resume"), as_json)


def end_rollout(
    name: ModelName,
    *,
    where: Where = None,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Take a rollout back: its stations follow the next wish again. To finish one, set-model without --percent.

    Example: outstation fleet end-rollout meter-digits --where line=3
    """
    _say(_steer(Access(hub, ca, cert, key), name, where, "end"), as_json, "ended: ")


def _steer(access: Access, name: str, where: list[str] | None, action: str) -> WishEntry:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import Steering, WishName  # noqa: PLC0415

    steering = Steering(WishName(name, _target("", where)), action)
    with connected(access) as client:
        return client.unary(fleet.STEER_ROLLOUT)(steering, TIMEOUT)


def _target(station: str, where: list[str] | None) -> Target:
    from outstation.wire.messages import Target  # noqa: PLC0415  not needed by --help

    labels = labels_of(where)
    if station and labels:
        raise InvalidInputError("A wish is for one station or for labels.", hint="Leave out --station or --where.")
    return Target(station, labels)


def _stages(percent: float, stop_after: str) -> WishStages:
    from outstation.wire.messages import WishStages  # noqa: PLC0415  not needed by --help

    try:
        if stop_after.endswith("%"):
            return WishStages(percent, 0, float(stop_after[:-1]))
        return WishStages(percent, int(stop_after))
    except ValueError as exc:
        raise InvalidInputError(
            f"{stop_after!r} is no number of stations.", hint="Write --stop-after 3, or --stop-after 5%."
        ) from exc


def _say(entry: WishEntry, as_json: bool, word: str = "") -> None:
    if as_json:
        print_json(entry)
    else:
        print(word + view.sentence(entry))
