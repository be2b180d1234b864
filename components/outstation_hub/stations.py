"""What the hub knows of each station: when it was last seen, and what it told last."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import msgspec

from outstation.clock import Clock
from outstation.durable import write_atomically
from outstation.errors import DiskError, ProviderUnavailableError, mapped_os_errors
from outstation.types import Reported, StreamReport
from outstation.wire.messages import StationEntry

# Names cost memory. In plain text anybody can invent them, so there is an end to it.
MAX_KNOWN = 100_000
# Of one report: streams and models of one station. What a station says beyond that is not kept.
MAX_STREAMS = 1000
MAX_MODELS = 1000


class Stations:
    """The list of stations. In memory; written to one file when :meth:`save` is called. Thread-safe."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._entries = _load(path)
        self._dirty = False

    def knows(self, station: str) -> bool:
        """Whether *station* was ever seen."""
        return station in self._entries

    def connected(self, station: str, software: str) -> None:
        """*station* has said Hello."""
        self._update(station, software=software[:200])

    def seen(self, station: str) -> None:
        """*station* has said anything."""
        self._update(station)

    def take_report(self, station: str, reported: Reported) -> None:
        """The last report wins."""
        reported = replace(reported, models=reported.models[:MAX_MODELS], streams=reported.streams[:MAX_STREAMS])
        self._update(station, reported=reported)

    def take_ledgers(self, station: str, reports: Iterable[StreamReport]) -> None:
        """The account of each stream as the uplink tells it; fresher than the last report's."""
        self._update(station, streams=tuple(reports)[:MAX_STREAMS])

    def list(self) -> tuple[StationEntry, ...]:
        """Every station that was ever seen, by name."""
        with self._lock:
            return tuple(self._entries[name] for name in sorted(self._entries))

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
            entry = self._entries.get(station)
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
