"""Parquet files, the sink that needs no server. See docs/hub.md for the schema and queries.

``FOLDER/stream=STREAM/day=YYYY-MM-DD/STATION.EPOCH.FIRST.parquet``: the day (UTC) of the records' own time, the
epoch in hexadecimal, the sequence number of the first record. The name follows from the records, so a batch that is
written again replaces itself; readers see a file whole or not at all.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any

from outstation.clock import Clock, SystemClock
from outstation.durable import make_directories, write_atomically
from outstation.errors import MissingExtraError
from outstation.wire.columns import Columns, Meta, Payloads
from outstation_hub.sinks import Arrival

try:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from outstation_hub.sinks.compaction import Compaction
except ImportError as exc:
    raise MissingExtraError("parquet", "The Parquet sink") from exc

SCHEMA = pa.schema(
    [
        ("station", pa.string()),
        ("stream", pa.string()),
        ("epoch", pa.uint64()),
        ("sequence", pa.uint64()),
        ("time", pa.timestamp("ns", tz="UTC")),
        ("content_type", pa.string()),
        ("attributes", pa.map_(pa.string(), pa.string())),
        ("payload", pa.binary()),
    ]
)
_DAY_NANO = 86_400 * 1_000_000_000
# Folders that are known to exist; a year of days of a hundred streams.
_REMEMBERED_FOLDERS = 40_000

# Blocks that arrive meanwhile wait as long; one station's files of one day may take longer.
_TIDY_SECONDS = 0.5

Key = tuple[str, str, int, int]  # station, stream, epoch, day since 1970


class ParquetSink:
    """Writes to one folder. Used by one thread."""

    name = "parquet"

    def __init__(
        self, folder: Path, *, clock: Clock = SystemClock(), compact_after: float = 3600.0, owner: str = "-"
    ) -> None:
        """*compact_after*: seconds after a day's end, and of rest, before its small files are joined.

        *owner*: one word that names who feeds this sink; files of a folder with several owners are not joined.
        """
        self._folder = folder
        self._clock = clock
        self._made: set[Path] = set()
        self._compaction = Compaction(folder, clock, compact_after, owner=owner)

    def write(self, arrivals: Sequence[Arrival]) -> None:
        self._compaction.open()
        for key, rows in _grouped(arrivals).items():
            self._write_file(key, rows)

    def tidy(self) -> None:
        """Join small files of days that are over, for about a second."""
        self._compaction.open()
        until = self._clock.monotonic() + _TIDY_SECONDS
        while self._compaction.step() and self._clock.monotonic() < until:
            pass

    def close(self) -> None:
        self._compaction.close()
        self._made.clear()

    def _write_file(self, key: Key, rows: _Rows) -> None:
        station, stream, epoch, day = key
        date = datetime.fromtimestamp(day * 86_400, timezone.utc).date()
        folder = self._folder / f"stream={stream}" / f"day={date}"
        if folder not in self._made:
            make_directories(folder)
            if len(self._made) >= _REMEMBERED_FOLDERS:
                self._made.clear()
            self._made.add(folder)
        buffer = pa.BufferOutputStream()
        pq.write_table(rows.table(station, stream, epoch), buffer, compression="zstd")
        path = folder / f"{station}.{epoch:016x}.{rows.sequences[0]:020d}.parquet"
        write_atomically(path, buffer.getvalue().to_pybytes())


@dataclass(slots=True)
class _Rows:
    """The records of one file, by column."""

    sequences: array[int] = field(default_factory=lambda: array("Q"))
    times: list[int] = field(default_factory=list)
    payloads: list[Any] = field(default_factory=list)  # Arrow's arrays, one a block
    metas: dict[Meta, int] = field(default_factory=dict)
    index: list[int] = field(default_factory=list)

    def add(self, columns: Columns, places: Sequence[int] | None = None) -> None:
        """Take the records of *columns* at *places*, or all of them."""
        known = [self.metas.setdefault(meta, len(self.metas)) for meta in columns.metas]
        own = columns.meta_index
        if places is None:
            self.sequences.extend(columns.sequences)
            self.times.extend(columns.times)
            self.payloads.append(_binary(columns.payloads))
            self.index.extend(repeat(known[0], len(columns)) if own is None else map(known.__getitem__, own))
            return
        self.sequences.extend(columns.sequences[place] for place in places)
        self.times.extend(columns.times[place] for place in places)
        self.payloads.append(_binary([columns.payloads[place] for place in places]))
        self.index.extend(known[0 if own is None else own[place]] for place in places)

    def table(self, station: str, stream: str, epoch: int) -> Any:
        count = len(self.sequences)
        index = pa.array(self.index, pa.int32())
        content_types = pa.array([content_type for content_type, _ in self.metas], pa.string())
        attributes = pa.array([list(pairs) for _, pairs in self.metas], SCHEMA.field("attributes").type)
        columns = [
            pa.repeat(pa.scalar(station, pa.string()), count),
            pa.repeat(pa.scalar(stream, pa.string()), count),
            pa.repeat(pa.scalar(epoch, pa.uint64()), count),
            pa.Array.from_buffers(pa.uint64(), count, [None, pa.py_buffer(self.sequences)]),
            pa.array(self.times, pa.int64()).cast(SCHEMA.field("time").type),
            content_types.take(index),
            attributes.take(index),
            pa.chunked_array(self.payloads),
        ]
        return pa.Table.from_arrays(columns, schema=SCHEMA)


def _binary(payloads: Sequence[bytes]) -> Any:
    """An array of Arrow's over the same memory where they lie side by side already."""
    if not isinstance(payloads, Payloads):
        return pa.array(payloads, pa.binary())
    ends = array("i", accumulate(payloads.sizes, initial=0))  # a block's body is far below 2 GiB
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(payloads.joined)]
    return pa.Array.from_buffers(pa.binary(), len(payloads), buffers)


def _grouped(arrivals: Sequence[Arrival]) -> dict[Key, _Rows]:
    groups: dict[Key, _Rows] = defaultdict(_Rows)
    for arrival in arrivals:
        for day, places in _days(arrival):
            groups[arrival.station, arrival.stream, arrival.header.epoch, day].add(arrival.columns, places)
    return groups


def _days(arrival: Arrival) -> Iterator[tuple[int, Sequence[int] | None]]:
    """The days that a block touches, each with the places of its records; None = all of them."""
    times = arrival.columns.times
    first, last = min(times) // _DAY_NANO, max(times) // _DAY_NANO
    if first == last:
        yield first, None
        return
    places: dict[int, list[int]] = defaultdict(list)
    for place, time in enumerate(times):
        places[time // _DAY_NANO].append(place)
    yield from places.items()
