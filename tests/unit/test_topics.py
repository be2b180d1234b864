"""Topics, envelopes and words of MQTT: what goes in comes out, and what is none is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import SettingsError, WireError
from outstation.providers.mqtt.uplink import Pace
from outstation.types import Desired, DesiredModel
from outstation.wire.topics import (
    Envelope,
    Presence,
    Topics,
    Word,
    document,
    read_desired,
    read_ledgers,
    read_presence,
    read_reported,
    read_word,
)

NUMBERS = st.integers(1, (1 << 63) - 1)


@given(st.integers(0, 2**64 - 1), NUMBERS, NUMBERS, st.none() | NUMBERS, st.integers(0, (1 << 63) - 1))
def test_an_envelope_survives_the_way(epoch, first, last, after, settled):
    first, last = sorted((first, last))
    after = None if after is None else min(after, first - 1)
    sent = Envelope(epoch, first, last, after, settled if after is not None else 0, "ab12")
    assert Envelope.read(dict(sent.properties())) == sent


@given(st.dictionaries(st.sampled_from(["epoch", "first", "last", "after", "settled", "link"]), st.text(max_size=30)))
def test_any_properties_make_an_envelope_or_a_wire_error(properties):
    try:
        found = Envelope.read(properties)
    except WireError:
        return
    assert 0 < found.first <= found.last < 1 << 63
    assert found.after is None or found.after < found.first


def test_words_and_states_survive_the_way():
    word = Word("events", "00000000000000ff", 5, missing="ab")
    assert read_word(document(word)) == word
    assert word.epoch_number == 255
    assert read_presence(document(Presence(True, "x"))) == Presence(True, "x")
    wish = Desired((DesiredModel("digits", "1.0.0"),), 3)
    assert read_desired(document(wish)) == wish
    assert read_desired(b"") == Desired()


@pytest.mark.parametrize("read", [read_word, read_presence, read_desired, read_reported, read_ledgers])
@given(data=st.binary(min_size=1, max_size=100))
def test_any_bytes_are_a_document_or_a_wire_error(read, data):
    for one in (data, data * 20_000, b"[" * 50_000, b"\xff"):
        with suppress(WireError):
            read(one)


def test_only_topics_of_ours_are_parsed():
    topics = Topics("plant/outstation")
    assert topics.parse("plant/outstation/press-7/up/events") == ("press-7", "up", "events")
    assert topics.parse(topics.of("press-7", "ack")) == ("press-7", "ack", "")
    for topic in ("outstation/press-7/ack", "plant/outstation", "plant/outstation//ack", "plant/outstation/-x/ack", ""):
        with pytest.raises(WireError):
            topics.parse(topic)
    for prefix in ("", "a/+/b", "#", "/a", "a/", "a/b/c/d", "$share"):
        with pytest.raises(SettingsError):
            Topics(prefix)


@given(st.floats(0.1, 40), st.lists(st.floats(0, 1.5), max_size=30))
def test_a_pace_never_lets_more_through_than_it_may(per_second, pauses):
    pace, now, sent = Pace(per_second), 100.0, []
    for pause in pauses:
        now += pause
        while pace.wait(now) == 0.0:
            sent.append(now)
    at_once = max(1.0, 0.25 * per_second)
    for n, start in enumerate(sent):
        assert sum(at < start + 1.0 for at in sent[n:]) <= per_second + at_once + 1


def test_no_pace_is_no_wait():
    assert Pace(None).wait(5.0) == 0.0


def test_what_is_on_the_wire_stays_as_it_is():
    """Stations in the field speak this; a change here needs a rule for those that do not know it."""
    assert (
        document(Word("events", "00000000000000ff", 5)) == b'{"stream":"events","epoch":"00000000000000ff","through":5}'
    )
    assert document(Word("a", "7", 5, refused="no")) == b'{"stream":"a","epoch":"7","through":5,"refused":"no"}'
    assert document(Word("a", "7", 5, missing="ab")) == b'{"stream":"a","epoch":"7","through":5,"missing":"ab"}'
    assert document(Presence(True, "x")) == b'{"connected":true,"software":"x"}'
    assert Envelope(255, 4, 6, 3, 2, "ab").properties() == (
        ("epoch", "00000000000000ff"),
        ("first", "4"),
        ("last", "6"),
        ("after", "3"),
        ("settled", "2"),
        ("link", "ab"),
    )
    newer = b'{"stream":"a","epoch":"7","through":5,"of-tomorrow":{}}'
    assert read_word(newer) == Word("a", "7", 5)
