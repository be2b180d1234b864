"""Compose the SDK's parts into a process: station, socket, signals."""

from __future__ import annotations

import threading

from outstation.clock import Clock, SystemClock, wait_for_signal
from outstation.settings import Settings
from outstation.station import StationParts
from outstation.wire.address import claim_socket, release_socket, share_socket
from outstation.wire.services import Server
from outstation_agent.service import StationService

# Each stream of each application holds one worker, a thread that is made when it is needed, for as long as it is
# connected: twenty applications with all eleven streams of events, and some left for status and health.
WORKERS = 256


class Agent:
    """The station of this device and the socket that applications reach it by. ``run`` blocks until ``stop``."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._parts = StationParts(settings, clock or SystemClock())
        self._stop = threading.Event()
        self._server: Server | None = None
        try:
            self.socket = settings.agent_socket
            self._service = StationService(self._parts)
            self._server = Server([self._service.handler], workers=WORKERS, name="agent")
            claim_socket(self.socket, whose="the agent")
            self._server.listen(f"unix:{self.socket.absolute()}")
            self._server.start()
            share_socket(self.socket)
        except BaseException:
            if self._server is not None:
                self._server.close(grace=0.0)
            self._parts.close()
            raise

    def run(self) -> None:
        """Serve until :meth:`stop`, then end every thread in order."""
        wait_for_signal(self._stop)
        self.close()

    def stop(self) -> None:
        """Ask :meth:`run` to return. Safe in a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Confirm what is on the disk, take nothing more, end. Idempotent."""
        self._stop.set()
        self._service.close()
        if self._server is not None:
            self._server.close()
        self._parts.close()
        release_socket(self.socket)
