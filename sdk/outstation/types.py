"""The values that rooms hand to each other. Frozen, typed, and free of behaviour beyond arithmetic."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from outstation.errors import InvalidNameError

STREAM_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
MODEL_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
# Certificates, MQTT topics and file names all carry a station's name, so it keeps to what each of them allows.
STATION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
# Labels are what operators group stations by; they travel in every report and are kept for each station of a fleet.
LABEL_NAME = re.compile(r"[a-z0-9][a-z0-9._/-]{0,62}")
LABEL_VALUE = re.compile(r"[^\x00-\x1f\x7f]{1,128}")
MAX_LABELS = 32

NO_ATTRIBUTES: Mapping[str, str] = {}
OCTETS = "application/octet-stream"


def checked_name(pattern: re.Pattern[str], name: str, what: str) -> str:
    """*name* if *pattern* matches all of it, else :class:`InvalidNameError` that shows the alphabet."""
    if not isinstance(name, str) or pattern.fullmatch(name) is None:
        raise InvalidNameError(f"{name!r} is no name of a {what}.", hint=f"It must match {pattern.pattern}.")
    return name


def checked_labels(labels: Mapping[str, str], what: str) -> dict[str, str]:
    """*labels* if each name and value is one and there are not too many, else :class:`InvalidNameError`."""
    if len(labels) > MAX_LABELS:
        raise InvalidNameError(f"{what} has {len(labels)} labels; {MAX_LABELS} is the most.")
    for name, value in labels.items():
        checked_name(LABEL_NAME, name, "label")
        if not isinstance(value, str) or LABEL_VALUE.fullmatch(value) is None:
            raise InvalidNameError(
                f"{value!r} is no value of the label {name!r}.", hint="1 to 128 characters on one line."
            )
    return dict(labels)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who this device is: its name at the far end, and labels that an operator groups stations by."""

    station: str
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a stream. ``sequence`` counts from 1 within (station, stream, epoch)."""

    sequence: int
    time_unix_nano: int
    payload: bytes
    content_type: str = OCTETS
    attributes: Mapping[str, str] = field(default_factory=dict)


class Durability(str, Enum):
    """What ``append`` promises when it returns."""

    RECORD = "record"  # on the disk: fdatasync has returned
    GROUP = "group"  # in memory; one fdatasync soon covers all that came within the interval
    MEMORY = "memory"  # in memory, written when convenient; a power cut may take it


class AcknowledgedBy(str, Enum):
    """Whose word lets a stream's record go, where a broker stands between the station and the far end."""

    FAR_END = "far_end"  # it is on the far end's disk
    BROKER = "broker"  # the broker has taken it, and may lose it


class WhenFull(str, Enum):
    """The answer of a stream that has reached its bound."""

    REJECT = "reject"
    DROP_OLDEST = "drop_oldest"
    DROP_LOWEST_PRIORITY = "drop_lowest_priority"
    THIN = "thin"


class DropReason(str, Enum):
    """Why a record that was offered will never be delivered."""

    EXPIRED = "expired"
    EVICTED = "evicted"
    THINNED = "thinned"
    CORRUPT = "corrupt"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True)
class Ledger:
    """The account of one stream; :attr:`balanced` holds after any crash.

    ``appended`` counts every record offered, those rejected included.
    """

    appended: int = 0
    acknowledged: int = 0
    pending: int = 0
    dropped: Mapping[DropReason, int] = field(default_factory=dict)

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        return self.appended == self.acknowledged + self.pending + self.dropped_total


class LinkState(str, Enum):
    """What the uplink knows of the far end."""

    OFFLINE = "offline"
    PROBING = "probing"
    ONLINE = "online"


@dataclass(frozen=True, slots=True)
class Link:
    """The state of the link, since when (wall clock), and why; metered: only urgent streams are sent over it."""

    state: LinkState
    since_unix_nano: int
    reason: str = ""
    metered: bool = False


class ModelPhase(str, Enum):
    """Where one version of a model stands on one device; `models/rollout.py` holds the table of moves."""

    OFFERED = "offered"
    DOWNLOADING = "downloading"
    VERIFIED = "verified"
    STAGED = "staged"
    PROBATION = "probation"
    ACTIVE = "active"
    SUPERSEDED = "superseded"  # was active; a newer one answers now
    REFUSED = "refused"  # failed a check of trust: signature, hash, manifest
    REJECTED = "rejected"  # trusted, but failed to load, its golden inputs or a budget
    ROLLED_BACK = "rolled_back"  # answered for a while, failed its probation, and was taken back


@dataclass(frozen=True, slots=True)
class ModelVersionReport:
    """One version on one device: its phase, since when, and the reason if it was turned down.

    ``saved_bytes`` did not come over the link, because a delta did.
    """

    version: str
    phase: ModelPhase
    since_unix_nano: int = 0
    reason: str = ""
    saved_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a model is computed: the accelerator in use, and for each that was preferred to it, why it is not."""

    accelerator: str
    fallbacks: tuple[str, ...] = ()
    runtime: str = "onnx"


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model on one device: the version that answers ("" = none) and every version that was tried.

    ``placement`` is of the version that answers; None until a process has loaded it.
    """

    name: str
    active: str = ""
    versions: tuple[ModelVersionReport, ...] = ()
    placement: Placement | None = None


LATEST = "latest"


@dataclass(frozen=True, slots=True)
class DesiredModel:
    """What the operator wants: a version, or :data:`LATEST` for the newest that passes every check."""

    name: str
    version: str = LATEST


@dataclass(frozen=True, slots=True)
class Desired:
    """The operator's wish for one station. ``revision`` grows with every change at the far end."""

    models: tuple[DesiredModel, ...] = ()
    revision: int = 0


@dataclass(frozen=True, slots=True)
class StreamReport:
    """One stream as the station sees it."""

    stream: str
    epoch: int
    ledger: Ledger
    pending_bytes: int = 0
    oldest_time_unix_nano: int = 0


@dataclass(frozen=True, slots=True)
class Reported:
    """What a station tells of itself: link, backlog, versions, labels. ``revision`` is the desired one it acts on."""

    models: tuple[ModelReport, ...] = ()
    streams: tuple[StreamReport, ...] = ()
    link: Link | None = None
    revision: int = 0
    time_unix_nano: int = 0
    software: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StationStatus:
    """What a running station is doing: who it is, and what it would report to the far end now."""

    station: str
    provider: str
    pid: int
    started_unix_nano: int
    reported: Reported
