from __future__ import annotations

import datetime
import fcntl
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root, Timestamp

import tiny_models
from model_parts import UTC, Desk, error_of, flip, foreign_client
from outstation.errors import (
    ConfigurationError,
    InvalidInputError,
    InvalidNameError,
    ManifestError,
    ModelLoadError,
    ModelNotFoundError,
    RepositoryError,
    UntrustedError,
)
from outstation.models import place as placing
from outstation.models import publish as publishing
from outstation.models.bundle import Draft
from outstation.models.fetch import FolderSource
from outstation.models.manifest import Budgets
from outstation.models.publish import init_repository, publish
from outstation.models.repository import Repository
from outstation.models.trust import TrustedRepository
from outstation.testing import FakeClock


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def problems(desk):
    return list(Repository(desk.repository).problems(datetime.datetime.now(UTC)))


def goldens(desk, version):
    path = desk.file(version, ".golden.npz")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


# -- init --------------------------------------------------------------------------------------------------------


def test_keys_are_for_their_owners_eyes_only(desk):
    assert stat.S_IMODE(desk.keys.stat().st_mode) == 0o700
    keys = sorted(desk.keys.iterdir())
    assert [key.name for key in keys] == [
        *("root1.pem", "root2.pem", "root3.pem", "snapshot.pem", "targets.pem", "timestamp.pem")
    ]
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}


def test_the_root_needs_two_of_three_keys(desk):
    root = Metadata[Root].from_file(str(desk.root)).signed
    assert (root.roles["root"].threshold, len(root.roles["root"].keyids)) == (2, 3)
    assert root.consistent_snapshot
    assert {role: len(root.roles[role].keyids) for role in ("targets", "snapshot", "timestamp")} == {
        "targets": 1,
        "snapshot": 1,
        "timestamp": 1,
    }


def test_an_empty_repository_is_a_repository(desk):
    assert problems(desk) == []
    assert Repository(desk.repository).versions() == []


def test_a_repository_or_a_key_is_never_overwritten(tmp_path, desk):
    with pytest.raises(RepositoryError, match="holds a repository already"):
        init_repository(desk.repository, tmp_path / "other-keys")
    with pytest.raises(RepositoryError, match="is there already"):
        init_repository(tmp_path / "other", desk.keys)


def test_keys_do_not_lie_in_the_repository(tmp_path):
    with pytest.raises(InvalidInputError, match="must not lie inside"):
        init_repository(tmp_path / "repo", tmp_path / "repo" / "keys")


def test_keys_with_a_passphrase_need_it(tmp_path):
    init_repository(tmp_path / "repo", tmp_path / "keys", passphrase=b"correct horse")
    (tmp_path / "m.onnx").write_bytes(tiny_models.identity())
    arguments = {"repository": tmp_path / "repo", "keys": tmp_path / "keys", "draft": Draft(name="m", version="1.0.0")}
    assert b"ENCRYPTED" in (tmp_path / "keys" / "targets.pem").read_bytes()
    assert "encrypted" in str(error_of(lambda: publish(tmp_path / "m.onnx", **arguments)))
    wrong = error_of(lambda: publish(tmp_path / "m.onnx", **arguments, passphrase=b"wrong"))
    assert isinstance(wrong, ConfigurationError)
    publish(tmp_path / "m.onnx", **arguments, passphrase=b"correct horse")


# -- publish -----------------------------------------------------------------------------------------------------


def test_a_published_version_is_what_was_given(desk):
    desk.publish("1.2.0", budgets=Budgets(0.02, 1 << 20), metrics={"accuracy": 0.9}, provenance={"commit": "1f2e"})
    assert problems(desk) == []
    manifest = Repository(desk.repository).published("pump", "1.2.0").manifest
    assert (manifest.inputs[0].name, manifest.inputs[0].datatype, manifest.inputs[0].shape) == ("x", "FP32", (-1, 4))
    assert manifest.budgets.p95_latency == 0.02
    assert manifest.metrics == {"accuracy": 0.9}
    assert manifest.provenance["commit"] == "1f2e"
    assert desk.file("1.2.0").read_bytes() == tiny_models.scale(1.0)
    assert [file.path for file in manifest.files] == ["golden.npz", "model.onnx"]


def test_golden_outputs_are_computed(desk):
    desk.publish("3.0.0")
    arrays = goldens(desk, "3.0.0")
    assert set(arrays) == {"input/x", "output/y"}
    np.testing.assert_array_equal(arrays["output/y"], arrays["input/x"] * 3)


def test_golden_inputs_may_carry_plain_names(desk, tmp_path):
    np.savez(tmp_path / "plain.npz", x=np.ones((2, 4), np.float32))
    desk.publish("2.0.0", golden=tmp_path / "plain.npz")
    np.testing.assert_array_equal(goldens(desk, "2.0.0")["output/y"], np.full((2, 4), 2, np.float32))


def test_golden_cases_may_have_an_axis_of_their_own(desk, tmp_path):
    np.savez(tmp_path / "rows.npz", **{"input/x": np.ones((5, 3, 4), np.float32)})
    desk.publish("2.0.0", golden=tmp_path / "rows.npz")
    assert goldens(desk, "2.0.0")["output/y"].shape == (5, 3, 4)


def test_golden_outputs_that_are_given_are_checked_unless_told_not_to(desk, tmp_path):
    wrong = np.ones((2, 4), np.float32)
    wrong[1, 2] = 7
    np.savez(tmp_path / "given.npz", **{"input/x": np.ones((2, 4), np.float32), "output/y": wrong})
    with pytest.raises(InvalidInputError, match=r"output/y in case 1 \(1 numbers are off\)"):
        desk.publish("1.0.0", golden=tmp_path / "given.npz")
    publish(
        desk.folder / "source.onnx",
        repository=desk.repository,
        keys=desk.keys,
        draft=Draft(name="pump", version="1.0.0", golden=tmp_path / "given.npz"),
        check=False,
    )
    np.testing.assert_array_equal(goldens(desk, "1.0.0")["output/y"], wrong)


ONES = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"input/z": ONES}, "no array input/x"),
        ({"input/x": ONES, "input/z": ONES}, "input/z is no input or output"),
        ({"input/x": ONES, "output/z": ONES}, "output/z is no input or output"),
        ({"input/x": np.ones((0, 4), np.float32)}, "cases"),
        ({"input/x": np.ones(4, np.float32)}, "dimensions"),
        ({"input/x": np.ones((2, 2, 2, 4), np.float32)}, "dimensions"),
        ({"input/x": np.array([{}, {}], dtype=object)}, "without pickles"),
        ({"input/x": ONES, "output/y": ONES[:1]}, "shape"),
    ],
)
def test_a_golden_file_that_cannot_be_is_refused(desk, tmp_path, arrays, says):
    np.savez(tmp_path / "wrong.npz", **arrays)
    with pytest.raises(InvalidInputError, match=says):
        desk.publish("1.0.0", golden=tmp_path / "wrong.npz")
    assert Repository(desk.repository).versions() == []


def test_nan_is_no_golden_answer_unless_somebody_says_so(desk, tmp_path):
    golden = tmp_path / "nan.npz"
    np.savez(golden, x=np.ones((1, 4), np.float32))
    with pytest.raises(InvalidInputError, match="answers NaN"):
        desk.publish("1.0.0", factor=np.nan, golden=golden)
    np.savez(golden, **{"input/x": np.ones((1, 4), np.float32), "output/y": np.full((1, 4), np.nan, np.float32)})
    desk.publish("1.0.0", factor=np.nan, golden=golden)


def test_a_golden_file_that_is_none_is_refused(desk, tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        desk.publish("1.0.0", golden=tmp_path / "text.npz")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        desk.publish("1.0.0", golden=tmp_path / "gone.npz")


def give(desk, source, **draft):
    return publish(
        source, repository=desk.repository, keys=desk.keys, draft=Draft(**{"name": "m", "version": "1.0.0", **draft})
    )


def test_a_file_that_is_no_model_is_refused(desk, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"this is no ONNX")
    with pytest.raises(ModelLoadError, match="no model that ONNX Runtime can load"):
        give(desk, tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError, match="no file or folder"):
        give(desk, tmp_path / "gone.onnx")


def test_a_folder_is_published_with_all_it_holds(desk, tmp_path):
    folder = tmp_path / "bundle"
    (folder / "extra").mkdir(parents=True)
    (folder / "net.onnx").write_bytes(tiny_models.identity())
    (folder / "labels.txt").write_text("no leak\nleak\n")
    (folder / "extra" / "scaler.json").write_text("{}")
    np.savez(folder / "golden.npz", x=ONES)
    manifest = give(desk, folder)
    assert [file.path for file in manifest.files] == ["extra/scaler.json", "golden.npz", "labels.txt", "net.onnx"]
    assert (manifest.model, manifest.labels, manifest.golden is not None) == ("net.onnx", "labels.txt", True)
    assert problems(desk) == []


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda folder: (folder / "link").symlink_to("/etc/passwd"), InvalidInputError, "symbolic link"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), ManifestError, "manifest itself"),
        (lambda folder: (folder / "my file").write_text("{}"), ManifestError, "characters"),
        (lambda folder: (folder / "b.onnx").write_bytes(b""), InvalidInputError, "holds 2 .onnx files"),
        (lambda folder: (folder / "a.onnx").unlink(), InvalidInputError, "holds 0 .onnx files"),
        (lambda folder: (folder / "labels.txt").write_text("a\n\nb"), InvalidInputError, "no line empty"),
        (lambda folder: (folder / "labels.txt").write_bytes(b"\xff"), InvalidInputError, "UTF-8"),
    ],
)
def test_a_folder_that_cannot_be_a_bundle_is_refused(desk, tmp_path, make, error, says):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "a.onnx").write_bytes(tiny_models.identity())
    make(folder)
    with pytest.raises(error, match=says):
        give(desk, folder)


def test_names_and_versions_are_checked_first(desk, tmp_path):
    for draft in ({"name": "My Model"}, {"version": "1.0"}, {"version": "latest"}):
        with pytest.raises(InvalidNameError):
            give(desk, tmp_path / "gone.onnx", **draft)


def test_a_version_never_changes(desk):
    desk.publish("1.0.0")
    with pytest.raises(RepositoryError, match="published already"):
        desk.publish("1.0.0", factor=9.0)
    assert problems(desk) == []


def test_publishing_needs_the_keys_of_this_repository(desk, tmp_path):
    init_repository(tmp_path / "other", tmp_path / "other-keys")
    (tmp_path / "m.onnx").write_bytes(tiny_models.identity())
    draft = Draft(name="m", version="1.0.0")
    with pytest.raises(RepositoryError, match="is not a key that"):
        publish(tmp_path / "m.onnx", repository=desk.repository, keys=tmp_path / "other-keys", draft=draft)
    with pytest.raises(ConfigurationError, match="is missing"):
        publish(tmp_path / "m.onnx", repository=desk.repository, keys=tmp_path, draft=draft)
    (desk.keys / "targets.pem").write_bytes(b"-----BEGIN NOTHING-----")
    with pytest.raises(ConfigurationError, match="no key in PEM form"):
        publish(tmp_path / "m.onnx", repository=desk.repository, keys=desk.keys, draft=draft)


def test_only_one_publishes_at_a_time(desk):
    fd = os.open(desk.repository / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(RepositoryError, match="Somebody else is publishing"):
        desk.publish("1.0.0")
    os.close(fd)
    desk.publish("1.0.0")


class InterruptError(Exception):
    pass


@pytest.mark.parametrize("step", range(6))
def test_an_interrupted_publish_leaves_the_old_state_or_the_new_one(desk, tmp_path, monkeypatch, step):
    """Stop after each of the writes; a reader never sees anything between, and publishing again goes through."""
    desk.publish("1.0.0")
    left = [step]

    def counting(function):
        def call(*arguments, **options):
            if left[0] == 0:
                raise InterruptError
            left[0] -= 1
            return function(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(placing, "write_atomically", counting(placing.write_atomically))
        patch.setattr(placing, "move_atomically", counting(placing.move_atomically))
        with pytest.raises(InterruptError):
            desk.publish("2.0.0")
    clock = FakeClock(time_unix_nano=int(datetime.datetime.now(UTC).timestamp()) * 10**9)
    reader = TrustedRepository(tmp_path / "trust", desk.root.read_bytes(), clock)
    assert reader.refresh(FolderSource(desk.repository), 5.0).trust.value == "fresh"
    assert reader.versions("pump") == ("1.0.0",)
    assert problems(desk) == []
    desk.publish("2.0.0")
    assert reader.refresh(FolderSource(desk.repository), 5.0).trust.value == "fresh"
    assert set(reader.versions("pump")) == {"1.0.0", "2.0.0"}
    assert problems(desk) == []


def test_an_uninterrupted_publish_has_exactly_the_steps_that_are_tested(desk, monkeypatch):
    steps = []
    for name in ("write_atomically", "move_atomically"):
        function = getattr(placing, name)
        monkeypatch.setattr(placing, name, lambda *a, f=function, **o: (steps.append(1), f(*a, **o))[1])
    desk.publish("1.0.0")
    assert len(steps) == 6


# -- afterwards --------------------------------------------------------------------------------------------------


def test_a_refresh_needs_the_timestamps_key_alone_and_gains_time(desk, tmp_path):
    desk.publish("1.0.0")
    later = datetime.datetime.now(UTC) + datetime.timedelta(days=80)
    for name in ("root1", "root2", "root3", "targets", "snapshot"):
        (desk.keys / f"{name}.pem").unlink()
    publishing.refresh(desk.repository, keys=desk.keys, clock=FakeClock(time_unix_nano=int(later.timestamp()) * 10**9))
    assert list(Repository(desk.repository).problems(later + datetime.timedelta(days=89))) == []
    assert Repository(desk.repository).versions() == [("pump", "1.0.0")]


def test_a_withdrawn_version_stays_listed_with_its_reason_and_is_not_offered(desk, tmp_path):
    for version in ("1.0.0", "2.0.0"):
        desk.publish(version)
    where = {"repository": desk.repository, "keys": desk.keys}
    publishing.yank("pump", "2.0.0", "wrong scaler", **where)
    assert problems(desk) == []
    assert Repository(desk.repository).published("pump", "2.0.0").withdrawn == "wrong scaler"
    clock = FakeClock(time_unix_nano=int(datetime.datetime.now(UTC).timestamp()) * 10**9)
    reader = TrustedRepository(tmp_path / "trust", desk.root.read_bytes(), clock)
    reader.refresh(FolderSource(desk.repository), 5.0)
    assert reader.versions("pump") == ("1.0.0",)
    with pytest.raises(ModelNotFoundError):
        publishing.yank("pump", "3.0.0", "no such", **where)
    with pytest.raises(InvalidInputError, match="for a reason"):
        publishing.yank("pump", "1.0.0", " ", **where)


# -- foreign clients ---------------------------------------------------------------------------------------------


def test_python_tufs_own_client_reads_our_repository(desk, tmp_path):
    desk.publish("1.0.0")
    desk.publish("2.0.0")
    updater = foreign_client(desk, tmp_path)
    updater.refresh()
    for version in ("1.0.0", "2.0.0"):
        for file in ("model.onnx", "golden.npz", "manifest.json"):
            info = updater.get_targetinfo(f"pump/{version}/{file}")
            found = updater.download_target(info)
            assert Path(found).read_bytes() == desk.file(version, f".{file}").read_bytes()
    assert updater.get_targetinfo("pump/3.0.0/model.onnx") is None


# -- verify ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".model.onnx", ".golden.npz", ".manifest.json"])
def test_verify_names_the_file_that_changed(desk, ending):
    desk.publish("1.0.0")
    desk.publish("2.0.0")
    flip(desk.file("2.0.0", ending))
    (problem,) = problems(desk)
    assert f"pump/2.0.0/{ending[1:]}" in problem
    assert "the publisher signed" in problem


def test_verify_names_the_file_that_is_missing(desk):
    desk.publish("1.0.0")
    desk.file("1.0.0").unlink()
    assert problems(desk)[0].startswith("pump/1.0.0/model.onnx is signed but missing")


def test_verify_tells_when_a_date_has_passed(desk):
    later = datetime.datetime.now(UTC) + datetime.timedelta(days=100)
    (problem,) = Repository(desk.repository).problems(later)
    assert "timestamp.json expired" in problem


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.root.json"])
def test_metadata_that_was_tampered_with_is_untrusted(desk, name):
    path = desk.repository / "metadata" / name
    path.write_bytes(path.read_bytes().replace(b"203", b"204").replace(b"2028", b"2029").replace(b"2027", b"2028"))
    with pytest.raises(UntrustedError, match=name.rsplit(".", 2)[-2]):
        Repository(desk.repository)


def test_a_timestamp_of_another_key_is_untrusted(desk):
    path = desk.repository / "metadata" / "timestamp.json"
    metadata = Metadata[Timestamp].from_file(str(path))
    metadata.sign(CryptoSigner.generate_ed25519())
    metadata.to_file(str(path))
    with pytest.raises(UntrustedError, match=r"timestamp\.json is not signed by enough"):
        Repository(desk.repository)


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_folder_without_a_repository_is_an_error_with_a_hint(tmp_path, make):
    make(tmp_path / "empty")
    with pytest.raises(RepositoryError) as caught:
        Repository(tmp_path / "empty")
    assert "outstation model init" in caught.value.hint
