"""Where records go from the hub. A sink is one small file; :class:`outstation_hub.drain.Drain` feeds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from outstation.wire.block import BlockHeader, Columns


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
