"""A station's buffer and uplink to a real hub: links so slow that only patience helps, records over a message."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hub_parts import drained, hub_provider, hub_settings, rows
from outstation.buffer import Buffer
from outstation.clock import SystemClock
from outstation.settings import BufferSettings, UplinkSettings
from outstation.sync.pacing import Flow
from outstation.sync.uplink import UplinkThread
from outstation.testing import FlakyLink
from outstation_hub import Hub
from support import wait_until


@contextmanager
def station(folder: Path, address: str, settings: UplinkSettings = UplinkSettings(), **options) -> Iterator[Buffer]:
    """A buffer that sends to the hub at *address* for as long as this lasts."""
    provider = hub_provider(address, folder, **options)
    with Buffer.open(folder / "buffer", BufferSettings(group_interval=0.01, min_free_disk_bytes=0)) as buffer:
        uplink = UplinkThread(buffer, provider, settings, SystemClock())
        uplink.start()
        try:
            yield buffer
        finally:
            uplink.close()
            provider.close()


def test_a_record_that_no_message_holds_arrives_whole(tmp_path):
    picture = random.Random(1).randbytes(3_000_000)
    settings = hub_settings(tmp_path, max_message_bytes=1 << 20)
    with Hub(settings) as hub, station(tmp_path, hub.address, max_message_bytes=1 << 20) as buffer:
        events = buffer.stream("events")
        for payload in (b"before", picture, b"after"):
            events.append(payload, attributes={"camera": "2"})
        buffer.flush()
        wait_until(lambda: events.acknowledged == 3, 30)
        drained(hub)
        assert [row["payload"] for row in rows(settings.parquet_dir)] == [b"before", picture, b"after"]
        assert hub.inbox.counts.refused == 0


@pytest.mark.parametrize("bytes_per_second", [15_000, 60_000])
def test_a_backlog_of_large_blocks_gets_through_a_slow_link(tmp_path, bytes_per_second):
    """Blocks that do not compress, and alone take longer than the keepalive waits for an answer."""
    payloads = [random.Random(n).randbytes(25_000) for n in range(bytes_per_second // 6_000)]
    with (
        Hub(hub_settings(tmp_path, keepalive_interval=1.0, keepalive_timeout=1.5)) as hub,
        FlakyLink(hub.address) as link,
    ):
        link.up(latency=0.05, bytes_per_second=bytes_per_second)
        with station(
            tmp_path, link.address, UplinkSettings(backoff_first=0.1), keepalive_interval=1.0, keepalive_timeout=1.5
        ) as buffer:
            events = buffer.stream("events")
            events.append_many(payloads)
            buffer.flush()
            wait_until(lambda: events.acknowledged == len(payloads), 60)
            drained(hub)
            assert [row["payload"] for row in rows(hub.settings.parquet_dir)] == payloads
        sent = link.bytes_forwarded[0]
        assert sent < 1.3 * sum(map(len, payloads)) + Flow.FIRST_BYTES  # little but the first try was sent twice
