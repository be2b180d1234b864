"""Header compression as RFC 7541 has it: its own examples, and what no encoder would send."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation_inference.hpack import Decoder, HpackError, literal

# RFC 7541, C.3 and C.4: three requests on one connection, plain and Huffman-coded.
FIRST = ((":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "www.example.com"))
SECOND = (*FIRST, ("cache-control", "no-cache"))
THIRD = (
    (":method", "GET"),
    (":scheme", "https"),
    (":path", "/index.html"),
    (":authority", "www.example.com"),
    ("custom-key", "custom-value"),
)
PLAIN = (
    "828684410f7777772e6578616d706c652e636f6d",
    "828684be58086e6f2d6361636865",
    "828785bf400a637573746f6d2d6b65790c637573746f6d2d76616c7565",
)
HUFFMAN = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)


@pytest.mark.parametrize("blocks", [PLAIN, HUFFMAN], ids=["plain", "huffman"])
def test_the_examples_of_the_specification(blocks):
    decoder = Decoder(4096)
    assert [decoder.decode(bytes.fromhex(block)) for block in blocks] == [FIRST, SECOND, THIRD]


def test_a_repeated_block_means_what_the_table_says_now():
    decoder = Decoder(4096)
    decoder.decode(bytes.fromhex(PLAIN[0]))
    again = bytes.fromhex("828684be")
    assert decoder.decode(again) == decoder.decode(again) == FIRST
    decoder.decode(b"\x40" + literal("new", "entry")[1:])
    assert decoder.decode(bytes.fromhex("be")) == (("new", "entry"),)
    assert decoder.decode(bytes.fromhex("828684bf")) == FIRST


def test_an_entry_that_no_longer_fits_is_gone():
    decoder = Decoder(1 << 20)
    decoder.decode(b"\x40" + literal("old", "entry")[1:])
    decoder.decode(b"\x40" + literal("large", "x" * 4050)[1:])
    with pytest.raises(HpackError, match="no entry 63"):
        decoder.decode(b"\xbf")
    decoder.decode(b"\x20")  # the client makes its table empty
    with pytest.raises(HpackError, match="no entry 62"):
        decoder.decode(b"\xbe")


@settings(deadline=None)
@given(st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=300), st.text(st.characters(codec="ascii")))
def test_what_we_write_is_read_again(name, value):
    assert Decoder(1 << 20).decode(literal(name, value)) == ((name, value),)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_headers_or_an_error_of_ours(block):
    with contextlib.suppress(HpackError):
        Decoder(4096).decode(block)


@pytest.mark.parametrize(
    ("block", "words"),
    [
        ("80", "no entry 0"),
        ("ff80808080808001", "too large"),
        ("400a", "ends"),
        ("40", "ends inside"),
        ("0085ffffffffff00", "end symbol"),
        ("00820000", "padded"),
        ("3fe21f", "was not offered"),
    ],
)
def test_a_malformed_block_is_told(block, words):
    with pytest.raises(HpackError, match=words):
        Decoder(4096).decode(bytes.fromhex(block))


def test_headers_that_unpack_to_more_than_the_bound_are_refused():
    decoder = Decoder(4096)
    decoder.decode(b"\x40" + literal("bomb", "x" * 2000)[1:])
    with pytest.raises(HpackError, match="larger than 4096"):
        decoder.decode(b"\xbe" * 3)
