"""One value of each kind of message, by the name of its golden file. A value is never changed: a new one is added.

Maps have one entry, since protobuf writes those of more in any order.
"""

from __future__ import annotations

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
    Placement,
    Record,
    Reported,
    StationStatus,
    StreamReport,
)
from outstation.wire import convert, fleet
from outstation.wire import station as agent
from outstation.wire.messages import (
    Account,
    Applied,
    EnrollRequest,
    Failure,
    FetchRequest,
    Hello,
    HubStatus,
    IssuedCertificate,
    Ledgers,
    Messages,
    ModelWish,
    SinkStatus,
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
PLACEMENT = Placement("cpu", ("npu: not in this build of OpenVINO on this machine",), "openvino")
REPORTED = Reported((MODEL,), (STREAM,), Link(LinkState.ONLINE, 3, "häß"), 7, 8, "outstation 0.1.0", {"line": "3"})
WISH = WishName("digits", Target("", {"line": "3"}))
WISH_ENTRY = WishEntry(
    ModelWish(WISH, "2.0.0", WishStages(12.5, 3, 1.5)), 4, 5, "stopped", "1 of 8 failed", 20, 8, 6, 1,
    (Failure("press-7", "rejected", "a golden answer differs"),),
)  # fmt: skip
ENTRY = StationEntry(
    "press-7", REPORTED, 99, True, (Applied("digits", "2.0.0", Target("press-7"), 4, 12.5),),
    (Account(STREAM, 10, 9, 1, 17, True),), {"refused": 3},
)  # fmt: skip
RECORDS = (Record(7, -1, b"\0\xff", "image/jpeg", {"camera": "2"}), Record(8, 2**62, b""))

SINKS = (SinkStatus("parquet", 7, 5, "no room", 4, 3), SinkStatus("kafka"))

SAMPLES = {
    "hello": (convert.PUSH.request, Hello("press-7", "outstation 0.1.0", "0123456789abcdef")),
    "block": (convert.PUSH.request, Message("events", 2**64 - 1, 1, 2**63, b"\0\xff")),
    "blocks": (
        convert.PUSH.request,
        Messages((Message("events", 7, 1, 2, b"\0"), Message("alarms", 8, 5, 5, b"\xff"))),
    ),
    "ledgers": (convert.PUSH.request, Ledgers((STREAM,))),
    "welcome": (convert.PUSH.response, Welcome("hub-1")),
    "welcome-to-many": (convert.PUSH.response, Welcome("hub-1", 64)),
    "acknowledgement": (convert.PUSH.response, Acknowledgement("events", 7, 2**63)),
    "held": (convert.PUSH.response, Acknowledgement("events", 7, 2, held_bytes=4096)),
    "refusal": (convert.PUSH.response, Acknowledgement("events", 7, 2, "it is damaged")),
    "get-desired": (convert.GET_DESIRED.request, "press-7"),
    "desired": (
        convert.GET_DESIRED.response,
        Desired((DesiredModel("digits"), DesiredModel("faces", "1.0.0")), 9),
    ),
    "report": (convert.REPORT.request, StationReport("press-7", REPORTED)),
    "report-of-nothing": (convert.REPORT.request, StationReport("press-7", Reported())),
    "reported": (convert.REPORT.response, None),
    "fetch": (convert.FETCH.request, FetchRequest("press-7", "metadata/timestamp.json", 2**40)),
    "fetched": (convert.FETCH.response, b"\0" * 100),
    "set-desired": (convert.SET_DESIRED.request, Wish("", (DesiredModel("digits", "1.2.3"),))),
    "enroll": (convert.ENROLL.request, EnrollRequest("press-7", "-----BEGIN", b"\0secret")),
    "renew": (convert.RENEW.request, EnrollRequest("press-7", "-----BEGIN")),
    "issued": (convert.ENROLL.response, IssuedCertificate("-----BEGIN", "-----BEGIN too")),
    "set-model": (fleet.SET_MODEL.request, ModelWish(WISH, "2.0.0")),
    "set-model-in-stages": (fleet.SET_MODEL.request, ModelWish(WISH, "2.0.0", WishStages(12.5, 3, 1.5))),
    "wish": (fleet.SET_MODEL.response, WISH_ENTRY),
    "unset-model": (fleet.UNSET_MODEL.request, WishName("digits", Target("press-7"))),
    "steer-rollout": (fleet.STEER_ROLLOUT.request, Steering(WISH, "resume")),
    "list-wishes": (fleet.LIST_WISHES.request, None),
    "wishes": (fleet.LIST_WISHES.response, (WISH_ENTRY, WishEntry(ModelWish(WISH, "latest"), 4))),
    "list-stations": (fleet.LIST_STATIONS.request, StationsRequest("press-6", "press-7")),
    "stations": (fleet.LIST_STATIONS.response, StationsPage((ENTRY, StationEntry("a", Reported(), 1)), more=True)),
    "get-hub-status": (fleet.GET_HUB_STATUS.request, None),
    "hub-status": (fleet.GET_HUB_STATUS.response, HubStatus("outstation 0.1.0", 5, 7, 3, {"refused": 2**40})),
    "hub-sinks": (fleet.GET_HUB_STATUS.response, HubStatus("outstation 0.1.0", 5, 7, 3, {}, SINKS)),
    "append": (agent.APPEND.request, agent.AppendRequest("0" * 32, "events", RECORDS)),
    "appended": (agent.APPEND.response, agent.AppendResponse("events", 8)),
    "append-refused": (agent.APPEND.response, agent.AppendResponse("events", 6, 8, "BufferFullError", "full", "wait")),
    "get-status": (agent.GET_STATUS.request, None),
    "status": (agent.GET_STATUS.response, StationStatus("press-7", "hub", 17, 5, REPORTED)),
    "health": (agent.REPORT_HEALTH.request, agent.ModelHealth("digits", "2.0.0", 1000, 1)),
    "shadow-health": (agent.REPORT_HEALTH.request, agent.ModelHealth("digits", "3.0.0", 400, 0, 12, 7)),
    "health-of-a-process": (
        agent.REPORT_HEALTH.request,
        agent.ModelHealth("digits", "3.0.0", 0, 0, process="0123456789abcdef"),
    ),
    "health-noted": (agent.REPORT_HEALTH.response, None),
    "placement": (agent.REPORT_PLACEMENT.request, agent.ModelPlacement("digits", "2.0.0", PLACEMENT)),
    "placement-noted": (agent.REPORT_PLACEMENT.response, None),
    "status-placed": (
        agent.GET_STATUS.response,
        StationStatus("press-7", "hub", 17, 1, Reported((ModelReport("digits", "2.0.0", (), PLACEMENT),))),
    ),
    "set-metered": (agent.SET_METERED.request, True),
    "metered": (agent.SET_METERED.response, None),
    "reported-over-a-metered-link": (
        convert.REPORT.request,
        StationReport("press-7", Reported(link=Link(LinkState.ONLINE, 3, metered=True))),
    ),
}
