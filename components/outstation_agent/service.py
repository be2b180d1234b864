"""What the agent offers on its socket: append, status, health."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any
from weakref import WeakValueDictionary

from outstation.buffer import Receipt, Stream
from outstation.errors import OutstationError
from outstation.station import StationParts
from outstation.types import Record, StationStatus
from outstation.wire.services import Caller, handler
from outstation.wire.station import (
    APPEND,
    GET_STATUS,
    REPORT_HEALTH,
    REPORT_PLACEMENT,
    SERVICE,
    SET_METERED,
    AppendRequest,
    AppendResponse,
    ModelHealth,
    ModelPlacement,
)

log = logging.getLogger("outstation.agent")

# A commit takes milliseconds, on a worn card a second; after this long the disk does not answer.
COMMIT_TIMEOUT = 30.0


class StationService:
    """The functions of ``outstation.v1.Station``. Thread-safe: gRPC calls them on its workers."""

    def __init__(self, parts: StationParts) -> None:
        self._parts = parts
        self._closing = threading.Event()
        self._connections: set[_Connection] = set()
        self._gates: WeakValueDictionary[tuple[str, str], _Gate] = WeakValueDictionary()
        self._gates_lock = threading.Lock()
        self.handler: Any = handler(
            SERVICE,
            {
                APPEND: self.append,
                GET_STATUS: self.get_status,
                REPORT_HEALTH: self.report_health,
                REPORT_PLACEMENT: self.report_placement,
                SET_METERED: self.set_metered,
            },
        )

    def close(self) -> None:
        """End every application's stream; they keep what was not confirmed."""
        self._closing.set()
        for connection in list(self._connections):
            connection.end()

    def get_status(self, _request: None, _caller: Caller) -> StationStatus:
        return self._parts.status()

    def set_metered(self, metered: bool, _caller: Caller) -> None:
        self._parts.set_metered(metered)

    def report_health(self, health: ModelHealth, _caller: Caller) -> None:
        if self._parts.reconciler is not None:
            self._parts.reconciler.report_health(
                health.model,
                health.version,
                health.calls,
                health.errors,
                disagreements=health.disagreements,
                dropped=health.dropped,
                process=health.process,
            )

    def report_placement(self, told: ModelPlacement, _caller: Caller) -> None:
        self._parts.report_placement(told.model, told.version, told.placement)

    def _gate(self, producer: str, stream: str) -> _Gate:
        with self._gates_lock:
            return self._gates.setdefault((producer, stream), _Gate())

    def append(self, requests: Iterator[AppendRequest], caller: Caller) -> Iterator[AppendResponse]:
        connection = _Connection(self._parts, self._gate)
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


class _Gate:
    """Reading a producer's mark and appending beyond it are one step: whoever does it holds the gate.

    Two calls may carry the same numbers at once, when an application has given up a call that the agent still reads.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()


class _Connection:
    """One application's call: a reader that appends, and the confirmations on their way back.

    A record is refused only before it is appended. If the disk fails afterwards the call is ended without a word on
    it: the application sends again what was not confirmed, and meets the stream as it is then.
    """

    def __init__(self, parts: StationParts, gate_of: Callable[[str, str], _Gate]) -> None:
        self._parts = parts
        self._gate_of = gate_of
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
        """Append what comes until the application has said all, the call ends, or a record is refused."""
        try:
            for request in requests:
                if not self._take(request):
                    return
        except OutstationError as exc:
            log.warning("an application's records could not be taken: %s", exc)
            self.end()
        except Exception:
            if not self._ended.is_set():  # gRPC's word for a call that has ended is an exception of no fixed type
                log.debug("an application's call ended", exc_info=True)
            self.end()
        else:
            # Behind the last confirmation, which the same thread puts.
            if self._latest is None:
                self.end()
            else:
                self._latest.add_done_callback(lambda _: self.end())

    def _take(self, request: AppendRequest) -> bool:
        """Append one request's records; False when the call must end."""
        stream = self._parts.buffer.stream(request.stream)
        gate = self._gate_of(request.producer, request.stream)
        with gate.lock:
            if self._ended.is_set() or not self._earlier_holds():
                self.end()
                return False
            taken = stream.mark(request.producer)
            if taken >= request.first_number and not self._is_stored(stream, request.producer, taken):
                self.end()
                return False
            taken = max(taken, request.first_number - 1)
            fresh = [record for record in request.records if record.sequence > taken]
            if not fresh:
                self._out.put(AppendResponse(request.stream, request.last_number))
            try:
                for _, run in groupby(fresh, key=lambda record: record.content_type):
                    records = list(run)
                    self._append(stream, request.producer, records)
                    taken = records[-1].sequence
            except OutstationError as exc:
                self._refuse(request, taken, exc)
                return False
        return True

    def _earlier_holds(self) -> bool:
        """Whether nothing that came before on this call has failed: after a hole, nothing may be appended."""
        return self._latest is None or self._latest.error is None

    def _is_stored(self, stream: Stream, producer: str, taken: int) -> bool:
        """Bring what an older call appended to the disk; False when it was refused there meanwhile."""
        try:
            stream.flush(COMMIT_TIMEOUT)
        except OutstationError:
            return False
        return stream.mark(producer) >= taken

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
        receipt.add_done_callback(lambda done: self._confirm(stream.name, through, done))

    def _confirm(self, stream: str, through: int, receipt: Receipt) -> None:
        # On the buffer's commit thread: hand over and return.
        if receipt.error is None:
            self._out.put(AppendResponse(stream, through))
        else:
            self.end()

    def _refuse(self, request: AppendRequest, taken: int, exc: OutstationError) -> None:
        """Refuse what is beyond *taken*. That confirms all before it, so that must be on the disk first."""
        if self._latest is not None:
            try:
                self._latest.wait(COMMIT_TIMEOUT)
            except OutstationError:
                self.end()
                return
        kind = type(exc).__name__
        self._out.put(AppendResponse(request.stream, taken, request.last_number, kind, str(exc), exc.hint))
