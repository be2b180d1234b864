"""The promise for what was appended, and what a commit has to bring to the disk to keep it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import NamedTuple

from outstation.buffer.batch import Batch
from outstation.errors import DeadlineError, StorageError


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
