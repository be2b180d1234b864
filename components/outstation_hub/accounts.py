"""The account at the far end: of each life of a stream, what the station says and what came.

What came is counted from blocks that are on the disk, in the order of the inbox. The file says through which number
of the inbox it counts, and the inbox lets nothing go beyond that (:attr:`Accounts.saved_through`): after a crash the
rest is counted again from the inbox itself, so the sum is right to the record.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from outstation.buffer import Receipt, Stream
from outstation.clock import Clock
from outstation.durable import write_atomically
from outstation.errors import DiskError, OutstationError, UnsupportedVersionError, mapped_os_errors
from outstation.shapes import learn
from outstation.types import Ledger, Reported, StreamReport
from outstation.wire.block import BlockHeader
from outstation.wire.messages import Account

log = logging.getLogger("outstation.hub")

FORMAT = 1
# The accounts of a large fleet take a while to write: at most this part of the time goes into it.
_SAVING_SHARE = 0.05
# Lives of a stream that are shown beside the present one: a device that is set up anew four times in a row has told
# what there is to tell.
MAX_EARLIER = 3
# Of one station, and of all: as many streams as a report may name. What is beyond is taken, and not accounted for.
MAX_STREAMS = 1000
MAX_LIVES = 500_000
# Blocks whose fdatasync is awaited are counted when it has returned; they are looked at after this many.
_SETTLE_EVERY = 256


class _Life(msgspec.Struct):
    """One (station, stream, epoch), as it stands in the file."""

    station: str
    report: StreamReport
    through: int = 0
    records: int = 0
    refused: int = 0
    refused_through: int = 0
    last_unix_nano: int = 0


class _File(msgspec.Struct, frozen=True):
    format: int = FORMAT
    inbox: str = ""  # epoch of the inbox that `through` counts in
    through: int = 0
    lives: list[_Life] = []


_Arriving = tuple[Receipt, str, str, BlockHeader]


class Accounts:
    """Thread-safe. Written by :meth:`save` alone."""

    def __init__(
        self, path: Path, inbox: Stream | None, clock: Clock, *, on_kept: Callable[[], None] = lambda: None
    ) -> None:
        """Knows what the file holds. DiskError, UnsupportedVersionError.

        *inbox* is None at a hub that keeps none: then only what stations say is kept. *on_kept* is called after each
        :meth:`keep`, when the inbox may have room.
        """
        self._on_kept = on_kept
        self._keep_at = clock.monotonic()
        self._path = path
        self._inbox = inbox
        self._clock = clock
        self._lock = threading.Lock()
        self._saving = threading.Lock()
        self._arriving: deque[_Arriving] = deque()
        self._lives: dict[str, dict[str, dict[int, _Life]]] = {}  # by station, stream, epoch; the last is the present
        self._count = 0
        self._dirty = False
        known = _load(path)
        for life in known.lives:
            self._place(life)
        # Another life of the inbox counts anew.
        epoch, begin = ("", 0) if inbox is None else (f"{inbox.epoch:016x}", inbox.acknowledged)
        self._inbox_epoch = epoch
        self._through = known.through if known.inbox == epoch else begin
        self.saved_through = self._through

    # -- what happens --------------------------------------------------------------------------------------------

    def appended(self, station: str, stream: str, header: BlockHeader, receipt: Receipt) -> None:
        """A block went into the inbox; it counts once *receipt* is done. In the inbox's order, so under its lock."""
        with self._lock:
            self._arriving.append((receipt, station, stream, header))
            if len(self._arriving) >= _SETTLE_EVERY:
                self._settle()

    def refused(self, station: str, stream: str, epoch: int, first: int, last: int) -> None:
        """The numbers from *first* to *last* will never be taken. A refusal that is repeated counts once."""
        with self._lock:
            life = self._life(station, stream, epoch)
            if life is not None and last > life.refused_through:
                life.refused += last - max(first - 1, life.refused_through)
                life.refused_through = last
                self._dirty = True

    def told(self, station: str, before: Reported | None, now: Reported) -> None:
        """A station has told how its streams are."""
        with self._lock:
            for report in now.streams:
                life = self._life(station, report.stream, report.epoch)
                if life is None:
                    continue
                if life.report != report:
                    life.report, life.last_unix_nano, self._dirty = report, self._clock.time_unix_nano(), True
                lives = self._lives[station][report.stream]
                lives[report.epoch] = lives.pop(report.epoch)  # the one that the station has now is the present one

    def of(self, station: str) -> tuple[Account, ...]:
        """The accounts of *station*, by stream, the present life of each first."""
        with self._lock:
            self._settle()
            return tuple(self._shown(station))

    # -- the file ------------------------------------------------------------------------------------------------

    def catch_up(self, through: int) -> None:
        """Count what the inbox holds beyond the file, up to *through*. Before the first block is taken."""
        if self._inbox is None:
            return
        for record in self._inbox.read(self._through):
            if record.sequence > through:
                break
            header = BlockHeader.unpack(record.payload)
            self._arrived(record.attributes["station"], record.attributes["stream"], header, record.sequence)

    def keep(self) -> None:
        """As :meth:`save`, but what the disk refuses is logged: the inbox keeps what the file does not have."""
        began = self._clock.monotonic()
        try:
            self.save()
        except OutstationError as exc:
            log.warning("the accounts could not be saved; the inbox keeps what they do not have: %s", exc)
        ended = self._clock.monotonic()
        self._keep_at = ended + (ended - began) / _SAVING_SHARE
        self._on_kept()

    def keep_if_due(self) -> None:
        """As :meth:`keep`, unless the last one is so recent that the hub would do little else."""
        if self._clock.monotonic() >= self._keep_at:
            self.keep()

    def save(self) -> None:
        """Write what has changed. DiskFullError or DiskError."""
        with self._saving:
            with self._lock:
                self._settle()
                if not self._dirty:
                    self.saved_through = self._through
                    return
                self._dirty = False
                lives = [life for streams in self._lives.values() for of in streams.values() for life in of.values()]
                through = self._through
                data = msgspec.json.encode(
                    _File(inbox=self._inbox_epoch, through=through, lives=lives), order="deterministic"
                )
            try:
                write_atomically(self._path, data)
            except BaseException:
                self._dirty = True
                raise
            self.saved_through = through

    # -- under the lock ------------------------------------------------------------------------------------------

    def _settle(self) -> None:
        while self._arriving and self._arriving[0][0].done:
            receipt, station, stream, header = self._arriving.popleft()
            if receipt.error is None:
                self._arrived(station, stream, header, receipt.last_sequence)

    def _arrived(self, station: str, stream: str, header: BlockHeader, inbox_sequence: int) -> None:
        self._through = max(self._through, inbox_sequence)
        self._dirty = True
        life = self._life(station, stream, header.epoch)
        if life is not None:
            life.records += header.count
            life.through = max(life.through, header.last_sequence)
            life.last_unix_nano = self._clock.time_unix_nano()

    def _life(self, station: str, stream: str, epoch: int) -> _Life | None:
        """The life, made when it is new; None when there are too many."""
        known = self._lives.get(station, {}).get(stream, {}).get(epoch)
        if known is not None:
            return known
        streams = self._lives.get(station, {})
        if self._count >= MAX_LIVES or (stream not in streams and len(streams) >= MAX_STREAMS):
            return None
        life = _Life(station, StreamReport(stream, epoch, Ledger()))
        self._place(life)
        return life

    def _place(self, life: _Life) -> None:
        lives = self._lives.setdefault(life.station, {}).setdefault(life.report.stream, {})
        lives[life.report.epoch] = life
        self._count += 1
        if len(lives) > 1 + MAX_EARLIER:
            del lives[next(iter(lives))]
            self._count -= 1

    def _shown(self, station: str) -> Iterator[Account]:
        for _, lives in sorted(self._lives.get(station, {}).items()):
            present = next(reversed(lives))
            for epoch, life in reversed(lives.items()):
                yield Account(
                    life.report, life.through, life.records, life.refused, life.last_unix_nano, epoch != present
                )


def _load(path: Path) -> _File:
    if not path.exists():
        return _File()
    with mapped_os_errors(doing="read the accounts", path=path):
        data = path.read_bytes()
    try:
        known = msgspec.json.decode(data, type=_File)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DiskError(
            f"{path} is no list of accounts: {exc}.", hint="Remove it; records are not concerned, counting begins anew."
        ) from exc
    if known.format != FORMAT:
        raise UnsupportedVersionError(f"{path} has format {known.format}; this hub knows {FORMAT}.")
    return known


learn(_File)
