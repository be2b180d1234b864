"""What an append may hold: checked before anything is touched, so that a wrong call changes nothing. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from outstation.errors import InvalidInputError
from outstation.wire.block import MAX_METAS, encode_meta
from outstation.wire.columns import Meta

# Half of what a block may hold: room for columns, attributes and marks beside the payloads.
MAX_RECORD_BYTES = 32 << 20
MAX_META_BYTES = (64 << 10) - 1  # content type and attributes of one record
NOTABLE_META_BYTES = 64 << 10
MAX_PRODUCER_BYTES = 512
# What a record costs beside its payload: its entries in the columns of the block.
RECORD_OVERHEAD_BYTES = 16
MAX_INTEGER = (1 << 63) - 1  # of time stamps and marks

# Content type and attributes as the caller gave them.
MetaKey = tuple[str, tuple[tuple[str, str], ...]]


class Rows(NamedTuple):
    """Records that were checked, by column."""

    run: bytes | memoryview  # all payloads, one after the other
    sizes: array[int]  # of each payload
    times: array[int]
    keys: list[MetaKey]  # the different ones
    places: array[int] | None  # which of them each record has; None = all have the only one

    def cut(self, pieces: list[tuple[int, int]]) -> Iterator[Rows]:
        """The records of each (start, end); *pieces* cover them in order, without a gap."""
        view, at = memoryview(self.run), 0
        for start, end in pieces:
            sizes = self.sizes[start:end]
            begin, at = at, at + sum(sizes)
            places = None if self.places is None else self.places[start:end]
            yield Rows(view[begin:at], sizes, self.times[start:end], self.keys, places)


def as_bytes(payload: object) -> bytes:
    """*payload* as bytes; InvalidInputError for what is no run of bytes."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise InvalidInputError(f"A payload is bytes, not {type(payload).__name__}.")


def checked_time(time_unix_nano: int) -> int:
    """*time_unix_nano* if a record can carry it."""
    if not isinstance(time_unix_nano, int) or not 0 <= time_unix_nano <= MAX_INTEGER:
        raise InvalidInputError(f"{time_unix_nano!r} is no time in nanoseconds since 1970.")
    return time_unix_nano


def joined(payloads: Sequence[bytes]) -> tuple[bytes, array[int]]:
    """All of *payloads* in one run, and the size of each. A copy: what the caller does with a view later is its own."""
    if not payloads:
        raise InvalidInputError("There is nothing to append.")
    try:
        run = b"".join(payloads)
        sizes = array("I", map(len, payloads))
    except (TypeError, OverflowError):
        run, sizes = b"", array("I")
    if len(run) != sum(sizes) or not run:  # views of wider items, nothing but empty ones, or no bytes at all
        payloads = [as_bytes(payload) for payload in payloads]
        return b"".join(payloads), array("I", map(len, payloads))
    return run, sizes


def checked_times(times: Sequence[int] | None, count: int, now: Callable[[], int]) -> array[int]:
    """One time for each of *count* records, as a column."""
    if times is None:
        return array("q", (now(),)) * count
    if len(times) != count:
        raise InvalidInputError(f"{count} payloads came with {len(times)} times.")
    try:
        column = array("q", times)
    except (TypeError, OverflowError):
        column = array("q", map(checked_time, times))
    checked_time(min(times))
    return column


def check_mark(mark: tuple[str, int]) -> None:
    """InvalidInputError unless *mark* is (producer, number) within bounds."""
    producer, number = mark
    if not isinstance(producer, str) or not 0 < len(producer.encode()) <= MAX_PRODUCER_BYTES:
        raise InvalidInputError(f"A producer's name has 1 to {MAX_PRODUCER_BYTES} bytes.")
    if not isinstance(number, int) or not 0 <= number <= MAX_INTEGER:
        raise InvalidInputError(f"{number!r} is no number of a producer.")


@lru_cache(maxsize=256)  # streams repeat a few; at most 16 MiB of them
def checked_meta(key: MetaKey) -> Meta:
    """*key* with its attributes sorted. InvalidInputError when it holds what is no text, or too much."""
    content_type, attributes = key
    texts = [content_type, *(text for pair in attributes for text in pair)]
    if not all(isinstance(text, str) for text in texts):
        raise InvalidInputError("The content type and every attribute's name and value are strings.")
    try:
        sizes = [len(text.encode()) for text in texts]
    except UnicodeEncodeError as exc:
        raise InvalidInputError("An attribute holds half of a surrogate pair, which is no text.") from exc
    if sum(sizes) > MAX_META_BYTES or len(attributes) > MAX_METAS:
        raise InvalidInputError(f"Attributes of {sum(sizes)} bytes; the bound is {MAX_META_BYTES}.")
    return content_type, tuple(sorted(attributes))


@lru_cache(maxsize=256)
def stored_meta(key: MetaKey) -> bytes:
    """*key* as a block holds it; InvalidInputError as of :func:`checked_meta`."""
    return encode_meta(checked_meta(key))


def meta_keys(
    attributes: Mapping[str, str] | Sequence[Mapping[str, str]], content_type: str, count: int
) -> tuple[list[MetaKey], array[int] | None]:
    """The different keys, each checked, and which of them each record has (None: all have the only one)."""
    if isinstance(attributes, Mapping):
        key = (content_type, tuple(attributes.items()))
        stored_meta(key)
        return [key], None
    if len(attributes) != count:
        raise InvalidInputError(f"{count} payloads came with {len(attributes)} mappings of attributes.")
    # Callers mostly repeat a few mappings, and an identity is compared faster than what it stands for.
    identities = list(map(id, attributes))
    places: dict[MetaKey, int] = {}
    place_of = {}
    for identity, one in dict(zip(identities, attributes, strict=True)).items():
        key = (content_type, tuple(one.items()))
        place_of[identity] = places.setdefault(key, len(places))
    for key in places:
        stored_meta(key)
    if len(places) == 1:
        return list(places), None
    return list(places), array("I", map(place_of.__getitem__, identities))


def record_sizes(payload_sizes: Sequence[int], keys: Sequence[MetaKey], index: Sequence[int] | None) -> list[int]:
    """What each record takes in a block; with so many attributes that they matter, each record carries its own."""
    sizes = [size + RECORD_OVERHEAD_BYTES for size in payload_sizes]
    if index is not None:
        # 4: the longest of UTF-8.
        costs = [4 * sum(len(name) + len(value) + 6 for name, value in key[1]) for key in keys]
        if sum(costs) > NOTABLE_META_BYTES:
            return [size + costs[place] for size, place in zip(sizes, index, strict=True)]
    return sizes


def pieces_of(sizes: list[int], block_bytes: int, keys: int) -> list[tuple[int, int]]:
    """Where to cut records of *sizes* into blocks of about *block_bytes*: (start, end) in a row."""
    # Each record may bring its own attributes, and a block counts them in 16 bits.
    most = len(sizes) if keys == 1 else MAX_METAS // 2
    ends = list(accumulate(sizes))
    pieces, start, taken = [], 0, 0
    while start < len(sizes):
        end = min(max(bisect_right(ends, taken + block_bytes), start + 1), start + most, len(sizes))
        pieces.append((start, end))
        start, taken = end, ends[end - 1]
    return pieces
