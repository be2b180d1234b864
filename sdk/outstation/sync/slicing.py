"""Cut a block into messages that fit the provider's limit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from outstation.provider import Message
from outstation.wire.block import decode, encode
from outstation.wire.columns import Columns


def fitting(whole: Message, *, after: int, max_bytes: int | None) -> Iterator[Message]:
    """*whole* as messages whose blocks have at most *max_bytes*, in order, without the records through *after*.

    A block that fits goes unchanged, records before *after* included: the far end trims what it has. One record
    that alone is over *max_bytes* comes as a message over the limit; the caller sends it in parts. Nothing comes of a
    block whose records beyond *after* were let go.
    """
    if max_bytes is None or len(whole.block) <= max_bytes:
        yield whole
        return
    _, columns = decode(whole.block)
    rest = columns.after(after)
    if len(rest):
        # Each piece reaches to where the next begins, so that the far end sees one unbroken run of sequence numbers.
        yield from _halved(whole, rest, whole.last_sequence, max_bytes)


def _halved(whole: Message, columns: Columns, last_sequence: int, max_bytes: int) -> Iterator[Message]:
    first = columns.sequences[0]
    block = encode(columns, epoch=whole.epoch, span=last_sequence - first + 1)
    if len(block) <= max_bytes or len(columns) == 1:
        yield replace(whole, first_sequence=first, last_sequence=last_sequence, block=block)
        return
    middle = len(columns) // 2
    border = columns.sequences[middle] - 1
    yield from _halved(whole, _part(columns, 0, middle), border, max_bytes)
    yield from _halved(whole, _part(columns, middle, len(columns)), last_sequence, max_bytes)


def _part(columns: Columns, start: int, end: int) -> Columns:
    index = None if columns.meta_index is None else columns.meta_index[start:end]
    return Columns(
        columns.sequences[start:end], columns.times[start:end], columns.payloads[start:end], index, columns.metas
    )
