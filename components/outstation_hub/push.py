"""``Sync.Push``: one call for each connected station. Blocks in; acknowledgements out once they are on the disk.

Two threads a call: the reader takes blocks and blocks when the inbox is full, which is what stops the station
(HTTP/2 flow control); gRPC's own thread sends what the commit thread has left in the session. Neither waits for
the other, and what waits in a session is bounded: one acknowledgement a stream, since they are cumulative.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from outstation._version import __version__
from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    CorruptBlockError,
    DeadlineError,
    InvalidInputError,
    LinkDownError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
)
from outstation.provider import Acknowledgement, Message
from outstation.types import STREAM_NAME
from outstation.wire import convert
from outstation.wire.messages import Downward, Hello, Ledgers, Messages, Upward, Welcome
from outstation.wire.services import Caller, handler
from outstation_hub.access import Access
from outstation_hub.accounts import Accounts
from outstation_hub.duels import Duels, Holder
from outstation_hub.inbox import Log
from outstation_hub.stations import Stations

log = logging.getLogger("outstation.hub")

# A reason is for people; a damaged stream name in it could have any length.
MAX_REASON = 500
# What a station says to be told from another device of its name; sixteen characters in truth.
MAX_INSTANCE = 64
# Blocks in one message. Past some dozen there is nothing to gain, and a message is in memory whole.
MAX_BLOCKS = 64
# Refusals that wait to be sent; a station that earns more than this and reads none is cut off.
MAX_REFUSALS = 1000


class PushService:
    """Serves ``outstation.v1.Sync``. Thread-safe."""

    def __init__(
        self,
        log_: Log,
        stations: Stations,
        accounts: Accounts,
        access: Access,
        clock: Clock,
        *,
        hello_timeout: float,
    ) -> None:
        self._log = log_
        self._stations = stations
        self._accounts = accounts
        self._access = access
        self._clock = clock
        self._hello_timeout = hello_timeout
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}
        self._duels = Duels()
        self._readers: set[threading.Thread] = set()
        self._closing = False
        self.counts: Counter[str] = Counter()  # of take-overs, since the hub started

    def handler(self, on_refused: Callable[[OutstationError], None] = lambda error: None) -> Any:
        """The service; *on_refused* hears of each call that failed."""
        return handler("outstation.v1.Sync", {convert.PUSH: self.push}, on_refused=on_refused)

    @property
    def connected(self) -> tuple[str, ...]:
        """The stations that are connected now."""
        with self._lock:
            return tuple(sorted(self._sessions))

    def is_connected(self, station: str) -> bool:
        """Whether *station* is connected now."""
        return station in self._sessions

    def push(self, requests: Iterator[Upward | None], caller: Caller) -> Iterator[Downward]:
        session = Session()
        reader = threading.Thread(
            target=self._read, args=(session, requests, caller), name="outstation-hubserver-push", daemon=True
        )
        with self._lock:
            if self._closing:
                raise ProviderUnavailableError("The hub is closing.")
            self._readers.add(reader)
        caller.on_end(session.end)
        reader.start()
        yield from session.answers(self._hello_timeout)

    def close(self) -> None:
        """End every session. The server's close must follow, then :meth:`join`."""
        with self._lock:
            self._closing = True
            sessions = list(self._sessions.values())
        for session in sessions:
            session.fail(ProviderUnavailableError("The hub is closing."))

    def join(self) -> None:
        """Wait for the readers; they end when their calls have ended."""
        for reader in list(self._readers):
            reader.join()

    # -- on the reader's thread ----------------------------------------------------------------------------------

    def _read(self, session: Session, requests: Iterator[Upward | None], caller: Caller) -> None:
        try:
            self._greet(session, next(requests, None), caller)
            for item in requests:
                if session.stop.is_set():
                    break
                self._access.believed(caller)  # a revoked station is cut off, not only kept from coming back
                self._stations.seen(session.station)
                if isinstance(item, Message):
                    self._take(session, item)
                elif isinstance(item, Messages):
                    self._take_all(session, item.messages)
                elif isinstance(item, Ledgers):
                    self._stations.take_ledgers(session.station, item.reports)
            session.finish()
        except OutstationError as exc:
            if not isinstance(exc, LinkDownError | ClosedError):
                log.info("connection of %r from %s ended: %s", session.station, caller.peer, exc)
            session.fail(exc)
        except Exception as exc:
            log.exception("connection of %r from %s failed", session.station, caller.peer)
            session.fail(ProviderUnavailableError(f"The hub failed: {type(exc).__name__}."))
        finally:
            with self._lock:
                self._readers.discard(threading.current_thread())
                if self._sessions.get(session.station) is session:
                    del self._sessions[session.station]

    def _greet(self, session: Session, hello: Upward | None, caller: Caller) -> None:
        if not isinstance(hello, Hello):
            raise InvalidInputError("The first message must be a Hello.")
        self._access.station(caller, hello.station)
        self._stations.connected(hello.station, hello.software)
        now = self._clock.monotonic()
        session.holder = Holder(hello.instance[:MAX_INSTANCE], now)
        with self._lock:
            if self._closing:
                raise ProviderUnavailableError("The hub is closing.")
            older = self._sessions.get(hello.station)
            if older is not None:
                self._take_over(hello.station, session, older, now)
            self._sessions[hello.station] = session
        if older is not None:
            # After a cut the hub may still hold the dead connection; and two devices may share one name. The
            # newest wins: it is alive for certain. Both are told, and neither can harm the other's records.
            log.warning("station %r connected again from %s; the older connection is ended", hello.station, caller.peer)
            older.fail(ProviderUnavailableError(f"Another connection of station {hello.station!r} took over."))
        self._log.forget(hello.station)
        session.welcome(hello.station)

    def _take_over(self, station: str, newcomer: Session, older: Session, now: float) -> None:
        """Count it, or raise ProviderUnavailableError when the older one may keep the connection for now."""
        wait = self._duels.wait(station, newcomer.holder.instance, older.holder, now)
        self.counts["held_off" if wait else "taken_over"] += 1
        if self._duels.is_doubled(station, now):
            self._stations.count(station, "two_devices")
        if wait:
            raise ProviderUnavailableError(
                f"Another device uses the name {station!r} at the same time; it keeps the connection for {wait:.0f} s.",
                hint="Give each device a name and a certificate of its own.",
            )

    def _take_all(self, session: Session, messages: tuple[Message, ...]) -> None:
        if len(messages) > MAX_BLOCKS:
            raise InvalidInputError(f"{len(messages)} blocks in one message; this hub takes {MAX_BLOCKS}.")
        for message in messages:
            self._take(session, message)

    def _take(self, session: Session, message: Message) -> None:
        acknowledgement = Acknowledgement(message.stream, message.epoch, message.last_sequence)

        def done(error: OutstationError | None) -> None:
            # On the log's thread: leave word and return.
            if error is None:
                session.acknowledge(acknowledgement)
            else:
                session.fail(ProviderUnavailableError(f"The hub could not store a block: {error}"))

        session.expect()
        try:
            held_bytes = self._log.take(session.station, message, session.stop, done)
            if held_bytes:
                session.hold(replace(acknowledgement, held_bytes=held_bytes))
        except ProviderUnavailableError as exc:
            if isinstance(exc.__cause__, CorruptBlockError):
                self._stations.count(session.station, "damaged")
            raise
        except RefusedError as exc:
            self._log.counts.refused += 1
            self._stations.count(session.station, "refused")
            if STREAM_NAME.fullmatch(message.stream) and 0 < message.first_sequence <= message.last_sequence:
                self._accounts.refused(
                    session.station, message.stream, message.epoch, message.first_sequence, message.last_sequence
                )
            log.warning("refused a block of %r: %s", session.station, exc)
            session.refuse(Acknowledgement(message.stream, message.epoch, message.last_sequence, str(exc)[:MAX_REASON]))


class Session:
    """One call: what is to be said to the station, and how it ended. Thread-safe."""

    def __init__(self) -> None:
        self.station = ""
        self.holder = Holder("", 0.0)
        self.stop = threading.Event()  # the reader waits on it while the inbox is full
        self._changed = threading.Condition()
        self._through: dict[tuple[str, int], int] = {}
        self._held: dict[tuple[str, int], Acknowledgement] = {}  # the latest of each stream says all
        self._refusals: deque[Acknowledgement] = deque()
        self._welcomed = False
        self._error: OutstationError | None = None
        self._open = 0  # blocks whose fate is not decided
        self._finished = False

    def welcome(self, station: str) -> None:
        self._change(lambda: self._set_welcome(station))

    def expect(self) -> None:
        """A block has come; :meth:`acknowledge`, :meth:`refuse` or :meth:`fail` follows."""
        with self._changed:
            self._open += 1

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        key = (acknowledgement.stream, acknowledgement.epoch)

        def change() -> None:
            self._open -= 1
            if self._error is None:
                self._through[key] = max(acknowledgement.through, self._through.get(key, 0))

        self._change(change)

    def refuse(self, refusal: Acknowledgement) -> None:
        if len(self._refusals) >= MAX_REFUSALS:
            raise ProviderUnavailableError("The station reads no answers.")

        def change() -> None:
            self._open -= 1
            self._refusals.append(refusal)

        self._change(change)

    def hold(self, held: Acknowledgement) -> None:
        """A part of a block is in memory, and more of it must come."""

        def change() -> None:
            self._open -= 1
            self._held[held.stream, held.epoch] = held

        self._change(change)

    def finish(self) -> None:
        """The station has said all it has to say: the call ends when every block is decided."""
        self._change(lambda: setattr(self, "_finished", True))

    def fail(self, error: OutstationError) -> None:
        """End the call with *error*; the first one counts."""

        def change() -> None:
            self._error = self._error or error

        self.stop.set()
        self._change(change)

    def end(self) -> None:
        """The call is over, for whatever reason."""
        self.fail(LinkDownError("The station has gone."))

    def answers(self, hello_timeout: float) -> Iterator[Downward]:
        """What to send, on gRPC's thread, until the call ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._welcomed or self._error or self._finished, hello_timeout)
            if self._error is not None:
                raise self._error
            if not self._welcomed:
                raise DeadlineError(f"No Hello came within {hello_timeout:g} s.")
        yield Welcome(f"outstation-hub {__version__}", MAX_BLOCKS)
        while True:
            with self._changed:
                self._changed.wait_for(self._has_word)
                through, self._through = self._through, {}
                refusals, self._refusals = self._refusals, deque()
                held, self._held = self._held, {}
                over = self._over()
            # Refusals first: an acknowledgement of a later block covers what was refused before it.
            yield from refusals
            yield from held.values()
            for (stream, epoch), last in through.items():
                yield Acknowledgement(stream, epoch, last)
            if over:
                break
        if self._error is not None:
            raise self._error

    def _has_word(self) -> bool:
        return bool(self._through or self._held or self._refusals) or self._over()

    def _over(self) -> bool:
        return self._error is not None or (self._finished and self._open == 0)

    def _set_welcome(self, station: str) -> None:
        self.station = station
        self._welcomed = True

    def _change(self, change: Callable[[], object]) -> None:
        with self._changed:
            change()
            self._changed.notify_all()
