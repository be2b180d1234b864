"""``outstation enroll``: get this device's certificate from a hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TIMEOUT = 20.0


def enroll(
    token: Annotated[str, typer.Argument(help="What `outstation hub enroll STATION` has printed.")],
    *,
    hub: Annotated[str, typer.Option("--hub", help="HOST:PORT of the hub's enrolment port.")],
    out: Annotated[Path, typer.Option("--out", help="The folder for certificate, key and authority.")] = Path(
        "/etc/outstation/credentials"
    ),
) -> None:
    """Make a key on this device and get the certificate that names it, for a one-time token.

    Example: outstation enroll press-7:3f2a...:9c41... --hub hub.example:8446 --out /etc/outstation/credentials
    """
    from outstation.enrolment import enroll as redeem  # noqa: PLC0415  cryptography and grpc
    from outstation.wire.channel import HUB_NAME  # noqa: PLC0415

    got = redeem(hub, token, out, TIMEOUT)
    print(f"{got.name} is enrolled. For its settings:\n")
    print(f'provider = "hub"\n\n[station]\nname = "{got.name}"\n\n[options.hub]')
    print(f'address = "{hub.rpartition(":")[0]}:8445"\nca = "{got.ca}"')
    print(f'certificate = "{got.station}"\nkey = "{got.station}"\nserver_name = "{HUB_NAME}"')
