"""What to let go when a bound is reached. Pure: segments and numbers in, segments out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from outstation.buffer.segment import Segment
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import WhenFull

# A segment is what is let go at once, so it must be small beside the bounds of its stream and of the folder.
SEGMENTS_A_STREAM = 8
SMALLEST_SEGMENT_BYTES = 4 << 10


def segment_limit(folder: BufferSettings, stream: StreamSettings) -> int:
    """The size at which a segment of the stream closes."""
    bound = min(folder.max_bytes, stream.max_bytes)
    return max(SMALLEST_SEGMENT_BYTES, min(folder.segment_bytes, bound // SEGMENTS_A_STREAM))


def thinnable(segments: Sequence[Segment]) -> tuple[Segment, Segment] | None:
    """Two neighbours of the oldest half that still hold the most of their records; the oldest of equals.

    So all of the oldest half is thinned once before any is thinned twice, and what is older has been thinned more
    often. None when there are not two.
    """
    closed = [segment for segment in segments if segment.closed]
    half = closed[: (len(closed) + 1) // 2]
    pairs = [pair for pair in pairwise(half) if not (pair[0].unread or pair[1].unread)]
    return max(pairs, key=_density, default=None)


def _density(pair: tuple[Segment, Segment]) -> float:
    older, newer = pair
    return (older.count + newer.count) / (newer.last_sequence + 1 - older.first_sequence)


def drops(settings: StreamSettings) -> bool:
    """Whether the stream may let records go to make room; otherwise it refuses new ones."""
    return settings.when_full is not WhenFull.REJECT


def acknowledged(segments: Sequence[Segment], cursor: int) -> list[Segment]:
    """The closed segments, from the oldest on, of which nothing is pending."""
    found = []
    for segment in segments:
        if not segment.closed or segment.last_sequence > cursor:
            break
        found.append(segment)
    return found


def oldest_over(segments: Sequence[Segment], surplus_bytes: int) -> list[Segment]:
    """The fewest closed segments, from the oldest on, that together free *surplus_bytes*, or all there are."""
    found = []
    for segment in segments:
        if surplus_bytes <= 0 or not segment.closed:
            break
        found.append(segment)
        surplus_bytes -= segment.file_bytes
    return found


def expired(segments: Sequence[Segment], before_unix_nano: int) -> list[Segment]:
    """The closed segments, from the oldest on, whose newest record was appended before *before_unix_nano*.

    By the steady clock: what time stamps the records carry, and how the wall clock jumps, is of no account.
    """
    found = []
    for segment in segments:
        if not segment.closed or segment.written_unix_nano >= before_unix_nano:
            break
        found.append(segment)
    return found
