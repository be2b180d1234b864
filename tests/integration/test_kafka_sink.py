"""The Kafka sink against librdkafka's own cluster of three brokers, over TCP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from hub_parts import drained, hub_provider, hub_settings
from outstation.errors import ProviderUnavailableError, SettingsError
from outstation.testing.contract import Ear, message
from outstation.wire import Columns, decode, encode
from outstation_hub import Hub
from outstation_hub.sinks import Arrival, Position
from support import wait_until

if not os.environ.get("CI"):
    pytest.importorskip("confluent_kafka")

import confluent_kafka

from outstation_hub.sinks.kafka import KafkaSink, TransactionalKafkaSink

CLUSTER = """
import sys, confluent_kafka
producer = confluent_kafka.Producer({"test.mock.num.brokers": 3, "log_level": 0})
print(",".join(f"{b.host}:{b.port}" for b in producer.list_topics(timeout=5).brokers.values()), flush=True)
sys.stdin.read()
"""


class Cluster:
    """Three brokers in a process of their own, which may be stopped and go on."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.servers = self.process.stdout.readline().strip()

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)

    def close(self):
        self.process.kill()
        self.process.communicate()

    def messages(self, topic):
        """Every message of *topic*, by partition and offset."""
        config = {"bootstrap.servers": self.servers, "group.id": "test", "log_level": 0, "enable.partition.eof": True}
        consumer = confluent_kafka.Consumer(config | {"isolation.level": "read_committed"})
        parts = consumer.list_topics(topic, timeout=5).topics[topic].partitions
        consumer.assign([confluent_kafka.TopicPartition(topic, number, 0) for number in parts])
        found, ended, until = [], set(), time.monotonic() + 20
        while len(ended) < len(parts):
            assert time.monotonic() < until
            got = consumer.poll(0.5)
            if got is not None and got.error() is not None:
                assert got.error().code() == confluent_kafka.KafkaError._PARTITION_EOF
                ended.add(got.partition())
            elif got is not None:
                found.append(got)
        consumer.close()
        return sorted(found, key=lambda got: (got.partition(), got.offset()))


@pytest.fixture
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.close()


def arrival(first, count, station="press-7", stream="events"):
    header, columns = decode(message(first, count).block)
    return Arrival(station, stream, header, columns)


def headers(got):
    return {name: value.decode() for name, value in got.headers()}


def numbers(found, station="press-7"):
    return [int(headers(got)["sequence"]) for got in found if got.key() == station.encode()]


def test_a_message_holds_all_that_the_record_held(cluster):
    sink = KafkaSink(cluster.servers)
    columns = Columns([5], [1_700_000_000_123_456_789], [b"\0\xff"], None, [("text/x", (("ä", "ö\r\n"),))])
    sink.write([Arrival("a.b", "x.y", *decode(encode(columns, epoch=2**64 - 1)))])
    sink.close()
    (got,) = cluster.messages("outstation.x.y")
    assert (got.key(), got.value(), got.timestamp()[1]) == (b"a.b", b"\0\xff", 1_700_000_000_123)
    assert headers(got) == {
        "id": "a.b/x.y/ffffffffffffffff/5",
        "station": "a.b",
        "stream": "x.y",
        "epoch": "ffffffffffffffff",
        "sequence": "5",
        "time": "1700000000123456789",
        "content-type": "text/x",
        "attributes": json.dumps({"ä": "ö\r\n"}),
    }


@pytest.mark.parametrize("kind", [KafkaSink, TransactionalKafkaSink])
def test_the_order_of_each_station_is_kept_within_its_partition(cluster, kind):
    sink = kind(cluster.servers, topic="all")
    batch = [arrival(n, 10, f"press-{s}") for n in range(1, 500, 10) for s in range(4)]
    if kind is KafkaSink:
        sink.write(batch)
    else:
        sink.write_through(batch, Position(9, 200))
    sink.close()
    found = cluster.messages("all")
    for s in range(4):
        mine = [got for got in found if got.key() == f"press-{s}".encode()]
        assert numbers(mine, f"press-{s}") == list(range(1, 501))
        assert len({got.partition() for got in mine}) == 1


def test_a_position_is_kept_for_each_inbox(cluster):
    sink = TransactionalKafkaSink(cluster.servers)
    assert sink.position(9) == 0
    sink.write_through([arrival(1, 5)], Position(9, 3))
    sink.write_through([arrival(6, 5)], Position(9, 7))
    assert sink.position(9) == 7
    assert sink.position(10) == 0
    sink.close()
    again = TransactionalKafkaSink(cluster.servers)
    assert again.position(9) == 7
    again.close()


class Interrupted(TransactionalKafkaSink):
    """Writes, and fails before that could be confirmed, as a kill between the two does."""

    failures = 2

    def write_through(self, arrivals, position):
        super().write_through(arrivals, position)
        if self.failures:
            self.failures -= 1
            raise ProviderUnavailableError("killed between write and cursor")


def send(hub, folder, first, count):
    provider, ear = hub_provider(hub.address, folder), Ear()
    provider.uplink.connect(ear.listener, 5)
    for n in range(first, first + count, 50):
        provider.uplink.send(message(n, 50), 5)
    ear.wait(lambda ear: ear.through("events") == first + count - 1, 10)
    provider.close()


def test_a_batch_that_was_committed_is_not_written_again(cluster, tmp_path):
    with Hub(hub_settings(tmp_path), sinks=[Interrupted(cluster.servers)]) as hub:
        send(hub, tmp_path, 1, 500)
        drained(hub)
    (tmp_path / "hub/sinks/kafka.cursor").unlink()  # even the hub's own word for it may be lost
    with Hub(hub_settings(tmp_path, kafka=cluster.servers)) as hub:
        send(hub, tmp_path, 501, 500)
        drained(hub)
    assert numbers(cluster.messages("outstation.events")) == list(range(1, 1001))


def test_brokers_that_stand_still_delay_and_lose_nothing(cluster, tmp_path):
    sink = TransactionalKafkaSink(cluster.servers, batch_timeout=30.0)
    with Hub(hub_settings(tmp_path), sinks=[sink]) as hub:
        send(hub, tmp_path, 1, 200)
        drained(hub)
        cluster.pause()
        send(hub, tmp_path, 201, 200)  # stations do not notice
        assert hub.drains[0].lag  # and cannot fall now
        cluster.go_on()
        drained(hub)
    assert numbers(cluster.messages("outstation.events")) == list(range(1, 401))


@pytest.mark.parametrize("kind", [KafkaSink, TransactionalKafkaSink])
def test_brokers_that_are_away_are_an_error_of_ours(kind):
    sink = kind("127.0.0.1:1", batch_timeout=1.0)
    write = sink.write if kind is KafkaSink else lambda batch: sink.write_through(batch, Position(1, 1))
    for _ in range(2):
        with pytest.raises(ProviderUnavailableError, match="did not take a batch"):
            write([arrival(1, 1)])
    sink.close()
    sink.close()


def test_brokers_may_come_later_than_the_hub(cluster, tmp_path):
    sink = KafkaSink(cluster.servers, batch_timeout=1.0)
    cluster.pause()
    with Hub(hub_settings(tmp_path), sinks=[sink]) as hub:
        send(hub, tmp_path, 1, 100)
        wait_until(lambda: hub.drains[0].failure)
        cluster.go_on()
        drained(hub)
    assert sorted(set(numbers(cluster.messages("outstation.events")))) == list(range(1, 101))


def test_a_batch_larger_than_the_queue_goes_out(cluster):
    sink = KafkaSink(cluster.servers, options={"queue.buffering.max.messages": "100"})
    sink.write([arrival(1, 2000)])
    sink.close()
    assert numbers(cluster.messages("outstation.events")) == list(range(1, 2001))


def test_options_of_the_sink_itself_and_unknown_ones_are_refused():
    with pytest.raises(SettingsError, match="sets acks itself"):
        KafkaSink("127.0.0.1:1", options={"acks": "0"})
    with pytest.raises(SettingsError, match=r"sasl\.pasword") as caught:
        KafkaSink("127.0.0.1:1", options={"sasl.pasword": "hunter2"})
    assert "hunter2" not in str(caught.value) + caught.value.hint
