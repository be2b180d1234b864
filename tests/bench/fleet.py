"""Many stations on one hub process: steady, and all at once after an outage; how it grows from 10 to 1,000.

The stations are calls of grpcio's asyncio client in processes of their own, each with a connection of its own, that
send blocks as a station does and wait for the hub's acknowledgement, which follows its fdatasync. Hub and stations
share the machine, so a figure is what both can do together.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import report
from buffer import PLACE, telemetry
from peers import servers
from report import Row

from outstation.provider import Acknowledgement, Message
from outstation.wire import convert
from outstation.wire.block import encode
from outstation.wire.columns import Columns
from outstation.wire.messages import Hello, Messages, Welcome

COUNTS = (10, 100, 1000)
PROCESSES = 2
RECORDS = 20  # in a block: what a station has to say in a second or two
STEADY_SECONDS = 20.0
STEADY_INTERVAL = 2.0  # seconds between two blocks of one station
CONNECTING_SECONDS = 10.0  # before a steady fleet begins
TOGETHER = 16  # blocks of a backlog in one message, as a station's outbox has them
BACKLOG_BLOCKS = 30  # of each station, after an outage of a minute; a station's window holds 64
RECORDS_OF_BACKLOG = 200
PATIENCE = 300.0  # seconds that the whole fleet may take


@dataclass
class Station:
    """One station: what it sends, and how long each block waited for its acknowledgement.

    As the provider does, it sends nothing before the hub's welcome.
    """

    name: str
    address: str
    blocks: list[bytes]
    records_a_block: int
    interval: float  # seconds between blocks; 0 = as fast as they are taken
    connected_after: float = 0.0  # seconds from when it began to connect
    lost: int = 0  # connections

    def message(self, number: int) -> Message:
        first = 1 + number * self.records_a_block
        return Message("events", 7, first, first + self.records_a_block - 1, self.blocks[number])

    async def run(self, connect_at: float, send_at: float) -> list[float]:
        """Send everything, over as many connections as it takes; the seconds that each block waited."""
        await asyncio.sleep(max(0.0, connect_at - time.time()))
        waited: list[float] = []
        while len(waited) < len(self.blocks):
            if not await self._connect(connect_at, send_at, waited):
                self.lost += 1
                await asyncio.sleep(random.random())
        return waited

    async def _connect(self, connect_at: float, send_at: float, waited: list[float]) -> bool:
        """False when the connection was lost: a hub that is overrun turns them away."""
        try:
            await self._connection(connect_at, send_at, waited)
        except grpc.aio.AioRpcError:
            return False
        return True

    async def _connection(self, connect_at: float, send_at: float, waited: list[float]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        sent: dict[int, float] = {}
        welcome = asyncio.Event()
        next_block = len(waited)

        async def messages() -> AsyncIterator[bytes]:
            yield convert.PUSH.request.encode(Hello(self.name))
            await welcome.wait()
            await asyncio.sleep(max(0.0, send_at - time.time()))
            together = 1 if self.interval else TOGETHER
            for first in range(next_block, len(self.blocks), together):
                messages = tuple(map(self.message, range(len(self.blocks))[first : first + together]))
                sent.update(dict.fromkeys((message.last_sequence for message in messages), time.perf_counter()))
                yield convert.PUSH.request.encode(Messages(messages) if len(messages) > 1 else messages[0])
                if self.interval:
                    await asyncio.sleep(self.interval)

        async with grpc.aio.insecure_channel(self.address, options) as channel:
            async for data in channel.stream_stream(convert.PUSH.path)(messages()):
                answer = convert.PUSH.response.decode(data)
                if isinstance(answer, Welcome):
                    self.connected_after = time.time() - connect_at
                    welcome.set()
                    continue
                assert isinstance(answer, Acknowledgement)
                assert not answer.refused
                done = [number for number in sent if number <= answer.through]
                waited += [time.perf_counter() - sent.pop(number) for number in done]
                if len(waited) == len(self.blocks):
                    return


def block(records: int, first: int) -> bytes:
    work = telemetry(records)
    columns = Columns(range(first, first + records), work.times, work.payloads)
    return encode(columns, epoch=7, level=1)


async def stations(address: str, prefix: str, count: int, start_at: float, *, steady: bool) -> dict[str, list[float]]:
    records = RECORDS if steady else RECORDS_OF_BACKLOG
    blocks = int(STEADY_SECONDS / STEADY_INTERVAL) if steady else BACKLOG_BLOCKS
    made = [block(records, 1 + number * records) for number in range(blocks)]
    interval = STEADY_INTERVAL if steady else 0.0
    fleet = [Station(f"{prefix}-{n}", address, made, records, interval) for n in range(count)]
    # Steady stations are connected already and do not beat in step; those that come back after an outage do.
    connect_at = start_at - CONNECTING_SECONDS if steady else start_at
    spread = STEADY_INTERVAL / count if steady else 0.0
    results = await asyncio.gather(*(one.run(connect_at, start_at + n * spread) for n, one in enumerate(fleet)))
    return {
        "waited": [seconds for result in results for seconds in result],
        "connected_after": [station.connected_after for station in fleet],
        "lost": [float(station.lost) for station in fleet],
    }


def measured(count: int, *, steady: bool) -> dict[str, float]:
    """Records a second, p50 and p99 of the acknowledgement and of connecting in seconds, megabytes of the hub."""
    shares = [count // PROCESSES] * PROCESSES
    with folder() as place, servers.hub(place / "hub", "--drain-interval", "5") as (address, hub):
        start_at = time.time() + 2.0 + count / 500 + (CONNECTING_SECONDS if steady else 0.0)
        command = [sys.executable, __file__, "--stations", address, str(start_at), "steady" if steady else "backlog"]
        workers = [
            subprocess.Popen([*command, f"s{n}", str(share)], stdout=subprocess.PIPE, text=True)
            for n, share in enumerate(shares)
        ]
        answers = [json.loads(worker.communicate(timeout=PATIENCE)[0]) for worker in workers]
        resident = servers.resident_bytes(hub.pid) / 1e6
    waited, connected = (
        sorted(seconds for answer in answers for seconds in answer[name]) for name in ("waited", "connected_after")
    )
    took = max(answer["ended"] for answer in answers) - start_at
    records = len(waited) * (RECORDS if steady else RECORDS_OF_BACKLOG)
    return {
        "records_per_second": records / took,
        "p50": waited[len(waited) // 2],
        "p99": waited[len(waited) * 99 // 100],
        "connected": connected[len(connected) * 99 // 100],
        "lost": sum(seconds for answer in answers for seconds in answer["lost"]),
        "resident_mb": resident,
        "seconds": took,
    }


@contextmanager
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=PLACE))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def run(scale: float) -> list[Row]:
    counts = [count for count in COUNTS if count <= COUNTS[-1] * scale] or [COUNTS[0]]
    found = {
        (name, count): measured(count, steady=name == "steady") for name in ("steady", "backlog") for count in counts
    }
    rows = []
    for (name, count), figures in found.items():
        what = f"{count:,} stations, {'steady' if name == 'steady' else 'all back after an outage'}"
        rows += [
            Row(f"{what}: records", figures["records_per_second"], unit="records/s"),
            Row(f"{what}: acknowledged, median", figures["p50"] * 1000, smaller=True, unit="ms"),
            Row(f"{what}: acknowledged, p99", figures["p99"] * 1000, smaller=True, unit="ms"),
            Row(f"{what}: connected, p99", figures["connected"] * 1000, smaller=True, unit="ms"),
            Row(f"{what}: connections lost", figures["lost"], smaller=True),
            Row(f"{what}: the hub's memory", figures["resident_mb"], smaller=True, unit="MB"),
        ]
    if len(counts) == len(COUNTS):
        plot(found)
    return rows


def plot(found: dict[tuple[str, int], dict[str, float]]) -> None:
    """How it grows, as a picture."""
    import matplotlib  # noqa: PLC0415  only a full run draws

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "outstation"
    from matplotlib import pyplot  # noqa: PLC0415

    panels = (
        ("records_per_second", "records/s", 1.0, "log"),
        ("p99", "p99 of acknowledgement, ms", 1000.0, "log"),
        ("resident_mb", "hub, MB resident", 1.0, "linear"),
    )
    figure, axes = pyplot.subplots(1, len(panels), figsize=(11, 3.4))
    for axis, (key, label, factor, scale) in zip(axes, panels, strict=True):
        for name, style in (("steady", "o-"), ("backlog", "s--")):
            values = [found[name, count][key] * factor for count in COUNTS]
            axis.plot(COUNTS, values, style, label="steady" if name == "steady" else "all back at once")
        axis.set_xscale("log")
        axis.set_xticks(COUNTS, [f"{count:,}" for count in COUNTS])
        axis.set_xlabel("stations")
        axis.set_title(label, fontsize=10)
        axis.set_yscale(scale)
        if scale == "linear":
            axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    figure.tight_layout()
    target = Path(__file__).parents[2] / "build" / "bench" / "fleet.svg"
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stations"]:
        parser = argparse.ArgumentParser()
        parser.add_argument("--stations", nargs=5)
        address, start_at, kind, prefix, count = parser.parse_args().stations
        found = asyncio.run(stations(address, prefix, int(count), float(start_at), steady=kind == "steady"))
        print(json.dumps(found | {"ended": time.time()}))
    else:
        report.main("fleet", run)
