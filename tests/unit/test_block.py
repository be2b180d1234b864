"""The block format: what goes in comes out, and nothing else does."""

from __future__ import annotations

import os
import zlib
from array import array
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.errors import CorruptBlockError, OutstationError, UnsupportedVersionError, WireError
from outstation.wire.block import (
    CODEC_RAW,
    CODEC_ZSTD,
    FLAG_SPARSE,
    HEADER_BYTES,
    MAX_BODY_BYTES,
    BlockHeader,
    Columns,
    Draft,
    decode,
    decode_marks,
    encode,
)
from outstation.wire.checks import Rows, joined

texts = st.text(max_size=20)
metas = st.tuples(texts, st.lists(st.tuples(texts, texts), max_size=3).map(tuple))


@st.composite
def columns(draw) -> Columns:
    count = draw(st.integers(1, 40))
    known = draw(st.lists(metas, min_size=1, max_size=4, unique=True))
    first = draw(st.integers(1, 1 << 62))
    gaps = draw(st.lists(st.integers(1, 3), min_size=count - 1, max_size=count - 1))
    sequences = [first]
    for gap in gaps:
        sequences.append(sequences[-1] + gap)
    return Columns(
        sequences,
        draw(st.lists(st.integers(0, (1 << 63) - 1), min_size=count, max_size=count)),
        draw(st.lists(st.binary(max_size=60), min_size=count, max_size=count)),
        draw(st.lists(st.integers(0, len(known) - 1), min_size=count, max_size=count)) if len(known) > 1 else None,
        known,
        draw(st.dictionaries(texts, st.integers(0, (1 << 63) - 1), max_size=3)),
    )


@settings(deadline=None)
@given(columns=columns(), epoch=st.integers(1, (1 << 64) - 1), level=st.sampled_from([0, 1, 3]))
def test_records_come_out_as_they_went_in(columns, epoch, level):
    data = encode(columns, epoch=epoch, level=level)
    header, back = decode(data)
    assert header.epoch == epoch
    assert header.block_bytes == len(data)
    assert (header.first_sequence, header.last_sequence) == (columns.sequences[0], columns.sequences[-1])
    assert (header.earliest_unix_nano, header.latest_unix_nano) == (min(columns.times), max(columns.times))
    assert list(back.records()) == list(columns.records())
    assert dict(back.marks) == dict(columns.marks)
    assert decode_marks(header, data[HEADER_BYTES:]) == dict(columns.marks)
    assert encode(back, epoch=epoch, level=level) == data


@settings(deadline=None)
@given(columns=columns(), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(columns, where, bit):
    data = bytearray(encode(columns, epoch=7))
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises((CorruptBlockError, UnsupportedVersionError)):
        decode(bytes(data))


@given(data=st.binary(max_size=300))
def test_foreign_bytes_are_refused_and_never_crash(data):
    with pytest.raises(OutstationError):
        decode(data)


@settings(deadline=None)
@given(columns=columns(), garbage=st.binary(max_size=200))
def test_a_body_of_garbage_with_right_checksums_is_refused(columns, garbage):
    header, _ = decode(encode(columns, epoch=7, level=0))
    lying = header._replace(
        codec=CODEC_RAW,
        body_bytes=len(garbage),
        raw_bytes=len(garbage),
        payload_bytes=0,
        body_crc=zlib.crc32(garbage),
    )
    with pytest.raises(CorruptBlockError):
        decode(lying.pack() + garbage)


def test_a_bomb_is_stopped_at_the_size_it_claims():
    header, _ = decode(encode(Columns([1], [0], [bytes(10 << 20)]), epoch=7))
    data = encode(Columns([1], [0], [bytes(10 << 20)]), epoch=7)
    lying = header._replace(raw_bytes=100, payload_bytes=50)
    with pytest.raises(CorruptBlockError, match="size it claims"):
        decode(lying.pack() + data[HEADER_BYTES:])


def test_a_newer_format_is_named_as_such():
    data = bytearray(encode(Columns([1], [0], [b"x"]), epoch=7))
    data[4] = 2
    data[HEADER_BYTES - 4 : HEADER_BYTES] = zlib.crc32(data[: HEADER_BYTES - 4]).to_bytes(4, "little")
    with pytest.raises(UnsupportedVersionError, match="format 2"):
        decode(bytes(data))


def test_what_does_not_compress_is_stored_as_it_is():
    picture = os.urandom(60_000)
    assert BlockHeader.unpack(encode(Columns([1], [0], [picture]), epoch=7)).codec == CODEC_RAW
    assert BlockHeader.unpack(encode(Columns([1], [0], [bytes(60_000)]), epoch=7)).codec == CODEC_ZSTD
    text_in_the_middle = os.urandom(3000) + b"temperature 71.3 " * 2000 + os.urandom(3000)
    assert BlockHeader.unpack(encode(Columns([1], [0], [text_in_the_middle]), epoch=7)).codec == CODEC_ZSTD


def test_a_span_may_reach_beyond_its_records():
    data = encode(Columns([5, 9], [1, 2], [b"a", b"b"]), epoch=7, first_sequence=4, span=10)
    header, back = decode(data)
    assert (header.first_sequence, header.last_sequence, header.count) == (4, 13, 2)
    assert header.flags == FLAG_SPARSE
    assert list(back.sequences) == [5, 9]
    assert [record.payload for record in back.after(5).records()] == [b"b"]


def test_a_block_has_a_largest_size():
    with pytest.raises(WireError):
        encode(Columns([1], [0], [bytes(MAX_BODY_BYTES)]), epoch=7)


def test_attributes_are_shared_and_times_may_jump():
    columns = Columns(
        [1, 2, 3], [(1 << 63) - 1, 0, 5], [b"a", b"b", b"c"], [1, 0, 1], [("a/b", ()), ("c", (("k", "v"), ("l", "ü")))]
    )
    records = list(decode(encode(columns, epoch=7))[1].records())
    assert [record.time_unix_nano for record in records] == [(1 << 63) - 1, 0, 5]
    assert [record.content_type for record in records] == ["c", "a/b", "c"]
    assert dict(records[2].attributes) == {"k": "v", "l": "ü"}


EDGES = st.sampled_from([0, 1, (1 << 31) - 1, 1 << 32, (1 << 62) + 1, (1 << 63) - 2, (1 << 63) - 1])


def drafted_times(times: list[int]) -> list[int]:
    count = len(times)
    draft = Draft(1, count, array("q", times), array("I", [0]) * count, [b""] * count, [b"\0\0\0\0"])
    header, body = draft.pack(epoch=1, level=0)
    return list(decode(header.pack() + body)[1].times)


@given(times=st.lists(st.one_of(EDGES, st.integers(0, (1 << 63) - 1)), min_size=1, max_size=40))
def test_times_come_out_whatever_stands_beside_them(times):
    assert drafted_times(times) == times


@given(times=st.lists(st.integers(-(1 << 62), (1 << 62) - 1), min_size=1, max_size=40))
def test_times_before_1970_come_out_too(times):
    assert drafted_times(times) == times


def test_times_that_lie_too_far_apart_for_a_block_are_refused():
    with pytest.raises(WireError):
        drafted_times([-(1 << 63), (1 << 63) - 1])


@given(
    payloads=st.lists(st.one_of(st.binary(max_size=9), st.binary(max_size=9).map(bytearray)), min_size=1, max_size=30),
    data=st.data(),
)
def test_records_cut_into_pieces_are_those_that_came_in_whatever_the_caller_does_afterwards(payloads, data):
    run, sizes = joined(payloads)
    wanted = [bytes(payload) for payload in payloads]
    for payload in payloads:
        if isinstance(payload, bytearray):
            payload[:] = b"!" * len(payload)
    count = len(wanted)
    places = array("I", data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    rows = Rows(run, sizes, array("q", range(count)), [("a", ()), ("b", ()), ("c", ())], places)
    cuts = sorted({0, count, *data.draw(st.lists(st.integers(0, count)))})
    found = []
    for piece in rows.cut(list(pairwise(cuts))):
        assert piece.places is not None
        at = 0
        for size, time, place in zip(piece.sizes, piece.times, piece.places, strict=True):
            found.append((bytes(piece.run[at : at + size]), time, place))
            at += size
        assert at == len(piece.run)
    assert found == list(zip(wanted, range(count), places, strict=True))
