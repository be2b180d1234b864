"""What ``outstation fleet`` shows, as rows: pure, from what the hub told."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from outstation.cli.tables import ago, placed
from outstation.types import LATEST, Ledger, ModelPhase

if TYPE_CHECKING:
    from outstation.wire.messages import Account, Applied, HubStatus, StationEntry, WishEntry

NOTHING = "-"
Row = Sequence[object]

# A terminal too narrow for all columns shows these alone; what is left out is in `fleet show`, and in --json.
STATION_COLUMNS = ("station", "seen", "link", "waiting", "bytes", "dropped", "models", "labels", "software")
NARROW_COLUMNS = ("station", "seen", "link", "waiting", "models")
NARROW = 110  # characters

_TURNED_DOWN = {ModelPhase.REFUSED, ModelPhase.REJECTED, ModelPhase.ROLLED_BACK}


def station_row(entry: StationEntry) -> Row:
    """One station in :data:`STATION_COLUMNS`."""
    streams = entry.reported.streams
    dropped: Counter[str] = Counter()
    for stream in streams:
        dropped.update({reason.value: count for reason, count in stream.ledger.dropped.items() if count})
    return (
        entry.station,
        f"{ago(entry.last_seen_unix_nano)} ago",
        link(entry),
        sum(stream.ledger.pending for stream in streams),
        size(sum(stream.pending_bytes for stream in streams)),
        counted(dropped),
        ", ".join(map(_model, _models(entry))) or NOTHING,
        pairs(entry.reported.labels),
        entry.reported.software or NOTHING,
    )


def narrow_row(entry: StationEntry) -> Row:
    """One station in :data:`NARROW_COLUMNS`."""
    row = dict(zip(STATION_COLUMNS, station_row(entry), strict=True))
    return [row[column] for column in NARROW_COLUMNS]


def link(entry: StationEntry) -> str:
    """Whether the station is connected; and whether two devices use its name."""
    word = "connected" if entry.connected else "away"
    return f"{word}, two devices" if entry.counts.get("two_devices") else word


def _models(entry: StationEntry) -> list[tuple[str, str, str, str]]:
    """(name, active, wanted, phase of the wanted version) of each model that is there or wanted, by name."""
    reports = {model.name: model for model in entry.reported.models}
    wishes = {applied.model: applied for applied in entry.applied}
    found = []
    for name in sorted(reports.keys() | wishes.keys()):
        report, wish = reports.get(name), wishes.get(name)
        wanted = wish.version if wish else ""
        versions = report.versions if report else ()
        phase = next((known.phase.value for known in versions if known.version == wanted), "")
        found.append((name, report.active if report else "", wanted, phase))
    return found


def _model(model: tuple[str, str, str, str]) -> str:
    name, active, wanted, phase = model
    if not _lags(active, wanted):
        return f"{name} {active or NOTHING}"
    return f"{name} {active or NOTHING} -> {wanted}{f' ({phase})' if phase else ''}"


def _lags(active: str, wanted: str) -> bool:
    return bool(wanted) and active != wanted and (wanted != LATEST or not active)


def is_behind(entry: StationEntry) -> bool:
    """Whether a version that is wanted does not answer yet. Of "latest" only that any does is known here."""
    return any(_lags(active, wanted) for _, active, wanted, _ in _models(entry))


def has_labels(entry: StationEntry, where: Mapping[str, str]) -> bool:
    """Whether the station has every label of *where*."""
    return all(entry.reported.labels.get(name) == value for name, value in where.items())


def summary(shown: Sequence[StationEntry], known: int) -> str:
    """The line under the list."""
    parts = [f"{len(shown):,} of {known:,} stations" if len(shown) < known else f"{known:,} stations"]
    parts.append(f"{sum(entry.connected for entry in shown):,} connected")
    behind = sum(map(is_behind, shown))
    failed = sum(any(v.phase in _TURNED_DOWN for m in entry.reported.models for v in m.versions) for entry in shown)
    parts += [f"{behind:,} behind"] if behind else []
    parts += [f"{failed:,} turned a version down"] if failed else []
    return ", ".join(parts)


# -- one station -------------------------------------------------------------------------------------------------

WISH_OF_STATION_COLUMNS = ("model", "answers", "wanted", "because of the wish for", "revision")
VERSION_COLUMNS = ("model", "version", "phase", "computed by", "reason")
NARROW_ACCOUNT_COLUMNS = ("stream", "appended", "waiting", "came", "missing")
ACCOUNT_COLUMNS = ("stream", "appended", "acknowledged", "waiting", "dropped", "came", "refused", "missing")


def wish_rows(entry: StationEntry) -> list[Row]:
    """Each model, what is wanted, and which wish says so."""
    wishes = {applied.model: applied for applied in entry.applied}
    return [
        (name, active or NOTHING, wanted or NOTHING, _because(wishes.get(name)), _revision(wishes.get(name)))
        for name, active, wanted, _ in _models(entry)
    ]


def _because(applied: Applied | None) -> str:
    if applied is None:
        return NOTHING
    return f"{applied.target}, rollout to {applied.percent:g} %" if applied.percent else str(applied.target)


def _revision(applied: Applied | None) -> object:
    return NOTHING if applied is None else applied.revision


def version_rows(entry: StationEntry) -> list[Row]:
    return [
        (
            model.name,
            version.version,
            version.phase.value,
            (placed(model.placement) if version.version == model.active else None) or NOTHING,
            version.reason or NOTHING,
        )
        for model in entry.reported.models
        for version in model.versions
    ]


def account_rows(entry: StationEntry) -> list[Row]:
    """The account of each life of each stream: what the station says, then what came."""
    return [_account_row(account) for account in entry.accounts]


def _account_row(account: Account) -> Row:
    report, ledger = account.report, account.report.ledger
    stream = f"{report.stream} ({report.epoch:016x}, an earlier life)" if account.earlier else report.stream
    return (
        stream,
        ledger.appended,
        ledger.acknowledged,
        ledger.pending,
        dropped(ledger),
        account.records,
        account.refused,
        missing(account),
    )


def narrow_account_rows(entry: StationEntry) -> list[Row]:
    """As :func:`account_rows`, in :data:`NARROW_ACCOUNT_COLUMNS`."""
    rows = (dict(zip(ACCOUNT_COLUMNS, row, strict=True)) for row in account_rows(entry))
    return [[row[column] for column in NARROW_ACCOUNT_COLUMNS] for row in rows]


def missing(account: Account) -> str:
    """Numbers that did not come though later ones did, and whether it is known why."""
    if not account.missing:
        return NOTHING
    if not account.unexplained:
        return f"{account.missing:,}, all explained"
    return f"{account.missing:,}, {account.unexplained:,} not explained yet"


def dropped(ledger: Ledger) -> str:
    return counted({reason.value: count for reason, count in ledger.dropped.items() if count})


# -- wishes, and the hub -----------------------------------------------------------------------------------------

WISH_COLUMNS = ("model", "version", "for", "stages", "stations", "answers at", "failed at", "revision")
FAILURE_COLUMNS = ("station", "phase", "reason")


def wish_row(entry: WishEntry) -> Row:
    name = entry.wish.name
    stations = f"{entry.deciding:,} of {entry.matching:,}"
    return (
        name.model,
        entry.wish.version,
        str(name.target),
        stages(entry),
        stations,
        entry.active,
        entry.failed,
        entry.revision,
    )


def stages(entry: WishEntry) -> str:
    """How a wish goes out, and whether it still does."""
    if entry.wish.stages is None:
        return NOTHING
    return f"{entry.wish.stages.percent:g} %, {entry.state}"


def sentence(entry: WishEntry) -> str:
    """A wish that was just made."""
    wish, way = entry.wish, ""
    if wish.stages is not None:
        way = f" to {wish.stages.percent:g} %"
    text = f"{wish.name.target}: {wish.name.model} {wish.version}{way} (revision {entry.revision})"
    return f"{text}; it decides for {entry.deciding:,} of {entry.matching:,} stations known"


def bound(entry: WishEntry) -> str:
    """When a rollout stops, in words."""
    stages = entry.wish.stages
    if stages is None:
        return ""
    words = [f"{stages.stop_after} stations"] if stages.stop_after else []
    words += [f"{stages.stop_after_percent:g} % of those chosen"] if stages.stop_after_percent else []
    return f"stops when {' or '.join(words)} turned it down"


def hub_rows(status: HubStatus) -> list[Row]:
    return [(what.replace("_", " "), count) for what, count in sorted(status.counts.items())]


# -- words -------------------------------------------------------------------------------------------------------


def pairs(labels: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(labels.items())) or NOTHING


def counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{what} {count:,}" for what, count in counts.items()) or NOTHING


def size(count: int) -> str:
    """Bytes for people: "0 B", "1.5 MB"."""
    amount = float(count)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def plain(rows: Iterable[Row]) -> list[list[str]]:
    """*rows* as text for a program: no separators in numbers."""
    return [[str(cell) for cell in row] for row in rows]
