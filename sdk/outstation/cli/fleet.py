"""``outstation fleet``: see and steer the stations of a hub."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from outstation.cli.tables import ago, draw
from outstation.errors import InvalidInputError
from outstation.types import LATEST, DesiredModel

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outstation.wire.client import Client
    from outstation.wire.messages import StationEntry

app = typer.Typer(help="See and steer the stations of a hub.\n\nExample: outstation fleet ls", no_args_is_help=True)

# Seconds for one question to the hub; it answers from memory.
TIMEOUT = 10.0

HubAddress = Annotated[str, typer.Option("--hub", help="HOST:PORT of the hub.")]
Ca = Annotated[
    Path | None, typer.Option("--tls-ca", help="Who signed the hub's certificate (PEM).", show_default=False)
]
Cert = Annotated[Path | None, typer.Option("--tls-cert", help="The operator's certificate (PEM).", show_default=False)]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Its key (PEM).", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HUB = "127.0.0.1:8445"


@app.command("ls")
def ls(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """List every station: when it was last seen, what waits there, which models answer.

    Example: outstation fleet ls --hub hub.example:8445 --tls-ca ca.pem --tls-cert me.pem --tls-key me.key
    """
    entries = _entries(hub, ca, cert, key)
    if as_json:
        _print_json(entries)
        return
    rows = [
        (
            entry.station,
            f"{ago(entry.last_seen_unix_nano)} ago",
            str(sum(stream.ledger.pending for stream in entry.reported.streams)),
            ", ".join(f"{model.name} {model.active or '-'}" for model in entry.reported.models) or "-",
            entry.reported.software or "-",
        )
        for entry in entries
    ]
    _print_table(("station", "last seen", "waiting", "models", "software"), rows)


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
    """Show one station: each model version with its reason, and the account of each stream.

    Example: outstation fleet show press-7 --json
    """
    entry = next((entry for entry in _entries(hub, ca, cert, key) if entry.station == station), None)
    if entry is None:
        raise InvalidInputError(f"The hub has never seen a station {station!r}.", hint="See `outstation fleet ls`.")
    if as_json:
        _print_json(entry)
        return
    print(f"{entry.station}: last seen {ago(entry.last_seen_unix_nano)} ago, {entry.reported.software or 'unknown'}")
    versions = [
        (model.name, version.version, version.phase.value, version.reason or "-")
        for model in entry.reported.models
        for version in model.versions
    ]
    _print_table(("model", "version", "phase", "reason"), versions)
    ledgers = [
        (
            stream.stream,
            str(stream.ledger.appended),
            str(stream.ledger.acknowledged),
            str(stream.ledger.pending),
            ", ".join(f"{reason.value} {count}" for reason, count in stream.ledger.dropped.items() if count) or "-",
        )
        for stream in entry.reported.streams
    ]
    _print_table(("stream", "appended", "acknowledged", "waiting", "dropped"), ledgers)


@app.command("sinks")
def sinks(hub: HubAddress = HUB, ca: Ca = None, cert: Cert = None, key: Key = None, as_json: Json = False) -> None:
    """Show where the hub writes to: what waits for each sink, and why one takes nothing.

    Example: outstation fleet sinks --json
    """
    from outstation.wire import convert  # noqa: PLC0415  protobuf, which --help does not need

    with _client(hub, ca, cert, key) as client:
        status = client.unary(convert.GET_STATUS)(None, TIMEOUT)
    if as_json:
        _print_json(status)
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
    name: Annotated[str, typer.Argument(help="The model's name.")],
    version: Annotated[
        str, typer.Argument(help="A version, or 'latest': the newest that passes every check.")
    ] = LATEST,
    *,
    station: Annotated[
        str, typer.Option("--station", help="For this station alone; else for all without a wish of their own.")
    ] = "",
    hub: HubAddress = HUB,
    ca: Ca = None,
    cert: Cert = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Want a version of a model; the other models of the wish stay as they are.

    Example: outstation fleet set-model meter-digits 2.0.0 --station press-7
    """
    from outstation.wire import convert  # noqa: PLC0415  protobuf, which --help does not need
    from outstation.wire.messages import Wish  # noqa: PLC0415

    with _client(hub, ca, cert, key) as client:
        present = client.unary(convert.GET_DESIRED)(station, TIMEOUT)
        others = tuple(model for model in present.models if model.name != name)
        wish = client.unary(convert.SET_DESIRED)(Wish(station, (*others, DesiredModel(name, version))), TIMEOUT)
    if as_json:
        _print_json(wish)
        return
    print(f"{station or 'every station'}: {name} {version} (revision {wish.revision})")


def _entries(hub: str, ca: Path | None, cert: Path | None, key: Path | None) -> Sequence[StationEntry]:
    from outstation.wire import convert  # noqa: PLC0415  protobuf, which --help does not need

    with _client(hub, ca, cert, key) as client:
        return client.unary(convert.LIST_STATIONS)(None, TIMEOUT)


@contextmanager
def _client(hub: str, ca: Path | None, cert: Path | None, key: Path | None) -> Iterator[Client]:
    from outstation.wire.channel import Tls  # noqa: PLC0415  grpc, which --help does not need
    from outstation.wire.client import Client  # noqa: PLC0415

    tls = Tls(ca, cert, key) if ca or cert or key else None
    with Client(hub, tls=tls) as client:
        yield client


def _print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def _print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal; one line a row with tabs between otherwise."""
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(row))
        return
    draw(heads, rows)
