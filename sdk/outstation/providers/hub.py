"""A hub of your own, over gRPC: blocks up unchanged, desired state and model files down, one connection for all.

A message's way up: ``HubUplink.send`` puts it into the outbox of the connection; gRPC's thread takes it from there
and writes it; the connection's reader thread hands each acknowledgement to the listener. When the call ends, for
whatever reason, the reader says ``lost`` once and is done.
"""

from __future__ import annotations

import logging
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from outstation._version import __version__
from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    DeadlineError,
    InvalidInputError,
    LinkDownError,
    LinkError,
    MissingExtraError,
    OutstationError,
    RefusedError,
    SettingsError,
    StorageError,
    WireError,
)
from outstation.provider import Acknowledgement, ByteStream, Limits, Message, UplinkListener
from outstation.settings import Seconds, Size, Table, decoded
from outstation.types import Desired, Identity, Reported, StreamReport
from outstation.wire import convert
from outstation.wire.address import is_loopback
from outstation.wire.channel import Keepalive, Tls
from outstation.wire.client import Client, Responses
from outstation.wire.messages import FetchRequest, Hello, Ledgers, StationReport, Upward, Welcome

log = logging.getLogger("outstation.providers")

# Messages handed over and not yet written. Two keep gRPC busy while the uplink encodes the next; more would only
# age, and be forgotten when the connection is lost.
_OUTBOX_MESSAGES = 4
# Between tries to watch the desired state; an operator's change waits this long at most once the link is back.
_WATCH_BACKOFF = 5.0


class HubOptions(Table, frozen=True):
    """``[options.hub]``: where the hub is and how each side knows the other. Paths are PEM files."""

    address: str = "127.0.0.1:8445"  # host:port
    ca: str = ""  # who signed the hub's certificate; "" = the authorities this machine trusts
    certificate: str = ""  # the station's own; its common name is the station's name
    key: str = ""
    server_name: str = ""  # the name in the hub's certificate, if it is not the host in `address`
    insecure: bool = False  # plain text to another machine: for private networks only
    max_message_bytes: Size = 16 << 20  # what the hub takes in one message
    keepalive_interval: Seconds = 7.0  # seconds of silence before the hub is asked whether it lives
    keepalive_timeout: Seconds = 3.0  # seconds it has to answer


class HubProvider:
    """The provider ``hub``. Thread-safe. Nothing is connected, and no thread started, before the first call."""

    name = "hub"
    commands = None
    secrets = None
    lifecycle = None

    def __init__(self, *, identity: Identity, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> None:
        checked = decoded(options, HubOptions, where="[options.hub]")
        tls = _tls(checked)
        self.identity = identity
        self.limits = Limits(max_message_bytes=checked.max_message_bytes)
        self._link = _Link(identity.station, checked, tls, clock)
        self.uplink = HubUplink(identity.station, self._link, checked.max_message_bytes)
        self.desired = HubDesired(identity.station, self._link, clock)
        self.artifacts = HubArtifacts(identity.station, self._link)

    def close(self) -> None:
        self.uplink.disconnect()
        self.desired.stop()
        self._link.close()
        self.desired.join()


def _tls(options: HubOptions) -> Tls | None:
    if ":" not in options.address:
        raise SettingsError(f"options.hub.address {options.address!r} is no host:port.")
    if options.insecure or (is_loopback(options.address) and not options.ca and not options.certificate):
        return None
    if not options.certificate or not options.key:
        raise SettingsError(
            f"The hub at {options.address} is another machine, and there is no certificate for it.",
            hint="Set ca, certificate and key in [options.hub], or insecure = true on a network that you trust.",
        )
    return Tls(Path(options.ca) if options.ca else None, Path(options.certificate), Path(options.key))


class _Link:
    """The one client of the provider, made at the first call. After close there is none."""

    def __init__(self, station: str, options: HubOptions, tls: Tls | None, clock: Clock) -> None:
        self.address = options.address
        self.instance = secrets.token_hex(8)  # the hub tells two devices of one name by it
        self._station = station
        self._options = options
        self._tls = tls
        self._clock = clock
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._closed = False

    def client(self) -> Client:
        with self._lock:
            if self._closed:
                raise ClosedError("The provider is closed.")
            if self._client is None:
                options = self._options
                self._client = Client(
                    options.address,
                    tls=self._tls,
                    max_message_bytes=options.max_message_bytes + (64 << 10),
                    keepalive=Keepalive(options.keepalive_interval, options.keepalive_timeout),
                    server_name=options.server_name,
                )
            return self._client

    def renew_if_due(self, timeout: float) -> None:
        """Replace a certificate that nears its end; the next call uses the new one. Never raises LinkError.

        Only a pair that lies in one file, as enrolment writes it, is replaced: any other is somebody else's to keep.
        """
        tls = self._tls
        if tls is None or tls.certificate is None or tls.certificate != tls.key:
            return
        try:
            # cryptography, which a device with certificates from elsewhere does not need
            from outstation import enrolment  # noqa: PLC0415

            if enrolment.is_due(tls.certificate, self._clock):
                enrolment.renew(self.client(), self._station, tls.certificate, timeout)
                self._drop_client()
        except (LinkError, StorageError, MissingExtraError) as exc:
            log.warning("the certificate could not be renewed yet: %s", exc)

    def _drop_client(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()


class HubUplink:
    """One ``Push`` call at a time."""

    def __init__(self, station: str, link: _Link, max_message_bytes: int) -> None:
        self._station = station
        self._link = link
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._abandoned = threading.Event()  # disconnect() does not wait for a connect() in progress

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        with self._lock:
            self._abandoned.clear()
            if self._connection is not None and self._connection.alive:
                return
            deadline = time.monotonic() + timeout
            client = self._link.client()
            # Waiting for the channel, rather than failing while gRPC is between two tries, finds a link that has
            # just come back.
            client.wait_ready(timeout, self._abandoned)
            self._link.renew_if_due(timeout)
            hello = Hello(self._station, f"outstation {__version__}", self._link.instance)
            connection = _Connection(hello, self._link.client(), listener)
            try:
                connection.wait_welcome(max(0.25, deadline - time.monotonic()))
            except OutstationError:
                connection.end()
                raise
            self._connection = connection

    def send(self, message: Message, timeout: float) -> None:
        if len(message.block) > self._max_message_bytes:
            raise RefusedError(f"A block of {len(message.block)} bytes is over options.hub.max_message_bytes.")
        self._alive().outbox.put(message, timeout)

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        self._alive().outbox.put(Ledgers(reports), timeout)

    def probe(self, timeout: float) -> None:
        self._alive()
        self._link.client().unary(convert.GET_DESIRED)(self._station, timeout)

    def disconnect(self) -> None:
        self._abandoned.set()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    def _alive(self) -> _Connection:
        connection = self._connection
        if connection is None or not connection.alive:
            raise LinkDownError(f"There is no connection to the hub at {self._link.address}.")
        return connection


class _Outbox:
    """A bounded queue that gRPC iterates over. Closing it ends the iteration and wakes whoever waits to put."""

    def __init__(self, first: Upward) -> None:
        self._items: deque[Upward] = deque([first])
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: Upward, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(self._has_room, timeout):
                raise DeadlineError(f"The hub took nothing for {timeout:g} s.")
            if self._closed:
                raise LinkDownError("The connection to the hub was lost.")
            self._items.append(item)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Upward]:
        return self

    def __next__(self) -> Upward:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if self._closed:
                raise StopIteration
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def _has_room(self) -> bool:
        return self._closed or len(self._items) < _OUTBOX_MESSAGES


class _Connection:
    """One ``Push`` call, from Hello to its end."""

    def __init__(self, hello: Hello, client: Client, listener: UplinkListener) -> None:
        self.outbox = _Outbox(hello)
        self._listener = listener
        self._changed = threading.Condition()
        self._welcome = False
        self._ended: OutstationError | None = None
        self._ours = False  # we ended it: nobody needs to be told
        self._call: Responses[Any] = client.stream(convert.PUSH, self.outbox)
        self._reader = threading.Thread(target=self._read, name="outstation-hub-uplink", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._welcome and self._ended is None

    def wait_welcome(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._welcome or self._ended, timeout)
            if self._ended is not None:
                raise self._ended
            if not self._welcome:
                raise DeadlineError(f"The hub did not answer within {timeout:.1f} s.")

    def end(self) -> None:
        """End the call and its thread, without a word to the listener. Idempotent."""
        self._ours = True
        self.outbox.close()
        self._call.cancel()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _read(self) -> None:
        ended: OutstationError = LinkDownError("The hub ended the connection.")
        try:
            for answer in self._call:
                if isinstance(answer, Acknowledgement):
                    self._listener.acknowledged(answer)
                elif isinstance(answer, Welcome):
                    with self._changed:
                        self._welcome = True
                        self._changed.notify_all()
        except OutstationError as exc:
            ended = exc
        self._call.cancel()
        with self._changed:
            self._ended = ended
            self._changed.notify_all()
        self.outbox.close()
        if self._welcome and not self._ours:
            self._listener.lost(ended)


class HubDesired:
    """The fleet service's side of one station."""

    def __init__(self, station: str, link: _Link, clock: Clock) -> None:
        self._station = station
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._watches: list[_Watch] = []
        self._stopped = False

    def current(self, timeout: float) -> Desired:
        return self._link.client().unary(convert.GET_DESIRED)(self._station, timeout)

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        with self._lock:
            if self._stopped:
                raise ClosedError("The provider is closed.")
            watch = _Watch(self._station, self._link, self._clock, callback)
            self._watches.append(watch)
        return watch.stop

    def report(self, state: Reported, timeout: float) -> None:
        self._link.client().unary(convert.REPORT)(StationReport(self._station, state), timeout)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
        for watch in self._watches:
            watch.stop()

    def join(self) -> None:
        for watch in self._watches:
            watch.thread.join()
        self._watches.clear()


class _Watch:
    """One watcher of the desired state, on a thread of its own that outlives every loss of the link."""

    def __init__(self, station: str, link: _Link, clock: Clock, callback: Callable[[Desired], None]) -> None:
        self._station = station
        self._link = link
        self._clock = clock
        self._callback = callback
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._call: Responses[Desired] | None = None
        self._last: Desired | None = None
        self.thread = threading.Thread(target=self._run, name="outstation-hub-desired", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """No callback begins after the present one. Idempotent; does not wait."""
        with self._lock:
            self._stopping.set()
            if self._call is not None:
                self._call.cancel()

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(LinkError, WireError):
                try:
                    self._listen()
                except ClosedError:
                    return
            if self._stopping.is_set():
                return
            # A fleet that lost its hub at one instant must not come back at one instant.
            self._clock.wait(self._stopping, _WATCH_BACKOFF * random.uniform(0.1, 1.0))  # noqa: S311

    def _listen(self) -> None:
        client = self._link.client()
        client.wait_ready(_WATCH_BACKOFF, self._stopping)
        with self._lock:
            if self._stopping.is_set():
                return
            self._call = client.stream(convert.WATCH_DESIRED, self._station)
        for state in self._call:
            if self._stopping.is_set():
                return
            if state != self._last:
                self._last = state
                self._callback(state)


class HubArtifacts:
    """Files of the hub's repository, in the chunks that the hub sends."""

    def __init__(self, station: str, link: _Link) -> None:
        self._station = station
        self._link = link

    @contextmanager
    def open(self, uri: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        """As :class:`outstation.provider.Artifacts`; *timeout* bounds the wait for each chunk, not the whole file."""
        if offset < 0:
            raise InvalidInputError(f"There is no byte {offset} in {uri}.")
        request = FetchRequest(self._station, uri.removeprefix("hub:"), offset)
        with self._link.client().stream(convert.FETCH, request) as call, _Chunks(call, timeout) as chunks:
            yield chunks


class _Chunks:
    """The chunks of one call as a byte stream, with a watch on how long each takes."""

    def __init__(self, call: Responses[bytes], timeout: float) -> None:
        self._call = call
        self._timeout = timeout
        self._rest = memoryview(b"")
        self._waiting_since: float | None = None
        self._late = False
        self._done = threading.Event()
        # gRPC's iteration knows no timeout for one message, so somebody else must look at the clock.
        self._watch = threading.Thread(target=self._look, name="outstation-hub-fetch", daemon=True)

    def __enter__(self) -> _Chunks:
        self._watch.start()
        try:
            self._next()  # a file that is not there is an error of open(), not of the first read()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._next()
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def _next(self) -> None:
        self._waiting_since = time.monotonic()
        try:
            self._rest = memoryview(next(self._call, b""))
        except LinkError as exc:
            if self._late:
                raise DeadlineError(f"The hub sent nothing for {self._timeout:g} s.") from exc
            raise
        finally:
            self._waiting_since = None

    def _look(self) -> None:
        while not self._done.wait(min(0.2, self._timeout / 4)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._timeout:
                self._late = True
                self._call.cancel()
                return

    def _end(self) -> None:
        self._done.set()
        self._watch.join()
