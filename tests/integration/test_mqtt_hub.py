"""The hub behind a real broker: no hole is acknowledged over, nothing is taken twice, garbage does no harm."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hub_parts import HubProcess, drained, rows
from mqtt_parts import (
    EXAMPLE,
    Listener,
    Mosquitto,
    Sender,
    StationRig,
    heard,
    mqtt_hub,
    mqtt_provider,
    require_mosquitto,
)
from outstation.provider import Message
from outstation.testing import FlakyLink
from outstation.testing.contract import Ear, message
from outstation.types import DesiredModel, Ledger, Reported, StreamReport
from outstation.wire import Columns, encode
from outstation.wire.topics import Word, document
from support import wait_until

require_mosquitto()


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def hub(tmp_path, broker):
    with mqtt_hub(tmp_path, broker.address) as hub:
        yield heard(hub)


@pytest.fixture
def sender(broker, hub):
    sender = Sender(broker)
    yield sender
    sender.listener.connection.close()


def numbers(*hubs) -> list[int]:
    found = []
    for hub in hubs:
        drained(hub)
        found += [row["sequence"] for row in rows(hub.settings.parquet_dir)]
    return sorted(found)


# -- holes --------------------------------------------------------------------------------------------------------


def test_what_follows_a_lost_message_is_not_taken_and_the_station_is_told_to_repeat(hub, sender):
    sender.send(message(1, 3), 0)
    assert sender.word().through == 3
    sender.send(message(7, 3), 6)  # 4 to 6 were lost in the broker
    assert sender.word().missing == sender.link
    assert numbers(hub) == [1, 2, 3]
    sender.link = "bb"
    sender.send(message(4, 3), 3, settled=3)
    sender.send(message(7, 3), 6, settled=3)
    assert sender.through(9)
    assert numbers(hub) == [*range(1, 10)]
    assert hub.mqtt.counts.holes == 1


def test_what_comes_too_early_waits_for_what_is_before_it(hub, sender):
    sender.send(message(7, 3), 6)
    sender.send(message(4, 3), 3)
    sender.send(message(1, 3), 0)
    assert all(not word.missing for word in sender.through(9))
    assert numbers(hub) == [*range(1, 10)]


def test_numbers_that_were_dropped_are_no_hole(hub, sender):
    sender.send(message(1, 2), 0)
    sender.send(message(100, 2), 2)
    sender.through(101)
    assert numbers(hub) == [1, 2, 100, 101]


def test_a_hub_that_knows_nothing_believes_the_station_what_is_settled(hub, sender):
    sender.send(message(501, 2), 500, settled=500)
    sender.through(502)
    sender.send(message(503, 2), 502, settled=500)
    sender.through(504)
    assert numbers(hub) == [501, 502, 503, 504]


def test_another_hubs_acknowledgement_lets_the_next_message_in(hub, sender):
    sender.send(message(11, 2), 10)
    sender.listener.publish("outstation/press-7/ack", document(Word("events", "7", 10)))
    sender.through(12)
    assert numbers(hub) == [11, 12]


def test_what_another_hub_has_is_acknowledged_and_not_taken_again(hub, sender):
    sender.listener.publish("outstation/press-7/ack", document(Word("events", "7", 10)))
    assert sender.word().through == 10  # our own
    sender.send(message(6, 5), 5)
    assert sender.word().through == 10
    assert numbers(hub) == []


def test_a_refusal_of_another_hub_lets_nothing_in(hub, sender):
    sender.send(message(11, 2), 10)
    sender.listener.publish("outstation/press-7/ack", document(Word("events", "7", 10, refused="no block")))
    while not sender.word().missing:
        pass
    assert numbers(hub) == []


def test_what_is_refused_holds_nothing_up_and_hides_no_hole(hub, sender):
    sender.send(message(1, 2), 0)
    sender.send(message(3, 2), 2, block=b"this is no block")
    sender.send(message(5, 2), 4)
    words = sender.through(6)
    assert [word.through for word in words if word.refused] == [4]
    sender.send(message(9, 2), 8, block=b"this is no block either")  # and 7 to 8 did not come
    sender.send(message(11, 2), 10)
    assert sender.word().refused
    assert sender.word().missing == sender.link
    assert numbers(hub) == [1, 2, 5, 6]


def test_a_message_that_comes_again_is_acknowledged_and_not_doubled(hub, sender):
    for _ in range(3):
        sender.send(message(1, 3), 0)
        assert sender.word().through == 3
    sender.send(message(2, 4), 1)  # overlaps, as blocks may be cut anew
    sender.through(5)
    assert numbers(hub) == [1, 2, 3, 4, 5]
    assert hub.inbox.counts.duplicates == 2


def test_a_disk_that_refuses_makes_the_station_repeat(tmp_path, broker):
    with mqtt_hub(tmp_path, broker.address, min_free_disk_bytes=1 << 60) as hub:
        heard(hub)
        with StationRig(tmp_path, broker.address, acknowledge_timeout=1.0) as station:
            station.write(5)
            wait_until(lambda: hub.stations.knows("press-7"))
            assert station.stream.acknowledged == 0
    with mqtt_hub(tmp_path, broker.address) as hub, StationRig(tmp_path, broker.address) as station:
        station.written = 5
        station.acknowledged()
        assert numbers(hub) == [1, 2, 3, 4, 5]


# -- hubs and brokers that fail --------------------------------------------------------------------------------------


def test_two_hubs_in_one_group_take_each_record_once_between_them(tmp_path, broker):
    with (
        mqtt_hub(tmp_path / "a", broker.address) as one,
        mqtt_hub(tmp_path / "b", broker.address) as other,
        StationRig(tmp_path, broker.address) as station,
    ):
        heard(one), heard(other)
        for _ in range(5):
            station.write(200)
        station.acknowledged()
        assert numbers(one, other) == [*range(1, 1001)]
        assert min(len(numbers(one)), len(numbers(other))) > 100, "only one of them took anything"


def test_a_hub_that_is_killed_loses_and_doubles_nothing(tmp_path, broker):
    with (
        HubProcess(tmp_path, "--mqtt-broker", broker.address) as hub,
        StationRig(tmp_path, broker.address, acknowledge_timeout=2.0) as station,
    ):
        for _ in range(2):
            station.write(300)
            hub.kill()
            station.write(100)
            hub.start()
        station.acknowledged()
        wait_until(lambda: [row["sequence"] for row in rows(hub.parquet)] == [*range(1, station.written + 1)])


def test_a_broker_that_is_killed_and_forgets_everything_loses_nothing(tmp_path, broker, hub):
    with StationRig(tmp_path, broker.address) as station:
        for _ in range(3):
            station.write(300)
            broker.kill()
            station.write(100)
            broker.start()
            wait_until(lambda: not hub.mqtt.failure, 20)
        station.acknowledged()
    assert numbers(hub) == [*range(1, station.written + 1)]


def test_a_record_larger_than_the_broker_carries_arrives_in_parts_and_whole(tmp_path, broker, hub):
    picture = random.Random(1).randbytes(400_000)
    with StationRig(tmp_path, broker.address, max_message_bytes=20_000) as rig:
        for payload in (b"before", picture, b"after"):
            rig.stream.append(payload)
        rig.buffer.flush()
        wait_until(lambda: rig.stream.acknowledged == 3, 20)
    drained(hub)
    assert [row["payload"] for row in rows(hub.settings.parquet_dir)] == [b"before", picture, b"after"]


def test_without_a_hub_the_link_is_down_and_the_records_wait(tmp_path, broker):
    with StationRig(tmp_path, broker.address) as station:
        station.write(10)
        wait_until(lambda: "subscribed" in station.uplink.link.reason)
        assert station.stream.acknowledged == 0
        with mqtt_hub(tmp_path, broker.address) as hub:
            station.acknowledged()
            assert numbers(hub) == [*range(1, 11)]


def test_a_word_that_a_lost_connection_took_along_is_said_again(tmp_path, broker):
    with FlakyLink(broker.address) as link, mqtt_hub(tmp_path, link.address) as hub:
        heard(hub)
        sender = Sender(broker)
        link.black_hole(upward=True, downward=False)  # the hub hears, and is not heard
        sender.send(message(1, 3), 0)
        wait_until(lambda: hub.inbox.counts.records == 3)
        wait_until(lambda: hub.mqtt._speaker._under_way)
        link.cut()
        link.up()
        assert sender.word(20).through == 3
        sender.listener.connection.close()


# -- acknowledgements that are not what they should be ----------------------------------------------------------------


def test_words_of_an_older_epoch_beyond_the_end_or_doubled_move_nothing(tmp_path, broker):
    """Nobody but us answers here: only a true word may move the cursor."""
    with Listener(broker.address, "outstation/+/up/+") as us, StationRig(tmp_path, broker.address) as station:
        station.write(5)
        epoch = us.next().properties["epoch"]
        topic = "outstation/press-7/ack"
        for word in (Word("events", "dead", 5), Word("events", epoch, 500), Word("other", epoch, 5)):
            us.publish(topic, document(word))
        us.publish(topic, document(Word("events", epoch, 2)))
        us.publish(topic, document(Word("events", epoch, 2)))
        wait_until(lambda: station.stream.acknowledged == 2)
        us.publish(topic, document(Word("events", epoch, 1)))  # late
        us.publish(topic, document(Word("events", epoch, 5)))
        station.acknowledged()


def test_lost_acknowledgements_cost_a_repetition_and_no_more(tmp_path, broker, hub):
    with StationRig(tmp_path, broker.address, acknowledge_timeout=1.0) as station:
        station.provider._link.hearers["ack"] = lambda delivery: None
        station.write(50)
        wait_until(lambda: "acknowledged nothing" in station.uplink.link.reason, 20)
        station.provider._link.hearers["ack"] = station.provider.uplink.hear
        station.acknowledged()
    assert numbers(hub) == [*range(1, 51)]


# -- state ---------------------------------------------------------------------------------------------------------


def test_a_wish_reaches_stations_that_come_later_and_hubs_restarts_change_nothing(tmp_path, broker):
    wanted = (DesiredModel("digits", "2.0.0"),)
    with mqtt_hub(tmp_path, broker.address) as hub:
        hub.wishes.put("", wanted)
        heard(hub)
        provider = mqtt_provider(broker.address, tmp_path)
        provider.uplink.connect(Ear().listener, 5)  # its presence is what the hub sees first
        wait_until(lambda: provider.desired.current(5).models == wanted)
        provider.close()
    with mqtt_hub(tmp_path, broker.address) as hub:
        heard(hub)
        provider = mqtt_provider(broker.address, tmp_path)
        assert provider.desired.current(5).models == wanted
        provider.close()


def test_reports_accounts_and_presence_are_what_operators_see(broker, hub, tmp_path):
    provider = mqtt_provider(broker.address, tmp_path)
    provider.uplink.connect(Ear().listener, 5)
    wait_until(lambda: hub.connected == ("press-7",))
    account = StreamReport("events", 7, Ledger(5, 5, 0))
    provider.desired.report(Reported(revision=3), 5)
    wait_until(lambda: hub.stations.list()[0].reported.revision == 3)
    provider.uplink.send_ledgers((account,), 5)
    wait_until(lambda: hub.stations.list()[0].reported.streams == (account,))
    provider.close()
    wait_until(lambda: hub.connected == ())


# -- garbage -------------------------------------------------------------------------------------------------------

GOOD = message(1, 1).block
PROPERTIES = (("epoch", "7"), ("first", "1"), ("last", "1"))
GARBAGE = [
    ("outstation/press-7/up/events", GOOD, ()),
    ("outstation/press-7/up/events", GOOD, (*PROPERTIES[:2], ("last", "0"))),
    ("outstation/press-7/up/events", GOOD, (("epoch", "x" * 5000), *PROPERTIES[1:])),
    ("outstation/press-7/up/events", GOOD, (("epoch", "7"), ("first", "9" * 30), ("last", "9" * 30))),
    ("outstation/press-7/up/events", GOOD, (*PROPERTIES, ("after", "5"))),
    ("outstation/press-7/up/Not A Stream", GOOD, PROPERTIES),
    ("outstation/.hidden/up/events", GOOD, PROPERTIES),
    ("outstation/press-7/ack", b"{", ()),
    ("outstation/press-7/ack", b'{"stream": "events", "epoch": "zz", "through": 1}', ()),
    ("outstation/press-7/ack", b'{"stream": "events", "epoch": "7", "through": -1}', ()),
    ("outstation/press-7/ack", b'{"stream": "' + b"e" * 20_000 + b'", "epoch": "7", "through": 1}', ()),
    ("outstation/press-7/reported", b"\xff\xfe", ()),
    ("outstation/press-7/reported", b"[" * 100_000, ()),
    ("outstation/press-7/ledgers", b'[{"stream": 5}]', ()),
    ("outstation/press-7/presence", b'{"connected": "yes"}', ()),
]


def test_garbage_on_every_topic_is_counted_and_stops_nobody(broker, hub, sender):
    for topic, payload, properties in GARBAGE:
        sender.listener.publish(topic, payload, properties=properties)
    wait_until(lambda: hub.mqtt.counts.garbage == len(GARBAGE))
    sender.send(message(1, 3), 0)
    sender.through(3)
    assert numbers(hub) == [1, 2, 3]


def test_bad_blocks_and_bad_documents_are_refused_with_a_reason(hub, sender, broker):
    sender.send(message(1, 2), None, block=os.urandom(100_000))
    assert "no block" in sender.word().refused
    properties = (("epoch", "7"), ("first", "1"), ("last", "2"))
    for text in (b"{", b"[]", b'{"outstation": 1, "station": "press-8"}', b'{"a":' * 50_000):
        sender.listener.publish(
            "outstation/press-7/up/events", text, properties=properties, content_type="application/json"
        )
        assert sender.word().refused
    assert hub.inbox.counts.refused == 5
    assert numbers(hub) == []


def big(number: int, stream: str) -> Message:
    block = encode(Columns([number], [1], [os.urandom(200_000)]), epoch=7)
    return Message(stream, 7, number, number, block)


def test_a_flood_of_garbage_leaves_the_hub_small_and_serving(tmp_path, broker):
    with HubProcess(tmp_path, "--mqtt-broker", broker.address) as hub:
        sender = Sender(broker)
        with Listener(broker.address, name="flooder") as flooder:
            deadline = time.monotonic() + 2
            n = 0
            while time.monotonic() < deadline:
                n += 1
                topic, payload, properties = GARBAGE[n % len(GARBAGE)]
                flooder.publish(topic, payload, properties=properties)
                # Early messages without end: none of them may wait for ever, nor all of them at once.
                sender.send(big(1000 + 2 * n, stream=f"s{n}"), 500)
        sender.send(message(1, 3), 0)
        sender.through(3, 20)
        wait_until(lambda: [row["sequence"] for row in rows(hub.parquet) if row["stream"] == "events"] == [1, 2, 3])
        pages = int(Path(f"/proc/{hub.process.pid}/statm").read_text().split()[1])
        sender.listener.connection.close()
    assert pages * os.sysconf("SC_PAGE_SIZE") < 500 << 20


# -- the example -----------------------------------------------------------------------------------------------------


def test_the_example_sends_its_readings_through_the_broker(tmp_path, hub, broker):
    done = subprocess.run(
        [sys.executable, EXAMPLE / "app.py"],
        cwd=EXAMPLE.parents[1],
        env={
            **os.environ,
            "OUTSTATION_OPTIONS__MQTT__ADDRESS": broker.address,
            "OUTSTATION_STATION__DATA_DIR": str(tmp_path / "station"),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "10 of 10 readings are at the hub\n"
    drained(hub)
    assert len(rows(hub.settings.parquet_dir)) == 10


def test_the_pages_show_the_access_list_that_is_tested():
    rules = EXAMPLE.joinpath("outstation.acl").read_text().partition("\n")[2]
    assert rules in (EXAMPLE.parents[1] / "docs/hub.md").read_text()


def test_the_examples_broker_starts(tmp_path):
    text = (EXAMPLE / "mosquitto.conf").read_text().partition("listener 18830 127.0.0.1\nallow_anonymous true\n")[2]
    assert text
    with Mosquitto(tmp_path / "example", extra=text):
        pass
