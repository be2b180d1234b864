"""A fleet: wishes for labels and in stages, through kills of the hub; the account of every record at the far end."""

from __future__ import annotations

import json
import os
import time
from contextlib import ExitStack
from dataclasses import replace

import pytest

import outstation
from hub_parts import HubProcess, drained, hub_provider, hub_settings, rows
from outstation.errors import DiskError, ProviderUnavailableError, UnsupportedVersionError
from outstation.testing.contract import Ear, message
from outstation.types import DesiredModel, DropReason, Ledger, ModelPhase, ModelReport, ModelVersionReport, Reported
from outstation.wire import convert, fleet
from outstation.wire.client import Client
from outstation.wire.messages import ModelWish, StationReport, StationsRequest, Steering, Target, WishName, WishStages
from outstation_hub import Hub
from support import wait_until

LINE = WishName("digits", Target("", {"line": "3"}))


def told(version="1.0.0", phase=ModelPhase.ACTIVE, reason="", **labels):
    models = (ModelReport("digits", version, (ModelVersionReport(version, phase, 1, reason),)),)
    return Reported(models, time_unix_nano=time.time_ns(), labels=labels)


class Operator:
    """What an operator asks of a hub, and what stations report to it."""

    def __init__(self, address):
        self.client = Client(address)

    def want(self, name, version, stages=None):
        return self.client.unary(fleet.SET_MODEL)(ModelWish(name, version, stages), 5)

    def steer(self, name, action):
        return self.client.unary(fleet.STEER_ROLLOUT)(Steering(name, action), 5)

    def wishes(self):
        return self.client.unary(fleet.LIST_WISHES)(None, 5)

    def wanted(self, station):
        models = self.client.unary(convert.GET_DESIRED)(station, 5).models
        return models[0].version if models else None

    def report(self, station, reported):
        self.client.unary(convert.REPORT)(StationReport(station, reported), 5)

    def entry(self, station):
        return self.client.unary(fleet.LIST_STATIONS)(StationsRequest(station=station), 5).stations[0]

    def accounts(self, station):
        page = self.client.unary(fleet.LIST_STATIONS)(StationsRequest(station=station), 5)
        return [account for entry in page.stations for account in entry.accounts]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()


# -- wishes ----------------------------------------------------------------------------------------------------------


def test_a_wish_for_labels_follows_the_stations_that_have_them(tmp_path):
    heard = []
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        operator.want(WishName("digits"), "1.0.0")
        operator.want(LINE, "2.0.0")
        operator.report("press-7", told(line="4"))
        provider = hub_provider(hub.address, tmp_path)
        provider.desired.watch(lambda wish: heard.append(wish.models[0].version))
        wait_until(lambda: heard == ["1.0.0"])
        operator.report("press-7", told(line="3"))
        wait_until(lambda: heard == ["1.0.0", "2.0.0"])
        operator.want(WishName("digits", Target("press-8")), "3.0.0")  # nothing to hear of for press-7
        assert operator.entry("press-7").applied[0].target == LINE.target
        operator.client.unary(fleet.UNSET_MODEL)(LINE, 5)
        wait_until(lambda: heard == ["1.0.0", "2.0.0", "1.0.0"])
        provider.close()


def test_a_new_station_hears_no_wish_before_its_labels_are_known(tmp_path):
    heard = []
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        operator.want(WishName("digits"), "1.0.0")
        operator.want(LINE, "2.0.0")
        provider = hub_provider(hub.address, tmp_path)
        provider.desired.watch(lambda wish: heard.append(wish.models[0].version))
        wait_until(lambda: hub.wishes._watchers)
        assert heard == []
        provider.desired.report(told(line="3"), 5)
        wait_until(lambda: heard)
        assert heard == ["2.0.0"]
        provider.close()


def test_labels_that_make_no_sense_are_not_kept(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        many = {f"l{n}": "x" for n in range(100)}
        operator.report("press-7", replace(told(), labels={"LINE": "3", "line": "a\nb", "long": "x" * 999} | many))
        labels = operator.entry("press-7").reported.labels
    assert len(labels) == 32
    assert labels.keys() <= many.keys()


def test_the_file_of_the_format_before_is_read(tmp_path):
    settings = hub_settings(tmp_path)
    (settings.data / "fleet").mkdir(parents=True)
    path = settings.data / "fleet" / "desired.json"
    path.write_text(
        '{"revision": 3, "wishes": {"": {"models": [{"name": "digits", "version": "latest"}], "revision": 1},'
        ' "press-7": {"models": [{"name": "digits", "version": "2.0.0"}], "revision": 3}}}'
    )
    with Hub(settings) as hub:
        assert hub.wishes.get("press-7").models == (DesiredModel("digits", "2.0.0"),)
        assert hub.wishes.get("press-8").models == (DesiredModel("digits", "latest"),)
        assert hub.wishes.put("", ()).revision == 4
    assert json.loads(path.read_text())["format"] == 2


@pytest.mark.parametrize(
    ("content", "error"),
    [("{", DiskError), ("[]", DiskError), ('{"wishes": 3}', DiskError), ('{"format": 3}', UnsupportedVersionError)],
)
def test_a_file_that_is_no_desired_state_is_said_to_be_none(tmp_path, content, error):
    settings = hub_settings(tmp_path)
    (settings.data / "fleet").mkdir(parents=True)
    (settings.data / "fleet" / "desired.json").write_text(content)
    with pytest.raises(error, match=r"desired\.json"):
        Hub(settings)


# -- stages ----------------------------------------------------------------------------------------------------------


def test_a_rollout_that_fails_stops_and_stays_so_through_a_kill(tmp_path):
    stations = [f"press-{n}" for n in range(12)]
    with HubProcess(tmp_path) as hub:
        with Operator(hub.address) as operator:
            operator.want(WishName("digits"), "1.0.0")
            for station in stations:
                operator.report(station, told(line="3"))
            operator.want(LINE, "2.0.0", WishStages(50.0, stop_after=2))
            first = {station for station in stations if operator.wanted(station) == "2.0.0"}
            good, bad, worse, *rest = sorted(first)
            operator.report(good, told("2.0.0", line="3"))
            operator.report(bad, told("2.0.0", ModelPhase.ROLLED_BACK, "errors on live traffic", line="3"))
            assert operator.wanted(worse) == "2.0.0"
            operator.report(worse, told("2.0.0", ModelPhase.REJECTED, "a golden answer differs", line="3"))
            hub.kill()
        hub.start()
        with Operator(hub.address) as operator:
            (rollout,) = (wish for wish in operator.wishes() if wish.wish.stages)
            assert rollout.state == "stopped"
            assert rollout.reason.startswith("2 of ")
            for station in stations:  # its labels; where it answered is known from the file of wishes
                operator.report(station, told(line="3"))
            assert [station for station in stations if operator.wanted(station) == "2.0.0"] == [good]
            operator.report("press-new", told(line="3"))
            assert operator.wanted("press-new") == "1.0.0"
            operator.steer(LINE, "resume")
            assert {station for station in stations if operator.wanted(station) == "2.0.0"} == first
            assert rest == sorted(first)[3:]
            operator.want(LINE, "2.0.0", WishStages(100.0, stop_after=2))
            assert {operator.wanted(station) for station in stations} == {"2.0.0"}
            operator.steer(LINE, "end")
            assert {operator.wanted(station) for station in stations} == {"1.0.0"}


def test_a_wish_without_stages_finishes_the_rollout_to_the_same_target(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        operator.want(LINE, "2.0.0", WishStages(10.0))
        operator.want(LINE, "2.0.0")
        (wish,) = operator.wishes()
        assert (wish.wish.stages, wish.state) == (None, "")


def test_a_stop_that_the_disk_does_not_take_holds_all_the_same_and_is_written_later(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        operator.report("press-7", told(line="3"))
        operator.want(LINE, "2.0.0", WishStages(100.0))
        in_the_way = hub.settings.data / "fleet" / "desired.json.tmp"
        in_the_way.mkdir()
        operator.report("press-7", told("2.0.0", ModelPhase.REJECTED, line="3"))
        assert operator.wishes()[0].state == "stopped"
        path = hub.settings.data / "fleet" / "desired.json"
        assert not json.loads(path.read_text())["rules"][0]["stages"]["stopped"]
        in_the_way.rmdir()
        operator.report("press-7", told("2.0.0", ModelPhase.REJECTED, line="3"))
        assert json.loads(path.read_text())["rules"][0]["stages"]["stopped"]


# -- places ----------------------------------------------------------------------------------------------------------


def test_one_station_holds_only_so_many_watches(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub, Client(hub.address) as client, ExitStack() as calls:
        watches = []
        for _ in range(6):
            watches.append(calls.enter_context(client.stream(convert.WATCH_DESIRED, "press-7", 20)))
            next(watches[-1])
        for older in watches[:2]:
            with pytest.raises(ProviderUnavailableError, match="newer calls"):
                next(older)
        hub.wishes.put("", (DesiredModel("digits"),))
        for newer in watches[2:]:
            assert next(newer).models


def test_a_fleet_larger_than_a_message_is_listed_in_pages(tmp_path, monkeypatch):
    monkeypatch.setattr("outstation_hub.fleet.PAGE_BYTES", 1000)
    with Hub(hub_settings(tmp_path)) as hub, Client(hub.address) as client:
        names = [f"press-{n:03}" for n in range(100)]
        for name in names:
            hub.stations.connected(name, "outstation")
        ask, found = client.unary(fleet.LIST_STATIONS), []
        page = ask(StationsRequest(), 5)
        while page.more:
            found += [entry.station for entry in page.stations]
            page = ask(StationsRequest(found[-1]), 5)
    assert found + [entry.station for entry in page.stations] == names


# -- the account -----------------------------------------------------------------------------------------------------

STREAMS = {
    "evicted": {"when_full": "drop_oldest", "max_bytes": 40_000},
    "thinned": {"when_full": "thin", "max_bytes": 40_000},
    "expired": {"max_age": 0.1},
    "rotten": {},
}


def station_of(folder, address, *, uplink):
    """A real station with streams of every policy; once it sends, nothing more becomes too old."""
    streams = STREAMS | ({"expired": {"max_age": 3600.0}} if uplink else {})
    tables = {
        "provider": "hub",
        "station": {"name": "press-7", "data_dir": str(folder / "data")},
        "buffer": {"group_interval": 0.01, "segment_bytes": 4096, "block_bytes": 1024, "streams": streams},
        "uplink": {"enabled": uplink, "backoff_first": 0.05},
        "options": {"hub": {"address": address}},
    }
    return outstation.open(overrides=tables)


def flip_a_byte_in_a_block(folder):
    """Spoil one block of the oldest segment."""
    segment = min(folder.glob("*.seg"))
    data = bytearray(segment.read_bytes())
    data[data.index(b"OBLK") + 90] ^= 1
    segment.write_bytes(data)


def test_after_a_drain_the_far_ends_ledger_equals_the_stations_to_the_record(tmp_path):
    with HubProcess(tmp_path) as hub:
        with station_of(tmp_path, hub.address, uplink=False) as station:
            for name in STREAMS:
                stream = station.buffer.stream(name)
                for _ in range(15):
                    stream.append_many([os.urandom(300) for _ in range(20)]).wait(5)
        flip_a_byte_in_a_block(tmp_path / "data" / "buffer" / "streams" / "rotten")
        with station_of(tmp_path, hub.address, uplink=False) as station:
            rotten = station.buffer.stream("rotten")
            assert len(list(rotten.read())) < 300
            wait_until(lambda: rotten.ledger().dropped[DropReason.CORRUPT])  # it is counted soon after it was found
            expired = station.buffer.stream("expired")
            wait_until(lambda: expired.ledger().dropped[DropReason.EXPIRED])
            for name in STREAMS:
                station.buffer.stream(name).append(b"the last one").wait(5)
        # From here on nothing is dropped: what goes while it is under way may have come all the same.
        with Operator(hub.address) as operator, station_of(tmp_path, hub.address, uplink=True) as station:

            def ours():
                return {s.stream: s.ledger for s in station.status().reported.streams if s.stream in STREAMS}

            def theirs():
                return {a.report.stream: a for a in operator.accounts("press-7") if a.report.stream in STREAMS}

            wait_until(lambda: all(ledger.pending == 0 for ledger in ours().values()), 20)
            hub.kill()  # what it has counted, it counts again from its own log
            hub.start()
            wait_until(lambda: {n: a.report.ledger for n, a in theirs().items() if a.complete} == ours(), 30)
            accounts = theirs()
            assert {name: account.report.ledger for name, account in accounts.items()} == ours()
    arrived = [row["stream"] for row in rows(hub.parquet)]
    for name, reason in zip(STREAMS, ("evicted", "thinned", "expired", "corrupt"), strict=True):
        account = accounts[name]
        ledger = account.report.ledger
        assert ledger.appended == 301
        assert ledger.dropped[DropReason(reason)] > 0
        assert account.records == arrived.count(name)
        assert arrived.count(name) + ledger.dropped_total == ledger.appended
        assert account.unexplained == 0


def sent_by(address, folder, messages, ledger=None):
    provider, ear = hub_provider(address, folder), Ear()
    provider.uplink.connect(ear.listener, 5)
    for one in messages:
        provider.uplink.send(one, 10)
        ear.wait(lambda ear, one=one: ear.through(one.stream, one.epoch) >= one.last_sequence, 10)
    provider.close()


def test_a_station_that_was_set_up_anew_keeps_its_earlier_account_in_sight(tmp_path):
    with HubProcess(tmp_path) as hub:
        for epoch in range(1, 7):
            sent_by(hub.address, tmp_path, [message(1, epoch, epoch=epoch)])
        hub.kill()
        hub.start()
        sent_by(hub.address, tmp_path, [message(6, 2, epoch=5)])  # late, from the life before
        with Operator(hub.address) as operator:
            accounts = operator.accounts("press-7")
    assert [(a.report.epoch, a.records, a.earlier) for a in accounts] == [
        (6, 6, False),
        (5, 7, True),
        (4, 4, True),
        (3, 3, True),
    ]


def test_numbers_that_never_came_are_missing_until_the_ledger_explains_them(tmp_path):
    with Hub(hub_settings(tmp_path)) as hub, Operator(hub.address) as operator:
        sent_by(hub.address, tmp_path, [message(1, 5), message(9, 2)])
        drained(hub)
        (account,) = operator.entry("press-7").accounts
        assert (account.through, account.records, account.missing, account.unexplained) == (10, 7, 3, 3)
        ledger = Ledger(12, 7, 0, {DropReason.EVICTED: 3, DropReason.REJECTED: 2})
        hub.stations.take_ledgers("press-7", [replace(account.report, ledger=ledger)])
        (account,) = operator.entry("press-7").accounts
        assert (account.missing, account.unexplained, account.complete) == (3, 0, True)
