"""Values of ours to messages and back: nothing is lost, garbage is told apart, newer sides stay readable."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import InvalidInputError, WireError
from outstation.provider import Acknowledgement, Message
from outstation.types import (
    Desired,
    DesiredModel,
    DropReason,
    Ledger,
    Link,
    LinkState,
    ModelPhase,
    ModelReport,
    ModelVersionReport,
    Reported,
    StreamReport,
)
from outstation.wire import convert, fleet
from outstation.wire.messages import (
    Account,
    Applied,
    Failure,
    FetchRequest,
    Hello,
    HubStatus,
    Ledgers,
    ModelWish,
    StationEntry,
    StationReport,
    StationsPage,
    StationsRequest,
    Steering,
    Target,
    Welcome,
    Wish,
    WishEntry,
    WishName,
    WishStages,
)

STREAM = StreamReport("events", 2**64 - 1, Ledger(10, 5, 2, {DropReason.EVICTED: 3}), 4096, 17)
MODEL = ModelReport(
    "digits",
    "2.0.0",
    (
        ModelVersionReport("2.0.0", ModelPhase.ACTIVE, 5),
        ModelVersionReport("3.0.0", ModelPhase.REFUSED, 6, "sha256 differs"),
    ),
)
REPORTED = Reported((MODEL,), (STREAM,), Link(LinkState.ONLINE, 3, "häß"), 7, 8, "outstation 0.1.0", {"line": "3"})
WISH = WishName("digits", Target("", {"line": "3", "site": "ä"}))
WISH_ENTRY = WishEntry(
    ModelWish(WISH, "2.0.0", WishStages(12.5, 3, 1.5)), 4, 5, "stopped", "1 of 8 failed", 20, 8, 6, 1,
    (Failure("press-7", "rejected", "a golden answer differs"),),
)  # fmt: skip
FULL_ENTRY = StationEntry(
    "press-7", REPORTED, 99, True, (Applied("digits", "2.0.0", Target("press-7"), 4, 12.5),),
    (Account(STREAM, 10, 9, 1, 17, True),), {"refused": 3},
)  # fmt: skip
DESIRED = Desired((DesiredModel("digits"), DesiredModel("faces", "1.0.0")), 9)

ROUND_TRIPS = [
    (convert.PUSH.request, Hello("press-7", "outstation 0.1.0", "0123456789abcdef")),
    (convert.PUSH.request, Message("events", 2**64 - 1, 1, 2**63, b"\0\xff")),
    (convert.PUSH.request, Ledgers((STREAM,))),
    (convert.PUSH.response, Welcome("hub-1")),
    (convert.PUSH.response, Acknowledgement("events", 7, 2**63)),
    (convert.PUSH.response, Acknowledgement("events", 7, 2, "it is damaged")),
    (convert.GET_DESIRED.request, "press-7"),
    (convert.GET_DESIRED.response, DESIRED),
    (convert.REPORT.request, StationReport("press-7", REPORTED)),
    (convert.REPORT.request, StationReport("press-7", Reported())),
    (convert.FETCH.request, FetchRequest("press-7", "metadata/timestamp.json", 2**40)),
    (convert.FETCH.response, b"\0" * 1000),
    (convert.SET_DESIRED.request, Wish("", (DesiredModel("digits", "1.2.3"),))),
    (fleet.LIST_STATIONS.request, StationsRequest("press-6", "press-7")),
    (fleet.LIST_STATIONS.response, StationsPage((StationEntry("press-7", REPORTED, 99),), more=True)),
    (fleet.LIST_STATIONS.response, StationsPage((FULL_ENTRY,))),
    (fleet.SET_MODEL.request, ModelWish(WISH, "2.0.0")),
    (fleet.SET_MODEL.request, ModelWish(WISH, "2.0.0", WishStages(12.5, 3, 1.5))),
    (fleet.SET_MODEL.response, WISH_ENTRY),
    (fleet.UNSET_MODEL.request, WishName("digits", Target("press-7"))),
    (fleet.STEER_ROLLOUT.request, Steering(WISH, "resume")),
    (fleet.LIST_WISHES.response, (WISH_ENTRY, WishEntry(ModelWish(WISH, "latest"), 4))),
    (fleet.GET_HUB_STATUS.response, HubStatus("outstation 0.1.0", 5, 7, 3, {"refused": 2**40})),
]
CODECS = [convert.PUSH.request, convert.PUSH.response, convert.REPORT.request, fleet.LIST_STATIONS.response,
          fleet.SET_MODEL.request, fleet.LIST_WISHES.response, fleet.GET_HUB_STATUS.response,
          convert.FETCH.request, convert.SET_DESIRED.request, convert.GET_DESIRED.response]  # fmt: skip


@pytest.mark.parametrize(("codec", "value"), ROUND_TRIPS, ids=lambda value: type(value).__name__)
def test_what_is_sent_is_what_arrives(codec, value):
    assert codec.decode(codec.encode(value)) == value


# Bytes that today's code writes; whoever changes them breaks every station in the field.
GOLDEN = [
    (convert.PUSH.request, Hello("press-7", "o"), "0a0c0a0770726573732d3712016f"),
    (convert.PUSH.request, Message("ev", 1, 2, 3, b"xyz"), "12160a026576110100000000000000180220032a0378797a"),
    (convert.PUSH.response, Welcome("h"), "0a030a0168"),
    (convert.PUSH.response, Acknowledgement("ev", 1, 3), "120f0a0265761101000000000000001803"),
    (convert.PUSH.response, Acknowledgement("ev", 1, 3, "no"), "1a130a026576110100000000000000180322026e6f"),
    (convert.GET_DESIRED.response, Desired((DesiredModel("d", "1"),), 4), "0a060a01641201311004"),
    (convert.FETCH.request, FetchRequest("s", "a/b", 5), "0a01731203612f621805"),
]


@pytest.mark.parametrize(("codec", "value", "golden"), GOLDEN)
def test_the_golden_bytes_of_each_message_stay_as_they_are(codec, value, golden):
    assert codec.encode(value).hex() == golden
    assert codec.decode(bytes.fromhex(golden)) == value


def test_fields_and_kinds_of_a_newer_side_are_passed_over():
    unknown_field = b"\xfa\x01\x02hi"  # field 31, two bytes
    hello = convert.PUSH.request.encode(Hello("press-7"))
    assert convert.PUSH.request.decode(hello + unknown_field) == Hello("press-7")
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
