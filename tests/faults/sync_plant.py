"""A plant of real processes: an agent, a link that fails on command, a hub on a small disk; and applications."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import outstation
from certificates import Authority
from faults.sync_process import Broker, Process
from hub_parts import rows, run
from outstation.errors import BufferFullError, LinkDownError, OutstationError, StorageError
from outstation.testing import FlakyLink
from support import wait_until

STATION = "press-7"
DISK_BYTES = 96 << 20  # the hub keeps 64 MiB of it free, so there are 32 to fill
# What a stream may do to its records: "kept" loses none, the others account for what they let go.
KEPT = {"alarms", "readings", "images"}
STREAMS = {
    "alarms": {"priority": 0, "durability": "record", "when_full": "reject"},
    "readings": {"priority": 5, "when_full": "reject"},
    "images": {"priority": 7, "when_full": "reject"},  # some are larger than a message
    "trace": {"priority": 9, "when_full": "drop_oldest", "max_bytes": 128 << 10},
    "history": {"priority": 8, "when_full": "thin", "max_bytes": 128 << 10},
    "orders": {"priority": 3, "when_full": "reject", "max_bytes": 128 << 10},
}
MAX_MESSAGE_BYTES = 32 << 10
# Seconds each way when all is well. With some, records are under way whenever a fault comes; with none, an
# acknowledgement is back before the hub can be killed.
LATENCIES = (0.03, 0.0)


class Application:
    """Appends through the agent, from a thread of its own, and remembers what was confirmed and what refused."""

    def __init__(self, number: int, seed: int, station: outstation.Station) -> None:
        self.number = number
        self.confirmed: dict[str, list[bytes]] = {name: [] for name in STREAMS}
        self.refused: dict[str, list[bytes]] = {name: [] for name in STREAMS}
        self.failure: BaseException | None = None
        self._dice = random.Random(seed * 100 + number)
        self._station = station
        self._counts = dict.fromkeys(STREAMS, 0)
        self._receipts: list[tuple[str, bytes, Any]] = []
        self._writing = threading.Event()
        self._stopping = threading.Event()
        self._pause = threading.Event()  # never set: what a thread sleeps on
        self._idle = threading.Condition()
        self._resting = True
        self._thread = threading.Thread(target=self._run, name=f"application-{number}")

    def start(self) -> None:
        self._writing.set()
        self._thread.start()

    def rest(self, timeout: float) -> None:
        """Append no more, and wait until all that was appended is decided."""
        self._writing.clear()
        with self._idle:
            assert self._idle.wait_for(lambda: self._resting or not self._thread.is_alive(), timeout), "no rest"
        self.check()
        for stream, payload, receipt in self._receipts:
            (self.confirmed if _is_confirmed(receipt, timeout) else self.refused)[stream].append(payload)
        self._receipts.clear()

    def resume(self) -> None:
        self._writing.set()

    def check(self) -> None:
        assert self.failure is None, f"application {self.number} failed: {self.failure!r}"

    def close(self) -> None:
        self._stopping.set()
        self._writing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                if not self._writing.is_set():
                    self._rested(True)
                    self._writing.wait()
                    self._rested(False)
                else:
                    self._rested(False)
                    self._burst()
                    self._pause.wait(self._dice.uniform(0.005, 0.05))
        except BaseException as exc:  # noqa: BLE001  told by check()
            self.failure = exc
        finally:
            self._rested(True)

    def _rested(self, resting: bool) -> None:
        with self._idle:
            self._resting = resting
            self._idle.notify_all()

    def _burst(self) -> None:
        name = self._dice.choices(list(STREAMS), (1, 6, 1, 3, 3, 3))[0]
        stream = self._station.buffer.stream(name)
        for _ in range(1 if name == "images" else self._dice.randint(1, 15)):
            size = self._size(name)
            payload = b"%s/%d/%d " % (name.encode(), self.number, self._counts[name]) + self._dice.randbytes(size)
            try:
                receipt = stream.append(payload)
            except BufferFullError:
                return  # the agent has been away for long; nothing was taken
            self._counts[name] += 1
            self._receipts.append((name, payload, receipt))

    def _size(self, name: str) -> int:
        if name == "images":
            return self._dice.choice((3_000, 20_000, 60_000, 150_000))
        return self._dice.randint(20, 400)


def _is_confirmed(receipt: Any, timeout: float) -> bool:
    try:
        receipt.wait(timeout)
    except (BufferFullError, StorageError):
        return False
    return True


@dataclass
class Wiped:
    """What a life of the station had come to when its folder was removed."""

    taken: int
    acknowledged: int
    before: set[bytes]  # what was confirmed until then


class Plant:
    """All of it. ``start``, then faults, then ``heal``, ``rest``, ``drained``, ``finish``; ``close`` in any case.

    With the *provider* ``mqtt`` a broker stands between: the link that fails is the station's to the broker.
    """

    def __init__(self, folder: Path, seed: int, *, tls: bool, provider: str = "hub", applications: int = 3) -> None:
        self.folder = folder
        self.disk = folder / "disk"
        self.parquet = self.disk / "parquet"
        self.station = folder / "station"
        self.wiped: dict[tuple[str, int], Wiped] = {}  # by stream and epoch
        self._tls = tls
        self._provider = provider
        self._latency = LATENCIES[seed % 2]
        self._certificates: dict[str, Path] = {}
        self.disk.mkdir(parents=True)
        self.has_small_disk = _mounted(self.disk)
        if tls:
            self._issue()
        self.address = f"127.0.0.1:{_free_port()}"  # of the hub, in all its lives
        self.broker = Broker(folder, f"127.0.0.1:{_free_port()}") if provider == "mqtt" else None
        self.link = FlakyLink(self._far_address)
        self.hub = Process("hub", folder, *self._hub_arguments())
        self.agent = Process("agent", folder, "agent", "--settings", str(folder / "outstation.toml"))
        (folder / "outstation.toml").write_text(self._settings())
        self._clients: list[outstation.Station] = []
        self.applications: list[Application] = []
        self._seed = seed
        self._count = applications

    @property
    def processes(self) -> tuple[Process, ...]:
        """In the order in which they need each other."""
        return (self.hub, self.agent) if self.broker is None else (self.broker, self.hub, self.agent)

    @property
    def _far_address(self) -> str:
        return self.address if self.broker is None else self.broker.address

    def start(self) -> None:
        self.link.up(latency=self._latency)
        for process in self.processes:
            process.start()
        for process in self.processes:
            process.wait_ready()
        for number in range(self._count):
            if number % 2 == 0:  # two threads to an application
                self._clients.append(outstation.connect(self.station / "agent.sock", inference="127.0.0.1:1"))
            self.applications.append(Application(number, self._seed, self._clients[-1]))
            self.applications[-1].start()

    def check(self) -> None:
        """No process has died by itself, no thread has failed."""
        for process in self.processes:
            if process.alive:
                process.check()
        for application in self.applications:
            application.check()

    def fill(self, left_bytes: int) -> None:
        """Leave that much of the hub's disk."""
        with (self.disk / "filler").open("ab") as file, suppress(OSError):  # the hub may take the last page itself
            while (free := shutil.disk_usage(self.disk).free) > left_bytes:
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, max(1, (free - left_bytes) // 2))

    @property
    def is_full(self) -> bool:
        return (self.disk / "filler").exists()

    def make_room(self) -> None:
        (self.disk / "filler").unlink(missing_ok=True)

    def heal(self) -> None:
        """Everything works again, whatever was done to it."""
        self.make_room()
        self.link.up(latency=self._latency)
        for process in self.processes:
            if process.alive:
                process.signal(signal.SIGCONT)
            else:
                process.start()
        for process in self.processes:
            process.wait_ready()

    def status(self) -> dict[str, Any]:
        """What the station says of its streams: `outstation status --json`, without the seconds of a new command."""
        return _by_stream(_answer("status", "--socket", str(self.station / "agent.sock"), "--json")["reported"])

    def known(self) -> dict[str, Any]:
        """What the hub knows of the station's streams: `outstation fleet show --json`."""
        identity = []
        if self._tls:
            for option, name in {"--tls-ca": "ca", "--tls-cert": "operator.pem", "--tls-key": "operator.key"}.items():
                identity += [option, str(self._certificates[name])]
        shown = _answer("fleet", "show", STATION, "--hub", self.address, "--json", *identity)
        return _by_stream(shown["reported"])

    def rest(self, timeout: float) -> None:
        """Applications append no more, and what they did is decided."""
        for application in self.applications:
            application.rest(timeout)

    def drained(self, timeout: float) -> None:
        """Wait until the station has nothing left and the hub knows its account to the record."""
        wait_until(self._is_settled, timeout)

    def _is_settled(self) -> bool:
        self.check()
        threading.Event().wait(0.1)  # whoever asks takes time from whoever works
        try:
            status, known = self.status(), self.known()
        except LinkDownError:  # a busy machine may be too slow for a handshake; it is asked again
            return False
        return not any(ledger["pending"] for _, ledger in status.values()) and known == status

    def flowing(self, timeout: float) -> None:
        """Wait until the far end acknowledges what it had not before: a fault that comes now meets something."""
        before = self._acknowledged()
        wait_until(lambda: self._acknowledged() > before, timeout)

    def _acknowledged(self) -> int:
        threading.Event().wait(0.02)
        self.check()
        return sum(ledger["acknowledged"] for _, ledger in self.status().values())

    def wipe(self) -> None:
        """Install the station anew under its name. What the applications had confirmed before is noted."""
        status = self.status()
        confirmed = {name: {p for app in self.applications for p in app.confirmed[name]} for name in STREAMS}
        self.agent.kill()
        status = {name: entry for name, entry in status.items() if entry[1]["appended"]}
        for name, (epoch, ledger) in status.items():
            taken = ledger["acknowledged"] + ledger["pending"]
            self.wiped[name, epoch] = Wiped(taken, ledger["acknowledged"], confirmed.get(name, set()))
        shutil.rmtree(self.station)
        self.agent.start()
        self.agent.wait_ready()

    def finish(self) -> list[dict[str, Any]]:
        """End both processes in order; every row in the sink."""
        self.agent.stop()
        self.hub.stop()
        return rows(self.parquet)

    def told(self) -> str:
        return "\n".join(process.told() for process in self.processes)

    def close(self) -> None:
        for process in self.processes:
            process.close()
        for application in self.applications:
            application.close()
        for client in self._clients:
            with suppress(OutstationError):  # of a failed run: its agent is gone
                client.close()
        self.link.close()
        if self.has_small_disk:
            subprocess.run(["umount", "--lazy", str(self.disk)], check=True)

    def _issue(self) -> None:
        authority = Authority(self.folder / "certificates")
        self._certificates["ca"] = authority.ca
        for name in ("hub", STATION, "operator"):
            certificate, key = authority.issue(name)
            self._certificates |= {f"{name}.pem": certificate, f"{name}.key": key}

    def _hub_arguments(self) -> tuple[str, ...]:
        arguments = ["hub", "--listen", self.address, "--data", str(self.disk / "hub")]
        arguments += ["--parquet", str(self.parquet), "--drain-interval", "0.05"]
        if self.broker is not None:
            arguments += ["--mqtt-broker", self.broker.address]
        if self._tls:
            arguments += ["--tls-cert", str(self._certificates["hub.pem"]), "--tls-key"]
            arguments += [str(self._certificates["hub.key"]), "--tls-ca", str(self._certificates["ca"])]
        return tuple(arguments)

    def _settings(self) -> str:
        # Everything that waits, waits for a short time only: a lost link is noticed within a second and a half.
        options: dict[str, Any] = {"address": self.link.address, "max_message_bytes": MAX_MESSAGE_BYTES}
        options |= {"keepalive_interval": 0.5, "keepalive_timeout": 1.0}
        if self._tls and self.broker is None:
            paths = {"ca": "ca", "certificate": f"{STATION}.pem", "key": f"{STATION}.key"}
            options |= {key: str(self._certificates[name]) for key, name in paths.items()}
        tables = {
            "station": {"name": STATION, "data_dir": str(self.station)},
            f"options.{self._provider}": options,
            "uplink": {
                "acknowledge_timeout": 2.0,
                "connect_timeout": 2.0,
                "send_timeout": 1.0,
                "canary_interval": 2.0,
                "backoff_first": 0.05,
                "backoff_ceiling": 0.5,
            },
            "buffer": {
                "group_interval": 0.02,
                "block_bytes": 8 << 10,
                "segment_bytes": 64 << 10,
                "min_free_disk_bytes": 0,
            },
            **{f"buffer.streams.{name}": policy for name, policy in STREAMS.items()},
        }
        lines = [f'provider = "{self._provider}"']
        for name, table in tables.items():
            lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        return "\n".join(lines)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _mounted(folder: Path) -> bool:
    """Whether *folder* is now a small file system: that needs root."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    return (
        shutil.which("mount") is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0
    )


def _answer(*arguments: str) -> Any:
    done = run(*arguments)
    if done.returncode:
        raise LinkDownError(done.stderr)
    return json.loads(done.stdout)


def _by_stream(reported: dict[str, Any]) -> dict[str, tuple[int, Any]]:
    return {entry["stream"]: (entry["epoch"], entry["ledger"]) for entry in reported["streams"]}
