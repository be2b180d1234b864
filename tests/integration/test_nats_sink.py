"""The NATS sink against the real server: each record once, whoever fails."""

from __future__ import annotations

import json

import pytest

from hub_parts import drained, hub_provider, hub_settings
from nats_parts import MISSING, NatsServer
from outstation.errors import ProviderUnavailableError
from outstation.testing import FlakyLink
from outstation.testing.contract import Ear, message
from outstation.wire import Columns, decode, encode
from outstation_hub import Hub
from outstation_hub.sinks import Arrival
from support import wait_until

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

from outstation_hub.sinks.nats import NatsSink


@pytest.fixture
def server(tmp_path):
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def sink(server):
    sink = NatsSink(server.url)
    yield sink
    sink.close()


def arrival(first, count, station="press-7", stream="events"):
    header, columns = decode(message(first, count).block)
    return Arrival(station, stream, header, columns)


def numbers(found):
    return [int(headers["Outstation-Sequence"]) for _, headers, _ in found]


def test_a_message_holds_all_that_the_record_held(server, sink):
    columns = Columns([5], [1_700_000_000_123_456_789], [b"\0\xff"], None, [("text/x\r\nEvil: 1", (("ä", "ö\r\n"),))])
    sink.write([Arrival("a.b", "x.y", *decode(encode(columns, epoch=2**64 - 1)))])
    ((subject, headers, payload),) = server.messages()
    assert subject == "outstation.a%2Eb.x%2Ey"
    assert payload == b"\0\xff"
    assert headers["Nats-Msg-Id"] == "a.b/x.y/ffffffffffffffff/5"
    assert headers["Outstation-Time"] == "1700000000123456789"
    assert json.loads(f'"{headers["Outstation-Content-Type"]}"') == "text/x\r\nEvil: 1"
    assert json.loads(headers["Outstation-Attributes"]) == {"ä": "ö\r\n"}
    assert "Evil" not in headers


def test_a_replay_with_other_borders_is_taken_once_and_in_order(server, sink):
    arrivals = [arrival(n, 10) for n in range(1, 3000, 10)]
    sink.write(arrivals[:7])
    sink.write(arrivals[:5])
    sink.write(arrivals)
    assert numbers(server.messages()) == list(range(1, 3001))


def test_a_server_that_is_away_delays_and_loses_nothing(server, tmp_path):
    with FlakyLink(f"127.0.0.1:{server.port}") as link:
        sink = NatsSink(f"nats://{link.address}", batch_timeout=2.0)
        with Hub(hub_settings(tmp_path), sinks=[sink]) as hub:
            provider, ear = hub_provider(hub.address, tmp_path), Ear()
            provider.uplink.connect(ear.listener, 5)
            for n in range(6):
                (link.up, link.down, link.black_hole)[n % 3]()
                provider.uplink.send(message(1 + 100 * n, 100), 5)
                ear.wait(lambda ear, n=n: ear.through("events") == 100 * (n + 1), 5)
            wait_until(lambda: hub.drains[0].failure)
            link.up()
            drained(hub)
            provider.close()
    assert numbers(server.messages()) == list(range(1, 601))


def test_a_server_that_is_not_there_is_an_error_of_ours(tmp_path):
    sink = NatsSink("nats://127.0.0.1:1")
    with pytest.raises(ProviderUnavailableError, match="did not take"):
        sink.write([arrival(1, 1)])
    sink.close()
    sink.close()


def test_a_station_that_changes_between_two_hubs_is_in_the_log_once(server, tmp_path):
    folders = (tmp_path / "a", tmp_path / "b")
    hubs = [Hub(hub_settings(folder, drain_interval=0.3), sinks=[NatsSink(server.url)]) for folder in folders]
    sent = [message(1 + 50 * n, 50) for n in range(20)]
    for n, hub in enumerate((hubs[0], hubs[1], hubs[0])):
        if n < 2:
            hub.start()
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        for one in sent[5 * n : 5 * n + 10]:  # half of it was sent to the other hub before, and taken there
            provider.uplink.send(one, 5)
        ear.wait(lambda ear, n=n: ear.through("events") == 250 * (n + 2), 10)
        drained(hub)
        provider.close()
    for hub in hubs:
        hub.close()
    assert sorted(numbers(server.messages())) == list(range(1, 1001))
