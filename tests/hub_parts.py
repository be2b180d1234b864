"""A hub for tests, in this process or in one of its own, and what lies in its Parquet files."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pyarrow.parquet as pq

from outstation.cli.main import main
from outstation.clock import SystemClock
from outstation.errors import LinkError
from outstation.providers.hub import HubProvider
from outstation.testing.contract import Ear, message
from outstation.types import Identity
from outstation.wire import convert
from outstation.wire.client import Client
from outstation.wire.messages import Wish
from outstation_hub import Hub, HubSettings
from support import wait_until


def hub_settings(folder: Path, **changes) -> HubSettings:
    settings = {"listen": "127.0.0.1:0", "data_dir": str(folder / "hub"), "drain_interval": 0.05} | changes
    return HubSettings(**settings)


def hub_provider(address: str, state_dir: Path, *, station: str = "press-7", **options) -> HubProvider:
    return HubProvider(
        identity=Identity(station), options={"address": address, **options}, state_dir=state_dir, clock=SystemClock()
    )


def rows(parquet: Path) -> list[dict]:
    """Every row of every file, sorted by where it came from."""
    found = []
    for path in parquet.rglob("*.parquet"):
        table = pq.ParquetFile(path).read()
        # Python's own times end at microseconds.
        times = table.column("time").cast("int64").to_pylist()
        found += [row | {"time": time} for row, time in zip(table.drop("time").to_pylist(), times, strict=True)]
    return sorted(found, key=lambda row: (row["station"], row["stream"], row["epoch"], row["sequence"]))


def drained(hub: Hub) -> None:
    """Wait until the sinks have everything that has arrived."""
    wait_until(lambda: all(drain.lag == 0 for drain in hub.drains), 20)


class Station:
    """A sender that does what the uplink must: everything unacknowledged again after each loss, in order."""

    def __init__(self, address: str, state_dir: Path, name: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.provider = hub_provider(address, state_dir, station=name, keepalive_interval=0.5, keepalive_timeout=0.5)
        self.acknowledged = 0
        self.stopping = threading.Event()
        self.total = 0
        self.make = message
        self.thread = threading.Thread(target=self._run)

    def start(self, total: int) -> None:
        self.total = total
        self.thread.start()

    def _run(self) -> None:
        while self.acknowledged < self.total and not self.stopping.is_set():
            try:
                self._once()
            except LinkError:
                self.stopping.wait(0.02)
            self.provider.uplink.disconnect()

    def _once(self) -> None:
        ear = Ear()
        self.provider.uplink.connect(ear.listener, 2)
        sent = self.acknowledged
        while self.acknowledged < self.total and not ear.losses and not self.stopping.is_set():
            if sent < self.total and sent - self.acknowledged < 200:
                # Borders differ from try to try, so blocks overlap those of before.
                count = min(self.random.randint(1, 30), self.total - sent)
                self.provider.uplink.send(self.make(sent + 1, count), 1)
                sent += count
            else:
                self.stopping.wait(0.005)
            self.acknowledged = max(self.acknowledged, ear.through("events"))

    def finish(self, timeout: float) -> None:
        self.thread.join(timeout)
        self.stopping.set()
        self.thread.join()
        self.provider.close()
        assert self.acknowledged == self.total


class HubFarEnd:
    """The far end of HubProvider, for ProviderContract."""

    def __init__(self, hub: Hub, repository: Path) -> None:
        self.hub = hub
        self.repository = repository

    def arrived(self, station):
        drained(self.hub)
        return [
            (row["stream"], row["epoch"], row["sequence"], row["payload"])
            for row in rows(self.hub.settings.parquet_dir)
            if row["station"] == station
        ]

    def wish(self, models):
        with Client(self.hub.address) as client:
            client.unary(convert.SET_DESIRED)(Wish("", models), 5)

    def reported(self, station):
        return next((e.reported for e in self.hub.stations.list() if e.station == station), None)

    def put(self, path, data):
        target = self.repository / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)


class HubProcess:
    """``outstation hub`` in a process of its own, which may be killed and started again at the same address."""

    def __init__(self, folder: Path, *arguments: str, parquet: bool = True) -> None:
        self.folder = folder
        self.parquet = folder / "parquet"
        self._arguments = (*(("--parquet", str(self.parquet)) if parquet else ()), *arguments)
        self.address = "127.0.0.1:0"
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> HubProcess:
        command = [
            sys.executable,
            "-m",
            "outstation",
            "hub",
            "--listen",
            self.address,
            "--data",
            str(self.folder / "hub"),
        ]
        command += ["--drain-interval", "0.05", *self._arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
        line = self.process.stdout.readline()
        assert line.startswith("hub ready on "), line
        self.address = line.rpartition(" ")[2].strip()
        return self

    def kill(self) -> None:
        self.process.kill()
        self._reap()

    def stop(self) -> int:
        if self.process is None or self.process.poll() is not None:
            return 0
        self.process.send_signal(signal.SIGTERM)
        return self._reap()

    def _reap(self) -> int:
        # A stopped hub may have work to finish; one that hangs must not hang the tests.
        timer = threading.Timer(30, self.process.kill)
        timer.start()
        code = self.process.wait()
        timer.cancel()
        self.process.stdout.close()
        return code

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The command line, as an operator types it; in this process, unless it would take over the signals."""
    command = ["outstation", *arguments]
    if arguments[0] == "hub" and arguments[1].startswith("--"):
        command[:1] = [sys.executable, "-m", "outstation"]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    out, err, code = io.StringIO(), io.StringIO(), 0
    with redirect_stdout(out), redirect_stderr(err), mock.patch.object(sys, "argv", command):
        try:
            main()
        except SystemExit as exc:
            code = exc.code or 0
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())
