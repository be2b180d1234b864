"""The hub: parts put together, started in order, closed in the opposite one."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from outstation._version import __version__
from outstation.buffer import Buffer
from outstation.clock import Clock, SystemClock
from outstation.durable import make_directories
from outstation.errors import (
    AccessDeniedError,
    ClosedError,
    DeadlineError,
    InvalidInputError,
    LinkDownError,
    OutstationError,
    SettingsError,
    WireError,
)
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import WhenFull
from outstation.wire.channel import Keepalive, Tls
from outstation.wire.messages import HubStatus
from outstation.wire.services import Server
from outstation_hub.access import Access
from outstation_hub.accounts import Accounts
from outstation_hub.drain import Drain
from outstation_hub.fleet import FleetService
from outstation_hub.inbox import INBOX, Inbox
from outstation_hub.push import PushService
from outstation_hub.repository import Repository
from outstation_hub.room import DiskRoom
from outstation_hub.settings import HubSettings
from outstation_hub.sinks import Sink
from outstation_hub.stations import Stations
from outstation_hub.wishes import Wishes

if TYPE_CHECKING:
    from outstation_hub.enrolment import EnrolmentService

log = logging.getLogger("outstation.hub")

# The list of stations is for people; after a crash it may be this many seconds old.
SAVE_INTERVAL = 5.0
# The accounts of a large fleet take a while to write: at most this part of the time goes into it.
_SAVING_SHARE = 0.05
# How the status calls what was refused; the first that fits.
_REFUSED_AS: tuple[tuple[type[OutstationError], str], ...] = (
    (WireError, "garbage"),
    (AccessDeniedError, "denied"),
    (DeadlineError, "silent"),
    (InvalidInputError, "wrong"),
    (OutstationError, "turned_away"),
)
# Calls beside those that stations hold open: reports, fetches, operators.
_SHORT_CALLS = 32


class Hub:
    """One hub. ``start`` and ``close`` once each; also a context manager. Made, it owns its data folder.

    *sinks* defaults to those of the settings. Raises SettingsError, StorageError (BufferLockedError if another hub
    holds the folder) and ConfigurationError when the address is taken.
    """

    def __init__(
        self, settings: HubSettings, *, sinks: Sequence[Sink] | None = None, clock: Clock | None = None
    ) -> None:
        clock = SystemClock() if clock is None else clock
        tls = settings.tls
        self.settings = settings
        self._clock = clock
        make_directories(settings.data / "fleet")
        repository = Repository(Path(settings.repository)) if settings.repository else None
        with ExitStack() as undo:  # what a failure below must not leave behind
            self._buffer = Buffer.open(settings.data / INBOX, _buffer_settings(settings), clock=clock)
            undo.callback(self._buffer.close)
            room = DiskRoom(settings.data, settings.min_free_disk_bytes, clock)
            self.accounts = Accounts(settings.data / "fleet" / "accounts.json", self._buffer.stream(INBOX), clock)
            self.inbox = Inbox(
                self._buffer,
                clock,
                max_block_bytes=settings.max_message_bytes,
                has_room=room.take,
                watcher=self.accounts,
            )
            self.accounts.catch_up(self.inbox.stream.last_sequence)
            self.stations = Stations(settings.data / "fleet" / "stations.json", clock)
            self.stations.on_told(self.accounts.told)
            self.wishes = Wishes(settings.data / "fleet" / "desired.json", self.stations, clock)
            enrolment, access = _enrolment(settings, clock)
            self._push = PushService(
                self.inbox, self.stations, self.accounts, access, clock, hello_timeout=settings.hello_timeout
            )
            fleet = FleetService(
                self.wishes,
                self.stations,
                self.accounts,
                repository,
                access,
                status=self.status,
                is_connected=self._push.is_connected,
            )
            self._refused: Counter[str] = Counter()
            services = [self._push.handler(self._note_refused), fleet.handler(self._note_refused)]
            sinks = _sinks(settings) if sinks is None else sinks
            for sink in sinks:
                undo.callback(sink.close)
            self.drains = tuple(map(self._drain, sinks))
            self._server = Server(
                [*services, *([enrolment.handler] if enrolment else [])],
                workers=2 * settings.max_stations + _SHORT_CALLS,  # each station holds a Push and a watch
                tls=tls,
                max_message_bytes=settings.max_message_bytes + (64 << 10),
                keepalive=Keepalive(settings.keepalive_interval, settings.keepalive_timeout),
                name="hubserver-rpc",
            )
            undo.callback(self._server.close, 0.0)
            self.address = self._server.listen(settings.listen)
            self._enroll_server = None if enrolment is None else _enroll_server(settings, enrolment)
            self.enroll_address = self._enroll_server.listen(settings.enroll_listen) if self._enroll_server else ""
            undo.pop_all()
        self._stopping = threading.Event()
        self._closed = False
        self._started_unix_nano = clock.time_unix_nano()
        self._freeing = threading.Lock()
        self._save_at = clock.monotonic()
        self._saver = threading.Thread(target=self._save, name="outstation-hubserver-saver", daemon=True)

    @property
    def connected(self) -> tuple[str, ...]:
        """The stations that are connected now."""
        return self._push.connected

    def status(self) -> HubStatus:
        """What the hub has done and refused since it started."""
        counts = Counter(asdict(self.inbox.counts)) + self._push.counts + self._refused
        return HubStatus(
            f"outstation {__version__}", self._started_unix_nano, len(self.stations), len(self.connected), dict(counts)
        )

    def start(self) -> None:
        """Take stations at :attr:`address`."""
        for drain in self.drains:
            drain.start()
        self._saver.start()
        self._server.start()
        if self._enroll_server is not None:
            self._enroll_server.start()

    def close(self) -> None:
        """End every call, write what has arrived to the sinks if they take it, and let go of the folder. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._enroll_server is not None:
            self._enroll_server.close(grace=0.5)
        self._push.close()
        self.wishes.close()
        self._server.close(grace=0.5)
        self._push.join()
        self._stopping.set()
        if self._saver.is_alive():
            self._saver.join()
        for drain in self.drains:
            drain.close()
        self._save_accounts()
        self._free()
        self._buffer.close()

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    def _drain(self, sink: Sink) -> Drain:
        return Drain(
            self.inbox.stream,
            sink,
            self.settings.data / "sinks",
            self._clock,
            interval=self.settings.drain_interval,
            batch_bytes=self.settings.batch_bytes,
            on_progress=self._progressed,
        )

    def _progressed(self) -> None:
        """A sink has more on the disk: the accounts too, if it is not too soon again, and then the inbox has room."""
        if self._clock.monotonic() >= self._save_at:
            self._save_accounts()
        self._free()

    def _free(self) -> None:
        """Free the inbox through what every sink has, and the accounts too; their cursors are on the disk already."""
        with self._freeing:
            through = min([self.accounts.saved_through, *(drain.cursor for drain in self.drains)])
            if through > self.inbox.stream.acknowledged:
                self.inbox.stream.acknowledge(through)

    def _save(self) -> None:
        while True:
            stopping = self._clock.wait(self._stopping, SAVE_INTERVAL)
            try:
                self.stations.save()
            except OutstationError as exc:
                log.warning("the list of stations could not be saved: %s", exc)
            self._save_accounts()
            self._free()
            if stopping:
                return

    def _save_accounts(self) -> None:
        began = self._clock.monotonic()
        try:
            self.accounts.save()
        except OutstationError as exc:
            log.warning("the accounts could not be saved; the inbox keeps what they do not have: %s", exc)
        took = self._clock.monotonic() - began
        self._save_at = self._clock.monotonic() + took / _SAVING_SHARE

    def _note_refused(self, error: OutstationError) -> None:
        if not isinstance(error, LinkDownError | ClosedError):  # whoever went away was not refused
            self._refused[next(word for kind, word in _REFUSED_AS if isinstance(error, kind))] += 1


def _buffer_settings(settings: HubSettings) -> BufferSettings:
    # Blocks arrive compressed: the cheapest level finds that out and stores them as they are.
    inbox = StreamSettings(when_full=WhenFull.REJECT, max_bytes=settings.inbox_bytes)
    return BufferSettings(
        max_bytes=settings.inbox_bytes + (1 << 30),
        min_free_disk_bytes=settings.min_free_disk_bytes // 2,  # DiskRoom stops the stations before
        group_interval=settings.group_interval,
        block_bytes=1 << 20,
        # Only whole segments are freed, so there must be many of them; and a file each few seconds, not each moment.
        segment_bytes=max(1 << 20, min(64 << 20, settings.inbox_bytes // 64)),
        zstd_level=1,
        defaults=inbox,
    )


def _enrolment(settings: HubSettings, clock: Clock) -> tuple[EnrolmentService | None, Access]:
    """The enrolment service if the hub has an authority of its own, and who may do what."""
    if not settings.authority:
        if settings.enroll_listen:
            raise SettingsError("Enrolment needs an authority.", hint="Make one with `outstation hub init`.")
        return None, Access(settings.operators)
    # cryptography, which a hub without an authority of its own does not need
    from outstation_hub.authority import Authority, fingerprint  # noqa: PLC0415
    from outstation_hub.enrolment import EnrolmentService  # noqa: PLC0415

    authority = Authority(Path(settings.authority), clock)
    known = lru_cache(maxsize=10_000)(fingerprint)  # the same few thousand certificates, again and again
    access = Access(settings.operators, lambda certificate: authority.is_revoked(known(certificate)))
    return EnrolmentService(authority, access, settings.operators), access


def _enroll_server(settings: HubSettings, enrolment: EnrolmentService) -> Server | None:
    if not settings.enroll_listen:
        return None
    hub = Path(settings.authority) / "hub.pem"
    tls = Tls(None, hub, hub)
    return Server([enrolment.open_handler], workers=4, tls=tls, max_message_bytes=64 << 10, name="hubserver-enroll")


def _sinks(settings: HubSettings) -> tuple[Sink, ...]:
    """The sinks that were asked for, each with what it imports; Parquet files when none was."""
    sinks: list[Sink] = []
    if settings.nats:
        from outstation_hub.sinks.nats import NatsSink  # noqa: PLC0415

        sinks.append(NatsSink(settings.nats, stream=settings.nats_stream))
    if settings.parquet or not sinks:
        from outstation_hub.sinks.parquet import ParquetSink  # noqa: PLC0415

        sinks.append(ParquetSink(settings.parquet_dir))
    return tuple(sinks)
