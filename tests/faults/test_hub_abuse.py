"""Stations that are broken, doubled, wiped or hostile: the hub stands, its memory stays bounded, the others go on."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from hub_parts import HubProcess, drained, hub_provider, hub_settings, rows
from outstation.errors import LinkError, OutstationError
from outstation.provider import Message
from outstation.testing.contract import Ear, message
from outstation.wire import BlockHeader, Columns, convert, encode
from outstation.wire.client import Client
from outstation.wire.messages import Hello, Messages
from outstation.wire.method import Codec, Method
from outstation_hub import Hub, duels, inbox
from support import wait_until

RAW = Codec(bytes, bytes)
RAW_PUSH = Method(convert.PUSH.path, RAW, RAW, streams_requests=True, streams_responses=True)


def sent_by(address, tmp_path, messages, station="press-7"):
    """Send *messages* and wait until each is acknowledged."""
    provider, ear = hub_provider(address, tmp_path, station=station), Ear()
    provider.uplink.connect(ear.listener, 5)
    for one in messages:
        provider.uplink.send(one, 10)
        ear.wait(lambda ear, one=one: ear.through(one.stream, one.epoch) >= one.last_sequence, 10)
    provider.close()


def test_a_station_that_was_wiped_begins_again_beside_what_it_had_sent(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub:
        sent_by(hub.address, tmp_path, [message(1, 5, epoch=1)])
        sent_by(hub.address, tmp_path, [message(1, 3, epoch=2)])
        sent_by(hub.address, tmp_path, [message(4, 4, epoch=1), message(3, 2, epoch=2)])  # late, from the older life
        drained(hub)
        found = [(row["epoch"], row["sequence"]) for row in rows(hub.settings.parquet_dir)]
    assert found == [*((1, n) for n in range(1, 8)), *((2, n) for n in range(1, 5))]


@contextmanager
def told_of_the_other(told, epoch):
    """Count an error that says that there is another device; pass over every one."""
    try:
        yield
    except OutstationError as exc:
        told[epoch] += "Another device" in str(exc)


def test_two_devices_of_one_name_are_both_told_and_neither_harms_the_other(tmp_path, monkeypatch):
    monkeypatch.setattr(duels, "HOLD", 0.5)
    told = {1: 0, 2: 0}

    def device(epoch, address, folder):
        provider = hub_provider(address, folder)
        sent, deadline = 0, time.monotonic() + 30
        while sent < 60 and time.monotonic() < deadline:
            ear = Ear()
            with suppress(AssertionError), told_of_the_other(told, epoch):
                provider.uplink.connect(ear.listener, 5)
                while sent < 60 and not ear.losses:
                    provider.uplink.send(message(sent + 1, 1, epoch=epoch), 1)
                    ear.wait(lambda ear: ear.losses or ear.through("events", epoch) > sent, 5)  # noqa: B023
                    sent = max(sent, ear.through("events", epoch))
                    time.sleep(0.02)  # so that neither is done before the other is there
            told[epoch] += sum("took over" in str(loss) for loss in ear.losses)
            time.sleep(0.02 * epoch)  # as a backoff would: else they only throw each other out
        provider.close()

    with Hub(hub_settings(tmp_path)) as hub:
        threads = [threading.Thread(target=device, args=(epoch, hub.address, tmp_path)) for epoch in told]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        drained(hub)
        found = [(row["epoch"], row["sequence"]) for row in rows(hub.settings.parquet_dir)]
        refused = hub.stations.counts("press-7")
        taken_over = hub.status().counts["taken_over"]
    assert found == [(epoch, n) for epoch in (1, 2) for n in range(1, 61)]
    assert all(told.values())
    assert refused["two_devices"] > 0
    assert taken_over <= 60  # each has its turn, instead of throwing the other out at full speed


def test_a_hub_that_is_frozen_is_noticed_and_nothing_is_doubled_when_it_thaws(tmp_path):
    with HubProcess(tmp_path) as hub:
        provider = hub_provider(hub.address, tmp_path, keepalive_interval=0.5, keepalive_timeout=0.5)
        ear = Ear()
        provider.uplink.connect(ear.listener, 5)
        os.kill(hub.process.pid, signal.SIGSTOP)
        try:
            provider.uplink.send(message(1, 3), 5)
            ear.wait(lambda ear: bool(ear.losses), 10)
        finally:
            os.kill(hub.process.pid, signal.SIGCONT)
        provider.uplink.connect(ear.listener, 10)
        provider.uplink.send(message(1, 5), 5)
        ear.wait(lambda ear: ear.through("events") == 5, 10)
        provider.close()
        wait_until(lambda: len(rows(hub.parquet)) == 5)


def test_a_station_that_sends_a_byte_a_second_takes_no_place_from_others(tmp_path):
    with Hub(hub_settings(tmp_path, hello_timeout=0.5)) as hub:
        host, port = hub.address.split(":")
        lorises = [socket.create_connection((host, int(port)), 5) for _ in range(100)]
        for loris in lorises:
            loris.send(b"PRI * HTTP/2.0\r\n")  # and no more
        sent_by(hub.address, tmp_path, [message(1, 3)])
        for loris in lorises:
            loris.close()


def test_calls_beyond_the_bound_are_turned_away_and_the_rest_goes_on(tmp_path):
    hold = threading.Event()

    def silent(name):
        yield Hello(name)
        hold.wait(30)

    with Hub(hub_settings(tmp_path, max_stations=3)) as hub, Client(hub.address) as client:
        workers = 2 * 3 + 32
        calls = [client.stream(convert.PUSH, silent(f"s{n}")) for n in range(workers)]
        for call in calls:
            next(call)
        with pytest.raises(LinkError):
            next(client.stream(convert.PUSH, silent("one-too-many"), 5))
        calls[0].cancel()
        wait_until(lambda: len(hub.connected) == workers - 1)
        sent_by(hub.address, tmp_path, [message(1, 2)])
        hold.set()
        for call in calls:
            call.cancel()


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def garbage(kind: int):
    """Endless messages of one bad kind, after a proper Hello."""
    yield convert.PUSH.request.encode(Hello(f"bad-{kind}"))
    good = message(1, 100)
    header = BlockHeader.unpack(good.block)
    for n in range(1, 400):
        if kind == 0:
            yield os.urandom(100_000)
        elif kind == 1:  # each with a name of its own, to fill whatever remembers names
            yield convert.PUSH.request.encode(Message(f"s{n}", n, 1, 100, good.block[:-1] + b"x"))
        elif kind == 2:
            yield convert.PUSH.request.encode(Message("x" * 100_000, 7, 1, 100, good.block))
        elif kind == 3:
            lie = header._replace(first_sequence=n * 1000, raw_bytes=60 << 20, payload_bytes=60 << 20)
            yield convert.PUSH.request.encode(
                Message("events", header.epoch, n * 1000, n * 1000 + 99, lie.pack() + good.block[76:])
            )
        elif kind == 4:
            yield convert.PUSH.request.encode(Message("events", 7, 1, 100, bytes(8 << 20)))
        else:  # as many blocks in one message as fit
            yield convert.PUSH.request.encode(Messages((Message("s", 7, 1, 1, b""),) * 100_000))


def test_garbage_of_every_kind_leaves_the_hub_small_and_serving(tmp_path):
    with HubProcess(tmp_path) as hub:
        sent_by(hub.address, tmp_path, [message(1, 3)])
        before = resident_bytes(hub.process.pid)

        def attack(kind):
            deadline = time.monotonic() + 1
            with Client(hub.address) as client:
                while time.monotonic() < deadline:
                    with suppress(OutstationError):
                        for _ in client.stream(RAW_PUSH, garbage(kind), 5):
                            pass

        threads = [threading.Thread(target=attack, args=(kind,)) for kind in range(6)]
        for thread in threads:
            thread.start()
        sent_by(hub.address, tmp_path, [message(4, 3)])
        for thread in threads:
            thread.join()
        sent_by(hub.address, tmp_path, [message(7, 3)])
        grown = resident_bytes(hub.process.pid) - before
        wait_until(
            lambda: [row["sequence"] for row in rows(hub.parquet) if row["station"] == "press-7"] == [*range(1, 10)]
        )
    assert grown < 300 << 20, f"the hub grew by {grown >> 20} MiB"


def slow_calls(address, count, held):
    """*count* stations that say Hello and nothing more until *held* is set."""

    def drip(number):
        yield convert.PUSH.request.encode(Hello(f"loris-{number}"))
        held.wait(60)

    with ExitStack() as clients:
        client = clients.enter_context(Client(address))
        for number in range(count):
            call = clients.enter_context(client.stream(RAW_PUSH, drip(number), 60))
            threading.Thread(target=lambda call=call: exhausted(call), daemon=True).start()
        held.wait(60)


def exhausted(call):
    with suppress(OutstationError):
        for _ in call:
            pass


def test_many_slow_connections_cost_little_and_keep_nobody_out(tmp_path):
    held = threading.Event()
    with HubProcess(tmp_path) as hub:
        sent_by(hub.address, tmp_path, [message(1, 3)])
        before = resident_bytes(hub.process.pid)
        host, port = hub.address.split(":")
        lorises = [socket.create_connection((host, int(port)), 5) for _ in range(300)]
        for number, loris in enumerate(lorises):
            loris.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[: number % 24 + 1])  # and no more
        calls = threading.Thread(target=slow_calls, args=(hub.address, 30, held))
        calls.start()
        sent_by(hub.address, tmp_path, [message(4, 3)])
        grown = resident_bytes(hub.process.pid) - before
        held.set()
        calls.join()
        for loris in lorises:
            loris.close()
        sent_by(hub.address, tmp_path, [message(7, 3)])
        wait_until(lambda: sum(row["station"] == "press-7" for row in rows(hub.parquet)) == 9)
    assert grown < 100 << 20, f"the hub grew by {grown >> 20} MiB"


class SlowSink:
    """Takes a little at a time."""

    name = "slow"

    def __init__(self):
        self.stations = []

    def write(self, arrivals):
        self.stations += [arrival.station for arrival in arrivals]
        time.sleep(0.05)  # so that the inbox is full nearly always

    def close(self):
        pass


def noise(sequence):
    """A block of 200 kB that nothing can compress."""
    block = encode(Columns([sequence], [1], [os.urandom(200_000)]), epoch=7)
    return Message("events", 7, sequence, sequence, block)


def test_a_station_that_floods_does_not_starve_another_even_when_the_inbox_is_full(tmp_path):
    stop, sink = threading.Event(), SlowSink()

    def flood(number):
        provider, ear = hub_provider(hub.address, tmp_path, station=f"flood-{number}"), Ear()
        provider.uplink.connect(ear.listener, 5)
        sequence = 0
        with suppress(OutstationError):
            while not stop.is_set():
                sequence += 1
                provider.uplink.send(noise(sequence), 30)
        provider.close()

    settings = hub_settings(tmp_path, inbox_bytes=3 << 20, batch_bytes=400_000)
    with Hub(settings, sinks=[sink]) as hub:
        floods = [threading.Thread(target=flood, args=(number,)) for number in range(3)]
        for thread in floods:
            thread.start()
        wait_until(lambda: len(sink.stations) > 10, 30)
        sent_by(hub.address, tmp_path, [noise(number) for number in range(1, 6)])  # each within ten seconds
        stop.set()
        hub.close()
        for thread in floods:
            thread.join()


def test_a_station_that_begins_stream_after_stream_is_stopped_and_its_own_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr(inbox, "MAX_LIVES", 3)

    def answers(hub, station, *messages):
        provider, ear = hub_provider(hub.address, tmp_path, station=station), Ear()
        provider.uplink.connect(ear.listener, 5)
        for sent in messages:
            provider.uplink.send(sent, 5)
        ear.wait(lambda ear: len({(a.stream, a.epoch) for a in ear.acknowledgements}) == len(messages), 5)
        provider.close()
        return [a.refused for a in sorted(ear.acknowledgements, key=lambda a: a.epoch)]

    lives = [message(1, 1, epoch=epoch) for epoch in range(1, 6)]
    with Hub(hub_settings(tmp_path)) as hub:
        said = answers(hub, "bad", *lives)
        assert said[:3] == ["", "", ""]
        assert all("has begun 3 streams" in word for word in said[3:])
        assert answers(hub, "good", *lives[:3]) == ["", "", ""]
    with Hub(hub_settings(tmp_path)) as hub:  # it is remembered
        said = answers(hub, "bad", message(2, 1, epoch=1), message(1, 1, epoch=4))
        assert said[0] == ""
        assert "has begun 3 streams" in said[1]


def test_what_is_refused_is_counted_for_the_hub_and_for_the_station(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub:
        with Client(hub.address) as client:
            for requests in ([b"\xff" * 100], [convert.PUSH.request.encode(message(1, 1))]):
                with suppress(OutstationError):
                    list(client.stream(RAW_PUSH, iter(requests), 5))
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(Message("events", 7, 1, 3, b"no block"), 5)
        ear.wait(lambda ear: ear.acknowledgements, 5)
        damaged = message(4, 3)
        provider.uplink.send(Message("events", 7, 4, 6, damaged.block[:-1] + b"x"), 5)
        ear.wait(lambda ear: ear.losses, 5)
        wait_until(lambda: hub.stations.counts("press-7") == {"refused": 1, "damaged": 1})
        counts = hub.status().counts
        assert (counts["garbage"], counts["wrong"], counts["refused"], counts["damaged"]) == (1, 1, 1, 1)
        assert hub.accounts.of("press-7")[0].refused == 3
        provider.close()
