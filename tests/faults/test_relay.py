"""Many hubs behind one address, JetStream as their log: each record once and in order, whichever hub dies."""

from __future__ import annotations

import random
import socket
import threading
from contextlib import suppress

import pytest

from hub_parts import HubProcess, Station, hub_provider, hub_settings
from nats_parts import MISSING, NatsServer
from outstation.errors import ClosedError, ProviderUnavailableError
from outstation.provider import Message
from outstation.testing import FlakyLink
from outstation.testing.contract import Ear, message
from outstation.wire import Columns, encode
from outstation.wire.parts import Cutting
from outstation_hub import Hub
from support import wait_until

if MISSING:
    pytest.skip(MISSING, allow_module_level=True)

import nats

from outstation_hub.jetstream import JetStream
from outstation_hub.relay import Relay


@pytest.fixture
def server(tmp_path):
    with NatsServer(tmp_path / "nats") as server:
        yield server


@pytest.fixture
def relays(server):
    """Two relays of one log, as two hubs have them."""
    made = [Relay(JetStream(server.url, answer_timeout=1.0), max_block_bytes=1 << 20) for _ in range(2)]
    yield made
    for relay in made:
        relay.close()


class Fate:
    """What became of a block."""

    def __init__(self):
        self.done = threading.Event()
        self.error = None

    def __call__(self, error):
        self.error = error
        self.done.set()

    def wait(self):
        assert self.done.wait(15)
        return self.error


def take(relay, sent, stop=None, station="press-7"):
    fate = Fate()
    relay.take(station, sent, stop or threading.Event(), fate)
    return fate


def numbers(server, station="press-7", epoch=7):
    mine = f"outstation.{station}.events.{epoch:016x}"
    return [int(headers["Outstation-Sequence"]) for subject, headers, _ in server.messages() if subject == mine]


class Balancer:
    """One address in front of several hubs: each connection goes to a hub that lives."""

    def __init__(self, hubs):
        self.hubs = list(hubs)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._turn = 0
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._sockets = [self._listener]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = self._living()
            if far is None:
                near.close()
                continue
            self._sockets += [near, far]
            for source, sink in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(source, sink), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _living(self):
        for _ in self.hubs:
            self._turn += 1
            host, _, port = self.hubs[self._turn % len(self.hubs)].rpartition(":")
            try:
                return socket.create_connection((host, int(port)), 1)
            except OSError:
                continue
        return None

    def _pump(self, source, sink):
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            self._hang_up(end)

    def _hang_up(self, end):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)

    def close(self):
        self._hang_up(self._listener)
        for end in self._sockets:
            self._hang_up(end)
        for thread in self._threads:
            thread.join(5)
        for end in self._sockets:
            end.close()


@pytest.mark.parametrize("seed", [1, *(pytest.param(n, marks=pytest.mark.soak) for n in range(2, 21))])
def test_a_hub_that_is_killed_for_ever_loses_and_doubles_nothing(server, tmp_path, seed):
    hubs = [HubProcess(tmp_path / name, "--relay", server.url, parquet=False) for name in ("a", "b")]
    for hub in hubs:
        hub.start()
    balancer = Balancer([hub.address for hub in hubs])
    total = 1200
    stations = [Station(balancer.address, tmp_path, f"press-{n}", 10 * seed + n) for n in range(3)]
    for station in stations:
        station.start(total)
    wait_until(lambda: min(station.acknowledged for station in stations) > 200, 20)
    hubs[0].kill()
    for station in stations:
        station.finish(60)
    balancer.close()
    hubs[1].stop()
    for n in range(3):
        assert numbers(server, f"press-{n}") == list(range(1, total + 1))


def test_a_half_dead_hub_and_a_new_one_write_the_same_stream_once(server, relays):
    old, new = relays
    stale = threading.Event()
    fates = [take(old, message(1 + 50 * n, 50), stale) for n in range(8)]
    fates += [take(new, message(1 + 30 * n, 30)) for n in range(14)]
    assert [fate.wait() for fate in fates] == [None] * 22
    assert numbers(server) == list(range(1, 421))


def test_after_a_block_that_failed_the_next_is_not_written_over_the_hole(server, relays):
    relay = relays[0]
    assert take(relay, message(1, 10)).wait() is None
    server.kill()
    failed = take(relay, message(11, 10))
    assert isinstance(failed.wait(), ProviderUnavailableError)
    server.start()
    with pytest.raises(ProviderUnavailableError, match="earlier block"):
        take(relay, message(21, 10))
    assert relay.failure
    relay.forget("press-7")  # the station has connected again, and sends from its cursor
    assert take(relay, message(11, 10)).wait() is None
    assert take(relay, message(21, 10)).wait() is None
    assert relay.failure == ""
    assert numbers(server) == list(range(1, 31))


class Moody(JetStream):
    """A log that refuses record 15 once, as a server does that is short of room for a moment."""

    refused = False

    async def publish(self, subject, source, record, tip):
        if record.sequence == 15 and not self.refused:
            self.refused = True
            raise nats.errors.TimeoutError
        return await super().publish(subject, source, record, tip)


def test_blocks_that_wait_behind_one_that_failed_fail_with_it(server):
    relay = Relay(Moody(server.url), max_block_bytes=1 << 20)
    fates = [take(relay, message(1 + 10 * n, 10)) for n in range(4)]
    kinds = [type(fate.wait()) for fate in fates]
    assert kinds == [type(None), *[ProviderUnavailableError] * 3]
    assert numbers(server) == list(range(1, 15))
    relay.forget("press-7")
    assert [take(relay, message(11 + 10 * n, 10)).wait() for n in range(3)] == [None] * 3
    relay.close()
    assert numbers(server) == list(range(1, 41))


def test_beyond_the_duplicate_window_the_log_itself_knows_what_it_has(server):
    relay = Relay(JetStream(server.url), max_block_bytes=1 << 20)
    assert take(relay, message(1, 20)).wait() is None
    relay.close()
    server.purge_ids()
    relay = Relay(JetStream(server.url), max_block_bytes=1 << 20)
    assert take(relay, message(11, 30)).wait() is None
    assert (relay.counts.records, relay.counts.duplicates) == (20, 0)
    assert take(relay, message(5, 10)).wait() is None
    assert (relay.counts.records, relay.counts.duplicates) == (20, 1)
    relay.close()
    assert numbers(server) == list(range(1, 41))


def test_a_record_larger_than_a_message_arrives_in_parts(server, relays):
    large = random.Random(1).randbytes(300_000)
    block = encode(Columns([1], [5], [large]), epoch=7)
    cutting, offset = Cutting(block), 0
    while offset < len(block):
        data, offset = cutting.part(offset, 100_000)
        fate = Fate()
        held = relays[0].take("press-7", Message("events", 7, 1, 1, data), threading.Event(), fate)
        assert held == (offset if offset < len(block) else 0)
    assert fate.wait() is None
    ((_, _, payload),) = server.messages()
    assert payload == large


def test_a_new_life_of_a_stream_begins_again_beside_the_old_one(server, relays):
    assert take(relays[0], message(1, 5)).wait() is None
    assert take(relays[0], message(1, 3, epoch=8)).wait() is None
    assert take(relays[1], message(6, 5)).wait() is None
    assert numbers(server) == list(range(1, 11))
    assert numbers(server, epoch=8) == [1, 2, 3]


def test_a_station_that_floods_waits_and_another_goes_on(server):
    with FlakyLink(f"127.0.0.1:{server.port}") as link:
        relay = Relay(JetStream(f"nats://{link.address}"), max_block_bytes=1 << 20, station_bytes=20_000)
        assert take(relay, message(1, 1)).wait() is None
        link.black_hole()
        stop = threading.Event()
        sent, ended = [], []

        def flood():
            try:
                sent.extend(take(relay, message(2 + 100 * n, 100), stop) for n in range(100))
            except ClosedError as exc:
                ended.append(exc)

        thread = threading.Thread(target=flood)
        thread.start()
        wait_until(lambda: sent)
        other = take(relay, message(1, 100), station="press-8")
        assert len(sent) < 20
        link.up()
        assert other.wait() is None
        stop.set()
        thread.join()
        assert ended
        relay.close()


def test_a_stream_that_forgets_what_was_read_is_not_written(server):
    server.make_stream(retention="workqueue")
    relay = Relay(JetStream(server.url), max_block_bytes=1 << 20)
    error = take(relay, message(1, 1)).wait()
    relay.close()
    assert isinstance(error, ProviderUnavailableError)
    assert "deletes what was read" in str(error)


def test_a_relay_keeps_no_records_on_its_own_disk(server, tmp_path):
    with Hub(hub_settings(tmp_path, relay=server.url)) as hub:
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(message(1, 10), 5)
        ear.wait(lambda ear: ear.through("events") == 10, 5)
        provider.close()
    assert [path.name for path in (tmp_path / "hub").iterdir()] == ["fleet"]
    assert numbers(server) == list(range(1, 11))
