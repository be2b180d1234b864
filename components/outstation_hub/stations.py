"""What the hub knows of each station: when it was last seen, and what it told last."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from outstation.clock import Clock
from outstation.durable import write_atomically
from outstation.errors import DiskError, ProviderUnavailableError, mapped_os_errors
from outstation.shapes import learn
from outstation.types import LABEL_NAME, LABEL_VALUE, MAX_LABELS, Reported, StreamReport
from outstation.wire.messages import StationEntry

# Names cost memory. In plain text anybody can invent them, so there is an end to it.
MAX_KNOWN = 100_000
# Of one report: streams and models of one station. What a station says beyond that is not kept.
MAX_STREAMS = 1000
MAX_MODELS = 1000
_NOBODY = Reported()

# (station, what was known before or None for its first word, what is known now)
Told = Callable[[str, Reported | None, Reported], None]


class Stations:
    """The list of stations. In memory; written to one file when :meth:`save` is called. Thread-safe."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._entries = _load(path)
        self._counts: dict[str, Counter[str]] = {}  # by station, of what was refused of it
        self._listeners: list[Told] = []
        self._dirty = False

    def knows(self, station: str) -> bool:
        """Whether *station* was ever seen."""
        return station in self._entries

    def on_told(self, listener: Told) -> None:
        """Call *listener* after each word of a station about itself, on the thread that brought it."""
        self._listeners.append(listener)

    def connected(self, station: str, software: str) -> None:
        """*station* has said Hello."""
        self._update(station, software=software[:200])

    def seen(self, station: str) -> None:
        """*station* has said anything."""
        self._update(station)

    def take_report(self, station: str, reported: Reported) -> None:
        """The last report wins."""
        reported = replace(
            reported,
            models=reported.models[:MAX_MODELS],
            streams=reported.streams[:MAX_STREAMS],
            labels=_sane(reported.labels),
        )
        self._update(station, reported=reported)

    def take_ledgers(self, station: str, reports: Iterable[StreamReport]) -> None:
        """The account of each stream as the uplink tells it; fresher than the last report's."""
        self._update(station, streams=tuple(reports)[:MAX_STREAMS])

    def count(self, station: str, what: str) -> None:
        """Something of *station* was refused; *what* is one of few words."""
        with self._lock:
            if station in self._entries:
                self._counts.setdefault(station, Counter())[what] += 1

    def counts(self, station: str) -> Mapping[str, int]:
        """What was refused of *station* since the hub started, by the words of :meth:`count`."""
        with self._lock:
            return dict(self._counts.get(station, {}))

    def reported(self, station: str) -> Reported:
        """What *station* told last; an empty report of one that is not known."""
        entry = self._entries.get(station)
        return _NOBODY if entry is None else entry.reported

    def has_reported(self, station: str) -> bool:
        """Whether a whole report of *station* ever came, and its labels with it."""
        return self.reported(station).time_unix_nano != 0

    def list(self) -> tuple[StationEntry, ...]:
        """Every station that was ever seen, by name."""
        with self._lock:
            return tuple(self._entries[name] for name in sorted(self._entries))

    def __len__(self) -> int:
        return len(self._entries)

    def save(self) -> None:
        """Write the list if it has changed. One thread at a time. Raises DiskFullError or DiskError."""
        with self._lock:
            if not self._dirty:
                return
            self._dirty = False
            entries = list(self._entries.values())
        try:
            write_atomically(self._path, msgspec.json.encode(entries))
        except BaseException:
            self._dirty = True
            raise

    def _update(
        self,
        station: str,
        *,
        software: str = "",
        reported: Reported | None = None,
        streams: tuple[StreamReport, ...] | None = None,
    ) -> None:
        now = self._clock.time_unix_nano()
        with self._lock:
            before = entry = self._entries.get(station)
            if entry is None:
                if len(self._entries) >= MAX_KNOWN:
                    raise ProviderUnavailableError(f"This hub knows {MAX_KNOWN} stations and takes no more.")
                entry = StationEntry(station, Reported(), now)
            known = entry.reported if reported is None else reported
            if streams is not None:
                known = replace(known, streams=streams)
            if software:
                known = replace(known, software=software)
            self._entries[station] = StationEntry(station, known, now)
            self._dirty = True
        if reported is not None or streams is not None:
            for listener in self._listeners:
                listener(station, None if before is None else before.reported, known)


def _sane(labels: Mapping[str, str]) -> dict[str, str]:
    """Those of *labels* that are such, and no more than a station may have."""
    sound = ((name, labels[name]) for name in sorted(labels))
    kept = [(name, value) for name, value in sound if LABEL_NAME.fullmatch(name) and LABEL_VALUE.fullmatch(value)]
    return dict(kept[:MAX_LABELS])


def _load(path: Path) -> dict[str, StationEntry]:
    if not path.exists():
        return {}
    with mapped_os_errors(doing="read the list of stations", path=path):
        data = path.read_bytes()
    try:
        entries = msgspec.json.decode(data, type=list[StationEntry])
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DiskError(f"{path} is no list of stations: {exc}.", hint="Remove it; stations tell again.") from exc
    return {entry.station: entry for entry in entries}


learn(StationEntry)
