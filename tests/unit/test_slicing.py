"""Blocks are cut into messages that fit, and no record is lost or doubled by it."""

from __future__ import annotations

import os
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.provider import Message
from outstation.sync.slicing import fitting
from outstation.wire.block import HEADER_BYTES, decode, encode
from outstation.wire.columns import Columns

EPOCH = 7


def block(sequences: list[int], payloads: list[bytes], span: int | None = None) -> Message:
    columns = Columns(sequences, [1_000 + s for s in sequences], payloads)
    data = encode(columns, epoch=EPOCH, span=span)
    header, _ = decode(data)
    return Message("events", EPOCH, header.first_sequence, header.last_sequence, data)


def records(messages: list[Message]) -> list[tuple[int, int, bytes]]:
    got = []
    for message in messages:
        header, columns = decode(message.block)
        assert (header.first_sequence, header.last_sequence) == (message.first_sequence, message.last_sequence)
        got += [(r.sequence, r.time_unix_nano, r.payload) for r in columns.records()]
    return got


def test_a_block_that_fits_goes_unchanged() -> None:
    whole = block([5, 6], [b"a", b"b"])
    assert list(fitting(whole, after=0, max_bytes=None)) == [whole]
    assert list(fitting(whole, after=5, max_bytes=len(whole.block))) == [whole]


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=0, max_size=200), min_size=1, max_size=40),
    st.integers(0, 60),
    st.sets(st.integers(1, 39)),
    st.integers(HEADER_BYTES + 300, 2_000),
)
def test_slices_fit_cover_the_block_and_hold_each_record_once(
    payloads: list[bytes], after: int, holes: set[int], max_bytes: int
) -> None:
    rows = [(10 + i, payload) for i, payload in enumerate(payloads) if i not in holes]
    whole = block([s for s, _ in rows], [p for _, p in rows], span=len(payloads) + 3)
    if after >= rows[-1][0]:  # what was beyond has been let go
        assert list(fitting(whole, after=after, max_bytes=HEADER_BYTES)) == []
        after = rows[0][0] - 1
    got = list(fitting(whole, after=after, max_bytes=max_bytes))
    wanted = [(s, 1_000 + s, p) for s, p in rows if s > after]
    assert [row for row in records(got) if row[0] > after] == wanted
    assert all(len(message.block) <= max_bytes for message in got)
    assert got[-1].last_sequence == whole.last_sequence
    for earlier, later in pairwise(got):
        assert later.first_sequence == earlier.last_sequence + 1


def test_one_record_over_the_limit_comes_out_alone_for_the_caller_to_set_aside() -> None:
    whole = block([1, 2, 3], [b"small", os.urandom(5_000), b"small"])
    got = list(fitting(whole, after=0, max_bytes=1_000))
    over = [message for message in got if len(message.block) > 1_000]
    assert [(message.first_sequence, message.last_sequence) for message in over] == [(2, 2)]
    assert len(records(got)) == 3
