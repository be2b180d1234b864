"""What comes down: the desired state and commands; and the report of the station, which goes up beside its records."""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Callable
from contextlib import suppress

from outstation.clock import Clock
from outstation.errors import ClosedError, InvalidNameError, LinkError, ProviderUnavailableError, WireError
from outstation.providers.mqtt.link import Link
from outstation.types import STREAM_NAME, Desired, Reported
from outstation.wire.mqtt import Connection, Delivery, Publication
from outstation.wire.topics import JSON, document, read_desired

log = logging.getLogger("outstation.providers")

# Between tries to come back for the desired state and for commands, when no uplink connects.
_STATE_BACKOFF = 5.0
_STATE_TIMEOUT = 5.0
# Calls that wait for their handler. A caller gets "busy" beyond that, and may ask again.
_WAITING_COMMANDS = 16


class State:
    """The thread that keeps the connection for those who only listen, and calls them. Started when it is needed."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self.news = threading.Event()
        self.deliver: Callable[[], None] = lambda: None  # calls the watchers; on this thread
        self._link = link
        self._clock = clock
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Idempotent. ClosedError."""
        with self._lock:
            if self._stopping.is_set():
                raise ClosedError("The provider is closed.")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="outstation-mqtt-state", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping.set()
        self.news.set()

    def join(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        first = True
        while not self._stopping.is_set():
            if self._link.present is None:
                # A fleet that lost its broker at one instant must not come back at one instant; and an uplink that
                # backs off is not to be overtaken.
                if not first:
                    self._clock.wait(self._stopping, _STATE_BACKOFF * random.uniform(0.1, 1.0))  # noqa: S311
                first = False
                with suppress(LinkError, ClosedError):
                    self._link.connection(_STATE_TIMEOUT)
            self.news.clear()
            self.deliver()
            self._clock.wait(self.news, 1.0)  # a loss needs no word of its own: it is seen within the second


class MqttDesired:
    """The retained topics ``desired`` and ``reported``."""

    def __init__(self, link: Link, state: State, clock: Clock) -> None:
        self._link = link
        self._state = state
        self._clock = clock
        self._lock = threading.Lock()
        self._known: Desired | None = None  # what came last; None = nothing has, on this connection
        self._flaw = ""  # why what came last is no desired state
        self._watchers: dict[object, tuple[Callable[[Desired], None], Desired | None]] = {}
        link.hearers["desired"] = self._hear
        link.on_fresh = self._forget
        state.deliver = self._deliver

    def current(self, timeout: float) -> Desired:
        deadline = self._clock.monotonic() + timeout
        connection = self._link.connection(timeout)
        # A retained message comes with the subscription, so it has come when a canary is back.
        self._link.canary(connection, max(0.0, deadline - self._clock.monotonic()))
        if self._flaw:
            raise ProviderUnavailableError(f"What the broker keeps is no desired state: {self._flaw}")
        return self._known or Desired()

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        self._state.start()
        key = object()
        with self._lock:
            self._watchers[key] = (callback, None)
        self._state.news.set()

        def stop() -> None:
            with self._lock:
                self._watchers.pop(key, None)

        return stop

    def report(self, state: Reported, timeout: float) -> None:
        deadline = self._clock.monotonic() + timeout
        connection = self._link.connection(timeout)
        topic = self._link.topics.of(self._link.station, "reported")
        report = Publication(topic, document(state), retain=True, content_type=JSON)
        self._link.ask(connection, report, max(0.0, deadline - self._clock.monotonic()))

    def _hear(self, delivery: Delivery) -> None:
        try:
            self._known, self._flaw = read_desired(delivery.payload), ""
        except WireError as exc:
            self._flaw = str(exc)
            raise
        self._state.news.set()

    def _forget(self) -> None:
        self._known, self._flaw = None, ""

    def _deliver(self) -> None:
        known = self._known
        with self._lock:
            due = [(key, call) for key, (call, told) in self._watchers.items() if known is not None and told != known]
            for key, call in due:
                self._watchers[key] = (call, known)
        for key, call in due:
            if known is not None and key in self._watchers:
                call(known)


class MqttCommands:
    """Calls from the far end: ``cmd/NAME`` in, the request's response topic out, with its correlation data."""

    def __init__(self, link: Link, state: State) -> None:
        self._link = link
        self._state = state
        self._handlers: dict[str, Callable[[bytes], bytes]] = {}
        self._waiting: queue.Queue[Delivery | None] = queue.Queue(_WAITING_COMMANDS)
        self._thread = threading.Thread(target=self._run, name="outstation-mqtt-commands", daemon=True)
        link.hearers["cmd"] = self._hear

    def serve(self, name: str, handler: Callable[[bytes], bytes]) -> None:
        """Answer calls of *name*, one at a time, on a thread of the provider. InvalidNameError, ClosedError."""
        if STREAM_NAME.fullmatch(name) is None:
            raise InvalidNameError(f"{name!r} is no name of a command.", hint=f"It must match {STREAM_NAME.pattern}.")
        self._handlers[name] = handler
        self._state.start()
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        if self._thread.is_alive():
            with suppress(queue.Empty):
                while True:
                    self._waiting.get_nowait()
            self._waiting.put(None)
            self._thread.join()

    def _hear(self, delivery: Delivery) -> None:
        if not delivery.response_topic.startswith(self._link.topics.replies(self._link.station)):
            raise WireError("A command must ask for its answer below the station's own topic `reply`.")
        try:
            self._waiting.put_nowait(delivery)
        except queue.Full:
            if (connection := self._link.present) is not None:
                _reply(connection, delivery, "busy", b"")

    def _run(self) -> None:
        while (delivery := self._waiting.get()) is not None:
            status, answer = self._answer(delivery)
            # A command that the broker kept for us comes before the connection is quite open. Whoever is not
            # answered has a timeout, and asks again.
            with suppress(LinkError, ClosedError):
                _reply(self._link.connection(_STATE_TIMEOUT), delivery, status, answer)

    def _answer(self, delivery: Delivery) -> tuple[str, bytes]:
        handler = self._handlers.get(delivery.topic.rpartition("/")[2])
        if handler is None:
            return "unknown", b""
        try:
            return "done", handler(delivery.payload)
        except Exception as exc:
            # The caller hears of it; a handler's fault must not end the thread that serves the others.
            log.exception("the command %s failed", delivery.topic)
            return "failed", f"{type(exc).__name__}: {exc}".encode()


def _reply(connection: Connection, delivery: Delivery, status: str, payload: bytes) -> None:
    properties = (("status", status),)
    reply = Publication(delivery.response_topic, payload, properties=properties, correlation=delivery.correlation)
    with suppress(LinkError):
        connection.publish(reply, lambda _: None)
