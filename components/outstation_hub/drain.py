"""From the inbox to one sink: a thread, a cursor, one batch at a time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from outstation.buffer import Stream
from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import CorruptBlockError, DiskError, OutstationError, mapped_os_errors
from outstation.types import Record
from outstation.wire.block import decode
from outstation.wire.messages import SinkStatus
from outstation_hub.inbox import STATION, STREAM
from outstation_hub.sinks import Arrival, KeepsPosition, Position, Rejects, Sink, Tidies

log = logging.getLogger("outstation.hub")

# Seconds before a sink that failed is tried again: soon, as most faults pass, then seldom.
_RETRY_FIRST, _RETRY_CEILING = 0.5, 30.0
# A sink rests four times as long as its last batch took: with a thousand stations each batch touches a thousand
# files, and waiting makes them fewer and larger instead of taking the machine from whoever sends. Between batches it
# rests only while stations send and the inbox is less than this full: a sink that falls behind works through.
_REST, _REST_CEILING = 4.0, 30.0
_REST_UNTIL_FULL = 0.25
# Blocks in one batch, beside its bound in bytes: what one turn of the loop costs must stay in seconds.
MAX_BATCH_BLOCKS = 10_000
MAX_QUARANTINED = 1000
_MAX_TIME = (1 << 63) - 1  # nanoseconds; what sinks can hold


@dataclass(slots=True)
class _Batch:
    arrivals: list[Arrival] = field(default_factory=list)
    damaged: list[tuple[Record, str]] = field(default_factory=list)
    through: int = 0
    raw_bytes: int = 0


class Drain:
    """Feeds one sink from the inbox.

    A batch is written, then the cursor goes to the disk, and only then is the next batch written. With two batches
    written and not confirmed, a crash could replay them with other borders: the first file would then hold what the
    second holds too, and the second would stay, doubled. With one, every file of the lost batch begins with the
    record that the replay begins with, so the replay finds the same name and replaces it.
    """

    def __init__(
        self,
        inbox: Stream,
        sink: Sink,
        folder: Path,
        clock: Clock,
        *,
        interval: float,
        batch_bytes: int,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        """*folder* holds cursor and quarantine; *on_progress* is called on the drain's thread after each batch."""
        make_directories(folder)
        self.sink = sink
        self._inbox = inbox
        self._clock = clock
        self._interval = interval
        self._batch_bytes = batch_bytes
        self._relaxed_bytes = _REST_UNTIL_FULL * inbox.settings.max_bytes
        self._on_progress = on_progress
        self._cursor_path = folder / f"{sink.name}.cursor"
        self._quarantine = folder / f"{sink.name}.quarantine"
        self._cursor = max(self._load_cursor(), inbox.acknowledged)
        self._stopping = threading.Event()
        self._asked = False
        self.damaged = len(list(self._quarantine.glob("*.oblk")))  # blocks that could not be opened
        self._failure = ""
        self._failing_since = 0
        self._written = 0
        self._thread = threading.Thread(target=self._run, name=f"outstation-hubserver-{sink.name}", daemon=True)

    @property
    def cursor(self) -> int:
        """Everything in the inbox through this number is durably in the sink."""
        return self._cursor

    @property
    def lag(self) -> int:
        """Blocks that wait for this sink."""
        return max(0, self._inbox.last_sequence - self._cursor)

    @property
    def failure(self) -> str:
        """Why the sink does not take anything now; "" when it does."""
        return self._failure

    @property
    def status(self) -> SinkStatus:
        """How it stands, for operators."""
        rejected = self.sink.rejected if isinstance(self.sink, Rejects) else 0
        return SinkStatus(
            self.sink.name, self.lag, self._written, self._failure, self._failing_since, self.damaged + rejected
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Write what is there if the sink takes it at once, end the thread, close the sink. Idempotent."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self.sink.close()

    def _run(self) -> None:
        failures = 0
        while True:
            stopping = self._stopping.is_set()
            try:
                took = self._drain()
                failures, self._failure, self._failing_since = 0, "", 0
                wait = max(self._interval, _rest(took))
            except OutstationError as exc:
                failures += 1
                wait = min(_RETRY_CEILING, _RETRY_FIRST * 2.0 ** min(failures - 1, 10))
                if str(exc) != self._failure:
                    log.warning("the sink %s takes nothing; nothing is lost: %s", self.sink.name, exc)
                self._fail(str(exc))
            except Exception as exc:
                failures += 1
                wait = _RETRY_CEILING
                log.exception("the sink %s failed", self.sink.name)
                self._fail(f"{type(exc).__name__}: {exc}")
            if stopping:  # and this was the last try
                return
            self._clock.wait(self._stopping, wait)

    def _fail(self, reason: str) -> None:
        self._failure = reason
        self._failing_since = self._failing_since or self._clock.time_unix_nano()
        self._asked = False  # whether the batch that failed is in the sink, only the sink can tell

    def _drain(self) -> float:
        """Write until nothing is left; the seconds that the last batch took."""
        took = 0.0
        self._ask_position()
        while True:
            began, arrived = self._clock.monotonic(), self._inbox.last_sequence
            batch = self._next_batch()
            if not batch.through:
                if isinstance(self.sink, Tidies) and not self._stopping.is_set():
                    self.sink.tidy()
                return took
            for record, reason in batch.damaged:
                self._set_aside(record, reason)
            if isinstance(self.sink, KeepsPosition) and batch.arrivals:
                self.sink.write_through(batch.arrivals, Position(self._inbox.epoch, batch.through))
            elif batch.arrivals:
                self.sink.write(batch.arrivals)
            self._written = self._clock.time_unix_nano()
            self._confirm(batch.through)
            took = self._clock.monotonic() - began
            if self._inbox.last_sequence > arrived and self._inbox.report().pending_bytes < self._relaxed_bytes:
                self._clock.wait(self._stopping, _rest(took))

    def _ask_position(self) -> None:
        """Take up where a sink says it stands, if it keeps that itself."""
        if not self._asked and isinstance(self.sink, KeepsPosition):
            through = self.sink.position(self._inbox.epoch)
            if through > self._inbox.last_sequence:
                raise DiskError(
                    f"The sink {self.sink.name} has more of this inbox than the inbox itself.",
                    hint="Was it put back from a copy? Move DATA/inbox away; a new one is made.",
                )
            if through > self._cursor:
                self._confirm(through)
        self._asked = True

    def _confirm(self, through: int) -> None:
        write_atomically(self._cursor_path, f"{self._inbox.epoch:016x} {through}\n".encode())
        self._cursor = through
        self._on_progress()

    def _next_batch(self) -> _Batch:
        batch = _Batch()
        for record in self._inbox.read(self._cursor):
            try:
                batch.arrivals.append(_opened(record))
                batch.raw_bytes += batch.arrivals[-1].header.raw_bytes
            except OutstationError as exc:
                batch.damaged.append((record, str(exc)))
            batch.through = record.sequence
            if batch.raw_bytes >= self._batch_bytes or len(batch.arrivals) >= MAX_BATCH_BLOCKS:
                break
        return batch

    def _set_aside(self, record: Record, reason: str) -> None:
        """Keep a block whose checksum is right and whose inside is not, for whoever built it wrongly to look at."""
        self.damaged += 1
        if self.damaged > MAX_QUARANTINED:
            return  # enough to see what is wrong; a hostile station must not fill the disk with the rest
        make_directories(self._quarantine)
        name = f"{record.attributes.get(STATION, '')}.{record.attributes.get(STREAM, '')}.{record.sequence}"
        write_atomically(self._quarantine / f"{name}.oblk", record.payload)
        log.error("a block of %s cannot be opened (%s); it is kept in %s", name, reason, self._quarantine)

    def _load_cursor(self) -> int:
        if not self._cursor_path.exists():
            return 0
        with mapped_os_errors(doing="read the cursor", path=self._cursor_path):
            text = self._cursor_path.read_text()
        try:
            epoch, through = text.split()
            # A cursor of another life of the inbox says nothing about this one.
            return int(through) if int(epoch, 16) == self._inbox.epoch else 0
        except ValueError as exc:
            raise DiskError(
                f"{self._cursor_path} is no cursor.", hint="Restore it; without it the sink is filled again."
            ) from exc


def _rest(took: float) -> float:
    return min(_REST_CEILING, _REST * took)


def _opened(record: Record) -> Arrival:
    header, columns = decode(record.payload)
    if not -_MAX_TIME <= min(columns.times) <= max(columns.times) <= _MAX_TIME:
        raise CorruptBlockError("Its times do not fit 64 bits.")
    return Arrival(record.attributes[STATION], record.attributes[STREAM], header, columns)
