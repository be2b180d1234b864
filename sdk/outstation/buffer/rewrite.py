"""Writing a segment again without what is damaged in it. Runs on the commit thread."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

from outstation.buffer.quarantine import keep_bytes
from outstation.buffer.recovery import count_after
from outstation.buffer.segment import Access, Damage, Frame, Segment, body_of, open_for_reading, walk
from outstation.durable import TEMPORARY_SUFFIX, Files
from outstation.wire.block import BlockHeader


class Rewritten(NamedTuple):
    """The segment as it is now, and how many pending records it has lost."""

    segment: Segment
    corrupt: int


def repair(access: Access, segment: Segment, start: int, number: int) -> Rewritten:
    """Replace the file of a closed *segment* by its whole frames and a seal; the rest goes to quarantine.

    *start*: records up to it are not pending. *number*: of this rewrite, which the seal carries so that a crash
    between here and the next balance leaves the account right. Raises OSError, and then the old file is in place.
    """
    files, epoch = access.files, access.epoch
    before = count_after(access, segment, start)
    after = replace(
        segment,
        count=0,
        blocks=0,
        payload_bytes=0,
        length=0,
        sealed=True,
        closed=True,
        generation=segment.generation + 1,
    )
    folder = segment.path.parent
    temporary = segment.path.with_name(segment.path.name + TEMPORARY_SUFFIX)
    source, size = open_for_reading(files, segment.path)
    try:
        target = files.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for piece in walk(files, source, 0, min(size, segment.length), epoch):
                if isinstance(piece, Damage) or (
                    isinstance(piece.head, BlockHeader) and not body_of(files, source, piece)
                ):
                    _set_aside(files, source, segment, piece)
                    continue
                head = piece.head
                files.write(target, files.read(source, piece.size, piece.offset), after.length)
                after.length += piece.size
                if isinstance(head, BlockHeader):
                    after.add(head)
            _cover(after, segment)
            corrupt = max(0, before - count_after(access, replace(after, path=temporary), start))
            files.write(target, after.seal(epoch, rewrite=number, corrupt=corrupt).pack(), after.length)
            files.sync(target)
        finally:
            files.close(target)
    finally:
        files.close(source)
    files.rename(temporary, segment.path)
    files.sync_directory(folder)
    return Rewritten(after, corrupt)


def _cover(after: Segment, before: Segment) -> None:
    """Keep the numbers that the segment stood for, so that its neighbours and the search still fit."""
    after.first_sequence, after.last_sequence = before.first_sequence, before.last_sequence


def _set_aside(files: Files, fd: int, segment: Segment, piece: Frame | Damage) -> None:
    size = piece.end - piece.offset if isinstance(piece, Damage) else piece.size
    keep_bytes(segment.path.parent, f"{segment.serial:012d}-{piece.offset}", files.read(fd, size, piece.offset), files)
