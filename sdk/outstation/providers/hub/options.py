"""Where the hub is, and how each side knows the other."""

from __future__ import annotations

from pathlib import Path

from outstation.errors import (
    SettingsError,
)
from outstation.settings import Seconds, Size, Table
from outstation.shapes import learn
from outstation.wire.address import is_loopback
from outstation.wire.channel import Tls


class HubOptions(Table, frozen=True):
    """``[options.hub]``: where the hub is and how each side knows the other. Paths are PEM files."""

    address: str = "127.0.0.1:8445"  # host:port
    ca: str = ""  # who signed the hub's certificate; "" = the authorities this machine trusts
    certificate: str = ""  # the station's own; its common name is the station's name
    key: str = ""
    server_name: str = ""  # the name in the hub's certificate, if it is not the host in `address`
    insecure: bool = False  # plain text to another machine: for private networks only
    max_message_bytes: Size = 16 << 20  # what the hub takes in one message
    keepalive_interval: Seconds = 7.0  # seconds of silence before the hub is asked whether it lives
    keepalive_timeout: Seconds = 3.0  # seconds it has to answer


def tls_of(options: HubOptions) -> Tls | None:
    if ":" not in options.address:
        raise SettingsError(f"options.hub.address {options.address!r} is no host:port.")
    if options.insecure or (is_loopback(options.address) and not options.ca and not options.certificate):
        return None
    if not options.certificate or not options.key:
        raise SettingsError(
            f"The hub at {options.address} is another machine, and there is no certificate for it.",
            hint="Set ca, certificate and key in [options.hub], or insecure = true on a network that you trust.",
        )
    return Tls(Path(options.ca) if options.ca else None, Path(options.certificate), Path(options.key))


learn(HubOptions)
