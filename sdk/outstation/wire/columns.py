"""The records of a block by column, as they lie in it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import overload

from outstation.types import OCTETS, Record

Meta = tuple[str, tuple[tuple[str, str], ...]]  # content type, attributes in sorted order
NO_META: Meta = (OCTETS, ())


class Payloads(Sequence[bytes]):
    """The payloads of one block, side by side in its body, and cut apart when one of them is asked for."""

    def __init__(self, body: bytes, start: int, sizes: array[int]) -> None:
        """They fill *body* from *start* on, the first of them ``sizes[0]`` bytes long."""
        self.sizes = sizes
        self._body = body
        self._start = start
        self._apart: list[bytes] | None = None

    @property
    def joined(self) -> memoryview:
        """All of them, one after the other."""
        return memoryview(self._body)[self._start :]

    def __len__(self) -> int:
        return len(self.sizes)

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._cut())

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> list[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | list[bytes]:
        return self._cut()[place]

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, Sequence) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(list(self))

    def _cut(self) -> list[bytes]:
        if self._apart is None:
            body = self._body
            self._apart = [body[start:end] for start, end in pairwise(accumulate(self.sizes, initial=self._start))]
        return self._apart


@dataclass(slots=True)
class Columns:
    """The records of one block, by column; every list has one entry a record."""

    sequences: Sequence[int]
    times: Sequence[int]
    payloads: Sequence[bytes]
    meta_index: Sequence[int] | None = None  # None: all have metas[0]
    metas: Sequence[Meta] = (NO_META,)
    marks: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.payloads)

    def records(self) -> Iterator[Record]:
        """The rows. Attribute dicts are shared between records of one block: treat them as read-only."""
        metas = [(content_type, dict(attributes)) for content_type, attributes in self.metas]
        index = self.meta_index if self.meta_index is not None else [0] * len(self.payloads)
        for sequence, time, payload, meta in zip(self.sequences, self.times, self.payloads, index, strict=True):
            content_type, attributes = metas[meta]
            yield Record(sequence, time, payload, content_type, attributes)

    def after(self, sequence: int) -> Columns:
        """Only the records whose sequence number is greater than *sequence*."""
        keep = [i for i, own in enumerate(self.sequences) if own > sequence]
        return Columns(
            [self.sequences[i] for i in keep],
            [self.times[i] for i in keep],
            [self.payloads[i] for i in keep],
            None if self.meta_index is None else [self.meta_index[i] for i in keep],
            self.metas,
            self.marks,
        )
