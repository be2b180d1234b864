"""Blocks as JSON documents and back: not a byte is lost, and what is none is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outstation.errors import OutstationError, WireError
from outstation.provider import Message
from outstation.wire.block import decode, encode
from outstation.wire.columns import Columns
from outstation.wire.jsonblock import block_of, documents, read_document

KINDS = (
    "application/json",
    "application/cloudevents+json; charset=utf-8",
    "application/octet-stream",
    "image/jpeg",
    "",
)
PAYLOADS = st.one_of(
    st.binary(max_size=60),
    st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5).map(lambda v: json.dumps(v).encode()),
    st.sampled_from([b' {"a": 1}', b'{"a": 1 }', b"NaN", b"1e999", b'"\xff"', b"null", b'{"a":1,"a":2}', b"[" * 900]),
)
ROWS = st.tuples(
    st.integers(1, 4),
    st.integers(-(1 << 62), 1 << 62),
    PAYLOADS,
    st.sampled_from(KINDS),
    st.dictionaries(st.text(), st.text(), max_size=2),
)


def message_of(rows, slack: int = 0) -> Message:
    sequences, at = [], 0
    for step, *_ in rows:
        at += step
        sequences.append(at)
    metas = [(kind, tuple(sorted(attributes.items()))) for _, _, _, kind, attributes in rows]
    known = list(dict.fromkeys(metas))
    columns = Columns(
        sequences, [row[1] for row in rows], [row[2] for row in rows], [known.index(meta) for meta in metas], known
    )
    last = sequences[-1] + slack
    return Message("events", 2**64 - 1, 1, last, encode(columns, epoch=2**64 - 1, first_sequence=1, span=last))


@given(st.lists(ROWS, min_size=1, max_size=12), st.integers(0, 3), st.sampled_from([600, 800, 2000, 100_000]))
def test_every_record_comes_back_as_it_was_in_pieces_that_fit_and_leave_no_gap(rows, slack, max_bytes):
    whole = message_of(rows, slack)
    back, at = [], 1
    for first, last, text in documents(whole, "press-7", max_bytes):
        assert first == at
        at = last + 1
        if text is None:
            block = block_of(whole, first, last)
        else:
            assert len(text) <= max_bytes
            json.loads(text.decode())
            block = read_document(text, station="press-7", message=Message("events", whole.epoch, first, last, b""))
        header, columns = decode(block)
        assert (header.first_sequence, header.last_sequence) == (first, last)
        back += columns.records()
    assert at == whole.last_sequence + 1
    assert back == list(decode(whole.block)[1].records())


GOOD = {
    "outstation": 1,
    "station": "press-7",
    "stream": "events",
    "epoch": "7",
    "first": 1,
    "last": 3,
    "records": [{"sequence": 1, "time_unix_nano": 5, "payload": 1}, {"sequence": 3, "time_unix_nano": 6}],
}
NAMED = Message("events", 7, 1, 3, b"")


def test_unknown_fields_are_ignored():
    text = json.dumps({**GOOD, "newer": True, "records": [{**GOOD["records"][0], "newer": 1}]}).encode()
    assert [r.payload for r in decode(read_document(text, station="press-7", message=NAMED))[1].records()] == [b"1"]


@pytest.mark.parametrize(
    "change",
    [
        {"outstation": 2},
        {"station": "press-8"},
        {"stream": "other"},
        {"epoch": "8"},
        {"epoch": "x"},
        {"first": 2},
        {"last": 1 << 70},
        {"records": []},
        {"records": [GOOD["records"][1], GOOD["records"][0]]},
        {"records": [GOOD["records"][0], GOOD["records"][0]]},
        {"records": [{"sequence": 9, "time_unix_nano": 5}]},
        {"records": [{"sequence": 1, "time_unix_nano": 1 << 64}]},
        {"records": [{"sequence": 1, "time_unix_nano": 5, "payload": 1, "payload_base64": "AA=="}]},
        {"records": [{"sequence": 1, "time_unix_nano": 5, "payload_base64": "@"}]},
        {"records": [{"sequence": 1, "time_unix_nano": 5, "attributes": {"a": 1}}]},
        {"records": [{"sequence": 1, "time_unix_nano": 5, "content_type": "x" * 70_000}]},
    ],
)
def test_a_document_that_is_not_what_it_claims_is_refused(change):
    with pytest.raises(WireError):
        read_document(json.dumps({**GOOD, **change}).encode(), station="press-7", message=NAMED)


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"records":' * 50_000)
def test_any_bytes_are_refused_and_nothing_else_happens(data):
    with pytest.raises(OutstationError):
        read_document(data, station="press-7", message=NAMED)
