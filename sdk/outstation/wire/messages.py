"""What stations, hubs and operators say to each other beyond the values of :mod:`outstation.types`."""

from __future__ import annotations

from dataclasses import dataclass

from outstation.provider import Acknowledgement, Message
from outstation.types import DesiredModel, Reported, StreamReport


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word of a station: who it is and what it runs."""

    station: str
    software: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The hub's answer to :class:`Hello`: send."""

    hub: str = ""


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The account of every stream, for the far end to know what is missing and why."""

    reports: tuple[StreamReport, ...]


Upward = Hello | Message | Ledgers
Downward = Welcome | Acknowledgement


@dataclass(frozen=True, slots=True)
class StationReport:
    """A station's report of itself, on its way to the fleet service."""

    station: str
    reported: Reported


@dataclass(frozen=True, slots=True)
class FetchRequest:
    """One file of the hub's repository, from a byte offset on."""

    station: str
    path: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Wish:
    """What an operator wants of *station*; "" = every station that has no wish of its own."""

    station: str
    models: tuple[DesiredModel, ...]


@dataclass(frozen=True, slots=True)
class StationEntry:
    """One station as the hub knows it."""

    station: str
    reported: Reported
    last_seen_unix_nano: int


@dataclass(frozen=True, slots=True)
class SinkStatus:
    """One sink of a hub, or the log that several hubs share."""

    name: str
    waiting_blocks: int = 0
    written_unix_nano: int = 0  # when it last took a batch; 0 = not since the hub started
    failure: str = ""  # "" = it takes what comes
    failing_since_unix_nano: int = 0
    set_aside: int = 0  # what it will never take; kept beside its cursor


@dataclass(frozen=True, slots=True)
class HubStatus:
    """How a hub is; counts are since it started."""

    software: str
    connected: int = 0
    blocks: int = 0
    records: int = 0
    duplicates: int = 0
    refused: int = 0
    damaged: int = 0
    sinks: tuple[SinkStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class EnrollRequest:
    """A device asks for its certificate; ``secret`` is empty when it renews with the one it has."""

    station: str
    request: str  # PKCS#10 in PEM
    secret: bytes = b""


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """Both in PEM: the device's certificate, and the authority that signed it and the hub's."""

    certificate: str
    authority: str
