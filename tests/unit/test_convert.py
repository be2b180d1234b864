"""Values of ours to messages and back: nothing is lost, garbage is told apart, newer sides stay readable."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import InvalidInputError, WireError
from outstation.provider import Message
from outstation.types import LinkState
from outstation.wire import convert
from outstation.wire.messages import Hello
from wire_samples import REPORTED, SAMPLES

CODECS = list({id(codec): codec for codec, _ in SAMPLES.values()}.values())


def test_kinds_of_a_newer_side_are_passed_over():
    unknown_field = b"\xfa\x01\x02hi"  # field 31, two bytes
    assert convert.PUSH.request.decode(unknown_field) is None
    assert convert.PUSH.response.decode(unknown_field) is None


def test_words_of_a_newer_side_do_not_make_a_report_unreadable():
    wire = convert.reported_to_wire(REPORTED)
    wire.link.state = "entangled"
    wire.models[0].versions[1].phase = "pondered"
    wire.streams[0].ledger.dropped["eaten"] = 4
    read = convert.reported_from_wire(wire)
    assert read.link.state is LinkState.OFFLINE
    assert [version.version for version in read.models[0].versions] == ["2.0.0"]
    assert read.streams[0].ledger.dropped_total == 7


@given(data=st.binary(max_size=300), which=st.sampled_from(CODECS))
def test_any_bytes_are_a_message_or_a_wire_error(data, which):
    with suppress(WireError):
        which.decode(data)


def test_a_value_that_no_message_can_carry_is_named():
    with pytest.raises(InvalidInputError, match="Hello"):
        convert.PUSH.request.encode(Hello("\udcff"))
    with pytest.raises(InvalidInputError, match="Message"):
        convert.PUSH.request.encode(Message("events", -1, 1, 1, b""))
