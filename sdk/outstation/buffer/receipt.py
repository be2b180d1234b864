"""A block being filled, and the receipts for the records in it."""

from __future__ import annotations

import logging
import threading
from array import array
from collections.abc import Callable
from typing import NamedTuple, Protocol

from outstation.clock import Clock
from outstation.errors import DeadlineError, StorageError
from outstation.wire.block import Draft
from outstation.wire.checks import MetaKey

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


class Receipt:
    """The promise for one append. Cheap to drop; may be waited for, by any thread and more than once."""

    __slots__ = ("_batch", "first_sequence", "last_sequence")

    def __init__(self, batch: Batch, first_sequence: int, last_sequence: int) -> None:
        self._batch = batch
        self.first_sequence = first_sequence
        self.last_sequence = last_sequence

    @property
    def done(self) -> bool:
        """The records are on the disk, or :attr:`error` says why they never will be."""
        return self._batch.done

    @property
    def error(self) -> StorageError | None:
        """None while not done and after success; else why the records were refused."""
        return self._batch.error

    def wait(self, timeout: float | None = None) -> None:
        """Return when the records are on the disk (fdatasync has returned); asks for a prompt commit.

        *timeout* in seconds, None = as long as it takes. Raises DeadlineError when it has passed (the records may
        still be stored), StorageError when the disk refused them: then they are not stored and were counted as
        rejected. Of an ``append_many`` that filled several blocks, those before the refused one are stored.
        """
        batch = self._batch
        if not batch.done:
            batch.owner.hurry(help_out=timeout is None)
        if not batch.done:
            if timeout is None:
                batch.arrival().wait()
            elif not batch.owner.clock.wait(batch.arrival(), timeout):
                raise DeadlineError(f"The record was not on the disk within {timeout} s.")
        if batch.error is not None:
            raise batch.error

    def add_done_callback(self, callback: Callable[[Receipt], None]) -> None:
        """Call *callback* with this receipt when it is done: on the commit thread, or at once if it is done already.

        The callback only hands over; whatever it does delays every stream's commit. It must not raise.
        """
        self._batch.when_settled(lambda: callback(self))

    def __repr__(self) -> str:
        state = "not on the disk yet" if not self.done else "on the disk" if self.error is None else "refused"
        return f"<Receipt for records {self.first_sequence} to {self.last_sequence}, {state}>"


class Ticket:
    """A wait for everything that came before it."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = threading.Event()
        self.error: StorageError | None = None

    def settle(self, error: StorageError | None) -> None:
        self.error = error
        self.event.set()


class Work(NamedTuple):
    """What one commit has to bring to the disk."""

    batches: list[Batch]
    tickets: list[Ticket]

    def settle_tickets(self) -> None:
        for ticket in self.tickets:
            ticket.settle(None)


def call(callback: Callable[[], None]) -> None:
    """Call what a user gave; it must not raise, and if it does the log says so and the buffer goes on."""
    try:
        callback()
    except Exception:
        log.exception("A callback failed; the records are not concerned.")
