"""SIGKILL while models are delivered: what answers is always whole, and the end is always the same."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from model_parts import Desk, Device, flip
from models_process import DONE, live
from outstation.models.fetch import FolderSource
from outstation.models.rollout import ModelState
from outstation.models.store import ModelStore, verify_installed
from outstation.types import LATEST, Desired, DesiredModel, ModelPhase
from support import wait_until

P = ModelPhase
# Every operation on the disk of the whole story; a kill beyond the last is a run without one.
OPERATIONS = 260


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")  # a clean process that has everything imported forks the rest
    context.set_forkserver_preload(["outstation.models.reconciler"])
    return context


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """1.0.0 and 2.0.0 are good, 3.0.0 was tampered with, 4.0.0 fails its check."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    for version in ("1.0.0", "2.0.0", "3.0.0", "4.0.0"):
        desk.publish(version)
    flip(desk.file("3.0.0"))
    return desk


class Story:
    """One device through one or more lives."""

    def __init__(self, processes, desk: Desk, folder: Path, shadow: float = 0.0) -> None:
        self.processes, self.desk, self.folder, self.shadow = processes, desk, folder, shadow
        self.store = ModelStore(folder)

    def live(
        self,
        *,
        kill_at: int | None = None,
        kill_after: float | None = None,
        kill_when: Callable[[], bool] | None = None,
    ) -> int:
        arguments = (str(self.folder), str(self.desk.repository), str(self.desk.root), "2.0.0", kill_at)
        child = self.processes.Process(target=live, args=arguments, kwargs={"shadow": self.shadow})
        child.start()
        if kill_after is not None:
            child.join(kill_after)
            child.kill()
        if kill_when is not None:
            wait_until(kill_when)
            child.kill()
        child.join(30.0)
        assert child.exitcode is not None, "the child hangs"
        self.check()
        return child.exitcode

    def check(self) -> None:
        """After any death: what answers is whole, and nothing answers that must not."""
        model = self.state()
        assert model.active in {"", "1.0.0", "2.0.0"}
        assert model.candidate in {"", "1.0.0", "2.0.0"}
        answering = ModelStore(self.folder).answering("pump")
        assert (answering.version if answering else "") == model.answering
        if answering is not None:
            verify_installed(answering)

    def end(self) -> None:
        """A life without a kill reaches the end that every story has."""
        assert self.live() == DONE
        model = self.state()
        assert (model.active, model.candidate) == ("2.0.0", "")
        assert model.phase("3.0.0") is P.REFUSED
        assert "pump/3.0.0/model.onnx has sha256" in model.versions["3.0.0"].reason
        assert model.phase("4.0.0") is P.REJECTED
        assert not [path for path in self.folder.rglob("*") if path.name.endswith((".tmp", ".building"))]

    def state(self) -> ModelState:
        return ModelStore(self.folder).model("pump")


def test_a_kill_before_a_write_to_the_disk_is_survived(processes, desk, tmp_path):
    for number, kill_at in enumerate((1, 4, 9, 15, 22, 31, 45, 60, 75, 90)):
        story = Story(processes, desk, tmp_path / str(number))
        story.live(kill_at=kill_at)
        story.end()


def test_a_kill_at_a_random_instant_is_survived(processes, desk, tmp_path):
    dice = random.Random(5)
    for number in range(6):
        story = Story(processes, desk, tmp_path / str(number))
        for _ in range(3):
            story.live(kill_after=dice.uniform(0.0, 0.25))
        story.end()


@pytest.fixture(scope="module")
def with_one(processes, desk, tmp_path_factory):
    """A device that has 1.0.0 and knows of nothing newer, so that what comes is shadowed first."""
    folder = tmp_path_factory.mktemp("with-one")
    with Device(folder, FolderSource(desk.repository), desk.root.read_bytes(), names=()) as device:
        device.reconciler.set_desired(Desired((DesiredModel("pump", "1.0.0"),), 1))
        wait_until(lambda: device.active() == "1.0.0")
        device.reconciler.set_desired(Desired((DesiredModel("pump", LATEST),), 2))
        device.source.root = folder  # what is wanted is heard, and nothing can be had
        wait_until(lambda: device.store.model("pump").wish == LATEST)
    return folder / "models"


def shadowed(processes, desk, with_one, folder, shadow=0.05) -> Story:
    shutil.copytree(with_one, folder)
    return Story(processes, desk, folder, shadow)


def test_a_kill_while_a_version_is_in_the_shadow_is_survived(processes, desk, with_one, tmp_path):
    story = shadowed(processes, desk, with_one, tmp_path / "device", shadow=30.0)
    story.live(kill_when=lambda: story.state().phase("2.0.0") is P.SHADOW)
    assert story.state().phase("2.0.0") is P.SHADOW
    assert story.state().answering == "1.0.0"
    story.shadow = 0.05
    story.end()
    assert story.state().last_good == "1.0.0"


@pytest.mark.soak
def test_a_kill_before_every_write_to_the_disk_with_a_shadow_run_is_survived(processes, desk, with_one, tmp_path):
    killed = 0
    for kill_at in range(1, OPERATIONS):
        story = shadowed(processes, desk, with_one, tmp_path / str(kill_at))
        killed += story.live(kill_at=kill_at) == -signal.SIGKILL
        assert story.state().answering in {"1.0.0", "2.0.0"}
        story.end()
    assert killed > OPERATIONS // 4


def test_the_operations_that_are_tested_are_all_there_are(processes, desk, tmp_path):
    assert Story(processes, desk, tmp_path / "device").live(kill_at=OPERATIONS) == DONE


@pytest.mark.soak
def test_a_kill_before_every_single_write_to_the_disk_is_survived(processes, desk, tmp_path):
    killed = 0
    for kill_at in range(1, OPERATIONS):
        story = Story(processes, desk, tmp_path / str(kill_at))
        killed += story.live(kill_at=kill_at) == -signal.SIGKILL
        story.end()
    assert killed > OPERATIONS // 4


@pytest.mark.soak
def test_two_hundred_kills_at_random_instants_are_survived(processes, desk, tmp_path):
    dice = random.Random(11)
    kills = 0
    for number in range(400):
        story = Story(processes, desk, tmp_path / str(number))
        while story.live(kill_after=dice.uniform(0.0, 0.12)) == -signal.SIGKILL:
            kills += 1
        story.end()
        if kills >= 200:
            return
    raise AssertionError(f"only {kills} of the processes were still alive when they were killed")
