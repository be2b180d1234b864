"""The hub: parts put together, started in order, closed in the opposite one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from outstation.buffer import Buffer
from outstation.clock import Clock, SystemClock
from outstation.durable import make_directories
from outstation.errors import OutstationError, SettingsError
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import WhenFull
from outstation.wire.channel import Keepalive, Tls
from outstation.wire.services import Server
from outstation_hub.access import Access
from outstation_hub.drain import Drain
from outstation_hub.fleet import FleetService, Wishes
from outstation_hub.inbox import INBOX, Inbox
from outstation_hub.push import PushService
from outstation_hub.repository import Repository
from outstation_hub.room import DiskRoom
from outstation_hub.settings import HubSettings
from outstation_hub.sinks import Sink
from outstation_hub.stations import Stations

if TYPE_CHECKING:
    from outstation_hub.enrolment import EnrolmentService
    from outstation_hub.mqtt import MqttFront

log = logging.getLogger("outstation.hub")

# The list of stations is for people; after a crash it may be this many seconds old.
SAVE_INTERVAL = 5.0
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
            self.inbox = Inbox(self._buffer, clock, max_block_bytes=settings.max_message_bytes, has_room=room.take)
            self.stations = Stations(settings.data / "fleet" / "stations.json", clock)
            self.wishes = Wishes(settings.data / "fleet" / "desired.json")
            enrolment, access = _enrolment(settings, clock)
            self._push = PushService(self.inbox, self.stations, access, clock, hello_timeout=settings.hello_timeout)
            self.mqtt = _mqtt(settings, self.inbox, self.stations, self.wishes, clock)
            fleet = FleetService(self.wishes, self.stations, repository, access)
            sinks = _sinks(settings) if sinks is None else sinks
            for sink in sinks:
                undo.callback(sink.close)
            self.drains = tuple(map(self._drain, sinks))
            self._server = Server(
                [self._push.handler, fleet.handler, *([enrolment.handler] if enrolment else [])],
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
        self._saver = threading.Thread(target=self._save, name="outstation-hubserver-saver", daemon=True)

    @property
    def connected(self) -> tuple[str, ...]:
        """The stations that are connected now."""
        behind_broker = self.mqtt.connected if self.mqtt else ()
        return tuple(sorted({*self._push.connected, *behind_broker}))

    def start(self) -> None:
        """Take stations at :attr:`address`."""
        for drain in self.drains:
            drain.start()
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
        for drain in self.drains:
            drain.close()
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
        """Free the inbox through what every sink has; each sink's own cursor is on the disk already."""
        through = min(drain.cursor for drain in self.drains)
        if through > self.inbox.stream.acknowledged:
            self.inbox.stream.acknowledge(through)

    def _save(self) -> None:
        while True:
            stopping = self._clock.wait(self._stopping, SAVE_INTERVAL)
            try:
                self.stations.save()
            except OutstationError as exc:
                log.warning("the list of stations could not be saved: %s", exc)
            if stopping:
                return


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


def _mqtt(settings: HubSettings, inbox: Inbox, stations: Stations, wishes: Wishes, clock: Clock) -> MqttFront | None:
    if not settings.mqtt_broker:
        return None
    from outstation_hub.mqtt import MqttFront  # noqa: PLC0415  awscrt, which a hub without a broker does not need

    return MqttFront(settings, inbox, stations, wishes, clock)


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
