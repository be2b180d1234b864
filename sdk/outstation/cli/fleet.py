"""``outstation fleet``: see and steer the stations of a hub."""

from __future__ import annotations

import sys
import time
from shutil import get_terminal_size
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
from outstation.cli.fleet_models import end_rollout, resume_rollout, set_model, show_rollout, unset_model
from outstation.cli.tables import ago, draw
from outstation.errors import InvalidInputError

if TYPE_CHECKING:
    from outstation.wire.messages import StationEntry

app = typer.Typer(help="See and steer the stations of a hub.\n\nExample: outstation fleet ls", no_args_is_help=True)


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
    labels = labels_of(where)
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
        print_json(shown)
        return
    if not shown:
        what = f"None of {len(known):,} stations is such." if known else "No station has connected to this hub yet."
        print(what, file=sys.stderr)
        return
    if _is_narrow():
        draw(view.NARROW_COLUMNS, map(view.narrow_row, shown))
    else:
        print_table(view.STATION_COLUMNS, list(map(view.station_row, shown)))
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
        print_json(entry)
        return
    reported = entry.reported
    print(
        f"{entry.station}: {view.link(entry)}, last seen {ago(entry.last_seen_unix_nano)} ago, "
        f"{reported.software or 'software unknown'}, labels {view.pairs(reported.labels)}"
    )
    if entry.counts:
        print(f"refused since the hub started: {view.counted(entry.counts)}")
    print_table(view.WISH_OF_STATION_COLUMNS, view.wish_rows(entry), title="models")
    print_table(view.VERSION_COLUMNS, view.version_rows(entry), title="versions")
    if _is_narrow():
        draw(view.NARROW_ACCOUNT_COLUMNS, view.narrow_account_rows(entry), title="streams")
    else:
        print_table(view.ACCOUNT_COLUMNS, view.account_rows(entry), title="streams")


@app.command("wishes")
def wishes(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """List what is wanted, for whom, and how far it is; of each model, the wish that decides comes first.

    Example: outstation fleet wishes
    """
    entries = wishes_at(Access(hub, ca, cert, key))
    if as_json:
        print_json(entries)
    elif not entries:
        print("Nothing is wanted yet. `outstation fleet set-model` says what is.", file=sys.stderr)
    else:
        print_table(view.WISH_COLUMNS, list(map(view.wish_row, entries)))


@app.command("sinks")
def sinks(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """Show where the hub writes to: what waits for each sink, and why one takes nothing.

    Example: outstation fleet sinks --json
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with connected(Access(hub, ca, cert, key)) as client:
        status = client.unary(fleet.GET_HUB_STATUS)(None, TIMEOUT)
    if as_json:
        print_json(status.sinks)
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
    print_table(("sink", "blocks waiting", "written", "failing", "set aside", "why"), rows)


for _name, _command in (
    ("set-model", set_model),
    ("unset-model", unset_model),
    ("show-rollout", show_rollout),
    ("resume-rollout", resume_rollout),
    ("end-rollout", end_rollout),
):
    app.command(_name)(_command)


@app.command("hub")
def hub_status(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """Show what the hub has taken and refused since it started.

    Example: outstation fleet hub
    """
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with connected(Access(hub, ca, cert, key)) as client:
        status = client.unary(fleet.GET_HUB_STATUS)(None, TIMEOUT)
    if as_json:
        print_json(status)
        return
    up = ago(status.started_unix_nano)
    print(f"{status.software}, up {up}: {status.connected:,} of {status.stations:,} stations connected")
    print_table(("since it started", "count"), view.hub_rows(status))


# -- questions ---------------------------------------------------------------------------------------------------


def _stations(access: Access, station: str = "") -> list[StationEntry]:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import StationsRequest  # noqa: PLC0415

    found: list[StationEntry] = []
    with connected(access) as client:
        ask = client.unary(fleet.LIST_STATIONS)
        while True:
            page = ask(StationsRequest(found[-1].station if found else "", station), TIMEOUT)
            found += page.stations
            if not page.more or not page.stations:
                return found


# -- what is printed ---------------------------------------------------------------------------------------------


def _is_narrow() -> bool:
    return sys.stdout.isatty() and get_terminal_size().columns < view.NARROW
