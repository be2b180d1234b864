"""Publisher, device and the real check in a child process, together."""

from __future__ import annotations

import os
import sys

import numpy as np

import tiny_models
from model_parts import Desk, Device
from outstation.inference.check import SubprocessChecker
from outstation.models.bundle import Draft
from outstation.models.fetch import FolderSource
from outstation.models.manifest import Budgets
from outstation.models.publish import publish
from outstation.models.store import verify_installed
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


def offer(desk, version, model, budgets=None, expected=None):
    """Publish *model* as *version*; *expected* is said to be the answer to ones, whatever the model answers."""
    source = desk.folder / "m.onnx"
    source.write_bytes(model)
    ones = np.ones((1, 4), np.float32)
    given = {} if expected is None else {"output/y": ones * np.float32(expected)}
    np.savez(desk.folder / "cases.npz", **{"input/x": ones}, **given)
    draft = Draft(name="pump", version=version, golden=desk.folder / "cases.npz", budgets=budgets or Budgets())
    publish(source, repository=desk.repository, keys=desk.keys, draft=draft, check=False)


def crashing(folder, version):
    """A Python that dies of SIGSEGV when it is to try *version*, as a runtime does over a file that it cannot bear."""
    path = folder / "python"
    path.write_text(
        f'#!/bin/sh\ncase "$3" in *{version}*) kill -SEGV $$ ;; esac\nexec {sys.executable} "$@"\n', encoding="ascii"
    )
    path.chmod(0o755)
    return SubprocessChecker(python=os.fspath(path))


def test_what_crashes_answers_nan_is_slow_or_eats_memory_never_answers(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    device = Device(tmp_path / "device", FolderSource(desk.repository), desk.root.read_bytes())
    device.checker = crashing(tmp_path, "2.0.0")
    with device:
        wait_until(lambda: device.active() == "1.0.0", timeout=30.0)
        offer(desk, "2.0.0", tiny_models.scale(2))
        offer(desk, "3.0.0", tiny_models.scale(np.nan), expected=3)
        offer(desk, "4.0.0", tiny_models.slow(), Budgets(p95_latency=1e-4))
        offer(desk, "5.0.0", tiny_models.hungry(256), Budgets(peak_memory_bytes=64 << 20))
        bad = {"2.0.0": "SIGSEGV", "3.0.0": "nan instead of 3", "4.0.0": "95th percentile", "5.0.0": "of memory"}
        for version, says in bad.items():
            wait_until(lambda version=version: device.phase(version) is ModelPhase.REJECTED, timeout=30.0)
            assert says in device.reason(version)
        assert device.store.answering("pump").version == "1.0.0"
        verify_installed(device.store.active("pump"))
        offer(desk, "6.0.0", tiny_models.scale(6))
        wait_until(lambda: device.active() == "6.0.0", timeout=30.0)  # the same checker lets a good one pass
