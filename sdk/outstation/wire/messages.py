"""What stations, hubs and operators say to each other beyond the values of :mod:`outstation.types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from outstation.provider import Acknowledgement, Message
from outstation.types import DesiredModel, DropReason, Ledger, Reported, StreamReport


@dataclass(frozen=True, slots=True)
class Hello:
    """The first word of a station: who it is and what it runs. ``instance`` is random, one for each run of it."""

    station: str
    software: str = ""
    instance: str = ""


@dataclass(frozen=True, slots=True)
class Welcome:
    """The hub's answer to :class:`Hello`: send, and no more than so many blocks in one message (0 = one)."""

    hub: str = ""
    max_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Messages:
    """Several messages that go as one, in this order."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Ledgers:
    """The account of every stream, for the far end to know what is missing and why."""

    reports: tuple[StreamReport, ...]


Upward = Hello | Message | Messages | Ledgers
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
    """All that an operator wants of *station*; "" = of every station."""

    station: str
    models: tuple[DesiredModel, ...]


@dataclass(frozen=True, slots=True)
class Target:
    """Whom a wish is for: one station, or those that have every label of ``where``; neither = every station."""

    station: str = ""
    where: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.station:
            return f"station {self.station}"
        return ", ".join(f"{name}={value}" for name, value in sorted(self.where.items())) or "every station"


@dataclass(frozen=True, slots=True)
class WishName:
    """A wish is known by its model and whom it is for."""

    model: str
    target: Target = field(default_factory=Target)


@dataclass(frozen=True, slots=True)
class WishStages:
    """To ``percent`` of the target, until so many stations, or such a share of those chosen, have turned it down."""

    percent: float
    stop_after: int = 1
    stop_after_percent: float = 0.0


@dataclass(frozen=True, slots=True)
class ModelWish:
    """A version of a model for a target; at once, or in stages."""

    name: WishName
    version: str
    stages: WishStages | None = None


@dataclass(frozen=True, slots=True)
class Steering:
    """What to do with a rollout: "resume" or "end"."""

    name: WishName
    action: str


@dataclass(frozen=True, slots=True)
class Failure:
    """A station that turned a version down."""

    station: str
    phase: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class WishEntry:
    """A wish and how far it is. ``state`` of a rollout: running or stopped, for ``reason``; else "".

    Of the stations known, ``matching`` are those that it is for, ``deciding`` those of them for which no other wish
    comes before it, ``active`` and ``failed`` those of the latter where its version answers, or was turned down.
    """

    wish: ModelWish
    revision: int
    since_unix_nano: int = 0
    state: str = ""
    reason: str = ""
    matching: int = 0
    deciding: int = 0
    active: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """The wish that decides for one model of a station. ``percent`` of a rollout, else 0."""

    model: str
    version: str
    target: Target
    revision: int
    percent: float = 0.0


@dataclass(frozen=True, slots=True)
class Account:
    """One life of a stream: what the station says of it, and what came.

    ``through`` is the highest number that came and ``records`` how many did; ``refused`` numbers were refused for
    good and lie in the station's dead letters. ``earlier``: the station has begun the stream anew since.
    """

    report: StreamReport
    through: int = 0
    records: int = 0
    refused: int = 0
    last_unix_nano: int = 0
    earlier: bool = False

    @property
    def missing(self) -> int:
        """Numbers up to the highest one that did not come."""
        return max(0, self.through - self.records)

    @property
    def unexplained(self) -> int:
        """Those of them that neither the station's ledger nor a refusal explains; its last word may be a minute old."""
        return max(0, self.missing - self.refused - _numbers_dropped(self.report.ledger))

    @property
    def complete(self) -> bool:
        """Everything that was appended is here, or is known not to come, and for what reason.

        What a station dropped while it was under way may be in both: it came, and the station does not know.
        """
        ledger = self.report.ledger
        return not ledger.pending and self.records + self.refused + ledger.dropped_total >= ledger.appended


def _numbers_dropped(ledger: Ledger) -> int:
    # What was rejected never had a number, so it leaves no gap.
    return sum(count for reason, count in ledger.dropped.items() if reason is not DropReason.REJECTED)


@dataclass(frozen=True, slots=True)
class StationEntry:
    """One station as the hub knows it. ``counts``: what was refused of it since the hub started, by what it was."""

    station: str
    reported: Reported
    last_seen_unix_nano: int
    connected: bool = False
    applied: tuple[Applied, ...] = ()
    accounts: tuple[Account, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StationsPage:
    """Stations by name; ``more`` = ask again, after the last one."""

    stations: tuple[StationEntry, ...]
    more: bool = False


@dataclass(frozen=True, slots=True)
class StationsRequest:
    """The stations behind *after* by name, or *station* alone."""

    after: str = ""
    station: str = ""


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
    """What a hub has done and refused since it started."""

    software: str
    started_unix_nano: int
    stations: int
    connected: int
    counts: Mapping[str, int]
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
