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
from outstation.wire.channel import Keepalive, Tls
from outstation.wire.messages import HubStatus, SinkStatus
from outstation.wire.services import Server
from outstation_hub.access import Access
from outstation_hub.accounts import Accounts
from outstation_hub.backlog import Backlog
from outstation_hub.drain import Drain
from outstation_hub.fleet import FleetService
from outstation_hub.inbox import Inbox, Log
from outstation_hub.push import PushService
from outstation_hub.repository import Repository
from outstation_hub.settings import HubSettings
from outstation_hub.sinks import Sink
from outstation_hub.sinks.chosen import made_sinks
from outstation_hub.stations import Stations
from outstation_hub.wishes import Wishes

if TYPE_CHECKING:
    from outstation_hub.enrolment import EnrolmentService
    from outstation_hub.mqtt import MqttFront
    from outstation_hub.relay import Relay

log = logging.getLogger("outstation.hub")

# The list of stations is for people; after a crash it may be this many seconds old.
SAVE_INTERVAL = 5.0
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
            self._relay = _relay(settings)
            self._backlog: Backlog | None = None
            self.inbox: Log
            if self._relay is not None:
                self.inbox = self._relay
                self.accounts = Accounts(settings.data / "fleet" / "accounts.json", None, clock)
            else:
                self._backlog = Backlog(settings, made_sinks(settings, clock) if sinks is None else sinks, clock)
                self.inbox, self.accounts = self._backlog.inbox, self._backlog.accounts
            undo.callback(self._let_go)
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
            self.mqtt = _mqtt(settings, self.inbox, self.stations, self.wishes, clock)
            self._refused: Counter[str] = Counter()
            services = [self._push.handler(self._note_refused), fleet.handler(self._note_refused)]
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
        self._saver = threading.Thread(target=self._save, name="outstation-hubserver-saver", daemon=True)

    @property
    def drains(self) -> tuple[Drain, ...]:
        """From the inbox to each sink; none when this hub relays."""
        return () if self._backlog is None else self._backlog.drains

    @property
    def connected(self) -> tuple[str, ...]:
        """The stations that are connected now."""
        behind_broker = self.mqtt.connected if self.mqtt else ()
        return tuple(sorted({*self._push.connected, *behind_broker}))

    def status(self) -> HubStatus:
        """What the hub has done and refused since it started."""
        counts = Counter(asdict(self.inbox.counts)) + self._push.counts + self._refused
        if self._relay is None:
            sinks = tuple(drain.status for drain in self.drains)
        else:
            sinks = (SinkStatus("relay", self._relay.blocks_under_way, failure=self._relay.failure),)
        return HubStatus(
            f"outstation {__version__}",
            self._started_unix_nano,
            len(self.stations),
            len(self.connected),
            dict(counts),
            sinks,
        )

    def start(self) -> None:
        """Take stations at :attr:`address`."""
        if self._backlog is not None:
            self._backlog.start()
        self._saver.start()
        self._server.start()
        if self._enroll_server is not None:
            self._enroll_server.start()
        if self.mqtt is not None:
            self.mqtt.start()

    def close(self) -> None:
        """End every call, write what has arrived to the sinks if they take it, and let go of the folder. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._enroll_server is not None:
            self._enroll_server.close(grace=0.5)
        if self.mqtt is not None:
            self.mqtt.close()
        self._push.close()
        self.wishes.close()
        self._server.close(grace=0.5)
        self._push.join()
        self._stopping.set()
        if self._saver.is_alive():
            self._saver.join()
        self._let_go()

    def __enter__(self) -> Hub:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False

    def _let_go(self) -> None:
        if self._backlog is not None:
            self._backlog.close()
        if self._relay is not None:
            self._relay.close()

    def _save(self) -> None:
        while True:
            stopping = self._clock.wait(self._stopping, SAVE_INTERVAL)
            try:
                self.stations.save()
            except OutstationError as exc:
                log.warning("the list of stations could not be saved: %s", exc)
            self.accounts.keep()
            if stopping:
                return

    def _note_refused(self, error: OutstationError) -> None:
        if not isinstance(error, LinkDownError | ClosedError):  # whoever went away was not refused
            self._refused[next(word for kind, word in _REFUSED_AS if isinstance(error, kind))] += 1


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


def _mqtt(settings: HubSettings, inbox: Log, stations: Stations, wishes: Wishes, clock: Clock) -> MqttFront | None:
    if not settings.mqtt_broker:
        return None
    if not isinstance(inbox, Inbox):
        raise SettingsError(
            "A hub that relays takes no stations from a broker.",
            hint="Leave --relay away: several hubs may share a broker's messages by --mqtt-group.",
        )
    from outstation_hub.mqtt import MqttFront  # noqa: PLC0415  awscrt, which a hub without a broker does not need

    return MqttFront(settings, inbox, stations, wishes, clock)


def _relay(settings: HubSettings) -> Relay | None:
    if not settings.relay:
        return None
    if settings.sinks:
        raise SettingsError(
            f"A hub that relays keeps nothing to feed {settings.sinks[0]} with.",
            hint="Leave the sinks away, or leave --relay away and keep a log of its own.",
        )
    # nats-py, which only this kind of hub needs
    from outstation_hub.jetstream import JetStream  # noqa: PLC0415
    from outstation_hub.relay import Relay  # noqa: PLC0415

    return Relay(JetStream(settings.relay, stream=settings.nats_stream), max_block_bytes=settings.max_message_bytes)
