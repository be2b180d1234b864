"""The sockets: who accepts, reads and writes; what was read goes to whoever speaks that protocol.

gRPC and REST share every port: the first three bytes tell them apart. One thread at a time sees to all of them, by
:meth:`Front.turn`, and never waits for a client: sockets do not block, connections and what they hold in memory are
bounded, and a client that does not read its answers is not read from either.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from outstation.errors import ConfigurationError
from outstation_inference.jobs import Job
from outstation_inference.sockets import bound, file_limit

log = logging.getLogger("outstation.inference")

_READ_BYTES = 256 << 10
# Answers that wait for a slow reader; beyond this nothing more is read from it.
_MAX_UNSENT_BYTES = 1 << 20
# A client that takes none of its answer for so long is gone, or means harm.
_STALL_TIMEOUT = 30.0
# What all connections together may hold, in messages of the largest size.
_MESSAGES_HELD = 4
# File descriptors left for model files, the agent, the log, and regions of shared memory.
_SPARE_FILES = 256
_TICK = 1.0


class Speaker(Protocol):
    """One connection's protocol, without its socket. Called with the connection's lock held."""

    closing: bool
    output: bytearray

    def receive(self, data: bytes | memoryview) -> list[Job]:
        """What *data* completes; no view of it is kept."""
        ...

    def leave(self) -> None:
        """Say that no further call will be taken."""
        ...

    def gone(self) -> None:
        """The client has hung up; nobody waits for the open calls."""
        ...

    @property
    def idle(self) -> bool: ...

    @property
    def stalled(self) -> bool:
        """The client leaves no room for what it asked for."""
        ...

    @property
    def held_bytes(self) -> int: ...


Speakers = Callable[["Connection", bytes], Speaker]


class Connection:
    """One client. ``lock`` guards the speaker; :meth:`flush` may be called from any thread that holds it."""

    def __init__(self, sock: socket.socket, front: Front) -> None:
        self.sock = sock
        self.lock = threading.RLock()
        self.speaker: Speaker | None = None
        self.first = b""  # until the protocol is known
        self.active = time.monotonic()
        self.events = selectors.EVENT_READ
        self.closed = False
        self.held = 0
        self.unaccounted = 0  # bytes that were read since `held` was found out
        self.resume = False
        self._front = front

    def answered(self) -> None:
        """An answer was written: have the front look at what the client had sent behind that call."""
        if not self.closed:  # else the front may have ended
            self.resume = True
            self._front.look_at(self)

    def flush(self) -> None:
        """Send what the socket takes now; the front sends the rest."""
        speaker = self.speaker
        if speaker is None or self.closed:
            return
        output = speaker.output
        if output:
            try:
                sent = self.sock.send(output)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                output.clear()
                speaker.closing = True
                sent = 0
            if sent:
                self.active = time.monotonic()
                del output[:sent]
        if output or speaker.closing or speaker.stalled or self.events != selectors.EVENT_READ:
            self._front.look_at(self)


class Front:
    """Sockets to listen on and their connections. :meth:`listen`, :meth:`start`, turns, and :meth:`close`."""

    def __init__(
        self,
        speakers: Speakers,
        idle: Callable[[], bool],
        *,
        max_connections: int,
        max_message_bytes: int,
    ) -> None:
        """*idle*: no call that was read is still to be computed."""
        self._speakers = speakers
        self._idle = idle
        self._max_connections = min(max_connections, file_limit() - _SPARE_FILES)
        self._max_held = _MESSAGES_HELD * max_message_bytes
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._connections: set[Connection] = set()
        self._held = 0
        self._attention: deque[Connection] = deque()
        self._jobs: list[Job] = []  # read since the last look at the sockets
        self._buffer = bytearray(_READ_BYTES)
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._started = False
        self._leaving = False
        self._until = 0.0
        self._taker = 0  # the thread whose turn it is, or was last
        self._ended = threading.Event()
        self._ticked = 0.0

    def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: any free one) or "unix:/path"; the address with its real port."""
        try:
            sock, name = bound(address)
        except OSError as exc:
            raise ConfigurationError(
                f"Could not listen on {address}: {exc.strerror or exc}.",
                hint="Another process may hold it, or the address is not of this machine.",
            ) from exc
        sock.setblocking(False)
        self._listeners.append(sock)
        return name

    def start(self) -> None:
        """Begin to accept; from now on somebody must take every :meth:`turn`."""
        for sock in self._listeners:
            self._selector.register(sock, selectors.EVENT_READ, sock)
        self._started = True

    def close(self, grace: float) -> None:
        """Accept no more, let open calls be answered for *grace* seconds, end. Idempotent."""
        if self._started and not self._leaving:
            self._until = time.monotonic() + grace
            self._leaving = True
            self._wake()
            self._ended.wait(grace + _TICK)  # longer only if whoever takes turns has failed
        for sock in self._listeners:
            sock.close()
        if self._wake_read >= 0:
            self._selector.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._wake_read = -1

    def look_at(self, connection: Connection) -> None:
        """Have *connection* seen to: there is more to send, or it is to be closed. From any thread."""
        self._attention.append(connection)
        if threading.get_ident() != self._taker:
            self._wake()

    def turn(self) -> list[Job] | None:
        """Wait for the sockets once and see to them: the calls that became whole, all that came at the same time.

        None when the front was closed and there will be no more. Any thread may take the next turn.
        """
        self._taker = threading.get_ident()
        for key, _ in self._selector.select(self._patience()):
            self._ready(key)
        while self._attention:
            connection = self._attention.popleft()
            self._guarded(self._settle, connection)
        now = time.monotonic()
        if now - self._ticked >= _TICK:
            self._ticked = now
            self._close_stalled(now)
        jobs, self._jobs = self._jobs, []
        if self._leaving and not jobs and self._left(now):
            return None
        return jobs

    # -- the thread whose turn it is -------------------------------------------------------------------------------

    def _left(self, now: float) -> bool:
        """Whether the front has said goodbye, and everybody has been answered or had the time for it."""
        if self._listeners:
            self._say_goodbye()
        if not self._all_answered() and now < self._until:
            return False
        for connection in list(self._connections):
            self._drop(connection)
        self._ended.set()
        return True

    def _patience(self) -> float:
        if self._attention:
            return 0.0
        return 0.02 if self._leaving else _TICK

    def _ready(self, key: selectors.SelectorKey) -> None:
        if key.fd == self._wake_read:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        elif isinstance(key.data, Connection):
            if key.data.events & selectors.EVENT_READ:
                self._guarded(self._read, key.data)
            if not key.data.closed and key.data.events & selectors.EVENT_WRITE:
                self._attention.append(key.data)
        else:
            self._accept(key.data)

    def _guarded(self, action: Callable[[Connection], None], connection: Connection) -> None:
        """Do it; a failure of ours costs this one connection, never the thread that serves all others."""
        try:
            action(connection)
        except Exception:
            log.exception("a connection failed inside the server")
            self._drop(connection)

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:  # gone again, or no file descriptor left
            return
        if len(self._connections) >= self._max_connections and not self._make_room():
            sock.close()
            return
        connection = Connection(sock, self)
        try:
            sock.setblocking(False)
            if sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._selector.register(sock, selectors.EVENT_READ, connection)
        except OSError as exc:  # the kernel watches no more sockets for this user
            log.warning("a connection was not taken: %s", exc)
            sock.close()
            return
        self._connections.add(connection)

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest; False when none is."""
        resting = [c for c in self._connections if c.speaker is None or c.speaker.idle]
        if not resting:
            return False
        self._drop(min(resting, key=lambda connection: connection.active))
        return True

    def _read(self, connection: Connection) -> None:
        try:
            size = connection.sock.recv_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            size = 0
        if not size:
            self._drop(connection)
            return
        data: bytes | memoryview = memoryview(self._buffer)[:size]
        connection.active = time.monotonic()
        with connection.lock:
            speaker = connection.speaker
            if speaker is None:
                connection.first += data
                if len(connection.first) < 3:
                    return
                data, connection.first = connection.first, b""
                speaker = connection.speaker = self._speakers(connection, data)
                if self._leaving:
                    speaker.leave()
            self._jobs += speaker.receive(data)
            if speaker.output or speaker.closing:
                connection.flush()
            connection.unaccounted += size
            if connection.unaccounted >= _READ_BYTES or connection.held:
                # Not after each read, which would cost every small call; however small the pieces that it comes in.
                self._account(connection, speaker)

    def _account(self, connection: Connection, speaker: Speaker) -> None:
        connection.unaccounted = 0
        held = speaker.held_bytes
        self._held += held - connection.held
        connection.held = held
        if self._held > self._max_held:
            log.warning("clients hold more than %d bytes of unfinished messages; one is dropped", self._max_held)
            self._drop(max(self._connections, key=lambda other: other.held))

    def _settle(self, connection: Connection) -> None:
        """Send, wait until more can be sent, or close: whatever the connection needs now."""
        if connection.closed:
            return
        with connection.lock:
            speaker = connection.speaker
            if speaker is None:
                return
            if connection.resume:
                connection.resume = False
                self._jobs += speaker.receive(b"")
            output = speaker.output
            if output:
                try:
                    sent = connection.sock.send(output)
                except (BlockingIOError, InterruptedError):
                    sent = 0
                except OSError:
                    self._drop(connection)
                    return
                if sent:
                    connection.active = time.monotonic()
                    del output[:sent]
            if speaker.closing and not output:
                self._drop(connection)
                return
            unsent = len(output)
            if unsent > _MAX_UNSENT_BYTES or speaker.stalled or connection.held:
                self._account(connection, speaker)
                if connection.closed:
                    return
            events = 0 if unsent > _MAX_UNSENT_BYTES or speaker.closing else selectors.EVENT_READ
            if unsent:
                events |= selectors.EVENT_WRITE
            if events != connection.events:
                connection.events = events
                self._selector.modify(connection.sock, events, connection)

    def _close_stalled(self, now: float) -> None:
        for connection in list(self._connections):
            speaker = connection.speaker
            if speaker is not None and (speaker.output or speaker.stalled) and now - connection.active > _STALL_TIMEOUT:
                self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection.closed:
            return
        with connection.lock:
            connection.closed = True
            if connection.speaker is not None:
                connection.speaker.gone()
        self._held -= connection.held
        self._connections.discard(connection)
        self._selector.unregister(connection.sock)
        connection.sock.close()

    def _say_goodbye(self) -> None:
        for sock in self._listeners:
            self._selector.unregister(sock)
            sock.close()
        self._listeners.clear()
        for connection in list(self._connections):
            with connection.lock:
                if connection.speaker is None:
                    self._drop(connection)
                else:
                    connection.speaker.leave()
                    connection.flush()

    def _all_answered(self) -> bool:
        if not self._idle():
            return False
        for connection in self._connections:
            with connection.lock:
                if connection.speaker is not None and not connection.speaker.idle:
                    return False
        return True

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")
