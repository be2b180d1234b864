"""The agent on this device, as an application's process sees it: over its unix socket.

An application's records wait here, bounded, until the agent has them on the disk. The agent may be killed and
started again meanwhile: what it had not confirmed is sent again, and it knows by the producer's numbers what it
already has. Only the end of the application's own process can lose what was not confirmed.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

from outstation import errors
from outstation.errors import (
    BufferFullError,
    ClosedError,
    DeadlineError,
    LinkDownError,
    OutstationError,
    RecordTooLargeError,
    StorageError,
)
from outstation.types import NO_ATTRIBUTES, OCTETS, STREAM_NAME, Placement, Record, StationStatus, checked_name
from outstation.wire.checks import RECORD_OVERHEAD_BYTES, as_bytes, checked_meta, checked_time
from outstation.wire.client import Client, Responses
from outstation.wire.station import (
    APPEND,
    GET_STATUS,
    REPORT_HEALTH,
    REPORT_PLACEMENT,
    SET_METERED,
    AppendRequest,
    AppendResponse,
    ModelHealth,
    ModelPlacement,
)

log = logging.getLogger("outstation.agent")

# What an application may have unconfirmed: enough for minutes of a reader at work while the agent restarts, and
# little enough that a small machine does not swap. Beyond it, append raises BufferFullError.
MAX_WAITING_BYTES = 16 << 20
MAX_WAITING_RECORDS = 65_536
# One record; the gRPC message around it has 64 MiB.
MAX_RECORD_BYTES = 16 << 20
# One message: large enough that its cost is spread, small enough that confirmation comes often.
BATCH_RECORDS = 512
BATCH_BYTES = 1 << 20
RECONNECT_INTERVAL = 0.2
WARN_AFTER = 25  # failures in a row, five seconds: an agent that restarts is no news


class RemoteReceipt:
    """Of one record on its way to the agent's disk. Thread-safe."""

    __slots__ = ("_done", "_error")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: OutstationError | None = None

    @property
    def done(self) -> bool:
        """True once the record is on the agent's disk, or was refused."""
        return self._done.is_set()

    def wait(self, timeout: float | None = None) -> None:
        """Until the record is on the agent's disk, or raise what it was refused for; DeadlineError after *timeout*."""
        if not self._done.wait(timeout):
            raise DeadlineError("The agent has not confirmed the record yet; it is kept and sent again.")
        if self._error is not None:
            raise self._error

    def settle(self, error: OutstationError | None = None) -> None:
        self._error = error
        self._done.set()


class RemoteStream:
    """A stream of the agent's buffer. Thread-safe; ``append`` never waits for the agent."""

    def __init__(self, client: AgentClient, name: str) -> None:
        self.name = checked_name(STREAM_NAME, name, "stream")
        self._client = client

    def append(
        self,
        payload: bytes,
        *,
        time_unix_nano: int | None = None,
        content_type: str = OCTETS,
        attributes: Mapping[str, str] = NO_ATTRIBUTES,
    ) -> RemoteReceipt:
        """Take one record and return; the receipt's ``wait`` returns once the agent has it on the disk.

        Raises InvalidInputError for what no record can hold, and BufferFullError when the agent has been away for so
        long that the bound of this process is reached.
        """
        moment = time.time_ns() if time_unix_nano is None else checked_time(time_unix_nano)
        # Checked here and not by the agent alone: what it can only refuse would be found out too late.
        kind, pairs = checked_meta((content_type, tuple(attributes.items())))
        data = as_bytes(payload)
        if len(data) > MAX_RECORD_BYTES:
            raise RecordTooLargeError(
                f"A payload of {len(data)} bytes; an application sends at most {MAX_RECORD_BYTES}."
            )
        return self._client.take(self.name, Record(0, moment, data, kind, dict(pairs)))

    def flush(self, timeout: float | None = None) -> None:
        """Until all that was appended to this stream is on the agent's disk; DeadlineError after *timeout*."""
        self._client.flush(self.name, timeout)


class AgentClient:
    """Calls to the agent. Thread-safe; connects when first used; ``close`` gives what waits a last chance."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self._client = Client(f"unix:{socket.absolute()}")
        self._get_status = self._client.unary(GET_STATUS)
        self._report_health = self._client.unary(REPORT_HEALTH)
        self._report_placement = self._client.unary(REPORT_PLACEMENT)
        self._set_metered = self._client.unary(SET_METERED)
        self._producer = uuid.uuid4().hex
        self._lock = threading.Condition()
        self._lanes: dict[str, _Lane] = {}
        self._waiting_bytes = 0
        self._waiting_records = 0
        self._closing = False

    def status(self, timeout: float) -> StationStatus:
        """What the station is doing. LinkDownError when no agent answers on the socket."""
        with self._answering():
            return self._get_status(None, timeout)

    def set_metered(self, metered: bool, timeout: float) -> None:
        """Tell the agent whether every byte over the link costs. LinkDownError when no agent answers."""
        with self._answering():
            self._set_metered(metered, timeout)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except LinkDownError as exc:
            raise LinkDownError(
                f"No agent answers on {self.socket}.", hint="Start one with `outstation agent`."
            ) from exc

    def report_health(
        self,
        model: str,
        version: str,
        calls: int,
        errors: int,
        *,
        timeout: float,
        disagreements: int = 0,
        dropped: int = 0,
        process: str = "",
    ) -> None:
        """Tell the agent how a version does on live traffic; see :meth:`Reconciler.report_health`."""
        self._report_health(ModelHealth(model, version, calls, errors, disagreements, dropped, process), timeout)

    def report_placement(self, model: str, version: str, placement: Placement, timeout: float) -> None:
        """Tell the agent where a version that answers is computed."""
        self._report_placement(ModelPlacement(model, version, placement), timeout)

    def stream(self, name: str) -> RemoteStream:
        return RemoteStream(self, name)

    def take(self, stream: str, record: Record) -> RemoteReceipt:
        """Queue *record* for *stream*; see :meth:`RemoteStream.append`."""
        with self._lock:
            if self._closing:
                raise ClosedError("The connection to the agent is closed.")
            size = _size(record)
            full = self._waiting_bytes + size > MAX_WAITING_BYTES and self._waiting_records
            if full or self._waiting_records >= MAX_WAITING_RECORDS:
                raise BufferFullError(
                    f"{self._waiting_records} records wait for the agent, which does not take them.",
                    hint="See whether the agent runs: `outstation status`.",
                )
            lane = self._lanes.get(stream)
            if lane is None:
                lane = self._lanes[stream] = _Lane(self._client, self._producer, stream, self._lock, self._forget)
            receipt = lane.add(record)
            self._waiting_bytes += size
            self._waiting_records += 1
            return receipt

    def flush(self, stream: str | None = None, timeout: float | None = None) -> None:
        """Until nothing waits, in *stream* or in any."""
        with self._lock:
            lanes = [lane for name, lane in self._lanes.items() if stream in (None, name)]
            if not self._lock.wait_for(lambda: not any(lane.waiting for lane in lanes), timeout):
                raise DeadlineError(f"The agent did not confirm everything within {timeout} s.")

    def close(self, timeout: float = 5.0) -> None:
        """Wait up to *timeout* seconds for the agent to confirm what waits, then end. Idempotent.

        DeadlineError says how many records were not confirmed; they are gone with this process.
        """
        with self._lock:
            self._closing = True
            lanes = list(self._lanes.values())
        try:
            self.flush(timeout=timeout)
        except DeadlineError as exc:
            raise DeadlineError(
                f"{self._waiting_records} records were not confirmed by the agent within {timeout:g} s and are lost.",
                hint="Start the agent before closing, or close with a longer timeout.",
            ) from exc
        finally:
            for lane in lanes:
                lane.close()
            self._client.close()

    def _forget(self, records: int, size_bytes: int) -> None:
        # Called by a lane with the lock held.
        self._waiting_records -= records
        self._waiting_bytes -= size_bytes
        self._lock.notify_all()


class _Lane:
    """One stream's way to the agent: one call, one thread that reads its confirmations.

    Numbers are given when a record is sent, not when it is appended, and only a record that was taken uses one up:
    after a refusal the next record gets the refused one's number. So the agent's mark tells without doubt what it has.
    """

    def __init__(
        self, client: Client, producer: str, stream: str, lock: threading.Condition, forget: Callable[[int, int], None]
    ) -> None:
        self._client = client
        self._producer = producer
        self._stream = stream
        self._lock = lock
        self._forget = forget
        self._records: deque[tuple[Record, RemoteReceipt]] = deque()
        self._first_number = 1  # of self._records[0]
        self._sent = 0  # how many of self._records were sent in the present call
        self._call: Responses[AppendResponse] | None = None
        self._generation = 0
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"outstation-agent-{stream}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._records)

    def add(self, record: Record) -> RemoteReceipt:
        receipt = RemoteReceipt()
        self._records.append((record, receipt))
        self._lock.notify_all()
        return receipt

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            self._generation += 1
            call = self._call
            self._lock.notify_all()
        if call is not None:
            call.cancel()
        self._thread.join()

    def _run(self) -> None:
        failures = 0
        while not self._closing.is_set():
            with self._lock:
                self._lock.wait_for(lambda: self._records or self._closing.is_set())
                if self._closing.is_set():
                    return
                self._generation += 1
                self._sent = 0
                generation = self._generation
            try:
                with self._client.stream(APPEND, self._requests(generation)) as call:
                    self._call = call
                    if self._closing.is_set():  # close() may have looked before there was a call to cancel
                        call.cancel()
                    for response in call:
                        failures = 0
                        self._settle(response)
            except OutstationError as exc:
                # Whatever it was, the records are kept and the agent is asked again: it is on this very device.
                level = logging.WARNING if failures == WARN_AFTER else logging.DEBUG
                log.log(level, "the agent on %s takes nothing of stream %r: %s", self._client.target, self._stream, exc)
                failures += 1
            finally:
                with self._lock:
                    self._call = None
                    self._generation += 1
                    self._lock.notify_all()
            self._closing.wait(RECONNECT_INTERVAL)

    def _requests(self, generation: int) -> Iterator[AppendRequest]:
        # Drained by a thread of gRPC; it ends when the call it belongs to is over.
        while True:
            with self._lock:
                self._lock.wait_for(lambda: generation != self._generation or self._sent < len(self._records))
                if generation != self._generation:
                    return
                batch = self._batch(self._first_number + self._sent)
                self._sent += len(batch)
            yield AppendRequest(self._producer, self._stream, batch)

    def _batch(self, number: int) -> tuple[Record, ...]:
        batch: list[Record] = []
        size = 0
        for record, _ in islice(self._records, self._sent, self._sent + BATCH_RECORDS):
            size += _size(record)
            if batch and size > BATCH_BYTES:
                break
            batch.append(replace(record, sequence=number + len(batch)))
        return tuple(batch)

    def _settle(self, response: AppendResponse) -> None:
        with self._lock:
            while self._records and self._first_number <= response.through:
                self._pop().settle()
                self._first_number += 1
                self._sent = max(0, self._sent - 1)
            if response.error:
                error = _refusal(response)
                log.warning("the agent refused records of stream %r: %s", self._stream, error)
                for _ in range(min(len(self._records), response.refused_through - response.through)):
                    self._pop().settle(error)

    def _pop(self) -> RemoteReceipt:
        record, receipt = self._records.popleft()
        self._forget(1, _size(record))
        return receipt


def _size(record: Record) -> int:
    """What a record takes in memory and in a message, about."""
    attributes = sum(len(name) + len(value) for name, value in record.attributes.items())
    return len(record.payload) + len(record.content_type) + attributes + RECORD_OVERHEAD_BYTES


def _refusal(response: AppendResponse) -> OutstationError:
    kind = getattr(errors, response.error, None)
    if not (isinstance(kind, type) and issubclass(kind, OutstationError)):
        kind = StorageError
    return kind(response.reason, hint=response.hint)
