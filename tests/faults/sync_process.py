"""One process of the command line that may be killed and stopped, and is cheap to start."""

from __future__ import annotations

import faulthandler
import itertools
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from outstation.cli.main import main
from outstation.sync import reporting, uplink
from support import wait_until

READY_TIMEOUT = END_TIMEOUT = 120.0  # seconds; a busy machine needs some, and a hang never ends
# Resident bytes that no process may ever have had: several times what each needs, a fraction of what leaks bring.
MAX_RESIDENT_BYTES = 400 << 20
# Processes are forked from one that has imported what they need: that is most of the time of a start.
PRELOAD = [
    "grpc._server",
    "outstation.cli.main",
    "outstation.providers.hub",
    "outstation_agent",
    "outstation_hub",
    "outstation_hub.sinks.parquet",
    "pydantic.type_adapter",  # of typer, which imports it when it runs
    "pydantic.json_schema",
]


def serve(arguments: tuple[str, ...], log: Path) -> None:
    """The command line in a process of its own. SIGUSR1 shows where its threads are."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # The account goes up more often, so that a test need not wait for the last one.
    reporting.REPORT_INTERVAL = uplink.LEDGER_INTERVAL = 0.5
    sys.argv = ["outstation", *arguments]
    main()


class Process:
    """One command that may be killed, stopped, and started again."""

    def __init__(self, name: str, folder: Path, *arguments: str) -> None:
        self.name = name
        self.arguments = arguments
        self.peak_bytes = 0  # resident, of all its lives
        self._folder = folder
        self._numbers = itertools.count(1)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._process: Any = None
        self.log = folder / f"{name}.log"

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.is_alive()

    def start(self) -> None:
        """Let it run; :meth:`wait_ready` must follow."""
        self.log = self._folder / f"{self.name}-{next(self._numbers)}.log"
        self.log.touch()
        self._process = self._made()
        self._process.start()

    def _made(self) -> Any:
        return self._context.Process(target=serve, args=(self.arguments, self.log), name=self.name)

    def _is_ready(self) -> bool:
        return " ready on " in self.log.read_text()

    def wait_ready(self) -> None:
        """Until it has said so. AssertionError with its log if it ends before."""
        wait_until(lambda: self._is_ready() or not self.alive, READY_TIMEOUT)
        self.check()

    def check(self) -> None:
        """That it lives, and that no thread of it has failed."""
        text = self.log.read_text()
        assert self.alive, f"{self.name} ended by itself with {self._process.exitcode}:\n{text}"
        assert "Traceback" not in text, f"{self.name} failed inside:\n{text}"
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        peak = next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM"))
        self.peak_bytes = max(self.peak_bytes, peak)
        assert self.peak_bytes < MAX_RESIDENT_BYTES, f"{self.name} has {self.peak_bytes >> 20} MiB resident"

    def signal(self, number: int) -> None:
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self.check()
        self._process.kill()
        self._process.join()

    def stop(self) -> None:
        """End it in order."""
        self.check()
        self._process.terminate()
        self._process.join(END_TIMEOUT)
        assert not self.alive, f"{self.name} did not end:\n{self.told()}"
        assert self._process.exitcode == 0, f"{self.name} ended with {self._process.exitcode}:\n{self.log.read_text()}"
        assert "Traceback" not in self.log.read_text(), f"{self.name} failed as it ended:\n{self.log.read_text()}"

    def told(self) -> str:
        """The end of its log, with where its threads are if it lives."""
        if self.alive:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGUSR1)
            self._process.join(0.5)
        return f"--- {self.log}\n" + "\n".join(self.log.read_text().splitlines()[-200:])

    def close(self) -> None:
        if self.alive:
            self._process.kill()
            self._process.join()


def execute(arguments: tuple[str, ...], log: Path) -> None:
    """Become another program."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.execvp(arguments[0], arguments)


class Broker(Process):
    """A mosquitto at *address*, open to everybody on this machine."""

    def __init__(self, folder: Path, address: str) -> None:
        self.address = address
        settings = folder / "mosquitto.conf"
        user = "user root\n" if os.getuid() == 0 else ""
        settings.write_text(f"{user}listener {address.rpartition(':')[2]} 127.0.0.1\nallow_anonymous true\n")
        super().__init__("broker", folder, "mosquitto", "-c", str(settings))

    def _made(self) -> Any:
        return self._context.Process(target=execute, args=(self.arguments, self.log), name=self.name)

    def _is_ready(self) -> bool:
        host, _, port = self.address.rpartition(":")
        with socket.socket() as end:
            return end.connect_ex((host, int(port))) == 0

    def told(self) -> str:
        return f"--- {self.log}\n{self.log.read_text()}"
