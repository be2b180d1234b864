"""A link that fails on command: a TCP proxy on loopback between a station and its far end."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

# Bytes that one direction of one connection may hold. A long fat link (100 ms at 20 Mbit/s) has about this much
# under way; with more, a "slow" link would take a whole backlog at once.
_HELD_BYTES = 256 << 10
_PIECE_BYTES = 64 << 10
_CUT_HARD = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST, as a router that forgot us does


class FlakyLink:
    """Forwards every connection to *target* ("host:port") until told otherwise. Starts up; thread-safe.

    One thread serves all connections, so a demo can afford it. ``with FlakyLink(hub) as link:`` closes it again;
    stations connect to ``link.address``. A method has taken effect when it returns.
    """

    def __init__(self, target: str, *, listen: str = "127.0.0.1:0") -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        host, _, port = listen.rpartition(":")
        self._listener = _bound(host, int(port))
        self._here: tuple[str, int] = self._listener.getsockname()
        self._state = _State()
        self._pairs: set[_Pair] = set()
        self._selector = selectors.DefaultSelector()
        self._orders: deque[tuple[Callable[[], None], threading.Event]] = deque()
        self._bell, self._ear = socket.socketpair()
        self._bell.setblocking(False)
        self._ear.setblocking(False)
        self._selector.register(self._ear, selectors.EVENT_READ, self._hear)
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outstation-flaky-link", daemon=True)
        self._thread.start()
        self.up()

    @property
    def address(self) -> str:
        """Where to connect, as "host:port"; the same for the link's whole life."""
        return f"{self._here[0]}:{self._here[1]}"

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._pairs)

    @property
    def bytes_forwarded(self) -> tuple[int, int]:
        """Bytes that arrived (at the target, back at the caller) since the link was made."""
        return self._state.forwarded[0], self._state.forwarded[1]

    def up(self, *, latency: float = 0.0, bytes_per_second: float | None = None) -> None:
        """Forward: *latency* seconds later in each direction, at most at that rate. Ends every other state."""

        def order() -> None:
            self._state.heal(latency, bytes_per_second)
            if not self._state.listening:
                self._listener.listen(128)
                self._listener.setblocking(False)
                self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
                self._state.listening = True

        self._do(order)

    def down(self) -> None:
        """Cut every connection and refuse new ones."""

        def order() -> None:
            self._refuse()
            self._cut()

        self._do(order)

    def cut(self) -> None:
        """Cut every connection, and go on accepting new ones."""
        self._do(self._cut)

    def black_hole(self, *, upward: bool = True, downward: bool = True) -> None:
        """Keep connections open, accept new ones, and let nothing arrive in the given directions until ``up``."""

        def order() -> None:
            self._state.holes = [upward, downward]

        self._do(order)

    def corrupt(self, pieces: int = 1, *, downward: bool = False) -> None:
        """Flip one bit in each of the next *pieces* that go up, or down."""

        def order() -> None:
            self._state.corrupt[downward] = pieces

        self._do(order)

    def swallow(self, pieces: int = 1, *, downward: bool = False) -> None:
        """Lose each of the next *pieces* that go up, or down, and forward what comes behind them."""

        def order() -> None:
            self._state.swallow[downward] = pieces

        self._do(order)

    def half_close(self, *, downward: bool = False) -> None:
        """Tell the target that the callers have finished, and the callers nothing; *downward*: the other way round."""

        def order() -> None:
            for pair in self._pairs:
                with suppress(OSError):
                    pair.ways[downward].sink.shutdown(socket.SHUT_WR)

        self._do(order)

    def close(self) -> None:
        """Cut everything and end the thread. Idempotent."""
        if self._closed:
            return

        def order() -> None:
            self._refuse()
            self._cut()
            self._closed = True

        self._do(order)
        self._thread.join()
        for part in (self._listener, self._bell, self._ear, self._selector):
            part.close()

    def __enter__(self) -> FlakyLink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    # -- everything below runs on the link's own thread, but for _do ---------------------------------------------

    def _do(self, order: Callable[[], None]) -> None:
        if self._closed:
            return
        done = threading.Event()
        self._orders.append((order, done))
        with suppress(BlockingIOError):  # a full bell has rung
            self._bell.send(b"!")
        done.wait()

    def _run(self) -> None:
        while not self._closed:
            now = time.monotonic()
            wakes = [pair.arrange(self._selector, self._state, now) for pair in self._pairs]
            for key, mask in self._selector.select(max(0.0, min(wakes, default=60.0))):
                key.data(mask)

    def _hear(self, _: int) -> None:
        self._ear.recv(4096)
        while self._orders:
            order, done = self._orders.popleft()
            try:
                order()
            finally:
                done.set()

    def _accept(self, _: int) -> None:
        try:
            near, _address = self._listener.accept()
        except OSError:
            return  # the caller gave up meanwhile
        far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        for end in (near, far):
            end.setblocking(False)
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pair = _Pair((_Way(0, near, far), _Way(1, far, near)))
        if far.connect_ex(self._target) not in (0, errno.EINPROGRESS):
            pair.close(self._selector, hard=True)
            return
        pair.on_event = lambda end, mask: self._move(pair, end, mask)
        self._pairs.add(pair)

    def _move(self, pair: _Pair, end: socket.socket, mask: int) -> None:
        if pair not in self._pairs:
            return  # cut by an event before this one
        try:
            pair.move(end, mask, self._state, time.monotonic())
        except OSError:
            pair.broken = True
        if pair.broken or pair.finished:
            self._drop(pair)

    def _refuse(self) -> None:
        if self._state.listening:
            self._selector.unregister(self._listener)
            self._listener.close()
            # A socket that is bound and does not listen answers "connection refused" and keeps the port ours.
            self._listener = _bound(*self._here)
            self._state.listening = False

    def _cut(self) -> None:
        for pair in list(self._pairs):
            self._drop(pair)

    def _drop(self, pair: _Pair) -> None:
        self._pairs.discard(pair)
        pair.close(self._selector, hard=not pair.finished)


def _bound(host: str, port: int) -> socket.socket:
    end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    end.bind((host, port))
    return end


@dataclass(slots=True)
class _State:
    """What the link does to bytes now; the lists have one entry a direction: up, down."""

    listening: bool = False
    latency: float = 0.0
    rate: float | None = None
    holes: list[bool] = field(default_factory=lambda: [False, False])
    free_at: list[float] = field(default_factory=lambda: [0.0, 0.0])
    forwarded: list[int] = field(default_factory=lambda: [0, 0])
    corrupt: list[int] = field(default_factory=lambda: [0, 0])  # pieces that are still to be hit
    swallow: list[int] = field(default_factory=lambda: [0, 0])

    def heal(self, latency: float, rate: float | None) -> None:
        self.latency, self.rate = latency, rate
        self.holes = [False, False]
        self.corrupt, self.swallow = [0, 0], [0, 0]


@dataclass(slots=True, eq=False)
class _Way:
    """One direction of one connection, with the bytes that are under way."""

    direction: int
    source: socket.socket
    sink: socket.socket
    held: deque[tuple[float, memoryview]] = field(default_factory=deque)  # (due, bytes)
    held_bytes: int = 0
    ended: bool = False  # the source has finished
    told: bool = False  # and the sink knows

    def wants_read(self, state: _State) -> bool:
        return not self.ended and not state.holes[self.direction] and self.held_bytes < _HELD_BYTES

    def due(self, state: _State) -> float | None:
        """When this way has something to do at its sink; None if nothing waits or it may not move."""
        if state.holes[self.direction] or self.told or not (self.held or self.ended):
            return None
        return max(self.held[0][0], state.free_at[self.direction]) if self.held else 0.0

    def read(self, state: _State, now: float) -> None:
        data = self.source.recv(_PIECE_BYTES)
        if not data:
            self.ended = True
            return
        if state.swallow[self.direction]:
            state.swallow[self.direction] -= 1
            return
        if state.corrupt[self.direction]:
            state.corrupt[self.direction] -= 1
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.held.append((now + state.latency, memoryview(data)))
        self.held_bytes += len(data)

    def write(self, state: _State, now: float) -> None:
        while (due := self.due(state)) is not None and due <= now:
            if not self.held:
                self.told = True
                with suppress(OSError):
                    self.sink.shutdown(socket.SHUT_WR)
                return
            since, data = self.held.popleft()
            limit = len(data) if state.rate is None else max(1, round(state.rate / 50))  # pieces of 20 ms
            sent = self.sink.send(data[:limit])
            self.held_bytes -= sent
            state.forwarded[self.direction] += sent
            if state.rate is not None:
                state.free_at[self.direction] = max(now, state.free_at[self.direction]) + sent / state.rate
            if sent < len(data):
                self.held.appendleft((since, data[sent:]))
                return


@dataclass(slots=True, eq=False)
class _Pair:
    """One connection: two ends, two ways."""

    ways: tuple[_Way, _Way]
    on_event: Callable[[socket.socket, int], None] = lambda end, mask: None
    masks: dict[socket.socket, int] = field(default_factory=dict)
    broken: bool = False

    @property
    def finished(self) -> bool:
        return all(way.told for way in self.ways)

    def arrange(self, selector: selectors.BaseSelector, state: _State, now: float) -> float:
        """Register what each end waits for; the seconds until this pair must be looked at again."""
        wake = 60.0
        wanted = {way.source: 0 for way in self.ways}
        for way in self.ways:
            if way.wants_read(state):
                wanted[way.source] |= selectors.EVENT_READ
            due = way.due(state)
            if due is not None and due <= now:
                wanted[way.sink] |= selectors.EVENT_WRITE
            elif due is not None:
                wake = min(wake, due - now)
        for end, mask in wanted.items():
            self._register(selector, end, mask)
        return wake

    def _register(self, selector: selectors.BaseSelector, end: socket.socket, mask: int) -> None:
        before = self.masks.get(end, 0)
        if mask == before:
            return
        if mask == 0:  # an end that waits for nothing would still report a hang-up, again and again
            selector.unregister(end)
        elif before == 0:
            selector.register(end, mask, lambda mask, end=end: self.on_event(end, mask))
        else:
            selector.modify(end, mask, selector.get_key(end).data)
        self.masks[end] = mask

    def move(self, end: socket.socket, mask: int, state: _State, now: float) -> None:
        for way in self.ways:
            with suppress(BlockingIOError):
                if mask & selectors.EVENT_READ and way.source is end:
                    way.read(state, now)
                if mask & selectors.EVENT_WRITE and way.sink is end:
                    way.write(state, now)

    def close(self, selector: selectors.BaseSelector, *, hard: bool) -> None:
        for end, mask in self.masks.items():
            if mask:
                selector.unregister(end)
        self.masks.clear()
        for way in self.ways:
            if hard:
                with suppress(OSError):
                    way.source.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _CUT_HARD)
            way.source.close()
