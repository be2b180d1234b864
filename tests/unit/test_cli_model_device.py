from __future__ import annotations

import json

import pytest

from model_parts import Desk, Device, SimulatedRepository, rejection, run
from outstation.errors import InvalidInputError, ModelNotFoundError
from outstation.models.orders import waiting_orders
from outstation.models.trust import Trust
from outstation.types import ModelPhase
from support import wait_until


@pytest.fixture
def box(tmp_path, monkeypatch):
    """A station with 2.0.0 active, 1.0.0 the last good one, and 3.0.0 rejected."""
    monkeypatch.chdir(tmp_path)
    far = SimulatedRepository()
    device = Device(tmp_path / "data", far, far.first_root)
    device.checker.verdicts["3.0.0"] = rejection("golden case 1 is off")
    with device:
        for version in ("1.0.0", "2.0.0", "3.0.0"):
            far.add(version, version.encode())
            far.publish()
            wait_until(lambda version=version: device.phase(version) in {ModelPhase.ACTIVE, ModelPhase.REJECTED})
        yield device


AT_THE_BOX = ("--data", "data")


def test_what_is_on_the_device_is_shown_with_reasons(box):
    assert run("ls", *AT_THE_BOX).output.splitlines() == [
        "pump 3.0.0 rejected golden case 1 is off",
        "pump 2.0.0 answers active",
        "pump 1.0.0 last good superseded",
    ]
    rows = json.loads(run("ls", "--json", *AT_THE_BOX).output)
    assert rows[0] == {
        "name": "pump",
        "version": "3.0.0",
        "marks": "",
        "phase": "rejected",
        "reason": "golden case 1 is off",
        "saved_bytes": 0,
    }


def test_the_manifest_of_what_answers_is_shown(box):
    assert json.loads(run("show", "pump", *AT_THE_BOX).output)["version"] == "2.0.0"
    assert json.loads(run("show", "pump", "1.0.0", *AT_THE_BOX).output)["version"] == "1.0.0"
    with pytest.raises(ModelNotFoundError, match=r"pump 9\.0\.0 is not on this device"):
        run("show", "pump", "9.0.0", *AT_THE_BOX)


def test_a_pin_holds_and_lets_go(box):
    run("pin", "pump", "1.0.0", *AT_THE_BOX)
    wait_until(lambda: box.active() == "1.0.0")
    assert "pinned" in run("ls", *AT_THE_BOX).output
    run("pin", "pump", "--off", *AT_THE_BOX)
    wait_until(lambda: box.active() == "2.0.0")
    with pytest.raises(InvalidInputError, match="--off"):
        run("pin", "pump", *AT_THE_BOX)


def test_a_rollback_goes_to_the_last_good_version_and_stays(box):
    assert "go back to 1.0.0" in run("rollback", "pump", *AT_THE_BOX).output
    wait_until(lambda: box.active() == "1.0.0")
    assert box.store.model("pump").pinned == "1.0.0"


def test_a_version_that_was_turned_down_is_retried_on_order(box):
    box.checker.verdicts.clear()
    run("retry", "pump", "3.0.0", *AT_THE_BOX)
    wait_until(lambda: box.active() == "3.0.0")


def test_an_order_given_while_no_agent_runs_is_not_lost(box):
    box.stop()
    run("pin", "pump", "1.0.0", *AT_THE_BOX)
    assert len(waiting_orders(box.store.directory)) == 1
    box.start()
    wait_until(lambda: box.active() == "1.0.0")
    assert waiting_orders(box.store.directory) == ()


@pytest.mark.parametrize("data", [b"", b"{}", b'{"kind":"explode","name":"pump"}', b"\xff"])
def test_what_is_no_order_is_passed_over(box, data):
    (box.store.directory / "orders").mkdir(exist_ok=True)
    (box.store.directory / "orders" / "1.json").write_bytes(data)
    wait_until(lambda: not waiting_orders(box.store.directory))
    assert box.active() == "2.0.0"


def test_an_unknown_model_is_an_error(box):
    for command in (("rollback", "fan"), ("pin", "fan", "1.0.0"), ("retry", "fan", "1.0.0"), ("show", "fan")):
        with pytest.raises(ModelNotFoundError):
            run(*command, *AT_THE_BOX)


def test_garbage_is_collected_when_no_agent_does(box):
    box.stop()
    (box.store.directory / "blobs" / ("f" * 64)).write_bytes(b"stray")
    assert run("gc", *AT_THE_BOX).output.splitlines() == [
        "freed 5 bytes",
        "kept pump 2.0.0 (answers): 5 bytes",
        "kept pump 1.0.0 (last good): 5 bytes",
        f"{box.store.used_bytes()} of 17179869184 bytes are in use",
    ]


def test_a_running_agent_is_asked_to_collect(box):
    box.source.down = True  # so that it does not do so by itself
    wait_until(lambda: box.reconciler.standing().trust is Trust.STALE)
    stray = box.store.directory / "blobs" / ("f" * 64)
    stray.write_bytes(b"stray")
    assert "was asked to delete" in run("gc", *AT_THE_BOX).output
    wait_until(lambda: not stray.exists())
    assert waiting_orders(box.store.directory) == ()


def test_a_store_over_its_bound_says_so(box, monkeypatch):
    monkeypatch.setenv("OUTSTATION_MODELS__MAX_STORE_BYTES", "3")
    assert run("gc", *AT_THE_BOX).output.endswith("of 3 bytes are in use: more than models.max_store_bytes\n")


def test_a_version_is_exported_at_the_desk_and_imported_at_the_box(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    run("export", "pump", "1.0.0", "--repository", str(desk.repository), "--to", "stick")
    far = SimulatedRepository()
    far.down = True
    with Device(tmp_path / "data", far, desk.root.read_bytes()) as device:
        run("import", "stick", *AT_THE_BOX)
        wait_until(lambda: device.active() == "1.0.0")


@pytest.mark.parametrize("command", ["ls", "show", "pin", "rollback", "retry", "gc", "export", "import"])
def test_every_command_explains_itself_with_an_example(command):
    assert "Example: outstation model" in " ".join(run(command, "--help").output.split())
