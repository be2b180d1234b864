"""Compose the SDK's parts into a process: station, socket, signals."""

from __future__ import annotations

import threading

from outstation.clock import Clock, SystemClock
from outstation.settings import Settings
from outstation.station import StationParts
from outstation.wire.address import claim_socket, release_socket, share_socket
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
            claim_socket(self.socket, whose="the agent")
            self._server.listen(f"unix:{self.socket.absolute()}")
            self._server.start()
            share_socket(self.socket)
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
        release_socket(self.socket)
