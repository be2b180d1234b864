"""Where records go from the hub. A sink is one small file; :class:`outstation_hub.drain.Drain` feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

from outstation.wire.block import BlockHeader
from outstation.wire.columns import Columns


@dataclass(frozen=True, slots=True)
class Arrival:
    """One block as it arrived, opened."""

    station: str
    stream: str
    header: BlockHeader
    columns: Columns


class Sink(Protocol):
    """One place to write to. Used by one thread."""

    @property
    def name(self) -> str:
        """Names the sink's cursor; must stay the same from start to start."""
        ...

    def write(self, arrivals: Sequence[Arrival]) -> None:
        """Write *arrivals* durably, or raise an OutstationError; then the same records come again.

        They come in the order in which they arrived, so in the order of their sequence numbers within (station,
        stream, epoch). After a crash the records since the last batch that was confirmed come again, beginning
        with the same record but perhaps in other batches: what is written must be keyed so that it replaces itself.
        """
        ...

    def close(self) -> None:
        """Let go of everything. Idempotent."""
        ...


class Position(NamedTuple):
    """How far a drain is: everything of the inbox *epoch* through this number."""

    epoch: int
    through: int


@runtime_checkable
class KeepsPosition(Protocol):
    """A sink that stores how far it is in the same step as the records, so that no batch is ever written twice."""

    def position(self, epoch: int) -> int:
        """The last number of the inbox *epoch* that the sink has; 0 when it has none. Raises an OutstationError.

        Asked before the first batch, and again after each failure.
        """
        ...

    def write_through(self, arrivals: Sequence[Arrival], position: Position) -> None:
        """As :meth:`Sink.write`, with *position* stored if and only if all of *arrivals* are."""
        ...


@runtime_checkable
class Tidies(Protocol):
    """A sink with housekeeping to do when nothing waits."""

    def tidy(self) -> None:
        """Do a piece of it, in about a second, on the thread of :meth:`Sink.write`.

        Everything that was ever written is confirmed at that time: no batch of before comes again.
        """
        ...


@runtime_checkable
class Rejects(Protocol):
    """A sink whose far end may refuse a record for good; it is set aside then, so that others go on."""

    @property
    def rejected(self) -> int:
        """Records that were set aside, ever."""
        ...
