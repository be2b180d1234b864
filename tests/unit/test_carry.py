from __future__ import annotations

import pytest

from model_parts import Desk, Device, SimulatedRepository, flip
from outstation.errors import InvalidInputError, ModelNotFoundError, UntrustedError
from outstation.models.carry import export_version, hand_in
from outstation.models.fetch import FolderSource
from outstation.models.store import verify_installed
from outstation.models.trust import Trust
from outstation.types import ModelPhase
from support import wait_until


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    desk.publish("2.0.0")
    return desk


@pytest.fixture
def box(tmp_path, desk):
    """A station whose repository was never reached."""
    source = FolderSource(tmp_path / "nowhere")
    with Device(tmp_path / "box", source, desk.root.read_bytes()) as device:
        yield device


def test_a_version_travels_by_stick_to_a_station_without_a_link(desk, box, tmp_path):
    stick = tmp_path / "stick"
    assert export_version(desk.repository, "pump", "2.0.0", stick) > 0
    assert not (stick / "targets" / "pump" / "1.0.0").exists()
    hand_in(stick, box.store.directory)
    wait_until(lambda: box.active() == "2.0.0")
    verify_installed(box.store.active("pump"))
    wait_until(lambda: not list((box.store.directory / "incoming").iterdir()))


def test_an_older_version_on_the_stick_serves_while_the_newest_cannot_be_had(desk, box, tmp_path):
    export_version(desk.repository, "pump", "1.0.0", tmp_path / "stick")
    hand_in(tmp_path / "stick", box.store.directory)
    wait_until(lambda: box.active() == "1.0.0")
    assert box.phase("2.0.0") is ModelPhase.DOWNLOADING


def test_what_is_handed_in_before_the_agent_runs_is_taken_at_its_start(desk, box, tmp_path):
    box.stop()
    export_version(desk.repository, "pump", "2.0.0", tmp_path / "stick")
    hand_in(tmp_path / "stick", box.store.directory)
    box.start()
    wait_until(lambda: box.active() == "2.0.0")


def test_a_stick_that_was_tampered_with_is_refused_like_any_source(desk, box, tmp_path):
    export_version(desk.repository, "pump", "2.0.0", tmp_path / "stick")
    (model,) = (tmp_path / "stick").rglob("*.onnx")
    flip(model)
    hand_in(tmp_path / "stick", box.store.directory)
    wait_until(lambda: box.phase("2.0.0") is ModelPhase.REFUSED)
    assert "model.onnx has sha256" in box.reason("2.0.0")


def test_a_stick_of_another_publisher_is_refused(box, tmp_path):
    other = SimulatedRepository()
    other.add("9.0.0")
    other.publish()
    for place, data in other.files.items():
        (tmp_path / "stick" / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "stick" / place).write_bytes(data)
    refused = []
    standing = box.reconciler._set_standing
    box.reconciler._set_standing = lambda new: (refused.append(new), standing(new))
    hand_in(tmp_path / "stick", box.store.directory)
    wait_until(lambda: any(new.trust is Trust.REFUSED for new in refused))
    assert box.store.names() in {(), ("pump",)}
    assert box.phase("9.0.0") is None


def test_what_cannot_be_exported_or_handed_in_is_an_error(desk, tmp_path):
    with pytest.raises(ModelNotFoundError, match=r"holds no pump 7\.0\.0"):
        export_version(desk.repository, "pump", "7.0.0", tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(InvalidInputError, match="not empty"):
        export_version(desk.repository, "pump", "1.0.0", tmp_path / "full")
    with pytest.raises(InvalidInputError, match="no exported model"):
        hand_in(tmp_path / "full", tmp_path / "store")
    export_version(desk.repository, "pump", "1.0.0", tmp_path / "stick")
    (tmp_path / "stick" / "targets" / "link").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInputError, match="symbolic link"):
        hand_in(tmp_path / "stick", tmp_path / "store")
    flip(desk.file("2.0.0"))
    with pytest.raises(UntrustedError, match=r"pump/2\.0\.0/model\.onnx"):
        export_version(desk.repository, "pump", "2.0.0", tmp_path / "b")
