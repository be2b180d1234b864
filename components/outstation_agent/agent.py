"""Compose the SDK's parts into a process: station, socket, signals."""

from __future__ import annotations

import contextlib
import stat
import threading
from pathlib import Path

from outstation.clock import Clock, SystemClock
from outstation.errors import ConfigurationError, mapped_os_errors
from outstation.settings import Settings
from outstation.station import StationParts
from outstation.wire.services import Server
from outstation_agent.service import StationService

# Each application's stream holds one worker for as long as it is connected; status and health calls need a few.
WORKERS = 64


class Agent:
    """The station of this device and the socket that applications reach it by. ``run`` blocks until ``stop``."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._parts = StationParts(settings, clock or SystemClock())
        self._stop = threading.Event()
        try:
            self.socket = settings.agent_socket
            self._service = StationService(self._parts)
            self._server = Server([self._service.handler], workers=WORKERS, name="agent")
            _clear_socket(self.socket)
            self._server.listen(f"unix:{self.socket.absolute()}")
            self._server.start()
            # Whoever may write to the data folder's group may speak to the agent; nobody else.
            self.socket.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)
        except BaseException:
            self._parts.close()
            raise

    def run(self) -> None:
        """Serve until :meth:`stop`, then end every thread in order."""
        self._stop.wait()
        self.close()

    def stop(self) -> None:
        """Ask :meth:`run` to return. Safe in a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Confirm what is on the disk, take nothing more, end. Idempotent."""
        self._stop.set()
        self._service.close()
        self._server.close()
        self._parts.close()
        with contextlib.suppress(OSError):
            self.socket.unlink()


def _clear_socket(path: Path) -> None:
    """Remove the socket that a killed agent left. The buffer's lock says that no other agent lives."""
    with mapped_os_errors(doing="make the agent's socket", path=path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_socket():
            path.unlink()
        elif path.exists():
            raise ConfigurationError(f"{path} is in the way of the agent's socket and is no socket.")
