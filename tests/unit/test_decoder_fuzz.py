"""Bytes from outside, of every kind: an answer or an error of ours, in bounded time and memory."""

from __future__ import annotations

import random
import tracemalloc
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.errors import CorruptBlockError, OutstationError
from outstation.testing.contract import message
from outstation.wire import BlockHeader, Columns, decode, encode
from outstation.wire.block import CODEC_RAW, CODEC_ZSTD, HEADER_BYTES, MAX_BODY_BYTES, zstd

RICH = encode(
    Columns(
        [3, 5, 9], [5, 4, 1 << 60], [b"", b"x" * 40, b"\0\xff"], [1, 0, 1],
        [("application/json", (("k", "v"), ("ä", "ö"))), ("", ())], {"producer": 7},
    ),
    epoch=2**64 - 1,
    span=12,
)  # fmt: skip


def rebuilt(body: bytes, *, codec: int = CODEC_RAW, raw_bytes: int | None = None, **fields: int) -> bytes:
    """*body* under a header whose checksums are right, so that the inside is reached."""
    raw_bytes = len(body) if raw_bytes is None else raw_bytes
    header = BlockHeader.unpack(RICH)._replace(
        codec=codec, body_bytes=len(body), raw_bytes=raw_bytes, payload_bytes=0, body_crc=zlib.crc32(body)
    )
    return header._replace(**fields).pack() + body


def raw_body(block: bytes) -> bytes:
    header = BlockHeader.unpack(block)
    body = block[HEADER_BYTES:]
    return zstd.decompress(body) if header.codec == CODEC_ZSTD else body


@given(st.binary(max_size=400))
def test_any_bytes_are_a_block_or_an_error_of_ours(data):
    with suppress(OutstationError):
        decode(data)


@settings(max_examples=400)
@given(st.integers(0, len(RICH) - 1), st.integers(1, 255))
def test_a_changed_byte_is_always_noticed(place, change):
    data = bytearray(RICH)
    data[place] ^= change
    with pytest.raises(OutstationError):
        decode(bytes(data))


@settings(max_examples=800)
@given(st.data())
def test_a_body_that_lies_behind_a_right_checksum_is_an_error_of_ours(data):
    body = bytearray(raw_body(RICH))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place : place + 1] = data.draw(st.binary(max_size=3))
        if not body:
            break
    sparse = data.draw(st.booleans())
    block = rebuilt(bytes(body), flags=2 if sparse else 0, count=data.draw(st.integers(1, 12)), span=12)
    with suppress(OutstationError):
        _, columns = decode(block)
        assert len(list(columns.records())) == len(columns)
        columns.after(5)


@given(st.binary(max_size=200), st.integers(0, 300))
def test_a_body_that_does_not_decompress_is_an_error_of_ours(body, raw_bytes):
    with suppress(OutstationError):
        decode(rebuilt(body, codec=CODEC_ZSTD, raw_bytes=raw_bytes))


@pytest.mark.parametrize("claimed", [1000, 1 << 20])
def test_a_bomb_unpacks_to_no_more_than_it_claims(claimed):
    bomb = zstd.compress(bytes(256 << 20), 1)
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    with pytest.raises(CorruptBlockError):
        decode(rebuilt(bomb, codec=CODEC_ZSTD, raw_bytes=claimed))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * claimed + (4 << 20)


@pytest.mark.parametrize(
    "fields",
    [
        {"count": 0},
        {"count": 13},
        {"count": 1 << 31, "span": (1 << 32) - 1},
        {"first_sequence": 0},
        {"body_bytes": MAX_BODY_BYTES + 1},
        {"raw_bytes": MAX_BODY_BYTES + 1},
        {"payload_bytes": 1 << 30},
    ],
)
def test_a_header_that_claims_what_cannot_be_is_refused_before_anything_is_read(fields):
    with pytest.raises(CorruptBlockError):
        BlockHeader.unpack(BlockHeader.unpack(RICH)._replace(**fields).pack())


def test_every_cut_of_a_block_is_an_error_of_ours():
    for end in range(len(RICH)):
        with pytest.raises(OutstationError):
            decode(RICH[:end])


def test_what_is_decoded_again_is_the_same():
    dice = random.Random(1)
    for _ in range(50):
        sent = message(dice.randint(1, 2**40), dice.randint(1, 300), epoch=dice.getrandbits(64))
        header, columns = decode(sent.block)
        assert encode(columns, epoch=header.epoch, span=header.span) == sent.block
