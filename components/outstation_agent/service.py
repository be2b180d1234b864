"""What the agent offers on its socket: append, status, health."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from itertools import groupby
from typing import Any

from outstation.buffer import Receipt, Stream
from outstation.errors import OutstationError
from outstation.station import StationParts
from outstation.types import Record, StationStatus
from outstation.wire.services import Caller, handler
from outstation.wire.station import (
    APPEND,
    GET_STATUS,
    REPORT_HEALTH,
    SERVICE,
    AppendRequest,
    AppendResponse,
    ModelHealth,
)

# A commit takes milliseconds, on a worn card a second; after this long the disk does not answer.
COMMIT_TIMEOUT = 30.0


class StationService:
    """The functions of ``outstation.v1.Station``. Thread-safe: gRPC calls them on its workers."""

    def __init__(self, parts: StationParts) -> None:
        self._parts = parts
        self._closing = threading.Event()
        self._connections: set[_Connection] = set()
        self.handler: Any = handler(
            SERVICE, {APPEND: self.append, GET_STATUS: self.get_status, REPORT_HEALTH: self.report_health}
        )

    def close(self) -> None:
        """End every application's stream; they keep what was not confirmed."""
        self._closing.set()
        for connection in list(self._connections):
            connection.end()

    def get_status(self, _request: None, _caller: Caller) -> StationStatus:
        return self._parts.status()

    def report_health(self, health: ModelHealth, _caller: Caller) -> None:
        if self._parts.reconciler is not None:
            self._parts.reconciler.report_health(health.model, health.version, health.calls, health.errors)

    def append(self, requests: Iterator[AppendRequest], caller: Caller) -> Iterator[AppendResponse]:
        connection = _Connection(self._parts)
        caller.on_end(connection.end)
        self._connections.add(connection)
        reader = threading.Thread(target=connection.read, args=(requests,), name="outstation-append", daemon=True)
        reader.start()
        try:
            if not self._closing.is_set():
                yield from connection.responses()
        finally:
            connection.end()
            self._connections.discard(connection)


class _Connection:
    """One application's stream of records: a reader that appends, and the confirmations on their way back."""

    def __init__(self, parts: StationParts) -> None:
        self._parts = parts
        # Of confirmations, which are a few bytes each and whose number the application's own bound limits.
        self._out: queue.SimpleQueue[AppendResponse | None] = queue.SimpleQueue()
        self._ended = threading.Event()
        self._latest: Receipt | None = None

    def end(self) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._out.put(None)

    def responses(self) -> Iterator[AppendResponse]:
        while (response := self._out.get()) is not None:
            yield response
            if response.error:
                return  # the application numbers what is left anew, in a new call

    def read(self, requests: Iterator[AppendRequest]) -> None:
        """Append what comes until the call ends or a record is refused."""
        try:
            for request in requests:
                if self._ended.is_set() or not self._take(request):
                    return
        except Exception:  # noqa: BLE001  gRPC's word for a call that has ended is an exception of no fixed type
            self.end()

    def _take(self, request: AppendRequest) -> bool:
        """Append one request's records; False when some were refused and the call must end."""
        taken = 0
        try:
            stream = self._parts.buffer.stream(request.stream)
            taken = max(stream.mark(request.producer), request.first_number - 1)
            fresh = [record for record in request.records if record.sequence > taken]
            if not fresh:
                # Taken before, perhaps not on the disk yet: it must be, before it is confirmed again.
                stream.flush()
                self._out.put(AppendResponse(request.stream, request.last_number))
            for _, run in groupby(fresh, key=lambda record: record.content_type):
                records = list(run)
                self._append(stream, request.producer, records)
                taken = records[-1].sequence
        except OutstationError as exc:
            if self._earlier_is_on_disk():
                self._refuse(request.stream, taken, request.last_number, exc)
            return False
        return True

    def _earlier_is_on_disk(self) -> bool:
        """A refusal confirms all before it, so that must be on the disk; if it failed, its own refusal has gone out."""
        if self._latest is None:
            return True
        try:
            self._latest.wait(COMMIT_TIMEOUT)
        except OutstationError:
            return False
        return True

    def _append(self, stream: Stream, producer: str, records: list[Record]) -> None:
        through = records[-1].sequence
        receipt = stream.append_many(
            [record.payload for record in records],
            times_unix_nano=[record.time_unix_nano for record in records],
            content_type=records[0].content_type,
            attributes=[record.attributes for record in records],
            mark=(producer, through),
        )
        self._latest = receipt
        receipt.add_done_callback(lambda done: self._confirm(stream.name, records[0].sequence - 1, through, done))

    def _confirm(self, stream: str, before: int, through: int, receipt: Receipt) -> None:
        # On the buffer's commit thread: hand over and return.
        if receipt.error is None:
            self._out.put(AppendResponse(stream, through))
        else:
            self._refuse(stream, before, through, receipt.error)

    def _refuse(self, stream: str, through: int, refused_through: int, exc: OutstationError) -> None:
        self._out.put(AppendResponse(stream, through, refused_through, type(exc).__name__, str(exc), exc.hint))
