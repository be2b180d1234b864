"""Events: a name, a JSON body and a priority, into the buffer. Recording never waits for the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec

from outstation.clock import Clock
from outstation.errors import InvalidInputError, InvalidNameError
from outstation.settings import BufferSettings, StreamSettings

EVENTS = "events"
# What the station tells of itself has a stream of its own, small and early: after alarms, before any backlog.
HEALTH = "health"
HEALTH_POLICY = StreamSettings(priority=1, max_bytes=4 << 20)
JSON = "application/json"
EVENT_ATTRIBUTE = "event"
MAX_NAME = 128


class Receipt(Protocol):
    """Proof that a record was taken; ``wait`` returns once it is on the disk."""

    def wait(self, timeout: float | None = None) -> None: ...


class RecordStream(Protocol):
    """What telemetry needs of a stream, in this process or in the agent's."""

    def append(
        self,
        payload: bytes,
        *,
        time_unix_nano: int | None = None,
        content_type: str = ...,
        attributes: Mapping[str, str] = ...,
    ) -> Receipt: ...


class RecordBuffer(Protocol):
    """A buffer's streams by name."""

    def stream(self, name: str) -> RecordStream: ...


def event_stream(priority: int | None) -> str:
    """The stream that events of *priority* go to: ``events``, or ``events.p0`` to ``events.p9``."""
    if priority is None:
        return EVENTS
    if not 0 <= priority <= 9:
        raise InvalidInputError(f"A priority is 0 (first) to 9, not {priority}.")
    return f"{EVENTS}.p{priority}"


def with_event_streams(settings: BufferSettings) -> BufferSettings:
    """*settings* with the streams of events, as far as they are not configured.

    Each ``events.pN`` has the policy of ``events`` at priority N, ``health`` one of its own.
    """
    own = settings.streams.get(EVENTS, settings.defaults)
    made = {
        event_stream(priority): msgspec.structs.replace(own, priority=priority)
        for priority in range(10)
        if event_stream(priority) not in settings.streams
    }
    return msgspec.structs.replace(settings, streams={HEALTH: HEALTH_POLICY, **settings.streams, **made})


class Telemetry:
    """What an application tells of itself. Thread-safe; each call returns as soon as the record is taken."""

    def __init__(self, buffer: RecordBuffer, clock: Clock) -> None:
        self._buffer = buffer
        self._clock = clock
        self._encoder = msgspec.json.Encoder()

    def health(self, name: str, body: Any) -> Receipt:
        """As :meth:`event`, of the station itself, into the stream ``health``."""
        return self._record(HEALTH, name, body, {}, None)

    def event(
        self,
        name: str,
        body: Any = None,
        *,
        priority: int | None = None,
        attributes: Mapping[str, str] | None = None,
        time_unix_nano: int | None = None,
    ) -> Receipt:
        """Record that *name* happened, with a JSON *body*, at *time_unix_nano* (now when not given).

        *priority* 0 goes up first, 9 last. The receipt's ``wait`` returns once the event is on the disk; most
        callers need not wait. Raises InvalidInputError for a body that is no JSON, BufferFullError by policy.
        """
        return self._record(event_stream(priority), name, body, attributes or {}, time_unix_nano)

    def _record(
        self, stream: str, name: str, body: Any, attributes: Mapping[str, str], time_unix_nano: int | None
    ) -> Receipt:
        if not 0 < len(name) <= MAX_NAME:
            raise InvalidNameError(f"An event's name has 1 to {MAX_NAME} characters.")
        try:
            payload = self._encoder.encode(body)
        except (TypeError, ValueError, OverflowError, RecursionError) as exc:
            raise InvalidInputError(
                f"The body of event {name!r} is no JSON: {exc}.",
                hint="Use dicts, lists, strings, numbers, booleans and None; convert numpy values with .tolist().",
            ) from exc
        moment = self._clock.time_unix_nano() if time_unix_nano is None else time_unix_nano
        return self._buffer.stream(stream).append(
            payload,
            time_unix_nano=moment,
            content_type=JSON,
            attributes={EVENT_ATTRIBUTE: name, **attributes},
        )
