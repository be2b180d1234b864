"""A newer version runs in the shadow of the active one first, where that is set."""

from __future__ import annotations

import time
from contextlib import closing

import numpy as np
import pytest

from model_parts import Desk, Device, repository_with
from outstation.inference.health import HealthReporter
from outstation.inference.host import ModelHost
from outstation.models.fetch import FolderSource
from outstation.models.orders import Order, OrderKind, give_order
from outstation.testing import FakeClock
from outstation.types import Desired, DesiredModel, ModelPhase
from support import wait_until

P = ModelPhase
HOUR = 3600.0


@pytest.fixture
def far():
    return repository_with(b"one")


@pytest.fixture
def make(tmp_path, far):
    """A device with 1.0.0 active and 2.0.0 in its shadow for an hour of a clock that stands still."""
    made = []

    def make(**settings):
        device = Device(tmp_path / "device", far, far.first_root, **{"shadow": HOUR, "poll_interval": 1e6, **settings})
        made.append(device)
        device.clock = FakeClock(time_unix_nano=int(far.now.timestamp()) * 1_000_000_000)
        device.start(clock=device.clock)
        wait_until(lambda: device.store.answering("pump") is not None)  # beside nothing there is no shadow
        passed(device, device.settings.probation)
        wait_until(lambda: device.active() == "1.0.0")
        far.add("2.0.0", b"two")
        far.publish()
        device.reconciler.wake()
        wait_until(lambda: device.phase("2.0.0") is P.SHADOW)
        return device

    yield make
    for device in made:
        device.stop()


def report(device, calls, *, errors=0, disagreements=0, dropped=0):
    device.reconciler.report_health("pump", "2.0.0", calls, errors, disagreements=disagreements, dropped=dropped)


def passed(device, seconds):
    device.clock.wait_for_waiters()
    device.clock.advance(seconds)
    device.clock.wait_for_waiters()


def test_a_newer_version_answers_only_after_its_time_in_the_shadow_and_says_how_it_did(make):
    device = make()
    assert device.store.answering("pump").version == "1.0.0"
    assert device.store.shadow("pump").version == "2.0.0"
    report(device, 400, disagreements=3, dropped=7)
    passed(device, HOUR - 1)
    assert device.phase("2.0.0") is P.SHADOW
    passed(device, 1)
    wait_until(lambda: device.active() == "2.0.0")
    assert device.reason("2.0.0") == "In the shadow 3 of 400 calls disagreed (0.75 %); 7 were passed over."
    assert device.store.shadow("pump") is None


def test_a_disagreement_is_told_at_once_and_then_once_a_minute(make):
    device = make()
    report(device, 10)
    assert device.reason("2.0.0") == ""
    report(device, 20, disagreements=1)
    assert device.reason("2.0.0") == "In the shadow 1 of 20 calls disagreed (5 %)."
    report(device, 30, disagreements=2)
    assert device.reason("2.0.0") == "In the shadow 1 of 20 calls disagreed (5 %)."
    passed(device, 60)
    report(device, 40, disagreements=3)
    assert device.reason("2.0.0") == "In the shadow 3 of 40 calls disagreed (7.5 %)."


def test_more_disagreement_than_the_limit_is_rejected_at_the_end(make):
    device = make(shadow_limit=0.05)
    report(device, 1, disagreements=1)  # early on a share says nothing
    assert device.phase("2.0.0") is P.SHADOW
    report(device, 400, disagreements=21)
    passed(device, HOUR)
    wait_until(lambda: device.phase("2.0.0") is P.REJECTED)
    assert device.reason("2.0.0") == "In the shadow 21 of 400 calls disagreed (5.25 %). models.shadow_limit is 5 %."
    assert device.active() == "1.0.0"


def test_as_much_disagreement_as_the_limit_passes(make):
    device = make(shadow_limit=0.05)
    report(device, 400, disagreements=20)
    passed(device, HOUR)
    wait_until(lambda: device.active() == "2.0.0")


def test_a_failed_call_in_the_shadow_rejects_at_once(make):
    device = make()
    report(device, 12, errors=1)
    assert device.phase("2.0.0") is P.REJECTED
    assert device.reason("2.0.0") == "In the shadow 1 of 12 calls failed."
    assert device.active() == "1.0.0"


def test_the_process_that_compared_most_decides(make):
    device = make(shadow_limit=0.05)
    report(device, 400, disagreements=40)
    report(device, 3)  # another process, that has hardly begun
    passed(device, HOUR)
    wait_until(lambda: device.phase("2.0.0") is P.REJECTED)


def test_without_any_call_there_is_nothing_against_it(make):
    device = make(shadow_limit=0.0)
    passed(device, HOUR)
    wait_until(lambda: device.active() == "2.0.0")
    assert device.reason("2.0.0") == "In the shadow no call came that could have been compared."


def test_a_shadow_run_that_was_interrupted_begins_anew(make):
    device = make()
    passed(device, HOUR - 1)
    device.stop()
    device.start(clock=device.clock)
    passed(device, HOUR - 1)
    assert device.phase("2.0.0") is P.SHADOW
    passed(device, 1)
    wait_until(lambda: device.active() == "2.0.0")


def test_a_still_newer_version_takes_the_place_in_the_shadow(far, make):
    device = make()
    far.add("3.0.0", b"three")
    far.publish()
    device.reconciler.wake()
    wait_until(lambda: device.phase("3.0.0") is P.SHADOW)
    assert device.phase("2.0.0") is P.SUPERSEDED
    assert "3.0.0 takes its place" in device.reason("2.0.0")


def test_the_way_back_to_an_older_version_has_no_shadow(make):
    device = make()
    passed(device, HOUR)
    wait_until(lambda: device.active() == "2.0.0")
    device.reconciler.set_desired(Desired((DesiredModel("pump", "1.0.0"),), 1))
    wait_until(lambda: device.active() == "1.0.0")


def test_what_someone_at_the_box_decides_needs_no_shadow(make):
    device = make()
    give_order(device.store.directory, Order(OrderKind.PIN, "pump", "2.0.0"))
    device.reconciler.wake()
    wait_until(lambda: device.active() == "2.0.0")


def test_another_wish_ends_a_shadow_run(make):
    device = make()
    device.reconciler.set_desired(Desired((DesiredModel("pump", "1.0.0"),), 1))
    wait_until(lambda: device.phase("2.0.0") is P.SUPERSEDED)
    assert device.active() == "1.0.0"


def test_a_failure_on_trial_after_the_shadow_still_takes_it_back(make):
    device = make(probation=10.0)
    passed(device, HOUR)
    wait_until(lambda: device.phase("2.0.0") is P.PROBATION)
    report(device, 5, errors=2)
    assert device.phase("2.0.0") is P.ROLLED_BACK
    assert device.active() == "1.0.0"


def test_the_gate_is_asked_after_the_shadow(tmp_path, far):
    asked = []
    device = Device(tmp_path / "device", far, far.first_root, shadow=0.05)
    device.start(gate=lambda name, version: asked.append(version) or version == "1.0.0")
    try:
        wait_until(lambda: device.active() == "1.0.0")
        far.add("2.0.0", b"two")
        far.publish()
        wait_until(lambda: "2.0.0" in asked)
        wait_until(lambda: device.reason("2.0.0") == "The application's gate is closed.")
        assert device.phase("2.0.0") is P.SHADOW
    finally:
        device.stop()


def test_live_calls_of_a_real_model_decide(tmp_path):
    """Model files, host and reporter as in a station: 2.0.0 answers twice as much, so it disagrees and is rejected."""
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    settings = {"shadow": HOUR, "shadow_limit": 0.5, "poll_interval": 1e6}
    device = Device(tmp_path / "device", FolderSource(desk.repository), desk.root.read_bytes(), **settings)
    device.clock = FakeClock(time_unix_nano=time.time_ns())
    device.start(clock=device.clock)
    with closing(device.reconciler), ModelHost(device.store) as host:
        model = host.get("pump")
        desk.publish("2.0.0")
        device.reconciler.wake()
        versions = set()

        def told():
            versions.add(model.run({"x": np.ones((1, 4), np.float32)}).model_version)
            return "calls disagreed (100 %" in device.reason("2.0.0")

        with closing(HealthReporter(host, device.reconciler.report_health)):
            wait_until(told, timeout=60.0)
            passed(device, HOUR)
            wait_until(lambda: device.phase("2.0.0") is P.REJECTED)
        assert versions == {"1.0.0"}
        assert "models.shadow_limit is 50 %" in device.reason("2.0.0")
