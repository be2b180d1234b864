"""The server's side of HTTP/2, byte by byte: windows, frames in pieces, cancelled calls, clients that break it."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation_inference.frames import (
    CONTINUATION,
    DATA,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
)
from outstation_inference.hpack import literal
from outstation_inference.http2 import Http2

END_STREAM, END_HEADERS, PADDED = 1, 4, 8
BLOCK = b"\x83\x86" + literal(":path", "/a.B/C") + literal("content-type", "application/grpc")


def frame(kind, stream=0, payload=b"", flags=0):
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def message(data, compressed=0):
    return struct.pack(">BI", compressed, len(data)) + data


def call(stream, data=b"question", block=BLOCK):
    return frame(HEADERS, stream, block, END_HEADERS) + frame(DATA, stream, message(data), END_STREAM)


def frames(output):
    found, at = [], 0
    while at < len(output):
        length_kind, flags, stream = struct.unpack_from(">IBI", output, at)
        at += 9
        found.append((length_kind & 0xFF, flags, stream, bytes(output[at : at + (length_kind >> 8)])))
        at += length_kind >> 8
    return found


@pytest.fixture
def http():
    made = Http2(max_message_bytes=1000, max_streams=4)
    made.receive(PREFACE + frame(SETTINGS))
    made.output.clear()
    return made


def sent(http):
    found = frames(http.output)
    http.output.clear()
    return found


def test_a_call_in_one_piece_or_byte_by_byte_is_the_same_call():
    data = PREFACE + frame(SETTINGS) + call(1) + call(3, b"")
    for size in (len(data), 1, 7):
        http = Http2(max_message_bytes=1000, max_streams=4)
        got = [m for at in range(0, len(data), size) for m in http.receive(data[at : at + size])]
        assert [(m.stream.id, m.stream.path, m.data) for m in got] == [
            (1, "/a.B/C", b"question"),
            (1, "/a.B/C", None),
            (3, "/a.B/C", b""),
            (3, "/a.B/C", None),
        ]


def test_an_answer_is_headers_data_and_a_status(http):
    stream = http.receive(call(1))[0].stream
    http.answer(stream, b"answer")
    headers, data, trailers = sent(http)
    assert headers[:3] == (HEADERS, END_HEADERS, 1)
    assert data == (DATA, 0, 1, message(b"answer"))
    assert trailers[:3] == (HEADERS, END_HEADERS | END_STREAM, 1)
    assert b"grpc-status\x010" in trailers[3]
    assert http.idle


def test_an_error_is_one_frame_with_status_message_and_more(http):
    stream = http.receive(call(1))[0].stream
    http.finish(stream, 3, "wrong: \u00e9\n100 %", {"x-kind": "K", "x-bin": b"\xff\xfe"})
    ((kind, flags, _, block),) = sent(http)
    assert (kind, flags) == (HEADERS, END_HEADERS | END_STREAM)
    assert block == (
        b"\x88"
        + literal("content-type", "application/grpc")
        + literal("grpc-status", "3")
        + literal("grpc-message", "wrong: %C3%A9%0A100 %25")
        + literal("x-kind", "K")
        + literal("x-bin", "//4")
    )
    http.finish(stream, 0)
    assert sent(http) == []


def test_nothing_is_sent_beyond_the_clients_windows(http):
    http.receive(frame(SETTINGS, payload=struct.pack(">HI", 4, 10)))
    stream = http.receive(call(1))[0].stream
    sent(http)
    http.answer(stream, b"a" * 25)  # 30 bytes with its prefix
    _, first = sent(http)
    assert first == (DATA, 0, 1, message(b"a" * 25)[:10])
    http.receive(frame(WINDOW_UPDATE, 1, struct.pack(">I", 15)))
    assert [len(data) for *_, data in sent(http)] == [15]
    http.receive(frame(WINDOW_UPDATE, 1, struct.pack(">I", 100)))
    rest, trailers = sent(http)
    assert (len(rest[3]), trailers[0], trailers[1]) == (5, HEADERS, END_HEADERS | END_STREAM)
    assert http.idle


def test_the_connections_window_holds_back_every_stream_and_frees_them_in_turn(http):
    http.receive(frame(SETTINGS, payload=struct.pack(">HI", 4, 1 << 20)))
    streams = [m.stream for m in http.receive(call(1) + call(3)) if m.data is not None]
    sent(http)
    for stream in streams:
        http.answer(stream, b"a" * 40_000)
    assert sum(len(data) for kind, _, _, data in sent(http) if kind == DATA) == 65_535
    http.receive(frame(WINDOW_UPDATE, 0, struct.pack(">I", 1 << 20)))
    assert sum(len(data) for kind, _, _, data in sent(http) if kind == DATA) == 2 * 40_005 - 65_535
    assert http.idle


def test_a_large_answer_is_cut_into_frames_of_the_clients_size(http):
    http.receive(frame(SETTINGS, payload=struct.pack(">HIHI", 4, 1 << 20, 5, 20_000)))
    stream = http.receive(call(1))[0].stream
    sent(http)
    http.answer(stream, b"a" * 45_000)
    assert [len(data) for kind, _, _, data in sent(http) if kind == DATA] == [20_000, 20_000, 5_005]


def test_a_cancelled_call_is_marked_and_its_answer_goes_nowhere(http):
    stream = http.receive(call(1))[0].stream
    http.receive(frame(RST_STREAM, 1, b"\0\0\0\x08"))
    assert stream.cancelled
    http.answer(stream, b"late")
    http.finish(stream, 0)
    assert sent(http) == []


def test_streams_beyond_the_bound_are_refused_and_the_others_answered(http):
    got = http.receive(b"".join(call(stream) for stream in (1, 3, 5, 7, 9)))
    assert sorted({m.stream.id for m in got}) == [1, 3, 5, 7]
    assert sent(http) == [(RST_STREAM, 0, 9, struct.pack(">I", 7))]


def test_a_message_larger_than_the_bound_is_refused_before_it_has_come(http):
    http.receive(frame(HEADERS, 1, BLOCK, END_HEADERS) + frame(DATA, 1, struct.pack(">BI", 0, 1 << 31) + b"abc"))
    status, reset = sent(http)
    assert b"larger than max (2147483648 vs. 1000)" in status[3]
    assert reset == (RST_STREAM, 0, 1, struct.pack(">I", 0))
    assert http.receive(frame(DATA, 1, b"more", END_STREAM)) == []
    assert http.held_bytes == 0


def test_padding_priority_and_continued_headers_are_read(http):
    padded = bytes((3,)) + b"\0\0\0\0\x10" + BLOCK[:4] + b"\0\0\0"
    got = http.receive(
        frame(HEADERS, 1, padded, PADDED | 0x20)
        + frame(CONTINUATION, 1, BLOCK[4:9])
        + frame(CONTINUATION, 1, BLOCK[9:], END_HEADERS)
        + frame(DATA, 1, bytes((2,)) + message(b"x") + b"\0\0", PADDED | END_STREAM)
    )
    assert [m.data for m in got] == [b"x", None]


def test_the_callers_timeout_is_read_in_every_unit(http):
    for number, (text, seconds) in enumerate(
        [
            ("100m", 0.1),
            ("5S", 5.0),
            ("20u", 2e-5),
            ("3H", 10800.0),
            ("7n", 7e-9),
            ("x", None),
            ("-1S", None),
            ("", None),
        ]
    ):
        stream = http.receive(call(2 * number + 1, block=BLOCK + literal("grpc-timeout", text)))[0].stream
        assert stream.timeout == pytest.approx(seconds)
        http.answer(stream, b"")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (frame(HEADERS, 2, BLOCK, END_HEADERS), b"may not open stream 2"),
        (frame(DATA, 1, b"x"), b"not open"),
        (frame(DATA, 0, b"x"), b"not open"),
        (frame(RST_STREAM, 1, b"\0\0\0\0"), b"not open"),
        (frame(RST_STREAM, 1, b"\0"), b"4 bytes"),
        (frame(PING, 0, b"1"), b"8 bytes"),
        (frame(SETTINGS, 0, b"12345"), b"sixes"),
        (frame(SETTINGS, 0, struct.pack(">HI", 4, 1 << 31)), b"too large"),
        (frame(SETTINGS, 0, struct.pack(">HI", 5, 1)), b"frames of 1 bytes"),
        (frame(WINDOW_UPDATE, 0, b"\0\0\0\0"), b"update of 0"),
        (frame(WINDOW_UPDATE, 0, b"\x7f\xff\xff\xff"), b"too large"),
        (frame(CONTINUATION, 1, b""), b"nothing to continue"),
        (frame(HEADERS, 1, BLOCK) + frame(PING, 0, b"12345678"), b"begun and not ended"),
        (frame(HEADERS, 1, BLOCK) + frame(CONTINUATION, 1, b"a" * 20_000), b"headers of more than"),
        (frame(HEADERS, 1, b"\xff", END_HEADERS), b"ends inside"),
        (frame(HEADERS, 1, b"\x09", END_HEADERS | PADDED), b"more padding"),
        (frame(5, 1, b""), b"may not push"),
        (struct.pack(">IBI", 2 << 28, 0, 1), b"is the most"),
    ],
)
def test_a_breach_of_the_protocol_is_told_and_ends_the_connection(http, data, words):
    assert http.receive(data) == []
    assert http.closing
    kind, _, _, payload = sent(http)[-1]
    assert (kind, words in payload) == (GOAWAY, True), payload
    assert http.receive(call(1)) == []


def test_what_is_not_grpc_or_ends_too_early_is_answered_with_a_status(http):
    http.receive(frame(HEADERS, 1, b"\x82\x84\x86", END_HEADERS | END_STREAM))
    assert b"grpc-status\x0212" in sent(http)[0][3]
    http.receive(frame(HEADERS, 3, BLOCK, END_HEADERS) + frame(DATA, 3, b"\0\0\0\0\x09abc", END_STREAM))
    assert b"ends inside a message" in sent(http)[0][3]
    http.receive(frame(HEADERS, 5, BLOCK, END_HEADERS) + frame(DATA, 5, message(b"x", compressed=1), END_STREAM))
    assert b"grpc-status\x0212" in sent(http)[0][3]
    assert http.idle


def test_pings_are_answered_and_unknown_frames_passed_over(http):
    http.receive(frame(PING, 0, b"12345678") + frame(0x77, 5, b"?") + frame(PING, 0, b"87654321", 1))
    assert sent(http) == [(PING, 1, 0, b"12345678")]


def test_leaving_refuses_new_streams_and_answers_the_open_ones(http):
    stream = http.receive(call(1))[0].stream
    http.leave()
    http.leave()
    goaway, *others = sent(http)
    assert (goaway[0], goaway[3][:8], others) == (GOAWAY, struct.pack(">II", 1, 0), [])
    assert http.receive(call(3)) == []
    assert sent(http)[0] == (RST_STREAM, 0, 3, struct.pack(">I", 7))
    http.answer(stream, b"answer")
    assert len(sent(http)) == 3


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 400), max_size=30), st.lists(st.integers(0, 700), min_size=1, max_size=4), st.data())
def test_calls_in_whatever_pieces_are_the_same_calls(cuts, sizes, data):
    sent, whole = bytearray(PREFACE + frame(SETTINGS)), []
    for number, size in enumerate(sizes):
        stream, question = 1 + 2 * number, bytes([number + 1]) * size
        whole += [(stream, question), (stream, None)]
        body = message(question)
        edges = sorted({0, len(body), *data.draw(st.lists(st.integers(0, len(body)), max_size=4))})
        sent += frame(HEADERS, stream, BLOCK, END_HEADERS)
        for begin, end in pairwise(edges):
            sent += frame(DATA, stream, body[begin:end], END_STREAM if end == len(body) else 0)
    http = Http2(max_message_bytes=1000, max_streams=4)
    got = []
    for cut in [*cuts, len(sent)]:
        piece = bytearray(sent[:cut])
        got += http.receive(memoryview(piece))
        piece[:] = bytes(len(piece))  # the next is read into the same memory
        del sent[:cut]
    got = [(one.stream.id, one.data and bytes(one.data)) for one in got]
    assert [(stream, question or None) for stream, question in got] == [(s, q or None) for s, q in whole]
    assert not http.closing
    assert http.held_bytes == len(http.output)
