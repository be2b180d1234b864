"""The Parquet sink: named from what it holds, so that a replay replaces itself."""

from __future__ import annotations

import pyarrow.dataset
import pytest

from hub_parts import rows
from outstation.errors import DiskError
from outstation.wire import Columns, decode, encode
from outstation_hub.sinks import Arrival
from outstation_hub.sinks.parquet import SCHEMA, ParquetSink

DAY = 86_400 * 1_000_000_000


def arrival(first, count, *, station="press-7", stream="events", epoch=7, times=None):
    numbers = range(first, first + count)
    times = times or [n for n in numbers]  # noqa: C416
    header, columns = decode(encode(Columns(numbers, times, [b"%d" % n for n in numbers]), epoch=epoch))
    return Arrival(station, stream, header, columns)


def names(folder):
    return sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != ".lock"
    )


def test_a_file_is_named_from_station_epoch_and_first_number_by_stream_and_day(tmp_path):
    ParquetSink(tmp_path).write([arrival(3, 2), arrival(5, 2), arrival(1, 1, station="a.b-c_D", epoch=255)])
    assert names(tmp_path) == [
        "stream=events/day=1970-01-01/a.b-c_D.00000000000000ff.00000000000000000001.parquet",
        "stream=events/day=1970-01-01/press-7.0000000000000007.00000000000000000003.parquet",
    ]
    assert [row["sequence"] for row in rows(tmp_path)] == [1, 3, 4, 5, 6]


def test_a_replay_with_other_borders_leaves_each_record_once(tmp_path):
    sink = ParquetSink(tmp_path)
    arrivals = [arrival(n, 10, stream=stream) for n in range(1, 100, 10) for stream in ("events", "readings")]
    for border in (3, 10, 7, 20):
        sink.write(arrivals[:border])  # and the crash comes before it is confirmed
    sink.write(arrivals[:12])
    sink.write(arrivals[12:])
    for stream in ("events", "readings"):
        assert [row["sequence"] for row in rows(tmp_path) if row["stream"] == stream] == list(range(1, 101))


def test_records_of_one_block_go_to_the_days_they_are_of(tmp_path):
    ParquetSink(tmp_path).write([arrival(1, 4, times=[5, DAY + 1, 7, -1])])
    assert names(tmp_path) == [
        "stream=events/day=1969-12-31/press-7.0000000000000007.00000000000000000004.parquet",
        "stream=events/day=1970-01-01/press-7.0000000000000007.00000000000000000001.parquet",
        "stream=events/day=1970-01-02/press-7.0000000000000007.00000000000000000002.parquet",
    ]
    assert [(row["sequence"], row["time"]) for row in rows(tmp_path)] == [(1, 5), (2, DAY + 1), (3, 7), (4, -1)]


def test_blocks_with_different_attributes_share_a_file(tmp_path):
    one = Columns([1, 2], [1, 2], [b"a", b"b"], [1, 0], [("x", ()), ("y", (("k", "v"),))])
    two = Columns([3], [3], [b"c"], None, [("y", (("k", "w"),))])
    made = [Arrival("s", "events", decode(encode(c, epoch=1))[0], c) for c in (one, two)]
    ParquetSink(tmp_path).write(made)
    assert [(row["content_type"], row["attributes"]) for row in rows(tmp_path)] == [
        ("y", [("k", "v")]),
        ("x", []),
        ("y", [("k", "w")]),
    ]


def test_readers_see_whole_files_and_the_partitions(tmp_path):
    ParquetSink(tmp_path).write([arrival(1, 2)])
    (tmp_path / "stream=events/day=1970-01-01/x.parquet.tmp").write_bytes(b"half")
    dataset = pyarrow.dataset.dataset(
        sorted(tmp_path.rglob("*.parquet")), partitioning="hive", partition_base_dir=str(tmp_path)
    )
    assert dataset.to_table().num_rows == 2
    assert dataset.schema.field("time").type == SCHEMA.field("time").type
    assert "day" in dataset.schema.names


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError):
        ParquetSink(tmp_path / "file").write([arrival(1, 1)])
