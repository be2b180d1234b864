"""What the commands of ``outstation fleet`` share: which hub, who asks, and how answers are printed."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
import typer

from outstation.cli import fleet_view as view
from outstation.cli.tables import draw
from outstation.errors import InvalidInputError

if TYPE_CHECKING:
    from outstation.wire.client import Client
    from outstation.wire.messages import WishEntry

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
Where = Annotated[
    list[str] | None,
    typer.Option(
        "--where", help="LABEL=VALUE; stations that have it. Repeated: that have all of them.", show_default=False
    ),
]


@contextmanager
def connected(access: Access) -> Iterator[Client]:
    from outstation.wire.channel import Tls  # noqa: PLC0415  grpc, which --help does not need
    from outstation.wire.client import Client  # noqa: PLC0415

    tls = Tls(access.ca, access.cert, access.key) if access.ca or access.cert or access.key else None
    with Client(access.hub, tls=tls) as client:
        yield client


def wishes_at(access: Access) -> tuple[WishEntry, ...]:
    from outstation.wire import fleet  # noqa: PLC0415  protobuf, which --help does not need

    with connected(access) as client:
        return client.unary(fleet.LIST_WISHES)(None, TIMEOUT)


def labels_of(where: list[str] | None) -> dict[str, str]:
    labels: dict[str, str] = {}
    for condition in where or []:
        name, separator, value = condition.partition("=")
        if not separator or not name or not value:
            raise InvalidInputError(f"{condition!r} is no condition.", hint="Write --where LABEL=VALUE.")
        if labels.setdefault(name, value) != value:
            raise InvalidInputError(f"No station has two values of the label {name!r}.")
    return labels


def print_json(value: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def print_table(heads: Sequence[str], rows: Sequence[view.Row], title: str = "") -> None:
    """Print a table on a terminal; one line a row with tabs between otherwise."""
    if not rows:
        return
    if not sys.stdout.isatty():
        for row in view.plain(rows):
            print("\t".join(row))
        return
    draw(heads, rows, title=title)
