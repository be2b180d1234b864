"""The queries of docs/hub.md, as DuckDB runs them."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from outstation.testing import FakeClock
from outstation.wire import Columns, decode, encode
from outstation_hub.sinks import Arrival
from outstation_hub.sinks.compaction import Compaction
from outstation_hub.sinks.parquet import ParquetSink

if not os.environ.get("CI"):
    pytest.importorskip("duckdb")

import duckdb

PAGE = Path(__file__).parents[2] / "docs/hub.md"
START = 1_780_000_000 * 10**9  # in 2026


@pytest.fixture(params=["as written", "compacted"])
def answers(request, tmp_path):
    """What each query of the page finds among 2 stations of 30 readings each."""
    sink = ParquetSink(tmp_path)
    for n in range(1, 31):
        columns = Columns(
            [n], [START + n], [b'{"value": %d}' % n], None, [("application/json", (("event", "reading"),))]
        )
        for station in ("press-7", "press-8"):
            sink.write([Arrival(station, "events", *decode(encode(columns, epoch=2**63 + 5)))])
    sink.close()
    if request.param == "compacted":
        clock = FakeClock()
        clock.advance(4e9)
        work = Compaction(tmp_path, clock, 1.0)
        work.open()
        while work.step():
            pass
        work.close()
        assert len(list(tmp_path.rglob("*.parquet"))) == 2
    (block,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), flags=re.S)
    queries = [query.strip() for query in block.split(";") if query.strip()]
    with duckdb.connect() as database:
        return [database.execute(query.replace("/srv/readings", str(tmp_path))).fetchall() for query in queries]


def test_the_page_counts_per_station_and_reads_values(answers):
    by_station, values, doubled = answers
    assert sorted(row[:2] for row in by_station) == [("press-7", 30), ("press-8", 30)]
    assert len(values) == 60
    assert [row[3] for row in values if row[0] == "press-7"] == [str(n) for n in range(1, 31)]
    assert doubled == []
