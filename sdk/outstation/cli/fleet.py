"""``outstation fleet``: see and steer the stations of a hub."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer

from outstation.cli import fleet_view as view
from outstation.cli.tables import ago, draw
from outstation.errors import InvalidInputError
from outstation.types import LATEST

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outstation.wire.client import Client
    from outstation.wire.messages import StationEntry, Target, WishEntry, WishStages

app = typer.Typer(help="See and steer the stations of a hub.\n\nExample: outstation fleet ls", no_args_is_help=True)

# Seconds for one question to the hub; it answers from memory.
TIMEOUT = 10.0
HUB = "127.0.0.1:8445"


class Access(NamedTuple):
    """Which hub, and who asks."""

    hub: str
    ca: Path | None
    cert: Path | None
    key: Path | None


HubAddress = Annotated[str, typer.Option("--hub", help="HOST:PORT of the hub.")]
Ca = Annotated[
    Path | None, typer.Option("--tls-ca", help="Who signed the hub's certificate (PEM).", show_default=False)
]
Cert = Annotated[Path | None, typer.Option("--tls-cert", help="The operator's certificate (PEM).", show_default=False)]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ModelName = Annotated[str, typer.Argument(help="The model's name.")]
ForStation = Annotated[str, typer.Option("--station", help="For this station alone.", show_default=False)]
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", help="LABEL=VALUE; stations that have it. Repeated: that have all of them.", show_default=False
    ),
]


@app.command("ls")
def ls(
    *,
    where: Where = None,
    behind: Annotated[bool, typer.Option("--behind", help="Only where a wanted version does not answer.")] = False,
    stale: Annotated[
        float | None,
        typer.Option("--stale", min=0, help="Only those not seen for so many seconds.", show_default=False),
    ] = None,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """List stations: when last seen, what waits there, what was dropped, which models answer.

    Where a wanted version does not answer, both are shown: "digits 1.0.0 -> 2.0.0".

    Example: outstation fleet ls --where line=3 --behind
    """
    labels = _labels(where)
    known = _stations(Access(hub, ca, cert, key))
    before = time.time_ns() - round((stale or 0.0) * 1e9)
    shown = [
        entry
        for entry in known
        if view.has_labels(entry, labels)
        and (not behind or view.is_behind(entry))
        and (stale is None or entry.last_seen_unix_nano <= before)
    ]
    if as_json:
        _print_json(shown)
        return
    if not shown:
        what = f"None of {len(known):,} stations is such." if known else "No station has connected to this hub yet."
        print(what, file=sys.stderr)
        return
    if _is_narrow():
        draw(view.NARROW_COLUMNS, map(view.narrow_row, shown))
    else:
        _print_table(view.STATION_COLUMNS, list(map(view.station_row, shown)))
    if sys.stdout.isatty():
        print(view.summary(shown, len(known)))


@app.command("show")
def show(
    station: Annotated[str, typer.Argument(help="The station's name.")],
    *,
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show one station: which wish applies, each model version with its reason, the account of each stream.

    "came" is what arrived at the hub; "missing" are numbers that did not though later ones did.

    Example: outstation fleet show press-7 --json
    """
    entry = next(iter(_stations(Access(hub, ca, cert, key), station)), None)
    if entry is None:
        raise InvalidInputError(f"The hub has never seen a station {station!r}.", hint="See `outstation fleet ls`.")
    if as_json:
        _print_json(entry)
        return
    reported = entry.reported
    print(
        f"{entry.station}: {view.link(entry)}, last seen {ago(entry.last_seen_unix_nano)} ago, "
        f"{reported.software or 'software unknown'}, labels {view.pairs(reported.labels)}"
    )
    if entry.counts:
        print(f"refused since the hub started: {view.counted(entry.counts)}")
    _print_table(view.WISH_OF_STATION_COLUMNS, view.wish_rows(entry), title="models")
    _print_table(view.VERSION_COLUMNS, view.version_rows(entry), title="versions")
    if _is_narrow():
        draw(view.NARROW_ACCOUNT_COLUMNS, view.narrow_account_rows(entry), title="streams")
    else:
        _print_table(view.ACCOUNT_COLUMNS, view.account_rows(entry), title="streams")


@app.command("wishes")
def wishes(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """List what is wanted, for whom, and how far it is; of each model, the wish that decides comes first.

    Example: outstation fleet wishes
    """
    entries = _wishes(Access(hub, ca, cert, key))
    if as_json:
        _print_json(entries)
    elif not entries:
        print("Nothing is wanted yet. `outstation fleet set-model` says what is.", file=sys.stderr)
    else:
        _print_table(view.WISH_COLUMNS, list(map(view.wish_row, entries)))


@app.command("sinks")
def sinks(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """Show where the hub writes to: what waits for each sink, and why one takes nothing.

    Example: outstation fleet sinks --json
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with _client(Access(hub, ca, cert, key)) as client:
        status = client.unary(fleet.GET_HUB_STATUS)(None, TIMEOUT)
    if as_json:
        _print_json(status.sinks)
        return
    rows = [
        (
            sink.name,
            str(sink.waiting_blocks),
            f"{ago(sink.written_unix_nano)} ago" if sink.written_unix_nano else "-",
            f"for {ago(sink.failing_since_unix_nano)}" if sink.failing_since_unix_nano else "-",
            str(sink.set_aside),
            sink.failure or "-",
        )
        for sink in status.sinks
    ]
    _print_table(("sink", "blocks waiting", "written", "failing", "set aside", "why"), rows)


@app.command("set-model")
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
    with _client(Access(hub, ca, cert, key)) as client:
        entry = client.unary(fleet.SET_MODEL)(wish, TIMEOUT)
    _say(entry, as_json)


@app.command("unset-model")
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

    with _client(Access(hub, ca, cert, key)) as client:
        entry = client.unary(fleet.UNSET_MODEL)(WishName(name, _target(station, where)), TIMEOUT)
    _say(entry, as_json, "taken back: ")


@app.command("show-rollout")
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
    wishes = _wishes(Access(hub, ca, cert, key))
    entries = [entry for entry in wishes if entry.wish.stages is not None and entry.wish.name.model == name]
    if as_json:
        _print_json(entries)
        return
    if not entries:
        raise InvalidInputError(f"There is no rollout of {name!r}.", hint="`outstation fleet wishes` lists them.")
    for entry in entries:
        print(f"{view.sentence(entry)}; {view.bound(entry)}")
        print(f"  {entry.state}{f': {entry.reason}' if entry.reason else ''}; answers at {entry.active:,} stations")
        rows = [(failure.station, failure.phase, failure.reason or view.NOTHING) for failure in entry.failures]
        _print_table(view.FAILURE_COLUMNS, rows)


@app.command("resume-rollout")
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


@app.command("end-rollout")
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


@app.command("hub")
def hub_status(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """Show what the hub has taken and refused since it started.

    Example: outstation fleet hub
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with _client(Access(hub, ca, cert, key)) as client:
        status = client.unary(fleet.GET_HUB_STATUS)(None, TIMEOUT)
    if as_json:
        _print_json(status)
        return
    up = ago(status.started_unix_nano)
    print(f"{status.software}, up {up}: {status.connected:,} of {status.stations:,} stations connected")
    _print_table(("since it started", "count"), view.hub_rows(status))


# -- questions ---------------------------------------------------------------------------------------------------


def _stations(access: Access, station: str = "") -> list[StationEntry]:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import StationsRequest  # noqa: PLC0415

    found: list[StationEntry] = []
    with _client(access) as client:
        ask = client.unary(fleet.LIST_STATIONS)
        while True:
            page = ask(StationsRequest(found[-1].station if found else "", station), TIMEOUT)
            found += page.stations
            if not page.more or not page.stations:
                return found


def _wishes(access: Access) -> tuple[WishEntry, ...]:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with _client(access) as client:
        return client.unary(fleet.LIST_WISHES)(None, TIMEOUT)


def _steer(access: Access, name: str, where: list[str] | None, action: str) -> WishEntry:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import Steering, WishName  # noqa: PLC0415

    steering = Steering(WishName(name, _target("", where)), action)
    with _client(access) as client:
        return client.unary(fleet.STEER_ROLLOUT)(steering, TIMEOUT)


@contextmanager
def _client(access: Access) -> Iterator[Client]:
    from outstation.wire.channel import Tls  # noqa: PLC0415  grpc, which --help does not need
    from outstation.wire.client import Client  # noqa: PLC0415

    tls = Tls(access.ca, access.cert, access.key) if access.ca or access.cert or access.key else None
    with Client(access.hub, tls=tls) as client:
        yield client


# -- what was typed ----------------------------------------------------------------------------------------------


def _labels(where: list[str] | None) -> dict[str, str]:
    labels: dict[str, str] = {}
    for condition in where or []:
        name, separator, value = condition.partition("=")
        if not separator or not name or not value:
            raise InvalidInputError(f"{condition!r} is no condition.", hint="Write --where LABEL=VALUE.")
        if labels.setdefault(name, value) != value:
            raise InvalidInputError(f"No station has two values of the label {name!r}.")
    return labels


def _target(station: str, where: list[str] | None) -> Target:
    from outstation.wire.messages import Target  # noqa: PLC0415  not needed by --help

    labels = _labels(where)
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


# -- what is printed ---------------------------------------------------------------------------------------------


def _is_narrow() -> bool:
    return sys.stdout.isatty() and get_terminal_size().columns < view.NARROW


def _say(entry: WishEntry, as_json: bool, word: str = "") -> None:
    if as_json:
        _print_json(entry)
    else:
        print(word + view.sentence(entry))


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(heads: Sequence[str], rows: Sequence[view.Row], title: str = "") -> None:
    """Print a table on a terminal; one line a row with tabs between otherwise."""
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in view.plain(rows):
            print("\t".join(row))
        return
    draw(heads, rows, title=title)
