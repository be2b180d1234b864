"""A block being filled, and the receipts for the records in it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Protocol

from outstation.clock import Clock
from outstation.errors import DeadlineError, StorageError
from outstation.types import OCTETS
from outstation.wire.block import Columns, Meta

log = logging.getLogger("outstation.buffer")


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
        "times",
    )

    def __init__(self, owner: Owner, first_sequence: int) -> None:
        self.owner = owner
        self.first_sequence = first_sequence
        self.payloads: list[bytes] = []
        self.times: list[int] = []
        self.index: list[int] = []
        self.keys: dict[tuple[str, tuple[tuple[str, str], ...]], int] = {(OCTETS, ()): 0}
        self.metas: list[Meta] = [(OCTETS, ())]
        self.marks: dict[str, int] = {}
        self.done = False
        self._arrival: threading.Event | None = None  # made for who waits: most batches have nobody
        self.error: StorageError | None = None
        self._settling = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + len(self.payloads) - 1

    def columns(self) -> Columns:
        """The columns of the block, without the metas that no record has."""
        metas, index = self.metas, self.index
        if len(metas) == 1:
            return self._columns(None, metas)
        used = set(index)
        if len(used) == 1:
            return self._columns(None, [metas[index[0]]])
        if len(used) < len(metas):
            kept = sorted(used)
            place = {old: new for new, old in enumerate(kept)}
            return self._columns([place[meta] for meta in index], [metas[old] for old in kept])
        return self._columns(index, metas)

    def _columns(self, index: list[int] | None, metas: list[Meta]) -> Columns:
        sequences = range(self.first_sequence, self.first_sequence + len(self.payloads))
        return Columns(sequences, self.times, self.payloads, index, metas, self.marks)

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
        self.payloads, self.times, self.index = [], [], []
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


def call(callback: Callable[[], None]) -> None:
    """Call what a user gave; it must not raise, and if it does the log says so and the buffer goes on."""
    try:
        callback()
    except Exception:
        log.exception("A callback failed; the records are not concerned.")
