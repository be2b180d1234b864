"""A block being filled, and who waits for it."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable
from typing import Protocol

from outstation.clock import Clock
from outstation.errors import RecordTooLargeError, StorageError
from outstation.wire.block import MAX_METAS, MAX_RECORDS, Draft
from outstation.wire.checks import MAX_RECORD_BYTES, MetaKey, Rows, pieces_of, record_sizes

log = logging.getLogger("outstation.buffer")

_NONE = array("I")  # never changed


class Owner(Protocol):
    """The stream that a batch belongs to."""

    clock: Clock

    def hurry(self, *, help_out: bool) -> None:
        """Ask for a commit now. *help_out*: the caller will wait for it, and may as well do it."""
        ...


class Batch:
    """Records that will become one block. Filled under the stream's lock, settled once by the commit thread."""

    __slots__ = (
        "_arrival",
        "_callbacks",
        "_settling",
        "done",
        "error",
        "first_sequence",
        "index",
        "keys",
        "marks",
        "metas",
        "owner",
        "payloads",
        "sizes",
        "times",
    )

    def __init__(self, owner: Owner, first_sequence: int) -> None:
        self.owner = owner
        self.first_sequence = first_sequence
        self.payloads: list[bytes | memoryview] = []  # in order; append_many brings those of many records as one
        self.sizes = array("I")
        self.times = array("q")
        self.index = array("H")  # which of the metas each record has
        self.keys: dict[MetaKey, int] = {}
        self.metas: list[bytes] = []
        self.marks: dict[str, int] = {}
        self.done = False
        self._arrival: threading.Event | None = None  # made for who waits: most batches have nobody
        self.error: StorageError | None = None
        self._settling = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def count(self) -> int:
        """How many records there are; 0 once settled."""
        return len(self.times)

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.times) - 1

    def cut(self, count: int) -> None:
        """Take back whatever goes beyond *count* records: an append that was interrupted between two columns."""
        for column in (self.index, self.times, self.sizes):
            del column[count:]
        surplus = sum(map(len, self.payloads)) - sum(self.sizes)
        while surplus > 0:
            surplus -= len(self.payloads.pop())

    def draft(self) -> Draft:
        """The block that the records will be."""
        index = self.index if len(self.metas) > 1 else None
        count = len(self.times)
        return Draft(self.first_sequence, count, self.times, self.sizes, self.payloads, self.metas, index, self.marks)

    def when_settled(self, callback: Callable[[], None]) -> None:
        with self._settling:
            if not self.done:
                self._callbacks.append(callback)
                return
        call(callback)

    def arrival(self) -> threading.Event:
        """Set when the batch is settled."""
        with self._settling:
            if self._arrival is None:
                self._arrival = threading.Event()
                if self.done:
                    self._arrival.set()
            return self._arrival

    def settle(self, error: StorageError | None) -> list[Callable[[], None]]:
        """The block is on the disk, or will never be. Once; returns the callbacks that are now to be called."""
        with self._settling:
            self.error = error
            self.done = True
            if self._arrival is not None:
                self._arrival.set()
            callbacks, self._callbacks = self._callbacks, []
        # The payloads are on the disk (or refused): a receipt that is kept must not keep them in memory.
        self.payloads, self.sizes, self.times, self.index = [], _NONE, _NONE, _NONE
        return callbacks


def cut_to_blocks(rows: Rows, block_bytes: int, *, whole: bool) -> list[tuple[Rows, int]]:
    """*rows* as they fill blocks, each piece with its bytes; one piece if it must be *whole*. RecordTooLargeError."""
    sizes = record_sizes(rows.sizes, rows.keys, rows.places)
    if max(sizes) > MAX_RECORD_BYTES:
        raise RecordTooLargeError(f"A record of {max(sizes)} bytes; the bound is {MAX_RECORD_BYTES}.")
    if not whole:
        pieces = pieces_of(sizes, block_bytes, len(rows.keys))
        return [(part, sum(sizes[start:end])) for part, (start, end) in zip(rows.cut(pieces), pieces, strict=True)]
    total = sum(sizes)
    if total > MAX_RECORD_BYTES or len(sizes) > MAX_RECORDS or len(rows.keys) > MAX_METAS // 2:
        raise RecordTooLargeError(f"{len(sizes)} records of {total} bytes do not fit one block, as a mark requires.")
    return [(rows, total)]


def call(callback: Callable[[], None]) -> None:
    """Call what a user gave; it must not raise, and if it does the log says so and the buffer goes on."""
    try:
        callback()
    except Exception:
        log.exception("A callback failed; the records are not concerned.")
