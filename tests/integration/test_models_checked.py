"""Publisher, device and the real check in a child process, together."""

from __future__ import annotations

import numpy as np

import tiny_models
from model_parts import Desk, Device
from outstation.inference.check import SubprocessChecker
from outstation.models.bundle import Draft
from outstation.models.fetch import FolderSource
from outstation.models.manifest import Budgets
from outstation.models.publish import publish
from outstation.types import ModelPhase
from support import wait_until


def test_versions_are_judged_by_loading_and_running_them(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    desk.publish("2.0.0", budgets=Budgets(p95_latency=1e-9))
    (tmp_path / "m.onnx").write_bytes(tiny_models.scale(5.0))
    ones = np.ones((3, 4), np.float32)
    np.savez(tmp_path / "wrong.npz", **{"input/x": ones, "output/y": ones})
    draft = Draft(name="pump", version="3.0.0", golden=tmp_path / "wrong.npz")
    publish(tmp_path / "m.onnx", repository=desk.repository, keys=desk.keys, draft=draft, check=False)
    device = Device(tmp_path / "device", FolderSource(desk.repository), desk.root.read_bytes())
    device.checker = SubprocessChecker()
    with device:
        wait_until(lambda: device.active() == "1.0.0", timeout=30.0)
        assert device.phase("3.0.0") is ModelPhase.REJECTED
        assert "golden case 0, output 'y'" in device.reason("3.0.0")
        assert device.phase("2.0.0") is ModelPhase.REJECTED
        assert "the budget is" in device.reason("2.0.0")
