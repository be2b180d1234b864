"""Real processes, started, watched and ended: none outlives the demo."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from outstation.errors import OutstationError

READY_TIMEOUT = 20.0  # a slow machine imports for seconds
STOP_TIMEOUT = 15.0
LOOK_INTERVAL = 0.05


class DemoError(OutstationError):
    """A part of the demo did not do as it must."""


class DemoInterruptedError(DemoError):
    """Somebody asked the demo to end, by Ctrl-C or SIGTERM."""


class Process:
    """One part of the demo. Its stderr goes to a file, for whoever wants to know why."""

    def __init__(self, name: str, command: Sequence[str], *, folder: Path, environ: Mapping[str, str]) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.first_line = ""
        with self.log.open("ab") as stderr:
            self._popen = subprocess.Popen(  # noqa: S603  our own commands
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=folder,
                env={**os.environ, **environ},
                # Its own session: Ctrl-C reaches the demo alone, which then ends its parts in order.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def is_ready(self) -> bool:
        """Whether it has printed its first line; DemoError when it has ended before. Returns at once."""
        assert self._popen.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._popen.stdout, selectors.EVENT_READ)
            while not self.first_line.endswith("\n") and selector.select(timeout=0):
                piece = os.read(self._popen.stdout.fileno(), 1024)
                if not piece:
                    raise DemoError(f"The {self.name} ended before it was ready.", hint=self._last_words())
                self.first_line += piece.decode()
        return self.first_line.endswith("\n")

    def wait_ready(self, meanwhile: Callable[[], object], timeout: float = READY_TIMEOUT) -> str:
        """The first line that the process prints, calling *meanwhile* until then; DemoError after *timeout* seconds."""
        deadline = time.monotonic() + timeout
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise DemoError(f"The {self.name} was not ready within {timeout:g} s.", hint=self._last_words())
            meanwhile()
            time.sleep(LOOK_INTERVAL)
        return self.first_line.strip()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self._popen.kill()
        self._popen.wait(STOP_TIMEOUT)

    def stop(self) -> int:
        """SIGTERM, and SIGKILL if it does not end in time; the exit code. Idempotent."""
        if self._popen.poll() is None:
            self._popen.send_signal(signal.SIGTERM)
            try:
                self._popen.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.kill()
        if self._popen.stdout is not None:
            self._popen.stdout.close()
        return self._popen.returncode

    def check(self) -> None:
        """DemoError if it has ended by itself."""
        if self._popen.poll() is not None:
            raise DemoError(f"The {self.name} ended with code {self._popen.returncode}.", hint=self._last_words())

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return f"It said: {lines[-1]}" if lines else f"Its log {self.log} is empty."


def outstation_command(*arguments: str) -> list[str]:
    """The command line of this very installation."""
    return [sys.executable, "-m", "outstation", *arguments]


def run_to_end(command: Sequence[str], *, folder: Path, timeout: float = 60.0) -> str:
    """Run a command that ends; its output, or DemoError with what it said."""
    done = subprocess.run(  # noqa: S603  our own commands
        command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
    if done.returncode != 0:
        raise DemoError(f"`{' '.join(command[2:])}` ended with code {done.returncode}.", hint=done.stderr.strip())
    return done.stdout
