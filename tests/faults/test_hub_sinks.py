"""Several sinks of one hub: each at its own pace, and the inbox holds what the slowest has not taken."""

from __future__ import annotations

import json
import random
import threading
from contextlib import suppress

import pytest

from hub_parts import drained, hub_provider, hub_settings, run
from outstation.clock import SystemClock
from outstation.errors import BufferLockedError, LinkError, ProviderUnavailableError
from outstation.provider import Message
from outstation.testing.contract import Ear, message
from outstation.wire import Columns, encode
from outstation_hub import Hub
from outstation_hub.backlog import Backlog
from support import wait_until


class Shelf:
    """A sink in memory, which may be shut."""

    def __init__(self, name, *, is_open=True):
        self.name = name
        self.is_open = is_open
        self.numbers = []

    def write(self, arrivals):
        if not self.is_open:
            raise ProviderUnavailableError(f"The {self.name} is away.")
        self.numbers += [number for arrival in arrivals for number in arrival.columns.sequences]

    def close(self):
        pass


@pytest.fixture
def connected(tmp_path):
    """Opens uplinks to hubs, and closes them."""
    providers = []

    def connect(hub):
        provider, ear = hub_provider(hub.address, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        providers.append(provider)
        return provider.uplink, ear

    yield connect
    for provider in providers:
        provider.close()


def sinks_of(hub):
    done = run("fleet", "sinks", "--hub", hub.address, "--json")
    assert done.returncode == 0, done.stderr
    return {sink["name"]: sink for sink in json.loads(done.stdout)}


def test_one_sink_that_fails_holds_up_no_other_and_is_seen(tmp_path, connected):
    good, bad = Shelf("good"), Shelf("bad", is_open=False)
    with Hub(hub_settings(tmp_path), sinks=[good, bad]) as hub:
        uplink, ear = connected(hub)
        for n in range(20):
            uplink.send(message(1 + 50 * n, 50), 5)
        ear.wait(lambda ear: ear.through("events") == 1000, 5)
        wait_until(lambda: hub.drains[0].lag == 0 and hub.drains[1].failure)
        assert good.numbers == list(range(1, 1001))
        assert bad.numbers == []
        assert hub.inbox.stream.acknowledged == 0  # held until both have it
        seen = sinks_of(hub)
        assert (seen["good"]["waiting_blocks"], seen["good"]["failure"]) == (0, "")
        assert seen["good"]["written_unix_nano"] > 0
        assert seen["bad"]["waiting_blocks"] == 20
        assert seen["bad"]["failure"] == "The bad is away."
        assert 0 < seen["bad"]["failing_since_unix_nano"] <= SystemClock().time_unix_nano()
        table = run("fleet", "sinks", "--hub", hub.address).stdout.splitlines()
        assert table[1].split("\t")[:3] == ["bad", "20", "-"]
        bad.is_open = True
        drained(hub)
        assert sinks_of(hub)["bad"]["failing_since_unix_nano"] == 0
        assert hub.inbox.stream.acknowledged == 20
    assert bad.numbers == good.numbers


def test_each_sink_goes_on_where_it_was_after_a_restart(tmp_path, connected):
    good, bad = Shelf("good"), Shelf("bad", is_open=False)
    with Hub(hub_settings(tmp_path), sinks=[good, bad]) as hub:
        uplink, ear = connected(hub)
        uplink.send(message(1, 50), 5)
        ear.wait(lambda ear: ear.through("events") == 50, 5)
        wait_until(lambda: hub.drains[0].lag == 0)
    bad.is_open = True
    with Hub(hub_settings(tmp_path), sinks=[good, bad]) as hub:
        drained(hub)
    assert good.numbers == bad.numbers == list(range(1, 51))


def noise(first, count):
    """Records that nothing can compress, of 10 kB."""
    numbers = range(first, first + count)
    columns = Columns(numbers, list(numbers), [random.Random(number).randbytes(10_000) for number in numbers])
    return Message("events", 7, first, first + count - 1, encode(columns, epoch=7))


def test_at_the_inboxs_bound_stations_wait_and_nothing_is_lost(tmp_path, connected):
    good, bad = Shelf("good"), Shelf("bad", is_open=False)
    with Hub(hub_settings(tmp_path, inbox_bytes=4 << 20), sinks=[good, bad]) as hub:
        uplink, ear = connected(hub)
        stopping = threading.Event()

        def taken(first):
            with suppress(LinkError):  # nobody takes it now
                uplink.send(noise(first, 20), 0.2)
                return True
            return False

        def push():
            sent = 0
            while sent < 1000 and not stopping.wait(0.001):
                sent += 20 * taken(sent + 1)

        pusher = threading.Thread(target=push)
        pusher.start()
        wait_until(lambda: ear.through("events") >= 300)
        held = ear.through("events")
        wait_until(lambda: hub.drains[0].lag == 0)
        assert held < 1000
        bad.is_open = True
        ear.wait(lambda ear: ear.through("events") == 1000, 30)
        stopping.set()
        pusher.join()
        drained(hub)
    assert bad.numbers == good.numbers == list(range(1, 1001))


def test_sinks_are_closed_when_another_hub_holds_the_folder(tmp_path):
    closed = []
    shelf = Shelf("shelf")
    shelf.close = lambda: closed.append(True)
    settings = hub_settings(tmp_path)
    with Hub(settings, sinks=[]) as _, pytest.raises(BufferLockedError):
        Backlog(settings, [shelf], SystemClock())
    assert closed
