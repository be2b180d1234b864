from __future__ import annotations

import shutil
import threading

import msgspec
import pytest

from model_parts import Desk, Device, flip, rejection, repository_with
from outstation.errors import (
    BufferLockedError,
    InferenceError,
    InvalidInputError,
    ModelLoadError,
    SettingsError,
    UntrustedError,
)
from outstation.models.fetch import FolderSource
from outstation.models.manifest import Requires
from outstation.models.reconciler import Reconciler
from outstation.models.store import ModelStore, verify_installed
from outstation.models.trials import MAX_INTERRUPTED, Trials
from outstation.models.trust import Trust
from outstation.settings import ModelsSettings
from outstation.testing import FakeClock
from outstation.types import LATEST, Desired, DesiredModel, ModelPhase
from support import wait_until

P = ModelPhase


@pytest.fixture
def far():
    return repository_with(b"one")


@pytest.fixture
def make(tmp_path, far):
    """Makes devices that look at *far*, and stops them."""
    made = []

    def make(folder="device", **settings):
        device = Device(tmp_path / folder, far, far.first_root, **settings)
        made.append(device)
        return device

    yield make
    for device in made:
        device.stop()


def want(*models, revision=1):
    return Desired(tuple(DesiredModel(*model) for model in models), revision)


def looked(far, rounds=2):
    """Wait until the device has looked at the repository *rounds* times more."""
    before = len(far.opened)
    wait_until(lambda: sum(p == "metadata/timestamp.json" for p, _ in far.opened[before:]) >= rounds)


def offer(far, *versions, **fields):
    for version in versions:
        far.add(version, f"weights {version}".encode(), **fields)
    far.publish()


def test_the_newest_version_that_passes_becomes_active_and_the_others_say_why_not(tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    device = Device(tmp_path / "device", FolderSource(desk.repository), desk.root.read_bytes())
    device.checker.verdicts["4.0.0"] = rejection("golden case 3, output 'y': 0.7 off")
    with device:
        wait_until(lambda: device.active() == "1.0.0")
        device.source.root = tmp_path / "nowhere"  # the link goes down
        desk.publish("2.0.0")
        desk.publish("3.0.0")
        flip(desk.file("3.0.0"))
        desk.publish("4.0.0")
        device.source.root = desk.repository
        wait_until(lambda: device.active() == "2.0.0")
        assert device.phase("4.0.0") is P.REJECTED
        assert device.reason("4.0.0") == "golden case 3, output 'y': 0.7 off"
        assert device.phase("3.0.0") is P.REFUSED
        assert "pump/3.0.0/model.onnx has sha256" in device.reason("3.0.0")
        assert device.phase("1.0.0") is P.SUPERSEDED
        verify_installed(device.store.active("pump"))


def test_what_was_turned_down_is_not_tried_again(far, make):
    offer(far, "2.0.0")
    device = make()
    device.checker.verdicts["2.0.0"] = rejection()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    looked(far)
    device.stop()
    device.start()
    looked(far)
    assert device.checker.asked.count("2.0.0") == 1


def test_what_was_turned_down_is_tried_again_when_the_operator_says_so(far, make):
    offer(far, "2.0.0")
    device = make()
    device.checker.verdicts["2.0.0"] = ModelLoadError("no memory")
    reconciler = device.start()
    wait_until(lambda: device.active() == "1.0.0")
    del device.checker.verdicts["2.0.0"]
    reconciler.forgive("pump", "2.0.0")
    wait_until(lambda: device.active() == "2.0.0")
    with pytest.raises(InvalidInputError, match="not turned down"):
        reconciler.forgive("pump", "2.0.0")


def test_a_check_that_could_not_be_carried_out_is_repeated(far, make):
    device = make()
    device.checker.verdicts["1.0.0"] = InferenceError("the machine is busy")
    device.start()
    wait_until(lambda: device.reason("1.0.0") == "the machine is busy")
    assert device.phase("1.0.0") is P.VERIFIED
    device.checker.verdicts.clear()
    wait_until(lambda: device.active() == "1.0.0")
    assert device.reason("1.0.0") == ""


def test_an_unexpected_error_of_a_part_does_not_end_the_thread(far, make, caplog):
    device = make()
    device.checker.verdicts["1.0.0"] = ZeroDivisionError("a mistake")
    device.start()
    wait_until(lambda: len(device.checker.asked) >= 2)
    device.checker.verdicts.clear()
    wait_until(lambda: device.active() == "1.0.0")
    assert "unexpected error" in caplog.text


def test_without_a_link_nothing_changes_and_with_it_everything_goes_on(far, make):
    device = make()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    far.down = True
    offer(far, "2.0.0")
    wait_until(lambda: device.reconciler.standing().trust is Trust.STALE)
    assert "link is down" in device.reconciler.standing().reason
    assert device.active() == "1.0.0"
    far.down = False
    wait_until(lambda: device.active() == "2.0.0")
    wait_until(lambda: device.reconciler.standing().trust is Trust.FRESH)


def test_a_version_whose_file_is_not_there_yet_waits_and_an_older_one_serves(far, make):
    offer(far, "2.0.0", "3.0.0")
    place = far.place("pump/3.0.0/model.onnx")
    kept = far.files.pop(place)
    device = make()
    device.start()
    wait_until(lambda: device.active() == "2.0.0")
    assert device.phase("3.0.0") is P.DOWNLOADING
    assert "no targets/pump/3.0.0" in device.reason("3.0.0")
    far.files[place] = kept
    wait_until(lambda: device.active() == "3.0.0")


def test_an_explicit_version_is_taken_even_if_it_is_older(far, make):
    offer(far, "2.0.0", "3.0.0")
    device = make()
    reconciler = device.start()
    wait_until(lambda: device.active() == "3.0.0")
    reconciler.set_desired(want(("pump", "2.0.0")))
    wait_until(lambda: device.active() == "2.0.0")
    looked(far)
    assert device.phase("3.0.0") is P.SUPERSEDED
    reconciler.set_desired(want(("pump", LATEST), revision=2))
    wait_until(lambda: device.active() == "3.0.0")


def test_a_version_that_the_repository_does_not_list_is_reported_and_taken_when_it_comes(far, make):
    device = make(names=())
    device.start().set_desired(want(("pump", "2.0.0")))
    wait_until(lambda: device.phase("2.0.0") is P.OFFERED)
    assert device.reason("2.0.0") == "The repository does not list it."
    offer(far, "2.0.0")
    wait_until(lambda: device.active() == "2.0.0")


def test_a_change_of_what_is_wanted_is_heard_at_once(far, make):
    device = make(names=(), poll_interval=3600.0)
    reconciler = device.start()
    wait_until(lambda: reconciler.standing().trust is Trust.FRESH)
    reconciler.set_desired(want(("pump", LATEST)))
    wait_until(lambda: device.active() == "1.0.0")
    offer(far, "2.0.0")
    reconciler.wake()
    wait_until(lambda: device.active() == "2.0.0")


def test_a_wish_is_remembered_for_a_start_without_a_link(far, make):
    device = make(names=())
    device.checker.verdicts["1.0.0"] = InferenceError("not now")
    device.start().set_desired(want(("pump", LATEST)))
    wait_until(lambda: device.phase("1.0.0") is P.VERIFIED)
    device.stop()
    far.down = True
    device.checker.verdicts.clear()
    device.start().set_desired(Desired())  # nobody could be asked yet
    wait_until(lambda: device.active() == "1.0.0")


def test_a_model_that_is_not_wanted_any_more_stays_as_it_is(far, make):
    device = make(names=())
    reconciler = device.start()
    reconciler.set_desired(want(("pump", LATEST)))
    wait_until(lambda: device.active() == "1.0.0")
    reconciler.set_desired(want(revision=2))
    offer(far, "2.0.0")
    looked(far, 3)
    assert device.active() == "1.0.0"
    assert device.phase("2.0.0") is None


@pytest.mark.parametrize("wanted", [("../evil", LATEST), ("pump", "../../evil"), ("pump", "newest"), ("", LATEST)])
def test_a_wish_with_odd_names_is_passed_over(far, make, wanted):
    device = make(names=())
    reconciler = device.start()
    reconciler.set_desired(want(wanted, ("fan", LATEST)))
    wait_until(lambda: "fan" in device.store.names())
    assert device.store.names() == ("fan",)


def test_a_withdrawn_version_gives_way_to_the_one_before(far, make):
    offer(far, "2.0.0")
    device = make()
    device.start()
    wait_until(lambda: device.active() == "2.0.0")
    far.targets.targets["pump/2.0.0/manifest.json"].unrecognized_fields["custom"] = {"yanked": "wrong scaler"}
    far.publish()
    wait_until(lambda: device.active() == "1.0.0")
    wait_until(lambda: device.reason("2.0.0") == "The publisher withdrew it: wrong scaler")


def test_a_pin_wins_over_what_is_wanted(far, make):
    offer(far, "2.0.0")
    device = make()
    reconciler = device.start()
    wait_until(lambda: device.active() == "2.0.0")
    reconciler.pin("pump", "1.0.0")
    wait_until(lambda: device.active() == "1.0.0")
    reconciler.pin("pump", "")
    wait_until(lambda: device.active() == "2.0.0")


def test_two_models_do_not_disturb_each_other(far, make):
    far.add("5.0.0", b"fan", name="fan")
    far.publish()
    far.files.pop(far.place("fan/5.0.0/model.onnx"))
    device = make(names=("fan", "pump"))
    device.start()
    wait_until(lambda: device.active("pump") == "1.0.0")
    assert device.phase("5.0.0", "fan") is P.DOWNLOADING


# -- requirements ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"requires": {"memory_bytes": 1 << 60}}, "bytes of memory"),
        ({"requires": {"instruction_sets": ("quantum2",)}}, "quantum2"),
    ],
)
def test_a_version_that_this_device_cannot_run_is_not_downloaded(far, make, fields, says):
    offer(far, "2.0.0", requires=Requires(**fields["requires"]))
    device = make()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    assert device.phase("2.0.0") is P.REJECTED
    assert says in device.reason("2.0.0")
    assert far.place("pump/2.0.0/model.onnx") not in {path for path, _ in far.opened}


def test_a_file_over_the_bound_is_not_downloaded(far, make):
    far.add("2.0.0", b"x" * 5000)
    far.publish()
    device = make(max_bytes=4000)
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    assert "models.max_bytes" in device.reason("2.0.0")


# -- trial -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trial(far, make):
    """A device with 1.0.0 active and 2.0.0 on trial for ten seconds of a clock that stands still."""
    clock = FakeClock(time_unix_nano=int(far.now.timestamp()) * 1_000_000_000)
    device = make(probation=10.0, poll_interval=3600.0)
    device.start(clock=clock)
    device.clock = clock
    wait_until(lambda: device.store.candidate("pump") is not None)
    clock.wait_for_waiters()
    clock.advance(10.0)
    wait_until(lambda: device.active() == "1.0.0")
    offer(far, "2.0.0")
    device.reconciler.wake()
    wait_until(lambda: device.phase("2.0.0") is P.PROBATION)
    return device


def test_a_version_on_trial_answers_and_is_active_after_the_trial(trial):
    assert trial.store.answering("pump").version == "2.0.0"
    assert trial.active() == "1.0.0"
    trial.reconciler.report_health("pump", "2.0.0", 500, 0)
    trial.clock.wait_for_waiters()
    trial.clock.advance(9.0)
    trial.clock.wait_for_waiters()
    assert trial.phase("2.0.0") is P.PROBATION
    trial.clock.advance(1.0)
    wait_until(lambda: trial.active() == "2.0.0")
    assert trial.store.model("pump").last_good == "1.0.0"


def test_a_failed_call_on_trial_takes_the_version_back_at_once_and_for_good(far, trial):
    trial.reconciler.report_health("pump", "2.0.0", 120, 3)
    assert trial.store.answering("pump").version == "1.0.0"
    assert trial.phase("2.0.0") is P.ROLLED_BACK
    assert trial.reason("2.0.0") == "3 of 120 calls failed on trial."
    trial.clock.wait_for_waiters()
    looks = sum(path == "metadata/timestamp.json" for path, _ in far.opened)
    trial.reconciler.wake()
    wait_until(lambda: sum(path == "metadata/timestamp.json" for path, _ in far.opened) > looks)
    trial.clock.wait_for_waiters()
    assert trial.phase("2.0.0") is P.ROLLED_BACK


def test_failures_of_another_version_or_model_do_not_count(trial):
    trial.reconciler.report_health("pump", "1.0.0", 10, 10)
    trial.reconciler.report_health("fan", "2.0.0", 10, 10)
    trial.reconciler.report_health("pump", "3.0.0", 10, 10)
    assert trial.phase("2.0.0") is P.PROBATION


def test_a_trial_that_was_interrupted_begins_anew(trial):
    trial.clock.advance(9.0)
    trial.stop()
    trial.start(clock=trial.clock)
    trial.clock.wait_for_waiters()
    trial.clock.advance(9.0)
    trial.clock.wait_for_waiters()
    assert trial.phase("2.0.0") is P.PROBATION
    trial.clock.advance(1.0)
    wait_until(lambda: trial.active() == "2.0.0")


def killed(device, monkeypatch):
    """End *device* as a kill does: nothing is said of it."""
    with monkeypatch.context() as patch:
        patch.setattr(Trials, "put_down", lambda self: None)
        device.stop()


def test_a_version_that_ends_the_process_again_and_again_is_taken_back(trial, monkeypatch):
    for _ in range(MAX_INTERRUPTED - 1):
        killed(trial, monkeypatch)
        trial.start(clock=trial.clock)
        assert trial.phase("2.0.0") is P.PROBATION
    killed(trial, monkeypatch)
    trial.start(clock=trial.clock)
    assert trial.phase("2.0.0") is P.ROLLED_BACK
    assert trial.reason("2.0.0") == "The process ended 5 times while it was on trial."
    assert trial.store.answering("pump").version == "1.0.0"


def test_a_trial_begins_anew_with_another_process_and_many_processes_end_it(trial):
    def told(process):
        trial.reconciler.report_health("pump", "2.0.0", 0, 0, process=process)

    told("a")
    trial.clock.wait_for_waiters()
    trial.clock.advance(9.0)
    told("b")  # the first one ended with the first call, before it could say so
    trial.clock.wait_for_waiters()
    trial.clock.advance(9.0)
    trial.clock.wait_for_waiters()
    assert trial.phase("2.0.0") is P.PROBATION
    for process in "abcde":
        told(process)
    assert trial.phase("2.0.0") is P.PROBATION
    told("f")
    assert trial.phase("2.0.0") is P.ROLLED_BACK
    assert trial.reason("2.0.0") == "The process that computes it ended 5 times while it was on trial."
    assert trial.store.answering("pump").version == "1.0.0"


def test_ends_in_order_are_no_fault_of_a_version_on_trial(trial):
    for _ in range(2 * MAX_INTERRUPTED):
        trial.stop()
        trial.stop()
        trial.start(clock=trial.clock)
    assert trial.phase("2.0.0") is P.PROBATION


def test_another_wish_ends_a_trial(trial):
    trial.reconciler.set_desired(want(("pump", "1.0.0")))
    wait_until(lambda: trial.phase("2.0.0") is P.SUPERSEDED)
    assert trial.store.answering("pump").version == "1.0.0"
    assert "1.0.0 is wanted" in trial.reason("2.0.0")


def test_a_newer_version_waits_until_the_trial_is_over(far, trial):
    offer(far, "3.0.0")
    trial.reconciler.wake()
    looked(far, 1)
    trial.clock.wait_for_waiters()
    assert trial.phase("3.0.0") is None
    trial.clock.advance(10.0)
    wait_until(lambda: trial.phase("3.0.0") is P.PROBATION)
    assert trial.active() == "2.0.0"


def test_a_trial_goes_on_while_another_model_downloads(far, trial):
    """A download that takes for ever must not keep a version on trial that failed, nor one that is proved."""
    release = threading.Event()
    far.add("1.0.0", b"fan" * 1000, name="fan")
    far.publish()
    place = far.place("fan/1.0.0/model.onnx")
    opened = far.open

    def slow(path, offset, timeout):
        if path == place:
            far.opened.append((path, offset))
            return _Slow(far.files[path], release)
        return opened(path, offset, timeout)

    far.open = slow
    trial.reconciler.set_desired(want(("pump", LATEST), ("fan", LATEST)))
    wait_until(lambda: place in {path for path, _ in far.opened})
    trial.clock.advance(10.0)
    wait_until(lambda: trial.active() == "2.0.0")
    assert trial.phase("1.0.0", "fan") is P.DOWNLOADING
    release.set()


class _Slow:
    def __init__(self, data, release):
        self.data, self.release = data, release

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def read(self, size):
        size = size if self.release.wait(0.005) else 1
        piece, self.data = self.data[:size], self.data[size:]
        return piece


# -- gate --------------------------------------------------------------------------------------------------------


def test_a_closed_gate_defers_a_version_until_it_opens(far, make):
    is_open = threading.Event()
    device = make()
    device.start(gate=lambda name, version: is_open.is_set())
    wait_until(lambda: device.reason("1.0.0") == "The application's gate is closed.")
    assert device.phase("1.0.0") is P.STAGED
    assert device.store.answering("pump") is None
    is_open.set()
    wait_until(lambda: device.active() == "1.0.0")


# -- the disk ----------------------------------------------------------------------------------------------------


def damage(device, version):
    flip(device.store.installed("pump", version).model_path)


def test_a_damaged_active_version_gives_way_to_the_last_good_one_without_a_link(far, make):
    offer(far, "2.0.0")
    device = make()
    reconciler = device.start()
    reconciler.set_desired(want(("pump", "1.0.0")))
    wait_until(lambda: device.active() == "1.0.0")
    reconciler.set_desired(want(("pump", LATEST), revision=2))
    wait_until(lambda: device.active() == "2.0.0")
    device.stop()
    damage(device, "2.0.0")
    far.down = True
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    assert "on the disk has sha256" in device.reason("2.0.0") or "link" in device.reason("2.0.0")
    far.down = False
    wait_until(lambda: device.active() == "2.0.0")
    verify_installed(device.store.active("pump"))


def test_a_lost_bundle_is_made_again_from_what_is_there(far, make):
    device = make()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    device.stop()
    shutil.rmtree(device.store.active("pump").folder)
    far.down = True  # the blobs are still here: nothing has to be fetched
    device.start()
    wait_until(lambda: device.checker.asked == ["1.0.0", "1.0.0"] and device.active() == "1.0.0")
    verify_installed(device.store.active("pump"))


def test_a_lost_state_is_made_again_from_what_is_there(far, make):
    device = make()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    device.stop()
    (device.store.directory / "state.json").write_bytes(b"\0" * 64)
    far.down = True
    device.start()
    wait_until(lambda: device.active() == "1.0.0")


def test_a_full_disk_leaves_the_old_version_and_goes_on_when_there_is_room(far, make, monkeypatch):
    class Usage:
        free = 1 << 40

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage)
    device = make()
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    Usage.free = 3
    offer(far, "2.0.0")
    wait_until(lambda: "bytes more; the disk of the store has 3" in device.reason("2.0.0"))
    assert device.phase("2.0.0") is P.DOWNLOADING
    assert device.active() == "1.0.0"
    Usage.free = 1 << 40
    wait_until(lambda: device.active() == "2.0.0")


def test_old_versions_are_deleted_but_the_last_good_one_stays(far, make):
    device = make()
    device.start()
    for version in ("2.0.0", "3.0.0"):
        offer(far, version)
        wait_until(lambda version=version: device.active() == version)
    wait_until(lambda: device.store.installed("pump", "1.0.0") is None)
    assert device.store.installed("pump", "2.0.0") is not None


# -- life --------------------------------------------------------------------------------------------------------


def test_what_the_store_has_no_room_for_waits_and_says_why(far, make):
    """Three versions of the one model fit and a fourth does, too: the oldest goes. Of two models they do not."""
    size = 1000
    for version in ("2.0.0", "3.0.0"):
        far.add(version, version.encode() * (size // 5))
    far.add("1.0.0", b"f" * size, name="fan")
    far.publish()
    device = make(max_store_bytes=3 * size + 4000)
    device.start()
    wait_until(lambda: device.active() == "3.0.0")
    for major in range(4, 8):
        far.add(f"{major}.0.0", f"{major}.0.0".encode() * (size // 5))
        far.publish()
        wait_until(lambda major=major: device.active() == f"{major}.0.0")
    far.add("2.0.0", b"g" * 5000, name="fan")
    far.publish()
    device.reconciler.set_desired(want(("pump", LATEST), ("fan", "2.0.0")))
    wait_until(lambda: "models.max_store_bytes" in device.reason("2.0.0", "fan"))
    assert "pump 7.0.0: answers, pump 6.0.0: last good" in device.reason("2.0.0", "fan")
    assert device.phase("2.0.0", "fan") is P.DOWNLOADING
    assert far.place("fan/2.0.0/model.onnx") not in {path for path, _ in far.opened}
    verify_installed(device.store.active("pump"))
    assert device.store.used_bytes() <= device.settings.max_store_bytes
    device.reconciler.set_desired(want(("pump", LATEST), ("fan", "1.0.0"), revision=2))
    wait_until(lambda: device.active("fan") == "1.0.0")


def test_what_waited_for_room_goes_on_when_there_is_some(far, make):
    device = make(max_store_bytes=3000)
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    far.add("2.0.0", b"x" * 4000)
    far.publish()
    wait_until(lambda: "models.max_store_bytes" in device.reason("2.0.0"))
    device.stop()
    device.settings = msgspec.structs.replace(device.settings, max_store_bytes=9000)
    device.start()
    wait_until(lambda: device.active() == "2.0.0")


def test_garbage_goes_before_a_version_has_to_wait(far, make):
    device = make(max_store_bytes=6000, retry_interval=1e6)
    device.start()
    wait_until(lambda: device.active() == "1.0.0")
    far.down = True
    looked_before = device.reconciler.standing()
    wait_until(lambda: device.reconciler.standing() != looked_before)
    (device.store.directory / "blobs" / ("f" * 64)).write_bytes(b"x" * 5000)
    far.add("2.0.0", b"x" * 3000)
    far.publish()
    far.down = False
    device.reconciler.wake()
    wait_until(lambda: device.active() == "2.0.0")


def test_a_start_needs_a_root_that_can_be_read(tmp_path, far):
    for root, says in (("", "not models.root"), (str(tmp_path / "gone.json"), "gone.json")):
        settings = ModelsSettings(repository="given", root=root)
        reconciler = Reconciler(ModelStore(tmp_path / "m"), far, None, settings)
        with pytest.raises(SettingsError, match=says):
            reconciler.start()
        reconciler.close()


def test_a_start_with_a_root_that_is_no_root_leaves_the_store_free(tmp_path, far):
    (tmp_path / "root.json").write_bytes(b"{}")
    settings = ModelsSettings(repository="given", root=str(tmp_path / "root.json"))
    reconciler = Reconciler(ModelStore(tmp_path / "m"), far, None, settings)
    with pytest.raises(UntrustedError):
        reconciler.start()
    reconciler.close()
    ModelStore(tmp_path / "m").claim().close()


def test_two_agents_cannot_share_a_store(make):
    first, second = make("same"), make("same")
    first.start()
    with pytest.raises(BufferLockedError):
        second.start()


def test_closing_ends_the_thread_and_frees_the_store(make):
    device = make()
    reconciler = device.start()
    reconciler.close()
    reconciler.close()
    assert "outstation-models" not in {thread.name for thread in threading.enumerate()}
    device.store.claim().close()


def test_changes_are_told_to_whoever_asked(far, make):
    device = make()
    told = threading.Event()
    device.reconciler = Reconciler(device.store, far, device.checker, device.settings)
    device.reconciler.on_change(told.set)
    device.reconciler.start()
    assert told.wait(5.0)
    wait_until(lambda: device.reconciler.reports() and device.reconciler.reports()[0].active == "1.0.0")


def test_an_empty_repository_is_reported_and_looked_at_again(far, make):
    device = make()
    kept, far.files = far.files, {}
    device.start()
    wait_until(lambda: "no repository" in device.reconciler.standing().reason)
    far.files = kept
    wait_until(lambda: device.active() == "1.0.0")
