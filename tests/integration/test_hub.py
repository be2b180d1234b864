"""A hub on loopback: what it takes, what it refuses, and who may do what."""

from __future__ import annotations

import os
import random
import threading
import time
import zlib
from dataclasses import replace

import msgspec
import pytest

from hub_parts import drained, hub_provider, hub_settings, rows
from outstation.errors import (
    AccessDeniedError,
    BufferLockedError,
    ConfigurationError,
    DeadlineError,
    InvalidInputError,
    InvalidNameError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    SettingsError,
)
from outstation.provider import Message
from outstation.testing import FlakyLink
from outstation.testing.contract import Ear, message
from outstation.types import DesiredModel, DropReason, Ledger, Reported, StreamReport
from outstation.wire import BlockHeader, Columns, convert, encode, fleet, parts
from outstation.wire.client import Client
from outstation.wire.messages import Hello, StationsRequest, Wish
from outstation.wire.method import Codec, Method
from outstation_hub import Hub
from outstation_hub.access import Access
from support import wait_until


@pytest.fixture
def hub(tmp_path):
    (tmp_path / "repository").mkdir()
    with Hub(hub_settings(tmp_path, repository=str(tmp_path / "repository"))) as hub:
        yield hub


@pytest.fixture
def connect(hub, tmp_path):
    """Connect a station; returns its uplink and what its listener hears."""
    providers = []

    def connect(station="press-7", address=None, **options):
        provider = hub_provider(address or hub.address, tmp_path, station=station, **options)
        providers.append(provider)
        ear = Ear()
        provider.uplink.connect(ear.listener, 5)
        return provider.uplink, ear

    yield connect
    for provider in providers:
        provider.close()


def arrived(hub, station="press-7", stream="events"):
    drained(hub)
    found = rows(hub.settings.parquet_dir)
    return [row["sequence"] for row in found if (row["station"], row["stream"]) == (station, stream)]


# -- taking each record once -----------------------------------------------------------------------------------------


def test_a_row_holds_all_that_the_record_held(hub, connect):
    uplink, ear = connect()
    time_unix_nano = 1_700_000_000_123_456_789
    columns = Columns(
        [5, 6], [time_unix_nano, time_unix_nano + 1], [b"\0\xff", b"{}"], [0, 1],
        [("application/octet-stream", ()), ("application/json", (("ä", "ö"), ("b", "")))],
    )  # fmt: skip
    uplink.send(Message("events", 2**64 - 1, 5, 6, encode(columns, epoch=2**64 - 1)), 5)
    ear.wait(lambda ear: ear.through("events", 2**64 - 1) == 6, 5)
    drained(hub)
    first, second = rows(hub.settings.parquet_dir)
    assert first == {
        "station": "press-7", "stream": "events", "epoch": 2**64 - 1, "sequence": 5, "time": time_unix_nano,
        "content_type": "application/octet-stream", "attributes": [], "payload": b"\0\xff",
    }  # fmt: skip
    assert second["attributes"] == [("ä", "ö"), ("b", "")]
    assert [path.parent.name for path in hub.settings.parquet_dir.rglob("*.parquet")] == ["day=2023-11-14"]


def test_an_overlap_is_trimmed_and_only_the_new_part_is_taken(hub, connect):
    uplink, ear = connect()
    for first, count in ((1, 10), (6, 10), (1, 4), (3, 20), (20, 3)):
        uplink.send(message(first, count), 5)
    ear.wait(lambda ear: ear.through("events") == 22, 5)
    assert arrived(hub) == list(range(1, 23))
    assert (hub.inbox.counts.trimmed, hub.inbox.counts.duplicates) == (2, 2)


def test_an_overlap_of_which_nothing_new_is_left_is_acknowledged(hub, connect):
    uplink, ear = connect()
    uplink.send(message(1, 10), 5)
    sparse = encode(Columns([4, 8], [1, 2], [b"a", b"b"]), epoch=7, span=17)  # 4 to 20; what follows 8 was dropped
    uplink.send(Message("events", 7, 4, 20, sparse), 5)
    ear.wait(lambda ear: ear.through("events") == 20, 5)
    uplink.send(message(21, 1), 5)
    ear.wait(lambda ear: ear.through("events") == 21, 5)
    assert arrived(hub) == [*range(1, 11), 21]


def test_two_stations_with_the_same_numbers_are_kept_apart(hub, connect):
    for station in ("press-7", "press-8"):
        uplink, ear = connect(station)
        uplink.send(message(1, 3), 5)
        ear.wait(lambda ear: ear.through("events") == 3, 5)
    assert arrived(hub, "press-7") == arrived(hub, "press-8") == [1, 2, 3]


def test_what_arrived_is_known_after_a_restart(hub, connect, tmp_path):
    uplink, ear = connect()
    uplink.send(message(1, 3), 5)
    ear.wait(lambda ear: ear.through("events") == 3, 5)
    hub.close()
    ear.wait(lambda ear: bool(ear.losses), 5)
    with Hub(hub.settings) as again:
        uplink, ear = connect(address=again.address)
        uplink.send(message(1, 5), 5)
        ear.wait(lambda ear: ear.through("events") == 5, 5)
        assert arrived(again) == [1, 2, 3, 4, 5]
        assert [entry.station for entry in again.stations.list()] == ["press-7"]


def test_a_full_inbox_stops_the_station_and_loses_nothing(tmp_path):
    class Stuck:
        name = "stuck"
        failing = True

        def write(self, arrivals):
            if self.failing:
                raise ProviderUnavailableError("The sink is away.")
            self.rows = getattr(self, "rows", []) + [s for a in arrivals for s in a.columns.sequences]

        def close(self):
            pass

    sink = Stuck()
    settings = hub_settings(tmp_path, inbox_bytes=3 << 20)
    with Hub(settings, sinks=[sink]) as hub:
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        blocks = [incompressible(n, 400_000) for n in range(1, 31)]
        sender = threading.Thread(target=lambda: [provider.uplink.send(block, 30) for block in blocks])
        sender.start()
        wait_until(lambda: hub.drains[0].failure)
        time.sleep(0.5)  # nothing to wait for: the point is that nothing happens
        stopped_at = ear.through("events")
        assert 1 <= stopped_at < 30
        assert ear.losses == []
        sink.failing = False
        ear.wait(lambda ear: ear.through("events") == 30, 20)
        sender.join()
        drained(hub)
        assert sink.rows == list(range(1, 31))
        provider.close()


def incompressible(sequence, size):
    data = encode(Columns([sequence], [1], [random.Random(sequence).randbytes(size)]), epoch=7)
    return Message("events", 7, sequence, sequence, data)


# -- what is refused -------------------------------------------------------------------------------------------------


def flipped(sent, place):
    block = bytearray(sent.block)
    block[place] ^= 1
    return replace(sent, block=bytes(block))


def test_a_part_without_what_comes_before_it_is_answered_at_once(hub, connect):
    uplink, ear = connect()
    sent = message(1, 1)
    cutting = parts.Cutting(sent.block)
    _, end = cutting.part(0, parts.SMALLEST_PART_BYTES // 2)
    part, _ = cutting.part(end // 2, parts.SMALLEST_PART_BYTES)
    uplink.send(replace(sent, block=part), 5)
    ear.wait(lambda ear: bool(ear.losses), 5)  # nothing else would tell the station to begin again
    assert isinstance(ear.losses[0], ProviderUnavailableError)


@pytest.mark.parametrize("place", [20, 75, -1], ids=["header", "header checksum", "body"])
def test_a_block_damaged_on_its_way_is_asked_for_again(hub, connect, place):
    uplink, ear = connect()
    sent = message(1, 3)
    uplink.send(flipped(sent, place), 5)
    ear.wait(lambda ear: bool(ear.losses), 5)
    assert isinstance(ear.losses[0], ProviderUnavailableError)
    assert ear.losses[0].retryable
    uplink, ear = connect()
    uplink.send(sent, 5)
    ear.wait(lambda ear: ear.through("events") == 3, 5)
    assert arrived(hub) == [1, 2, 3]


def test_a_block_that_arrives_damaged_three_times_is_refused(hub, connect):
    damaged = flipped(message(1, 3), -1)
    for _ in range(2):
        uplink, ear = connect()
        uplink.send(damaged, 5)
        ear.wait(lambda ear: bool(ear.losses), 5)
    uplink, ear = connect()
    uplink.send(damaged, 5)
    uplink.send(message(4, 1), 5)
    ear.wait(lambda ear: ear.through("events") == 4, 5)
    assert [(a.through, bool(a.refused)) for a in ear.acknowledgements] == [(3, True), (4, False)]
    assert arrived(hub) == [4]


def _rewritten(**fields):
    block = message(1, 3 if fields.get("span") == 3 else 2).block
    return BlockHeader.unpack(block)._replace(**fields).pack() + block[76:]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (replace(message(1, 3), stream="../etc"), "name of a stream"),
        (replace(message(1, 3), stream="x" * 5000), "name of a stream"),
        (replace(message(1, 3), block=b""), "no block"),
        (replace(message(1, 3), block=_rewritten(span=3, flags=1)), "encrypted"),
        (Message("events", 7, 2**63 - 1, 2**63, _rewritten(first_sequence=2**63 - 1)), "end at"),
        (replace(message(1, 3), block=b"OBLK\x09" + message(1, 3).block[5:]), ""),
    ],
    ids=["path", "long name", "empty", "encrypted", "huge numbers", "version"],
)
def test_what_can_never_be_taken_is_refused_with_its_reason(hub, connect, bad, reason):
    for _ in range(3):
        uplink, ear = connect()
        uplink.send(bad, 5)
        ear.wait(lambda ear: bool(ear.acknowledgements or ear.losses), 5)
        if ear.acknowledgements:
            break
    answer = ear.acknowledgements[0]
    assert reason in answer.refused
    assert len(answer.refused) <= 500
    assert arrived(hub) == []


def test_a_block_over_the_bound_of_the_station_is_refused_before_it_is_sent(hub, connect):
    uplink, _ = connect(max_message_bytes=100)
    with pytest.raises(RefusedError, match="max_message_bytes"):
        uplink.send(message(1, 50), 5)


def test_a_block_whose_inside_is_wrong_is_kept_aside_and_the_rest_moves_on(hub, connect):
    good = message(1, 1).block
    body = b"\xff\xff\xff\xff not what the header says"
    header = BlockHeader.unpack(good)._replace(codec=0, body_bytes=len(body), raw_bytes=len(body))
    header = header._replace(payload_bytes=0, body_crc=zlib.crc32(body))
    uplink, ear = connect()
    uplink.send(Message("events", 7, 1, 1, header.pack() + body), 5)
    uplink.send(message(2, 2), 5)
    ear.wait(lambda ear: ear.through("events") == 3, 5)
    assert arrived(hub) == [2, 3]
    kept = list((hub.settings.data / "sinks" / "parquet.quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [header.pack() + body]


RAW = Codec(bytes, bytes)
RAW_PUSH = Method(convert.PUSH.path, RAW, RAW, streams_requests=True, streams_responses=True)


def test_garbage_ends_its_call_and_nothing_else(hub, connect):
    uplink, ear = connect("press-8")
    with Client(hub.address) as client:
        for garbage in (b"\xff" * 100, b"", b"\x0a\x02\x0a\x00"):
            call = client.stream(RAW_PUSH, iter([garbage]), 5)
            with pytest.raises(OutstationError):
                list(call)
    uplink.send(message(1, 1), 5)
    ear.wait(lambda ear: ear.through("events") == 1, 5)


def test_the_first_word_must_be_a_hello_with_a_name(hub):
    with Client(hub.address) as client:
        with pytest.raises(InvalidInputError, match="Hello"):
            list(client.stream(convert.PUSH, iter([message(1, 1)]), 5))
        with pytest.raises(InvalidNameError):
            list(client.stream(convert.PUSH, iter([Hello("../../etc")]), 5))


def test_a_connection_that_says_nothing_is_ended(tmp_path):
    hold = threading.Event()

    def silent():
        hold.wait(20)
        yield Hello("late")

    with Hub(hub_settings(tmp_path, hello_timeout=0.2)) as hub, Client(hub.address) as client:
        with pytest.raises(DeadlineError, match="No Hello"):
            list(client.stream(convert.PUSH, silent(), 10))
        hold.set()


def test_the_newest_connection_of_a_station_wins_and_the_older_is_told(hub, connect):
    older, older_ear = connect()
    newer, newer_ear = connect()
    older_ear.wait(lambda ear: bool(ear.losses), 5)
    assert "took over" in str(older_ear.losses[0])
    with pytest.raises(LinkError):
        older.send(message(1, 1), 1)
    newer.send(message(1, 1), 5)
    newer_ear.wait(lambda ear: ear.through("events") == 1, 5)
    assert hub.connected == ("press-7",)


def test_acknowledgements_follow_when_a_station_has_said_all(hub):
    with Client(hub.address) as client:
        sent = [Hello("press-7"), *(message(n, 1) for n in range(1, 51))]
        answers = list(client.stream(convert.PUSH, iter(sent), 10))
    assert answers[-1].through == 50


# -- links that fail -------------------------------------------------------------------------------------------------


def test_a_cut_link_is_said_once_and_reconnecting_is_quick(hub, connect, tmp_path):
    with FlakyLink(hub.address) as link:
        uplink, ear = connect(address=link.address)
        link.down()
        ear.wait(lambda ear: bool(ear.losses), 5)
        assert isinstance(ear.losses[0], LinkDownError)
        with pytest.raises(LinkDownError):
            uplink.connect(ear.listener, 0.3)
        threading.Timer(0.3, link.up).start()
        begin = time.monotonic()
        uplink.connect(ear.listener, 10)
        assert time.monotonic() - begin < 3
        uplink.send(message(1, 1), 5)
        ear.wait(lambda ear: ear.through("events") == 1, 5)
        assert len(ear.losses) == 1


def test_a_black_hole_is_noticed_within_the_keepalive(hub, connect):
    with FlakyLink(hub.address) as link:
        uplink, ear = connect(address=link.address, keepalive_interval=0.5, keepalive_timeout=0.5)
        uplink.send(message(1, 1), 5)
        ear.wait(lambda ear: ear.through("events") == 1, 5)
        link.black_hole()
        begin = time.monotonic()
        ear.wait(lambda ear: bool(ear.losses), 10)
        assert time.monotonic() - begin < 3
        link.down()
        link.up()
        uplink.connect(ear.listener, 10)
        uplink.send(message(1, 2), 5)
        ear.wait(lambda ear: ear.through("events") == 2, 5)
    assert arrived(hub) == [1, 2]


def test_lost_acknowledgements_double_nothing(hub, connect):
    with FlakyLink(hub.address) as link:
        uplink, ear = connect(address=link.address)
        link.black_hole(upward=False)
        for first in (1, 4, 7):
            uplink.send(message(first, 3), 5)
        wait_until(lambda: hub.inbox.counts.blocks == 3)
        assert ear.acknowledgements == []
        link.down()
        ear.wait(lambda ear: bool(ear.losses), 5)
        link.up()
        uplink.connect(ear.listener, 10)
        for first in (1, 4, 7):
            uplink.send(message(first, 3), 5)
        ear.wait(lambda ear: ear.through("events") == 9, 5)
    assert arrived(hub) == list(range(1, 10))


def test_a_hub_that_nobody_answers_for_is_a_link_that_is_down(tmp_path):
    provider = hub_provider("127.0.0.1:1", tmp_path)
    with pytest.raises(LinkDownError):
        provider.uplink.connect(Ear().listener, 0.3)
    with pytest.raises(LinkDownError):
        provider.desired.current(1)
    provider.close()


def test_closing_does_not_wait_for_a_connection_attempt(tmp_path):
    provider = hub_provider("127.0.0.1:1", tmp_path)
    failures = []

    def connect():
        try:
            provider.uplink.connect(Ear().listener, 60)
        except OutstationError as exc:
            failures.append(exc)

    provider.desired.watch(lambda _: None)
    thread = threading.Thread(target=connect)
    thread.start()
    begin = time.monotonic()
    provider.close()
    thread.join()
    assert time.monotonic() - begin < 3
    assert failures


# -- fleet -----------------------------------------------------------------------------------------------------------


def test_a_wish_of_its_own_wins_over_the_one_for_all_and_survives_a_restart(hub):
    with Client(hub.address) as client:
        wish = client.unary(convert.SET_DESIRED)
        get = client.unary(convert.GET_DESIRED)
        wish(Wish("", (DesiredModel("digits"),)), 5)
        assert get("press-7", 5).models == (DesiredModel("digits"),)
        wish(Wish("press-7", (DesiredModel("digits", "1.0.0"),)), 5)
        assert get("press-7", 5).models == (DesiredModel("digits", "1.0.0"),)
        assert get("press-8", 5).models == (DesiredModel("digits"),)
        assert get("press-7", 5).revision == 2
    hub.close()
    with Hub(hub.settings) as again, Client(again.address) as client:
        assert client.unary(convert.GET_DESIRED)("press-7", 5).models == (DesiredModel("digits", "1.0.0"),)
        assert client.unary(convert.SET_DESIRED)(Wish("", ()), 5).revision == 3


@pytest.mark.parametrize(
    "wish",
    [
        Wish("../x", ()),
        Wish("", (DesiredModel("UPPER"),)),
        Wish("", (DesiredModel("digits", ""),)),
        Wish("", (DesiredModel("digits"), DesiredModel("digits", "1.0.0"))),
    ],
)
def test_a_wish_that_makes_no_sense_is_refused(hub, wish):
    with Client(hub.address) as client, pytest.raises(InvalidInputError):
        client.unary(convert.SET_DESIRED)(wish, 5)


def test_the_account_from_the_uplink_is_shown_with_the_station(hub, connect):
    uplink, _ = connect()
    ledger = Ledger(10, 5, 2, {DropReason.EVICTED: 3})
    uplink.send_ledgers((StreamReport("events", 7, ledger),), 5)
    wait_until(lambda: any(entry.reported.streams for entry in hub.stations.list()))
    with Client(hub.address) as client:
        (entry,) = client.unary(fleet.LIST_STATIONS)(StationsRequest(), 5).stations
    assert entry.reported.streams[0].ledger == ledger
    assert entry.reported.software.startswith("outstation ")


def test_a_watcher_hears_of_changes_made_while_the_hub_was_away(tmp_path):
    settings = hub_settings(tmp_path)
    heard = []
    with Hub(settings) as hub:
        provider = hub_provider(hub.address, tmp_path)
        provider.desired.watch(heard.append)
        wait_until(lambda: len(heard) == 1)
    with Hub(replace_listen(settings, hub.address)) as again:
        again.wishes.put("", (DesiredModel("digits"),))
        wait_until(lambda: heard[-1].models == (DesiredModel("digits"),), 20)
        provider.close()


def replace_listen(settings, address):
    return msgspec.structs.replace(settings, listen=address)


@pytest.mark.parametrize(
    "path",
    ["../hub/fleet/desired.json", "a/../../secret", "/etc/passwd", "a//b", "./a", "a/.", "", "a\0b", "x" * 5000],
)
def test_fetch_gives_nothing_outside_the_repository(hub, tmp_path, path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "repository" / "a").mkdir()
    provider = hub_provider(hub.address, tmp_path)
    with pytest.raises(InvalidInputError), provider.artifacts.open(path, 0, 5):
        pass
    provider.close()


def test_fetch_follows_no_link_and_opens_no_device(hub, tmp_path):
    root = tmp_path / "repository"
    (tmp_path / "secret").write_text("secret")
    (root / "link").symlink_to(tmp_path / "secret")
    (root / "folder").symlink_to(tmp_path)
    os.mkfifo(root / "pipe")
    provider = hub_provider(hub.address, tmp_path)
    for path in ("link", "folder/secret", "pipe", "folder"):
        with pytest.raises(ModelNotFoundError), provider.artifacts.open(path, 0, 5):
            pass
    provider.close()


def test_a_hub_without_a_repository_says_so(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub:
        provider = hub_provider(hub.address, tmp_path)
        with pytest.raises(InvalidInputError, match="no repository"), provider.artifacts.open("x", 0, 5):
            pass
        provider.close()


def read_all(stream):
    while stream.read(1 << 20):
        pass


def test_a_fetch_that_stalls_ends_with_its_timeout(hub, tmp_path):
    (tmp_path / "repository" / "big").write_bytes(bytes(20 << 20))
    with FlakyLink(hub.address) as link:
        provider = hub_provider(link.address, tmp_path)
        with provider.artifacts.open("big", 0, 0.5) as stream:
            assert stream.read(10) == bytes(10)
            link.black_hole()
            with pytest.raises(LinkError):
                read_all(stream)
        link.up()
        provider.close()


# -- settings --------------------------------------------------------------------------------------------------------


def test_plain_text_to_other_machines_needs_to_be_asked_for(tmp_path):
    with pytest.raises(SettingsError, match="no certificate"):
        Hub(hub_settings(tmp_path, listen="0.0.0.0:0"))
    with Hub(hub_settings(tmp_path, listen="0.0.0.0:0", insecure=True)) as hub:
        assert hub.address
    with pytest.raises(SettingsError, match="another machine"):
        hub_provider("hub.example:8445", tmp_path)
    hub_provider("hub.example:8445", tmp_path, insecure=True).close()


def test_half_of_what_tls_needs_is_said_to_be_half(tmp_path):
    with pytest.raises(SettingsError, match="three files"):
        Hub(hub_settings(tmp_path, certificate="x.pem"))
    with pytest.raises(SettingsError, match="Could not read"):
        Hub(hub_settings(tmp_path, certificate="x.pem", key="x.key", ca="ca.pem"))


def test_two_hubs_do_not_share_a_folder_or_an_address(hub, tmp_path):
    with pytest.raises(BufferLockedError):
        Hub(hub.settings)
    with pytest.raises(ConfigurationError, match="Could not listen"):
        Hub(hub_settings(tmp_path / "other", listen=hub.address))


def test_a_repository_that_is_no_folder_is_said_so(tmp_path):
    with pytest.raises(SettingsError, match="no folder"):
        Hub(hub_settings(tmp_path, repository=str(tmp_path / "nowhere")))


def test_reports_of_a_station_are_bounded(hub, tmp_path):
    provider = hub_provider(hub.address, tmp_path)
    streams = tuple(StreamReport(f"s{n}", n, Ledger()) for n in range(2000))
    provider.desired.report(Reported(streams=streams), 5)
    assert len(hub.stations.list()[0].reported.streams) == 1000
    provider.close()


def test_an_operator_must_be_near_when_there_are_no_certificates():
    class Far:
        common_name = certificate = None
        peer = "ipv4:10.0.0.7:1234"

    with pytest.raises(AccessDeniedError):
        Access(["operator"]).operator(Far())
