"""Versions change under load, through the whole path of a device: no failed call, and none that mixes two versions."""

from __future__ import annotations

import threading
import time
from collections import Counter

import numpy as np
import pytest

from model_parts import Desk, Device
from outstation.inference.health import HealthReporter
from outstation.inference.host import ModelHost
from outstation.models.fetch import FolderSource
from support import wait_until

CALLERS = 8


class Caller(threading.Thread):
    """Calls without a pause; each answer has to be that of the version that it names. x is its own number."""

    def __init__(self, model, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"caller-{number}")
        self.model, self.number, self.stop = model, number + 1, stop
        self.seen: Counter[str] = Counter()
        self.problems: list[object] = []

    def run(self) -> None:
        x = np.full((1, 4), self.number, np.float32)
        while not self.stop.is_set() and not self.problems:
            try:
                result = self.model.run({"x": x})
            except Exception as exc:  # noqa: BLE001 - any is one too many
                self.problems.append(exc)
                return
            self.seen[result.model_version] += 1
            factor = float(result.model_version.partition(".")[0])
            if not (result["y"] == factor * self.number).all():
                self.problems.append((result.model_version, result))


def swapped(tmp_path, versions: int, seconds: float, **settings) -> list[Caller]:
    """Publish *versions* one after the other, evenly over *seconds* at least, while they are called; the callers."""
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    device = Device(tmp_path / "device", FolderSource(desk.repository), desk.root.read_bytes(), **settings)
    stop = threading.Event()
    begin = time.monotonic()
    with device, ModelHost(device.store) as host:
        reporter = HealthReporter(host, device.reconciler.report_health)
        model = host.get("pump")
        callers = [Caller(model, number, stop) for number in range(CALLERS)]
        for caller in callers:
            caller.start()
        try:
            for major in range(2, versions + 1):
                desk.publish(f"{major}.0.0")
                wait_until(lambda major=major: model.version == f"{major}.0.0", timeout=60.0)
                stop.wait(begin + seconds * (major - 1) / (versions - 1) - time.monotonic())
        finally:
            stop.set()
            for caller in callers:
                caller.join()
            reporter.close()
        assert device.active() == f"{versions}.0.0"
    return callers


def check(callers: list[Caller], versions: int) -> None:
    assert [caller.problems for caller in callers] == [[]] * CALLERS
    seen = sum((caller.seen for caller in callers), Counter())
    assert set(seen) == {f"{major}.0.0" for major in range(1, versions + 1)}


def test_versions_change_under_load_without_a_failed_or_mixed_call(tmp_path):
    check(swapped(tmp_path, 3, 0.5, shadow=0.05), 3)


@pytest.mark.soak
def test_twenty_changes_in_twenty_seconds_under_load(tmp_path):
    check(swapped(tmp_path, 21, 20.0), 21)


@pytest.mark.soak
def test_twenty_changes_by_way_of_the_shadow_under_load(tmp_path):
    check(swapped(tmp_path, 21, 20.0, shadow=0.2), 21)
