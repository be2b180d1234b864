"""A version by its delta, and everything that can be wrong with that: the signed file comes all the same."""

from __future__ import annotations

import logging
import multiprocessing
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from delta_parts import forged, sha256, varints
from model_parts import Desk, Device, SimulatedRepository, flip
from models_process import DONE, live
from outstation import zstd
from outstation.errors import AccessDeniedError, LinkDownError, ProviderUnavailableError
from outstation.models import installer as installing
from outstation.models.bundle import Draft, describe_file
from outstation.models.carry import export_version, hand_in
from outstation.models.delta import RAW, STEP_COPY, STEP_RAW
from outstation.models.delta_encoder import encode_delta
from outstation.models.deltas import DELTAS, delta_path
from outstation.models.fetch import FolderSource
from outstation.models.publish import publish
from outstation.models.store import ModelStore, verify_installed
from outstation.types import ModelPhase
from support import wait_until

DICE = np.random.default_rng(0)
OLD = DICE.bytes(200_000)
NEW = OLD[:90_000] + DICE.bytes(5_000) + OLD[95_000:]
# 64 MiB of zeros in some kilobytes.
BOMB = zstd.compress(bytes(64 << 20), options={zstd.CompressionParameter.window_log: 18})
PATH = delta_path("pump", "2.0.0", sha256(OLD), "model.onnx")


class Far(SimulatedRepository):
    """1.0.0 is OLD; 2.0.0 is NEW, with a delta. Counts the bytes that are read, breaks the link after some."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.sent: dict[str, int] = {}
        self.cut = 0
        self.denied: set[str] = set()
        self.unavailable: set[str] = set()
        self.tries = 0  # of what is unavailable
        self.add("1.0.0", OLD)
        self.publish()
        (folder / "old").write_bytes(OLD)
        (folder / "new").write_bytes(NEW)
        encode_delta(folder / "old", folder / "new", folder / "delta")
        self.delta = (folder / "delta").read_bytes()
        self.folder = folder

    def offer(self, delta: bytes | None = None, *, new: bytes = NEW, chunk_bytes: int = 1000) -> str:
        """Publish 2.0.0 with *delta*; returns where it lies."""
        delta = self.delta if delta is None else delta
        (self.folder / "offered").write_bytes(delta)
        self.add("2.0.0", new)
        place = self.add_target(PATH, delta)
        self.targets.targets["pump/2.0.0/model.onnx"].unrecognized_fields["custom"] = {DELTAS: {sha256(OLD): PATH}}
        chunks = describe_file(self.folder, "offered", chunk_bytes, 64)
        said = {"chunk_bytes": chunks.chunk_bytes, "chunks": list(chunks.chunks)}
        self.targets.targets[PATH].unrecognized_fields["custom"] = said
        self.publish()
        return place

    @contextmanager
    def open(self, path, offset, timeout):
        if path in self.denied:
            raise AccessDeniedError("403")
        if path in self.unavailable:
            self.tries += 1
            raise ProviderUnavailableError("503")
        with super().open(path, offset, timeout) as stream:
            yield _Counted(self, path, stream, self.cut if "~deltas" in path else 0)


class _Counted:
    def __init__(self, far, path, stream, cut):
        self.far, self.path, self.stream, self.cut, self.left = far, path, stream, cut, cut

    def read(self, size):
        if self.cut and self.left <= 0:
            raise LinkDownError("cut")
        piece = self.stream.read(min(size, self.left) if self.cut else size)
        self.left -= len(piece)
        self.far.sent[self.path] = self.far.sent.get(self.path, 0) + len(piece)
        return piece


@pytest.fixture
def far(tmp_path):
    return Far(tmp_path)


@pytest.fixture
def device(tmp_path, far):
    device = Device(tmp_path / "device", far, far.first_root)
    with device:
        wait_until(lambda: device.active() == "1.0.0")
        yield device


def arrives(device, far, *, whole: bool):
    """2.0.0 becomes active, whole and right, and came in the way that was expected."""
    wait_until(lambda: device.active() == "2.0.0")
    installed = device.store.answering("pump")
    verify_installed(installed)
    assert installed.model_path.read_bytes() == NEW
    sent = far.sent.get(far.place("pump/2.0.0/model.onnx"), 0)
    assert (sent > 0) == whole
    saved = device.store.reports()[0].versions[0].saved_bytes
    assert (saved == 0) == whole
    wait_until(lambda: list((device.store.directory / "parts").iterdir()) == [])


def test_a_delta_saves_bytes_and_says_how_many(far, device, caplog):
    with caplog.at_level(logging.INFO):
        place = far.offer()
        arrives(device, far, whole=False)
    assert far.sent[place] == len(far.delta) < 0.04 * len(NEW)
    saved = len(NEW) - len(far.delta)
    assert device.store.reports()[0].versions[0].saved_bytes == saved
    assert f"saved {saved} of {len(NEW)} bytes" in caplog.text


def test_a_link_that_breaks_costs_few_bytes_more(far, device):
    far.cut = 700
    place = far.offer()
    arrives(device, far, whole=False)
    assert far.sent[place] <= 1.05 * len(far.delta)


def test_a_delta_for_another_base_is_not_asked_for(tmp_path, far):
    place = far.offer()
    far.targets.targets["pump/2.0.0/model.onnx"].unrecognized_fields["custom"] = {DELTAS: {sha256(NEW): PATH}}
    far.publish()
    with Device(tmp_path / "other", far, far.first_root) as device:
        arrives(device, far, whole=True)
    assert place not in far.sent


@pytest.mark.parametrize("at", [0, 8, 30, 200, 2000])
def test_a_delta_that_was_damaged_on_its_way_is_not_applied(far, device, at):
    place = far.offer()
    far.change(place, lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    arrives(device, far, whole=True)


def test_a_whole_file_that_was_tampered_with_does_not_matter_where_a_good_delta_is(far, device):
    far.offer()
    far.change(far.place("pump/2.0.0/model.onnx"), lambda data: b"evil" + data[4:])
    arrives(device, far, whole=False)


def test_whole_file_and_delta_that_were_tampered_with_are_refused(far, device):
    far.change(far.offer(), lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    far.change(far.place("pump/2.0.0/model.onnx"), lambda data: b"evil" + data[4:])
    wait_until(lambda: device.phase("2.0.0") is ModelPhase.REFUSED)
    assert "sha256" in device.reason("2.0.0")
    assert device.active() == "1.0.0"


@pytest.mark.parametrize(
    "delta",
    [
        b"no delta at all",
        forged(OLD, NEW, varints(0, STEP_COPY, 0, len(OLD))),
        forged(OLD, NEW, varints(0, STEP_COPY, 150_000, 150_000)),
        forged(NEW, NEW, varints(0, STEP_COPY, 0, len(NEW))),
        forged(OLD, OLD, varints(0, STEP_COPY, 0, len(OLD))),
        forged(OLD, NEW, varints(0, STEP_COPY, 0, len(OLD)), version=9),
        forged(OLD, NEW, b"", packed={(0, 1, 0): BOMB}),
        forged(OLD, NEW, varints(0, STEP_RAW, 1, len(NEW)), packed={(RAW, 1, 0): BOMB}),
    ],
    ids=[
        *("garbage", "another result", "beyond the base", "another base", "honest about another", "of the future"),
        *("a bomb as program", "a bomb as data"),
    ],
)
def test_a_signed_delta_that_lies_costs_its_bytes_and_nothing_else(far, device, delta, caplog):
    far.offer(delta)
    arrives(device, far, whole=True)
    assert "is of no use" in caplog.text
    assert device.phase("2.0.0") is ModelPhase.ACTIVE


def test_an_endless_delta_is_cut_off(far, device):
    far.endless.add(far.offer())
    arrives(device, far, whole=True)


@pytest.mark.parametrize("how", ["missing", "denied"])
def test_a_delta_that_cannot_be_had_is_no_obstacle(far, device, how):
    far.denied.add(place := f"targets/pump/2.0.0/~deltas/{sha256(OLD)[:16]}/{sha256(far.delta)}.model.onnx")
    if how == "missing":
        far.denied.clear()
        far.offer()
        far.files.pop(place, None)
    else:
        far.offer()
    arrives(device, far, whole=True)


def test_a_delta_whose_address_answers_503_for_ever_makes_way_for_the_whole_file(far, device, caplog):
    far.unavailable.add(far.offer())
    arrives(device, far, whole=True)
    assert far.tries == installing.MAX_UNAVAILABLE
    assert "did not come in 5 tries" in caplog.text


def test_a_server_that_answers_503_for_everything_costs_no_delta(far, device):
    place = far.offer()
    far.unavailable |= {place, far.place("pump/2.0.0/model.onnx")}
    wait_until(lambda: far.tries > 4 * installing.MAX_UNAVAILABLE)
    far.unavailable.clear()
    arrives(device, far, whole=False)


def test_a_delta_that_comes_in_small_pieces_is_not_given_up(far, device):
    far.cut = len(far.delta) // (4 * installing.MAX_UNAVAILABLE)
    far.offer()
    arrives(device, far, whole=False)


def test_a_delta_that_is_listed_but_not_signed_is_not_asked_for(far, device):
    far.add("2.0.0", NEW)
    far.targets.targets["pump/2.0.0/model.onnx"].unrecognized_fields["custom"] = {DELTAS: {sha256(OLD): PATH}}
    far.publish()
    arrives(device, far, whole=True)


def test_a_base_that_rotted_on_the_disk_is_no_base(far, device):
    blob = device.store.directory / "blobs" / sha256(OLD)
    blob.chmod(0o640)
    flip(blob)
    far.offer()
    arrives(device, far, whole=True)


def test_a_delta_larger_than_what_is_missing_is_not_asked_for(far, device):
    device.stop()  # or it deletes the part, which nobody needs yet
    part = device.store.directory / "parts" / sha256(NEW)
    part.write_bytes(NEW[:-1000])
    place = far.offer()
    device.start()
    arrives(device, far, whole=True)
    assert place not in far.sent
    assert far.sent[far.place("pump/2.0.0/model.onnx")] == 1000


def test_a_disk_that_fills_up_while_a_delta_is_applied_is_waited_for(far, device):
    making = device.store.directory / "parts" / f"{sha256(NEW)}.tmp"
    making.symlink_to("/dev/full")
    place = far.offer()
    arrives(device, far, whole=False)
    assert far.sent[place] == len(far.delta)  # once: what had come was kept


def test_a_disk_with_room_for_the_whole_file_only_gets_the_whole_file(far, device, monkeypatch, caplog):
    class Full:
        free = len(NEW) + 100

    monkeypatch.setattr(installing.shutil, "disk_usage", lambda _: Full)
    with caplog.at_level(logging.INFO):
        place = far.offer()
        arrives(device, far, whole=True)
    assert place not in far.sent
    assert "no room for both" in caplog.text


def test_a_version_on_a_stick_needs_no_delta_and_no_link(tmp_path):
    desk = Desk(tmp_path)
    put(desk, "1.0.0", 0)
    link = Switch(FolderSource(desk.repository))
    with Device(tmp_path / "device", link, desk.root.read_bytes()) as device:
        wait_until(lambda: device.active() == "1.0.0")
        link.down = True
        put(desk, "2.0.0", 1)
        export_version(desk.repository, "pump", "2.0.0", tmp_path / "stick")
        hand_in(tmp_path / "stick", device.store.directory)
        device.reconciler.wake()
        wait_until(lambda: device.active() == "2.0.0")


class Switch:
    """A source that can be cut off."""

    def __init__(self, behind):
        self.behind, self.down = behind, False

    def open(self, path, offset, timeout):
        if self.down:
            raise LinkDownError("down")
        return self.behind.open(path, offset, timeout)


# -- kills ---------------------------------------------------------------------------------------------------------

# Every operation on the disk between a station that answers with 1.0.0 and one that answers with 2.0.0.
OPERATIONS = 130


def put(desk: Desk, version: str, step: int) -> None:
    moved = np.random.default_rng(step).standard_normal((64, 96)) * 1e-3 * step
    weights = np.random.default_rng(0).standard_normal((64, 96)) + moved
    source = desk.folder / "source.onnx"
    source.write_bytes(tiny_models.linear(weights, np.zeros(96)))
    publish(source, repository=desk.repository, keys=desk.keys, draft=Draft(name="pump", version=version))


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["outstation.models.reconciler"])
    return context


@pytest.fixture(scope="module")
def before(tmp_path_factory, processes):
    """A desk with 2.0.0 and its delta, and the folder of a station that has 1.0.0."""
    desk = Desk(tmp_path_factory.mktemp("desk"))
    put(desk, "1.0.0", 0)
    folder = tmp_path_factory.mktemp("device") / "models"
    assert lives(processes, desk, folder, "1.0.0") == DONE
    put(desk, "2.0.0", 1)
    return desk, folder


def lives(processes, desk, folder, goal, kill_at=None):
    arguments = (str(folder), str(desk.repository), str(desk.root), goal, kill_at)
    child = processes.Process(target=live, args=arguments)
    child.start()
    child.join(30.0)
    assert child.exitcode is not None, "the child hangs"
    return child.exitcode


def survives(processes, before, folder, kill_at) -> int:
    desk, start = before
    shutil.copytree(start, folder)
    code = lives(processes, desk, folder, "2.0.0", kill_at)
    answering = ModelStore(folder).answering("pump")
    verify_installed(answering)
    assert answering.version in {"1.0.0", "2.0.0"}
    assert lives(processes, desk, folder, "2.0.0") == DONE
    answering = ModelStore(folder).answering("pump")
    verify_installed(answering)
    assert answering.version == "2.0.0"
    assert not [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".building"))]
    return code


def test_without_a_kill_the_delta_is_used(processes, before, tmp_path):
    survives(processes, before, tmp_path / "device", OPERATIONS)
    (report,) = ModelStore(tmp_path / "device").reports()
    assert report.versions[0].saved_bytes > 0


def test_a_kill_while_a_delta_is_taken_is_survived(processes, before, tmp_path):
    killed = 0
    for kill_at in range(3, 40, 4):
        killed += survives(processes, before, tmp_path / str(kill_at), kill_at) == -signal.SIGKILL
    assert killed > 5


@pytest.mark.soak
def test_a_kill_before_every_write_while_a_delta_is_taken_is_survived(processes, before, tmp_path):
    killed = 0
    for kill_at in range(1, OPERATIONS):
        killed += survives(processes, before, tmp_path / str(kill_at), kill_at) == -signal.SIGKILL
    assert killed > 30
