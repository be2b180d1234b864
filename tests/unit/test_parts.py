"""Blocks that are larger than a message: cut, put together, and never put together wrongly."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import CorruptBlockError, ProviderUnavailableError, RefusedError, UnsupportedVersionError
from outstation.wire import parts
from outstation.wire.block import encode
from outstation.wire.columns import Columns


def block(size: int, *, first: int = 7, seed: int = 1) -> bytes:
    payload = random.Random(seed).randbytes(size)
    return encode(Columns(range(first, first + 1), [1_700_000_000_000_000_000], [payload]), epoch=5)


def cut(whole: bytes, max_bytes: int) -> list[bytes]:
    cutting, end, pieces = parts.Cutting(whole), 0, []
    while end < len(whole):
        data, end = cutting.part(end, max_bytes)
        pieces.append(data)
    return pieces


def take(assembler: parts.Assembler, data: bytes, *, station: str = "s", now: float = 0.0) -> bytes | int:
    return assembler.take(station, "events", parts.unpack(data), now)


@given(st.integers(1, 5000), st.integers(parts.SMALLEST_PART_BYTES, 3000), st.randoms())
def test_parts_of_any_size_make_the_block_though_each_may_come_twice(size: int, largest: int, dice: random.Random):
    whole = block(size)
    pieces = cut(whole, largest)
    assert max(map(len, pieces)) <= largest
    assembler = parts.Assembler()
    answer: bytes | int = 0
    for number, piece in enumerate(pieces):
        answer = take(assembler, piece)
        if number + 1 < len(pieces):
            assert answer == parts.unpack(piece).end
            if dice.random() < 0.5:
                assert take(assembler, pieces[dice.randrange(number + 1)]) == answer
    assert answer == whole
    assert assembler.claimed_bytes == 0


def test_a_part_names_the_block_that_it_is_of():
    part = parts.unpack(cut(block(1000), 400)[1])
    assert (part.epoch, part.first_sequence, part.last_sequence) == (5, 7, 7)
    assert (part.offset, part.end) == (400 - parts.HEADER_BYTES, 2 * (400 - parts.HEADER_BYTES))


def test_a_hole_is_not_closed_and_what_is_held_says_where_to_go_on():
    whole = block(2000)
    first, second, third, *rest = cut(whole, 600)
    assembler = parts.Assembler()
    assert take(assembler, second) == 0
    held = take(assembler, first)
    assert take(assembler, third) == held
    answers = [take(assembler, piece) for piece in (second, third, *rest)]
    assert answers[-1] == whole


def test_a_block_cut_anew_after_a_restart_begins_anew():
    old, new = block(2000, seed=1), block(2000, seed=2)
    assembler = parts.Assembler()
    for piece in cut(old, 600)[:2]:
        take(assembler, piece)
    first, *rest = cut(new, 600)
    assert take(assembler, rest[0]) == 0
    assert [take(assembler, piece) for piece in (first, *rest)][-1] == new


def test_what_is_under_way_is_bounded_and_an_idle_sender_makes_room():
    assembler = parts.Assembler(9000, max_block_bytes=6000)
    pieces = cut(block(5000), 600)
    take(assembler, pieces[0], station="a", now=0.0)
    with pytest.raises(ProviderUnavailableError):
        take(assembler, pieces[0], station="b", now=parts.IDLE_SECONDS - 1)
    assert take(assembler, pieces[0], station="b", now=parts.IDLE_SECONDS + 1) > 0
    assert assembler.claimed_bytes <= 9000
    assert take(assembler, pieces[1], station="a", now=parts.IDLE_SECONDS + 1) == 0  # it begins anew, from the start
    with pytest.raises(RefusedError, match="6000 are taken"):
        take(assembler, cut(block(6000), 600)[0], station="c", now=1000.0)


def test_a_station_has_one_block_of_a_stream_under_way():
    assembler = parts.Assembler()
    take(assembler, cut(block(5000, first=1), 600)[0])
    take(assembler, cut(block(5000, first=2), 600)[0])
    assert assembler.claimed_bytes == len(block(5000))


@given(st.data())
def test_a_flipped_byte_is_noticed(data: st.DataObject):
    piece = bytearray(cut(block(500), 300)[0])
    piece[data.draw(st.integers(0, len(piece) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises((CorruptBlockError, UnsupportedVersionError)):
        parts.unpack(bytes(piece))


@given(st.binary(max_size=200))
def test_garbage_is_no_part(data: bytes):
    with pytest.raises(CorruptBlockError):
        parts.unpack(data)
    with pytest.raises(CorruptBlockError):
        parts.unpack(parts.MAGIC + data)


def test_a_part_of_a_later_format_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parts, "VERSION", 2)
    piece = cut(block(500), 300)[0]
    monkeypatch.setattr(parts, "VERSION", 1)
    with pytest.raises(UnsupportedVersionError):
        parts.unpack(piece)
