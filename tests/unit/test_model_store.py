from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from model_parts import X, Y, flip
from outstation.errors import BufferLockedError, DiskError, StorageError, UntrustedError
from outstation.models.manifest import Manifest, ManifestFile, encode_manifest
from outstation.models.rollout import Event, MoveError
from outstation.models.store import ModelStore, verify_installed
from outstation.types import ModelPhase

E = Event


@pytest.fixture
def writer(tmp_path):
    writer = ModelStore(tmp_path / "models").claim()
    yield writer
    writer.close()


def put(writer, data):
    sha256 = hashlib.sha256(data).hexdigest()
    if writer.has_blob(sha256):
        return sha256
    writer.part_path(sha256).write_bytes(data)
    writer.adopt(writer.part_path(sha256), sha256)
    return sha256


def install(writer, version, *, payload=None, extra=b"golden", until=E.PROVE, name="pump"):
    """Walk a version as far as *until*, with real files."""
    payload = payload if payload is not None else f"weights of {version}".encode()
    files = (
        ManifestFile("model.onnx", put(writer, payload), len(payload)),
        ManifestFile("data/golden.npz", put(writer, extra), len(extra)),
    )
    manifest = Manifest(name=name, version=version, files=files, model="model.onnx", inputs=(X,), outputs=(Y,))
    data = encode_manifest(manifest)
    digest = hashlib.sha256(data).hexdigest()
    writer.keep_bytes(data, digest)
    for event in (E.OFFER, E.BEGIN, E.COMPLETE, E.PASS, E.ADMIT, E.PROVE):
        if event is E.COMPLETE:
            writer.assemble(manifest, digest)
        writer.move(name, version, event, at_unix_nano=7, digest=digest if event is E.BEGIN else None)
        if event is until:
            break
    return digest


def test_an_empty_or_missing_folder_is_a_store_without_models(tmp_path):
    store = ModelStore(tmp_path / "nothing")
    assert (store.active("pump"), store.answering("pump"), store.names(), store.reports()) == (None, None, (), ())
    assert store.generation() == 0
    assert not (tmp_path / "nothing").exists()


def test_a_reader_sees_the_version_that_answers_with_its_files(tmp_path, writer):
    install(writer, "1.0.0")
    model = ModelStore(tmp_path / "models").active("pump")
    assert model.version == "1.0.0"
    assert model.model_path.read_bytes() == b"weights of 1.0.0"
    assert (model.folder / "data" / "golden.npz").read_bytes() == b"golden"
    assert (model.folder / "manifest.json").is_file()


def test_a_candidate_answers_until_it_is_taken_back(tmp_path, writer):
    reader = ModelStore(tmp_path / "models")
    install(writer, "1.0.0")
    install(writer, "2.0.0", until=E.ADMIT)
    assert [reader.active("pump").version, reader.candidate("pump").version] == ["1.0.0", "2.0.0"]
    assert reader.answering("pump").version == "2.0.0"
    writer.move("pump", "2.0.0", E.FAULT, at_unix_nano=8, reason="it failed")
    assert reader.candidate("pump") is None
    assert reader.answering("pump").version == "1.0.0"
    assert reader.reports()[0].active == "1.0.0"


def test_the_generation_changes_with_every_change(tmp_path, writer):
    reader = ModelStore(tmp_path / "models")
    seen = [reader.generation()]
    for event in (E.OFFER, E.BEGIN, E.RECALL):
        writer.move("pump", "1.0.0", event, at_unix_nano=1)
        seen.append(reader.generation())
    assert len(set(seen)) == len(seen)
    assert reader.generation() == reader.generation()


def test_the_state_survives_the_process(tmp_path, writer):
    install(writer, "1.0.0")
    writer.wish("pump", "latest")
    writer.pin("pump", "1.0.0")
    writer.close()
    again = ModelStore(tmp_path / "models").claim()
    model = again.model("pump")
    assert (model.active, model.wish, model.pinned) == ("1.0.0", "latest", "1.0.0")
    again.close()


def test_a_second_writer_is_told_who_holds_the_store(tmp_path, writer):
    with pytest.raises(BufferLockedError) as caught:
        ModelStore(tmp_path / "models").claim()
    assert caught.value.pid == os.getpid()
    assert str(os.getpid()) in str(caught.value)


def test_a_writer_that_was_killed_holds_nothing(tmp_path):
    code = (
        "import sys, os, signal; from pathlib import Path; from outstation.models.store import ModelStore;"
        "w = ModelStore(Path(sys.argv[1])).claim(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "models")], check=False)
    assert done.returncode == -9
    ModelStore(tmp_path / "models").claim().close()


def test_a_move_that_the_table_has_not_changes_nothing(tmp_path, writer):
    before = writer.state()
    with pytest.raises(MoveError):
        writer.move("pump", "1.0.0", E.PROVE, at_unix_nano=1)
    assert writer.state() is before


def test_a_file_that_two_versions_share_is_kept_once(tmp_path, writer):
    install(writer, "1.0.0", extra=b"the same")
    install(writer, "2.0.0", extra=b"the same")
    one, two = (writer.installed("pump", v).folder / "data" / "golden.npz" for v in ("1.0.0", "2.0.0"))
    assert one.stat().st_ino == two.stat().st_ino
    assert len(list((tmp_path / "models" / "blobs").iterdir())) == 5  # 2 models, 2 manifests, 1 golden file


def test_without_hard_links_files_are_copied(tmp_path, writer, monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    install(writer, "1.0.0")
    verify_installed(writer.active("pump"))


def test_collecting_keeps_what_answers_and_the_last_good_version(tmp_path, writer):
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        install(writer, version)
    install(writer, "4.0.0", until=E.COMPLETE)
    install(writer, "5.0.0", until=E.COMPLETE)
    writer.move("pump", "5.0.0", E.FAIL, at_unix_nano=1, reason="wrong")
    stray = writer.part_path("f" * 64)
    stray.write_bytes(b"half a file of nobody")
    assert writer.collect() > 0
    assert writer.installed("pump", "1.0.0") is None
    assert writer.installed("pump", "5.0.0") is None
    for version in ("2.0.0", "3.0.0", "4.0.0"):
        verify_installed(writer.installed("pump", version))
    assert not stray.exists()
    assert writer.collect() == 0


def test_collecting_keeps_a_pinned_version(writer):
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        install(writer, version)
    writer.pin("pump", "1.0.0")
    writer.collect()
    assert writer.installed("pump", "1.0.0") is not None


def test_only_some_superseded_versions_are_remembered(writer):
    for number in range(1, 14):
        install(writer, f"{number}.0.0")
    phases = [state.phase for state in writer.model("pump").versions.values()]
    assert phases.count(ModelPhase.SUPERSEDED) <= 9
    assert writer.model("pump").last_good == "12.0.0"


@pytest.mark.parametrize("file", ["model.onnx", "data/golden.npz"])
def test_a_file_that_changed_on_the_disk_is_found_by_name(writer, file):
    install(writer, "1.0.0")
    model = writer.active("pump")
    flip(model.folder / file)
    with pytest.raises(UntrustedError, match=file):
        verify_installed(model)


def test_a_damaged_blob_is_not_used_again(writer):
    sha256 = put(writer, b"once good")
    assert writer.has_blob(sha256)
    flip(writer.blob_path(sha256))
    assert not writer.has_blob(sha256)
    assert not writer.blob_path(sha256).exists()


def test_a_damaged_state_is_put_aside_and_readers_see_an_empty_store(tmp_path, writer):
    install(writer, "1.0.0")
    before = writer.generation()
    writer.close()
    path = tmp_path / "models" / "state.json"
    path.write_bytes(path.read_bytes()[:40])
    assert ModelStore(tmp_path / "models").active("pump") is None
    again = ModelStore(tmp_path / "models").claim()
    again.move("pump", "1.0.0", E.OFFER, at_unix_nano=1)
    assert again.generation() > before
    assert (tmp_path / "models" / "state.json.damaged").is_file()
    again.close()


def test_a_state_of_a_newer_outstation_is_refused(tmp_path, writer):
    writer.close()
    (tmp_path / "models" / "state.json").write_bytes(b'{"generation":3,"format":2,"models":{}}')
    with pytest.raises(StorageError, match="newer Outstation"):
        ModelStore(tmp_path / "models").claim()


def test_what_a_kill_left_unfinished_is_swept_but_downloads_stay(tmp_path, writer):
    writer.close()
    half = tmp_path / "models" / "bundles" / "pump" / "1.0.0-abc.building"
    half.mkdir(parents=True)
    (tmp_path / "models" / "state.json.tmp").write_bytes(b"half")
    (tmp_path / "models" / "parts" / ("a" * 64)).write_bytes(b"half a download")
    ModelStore(tmp_path / "models").claim().close()
    assert not half.exists()
    assert not (tmp_path / "models" / "state.json.tmp").exists()
    assert (tmp_path / "models" / "parts" / ("a" * 64)).exists()


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError):
        ModelStore(tmp_path / "file" / "models").claim()


def test_readers_never_see_a_version_without_its_files(tmp_path, writer):
    """A writer that activates as fast as it can, beside readers that look as fast as they can."""
    install(writer, "1.0.0")
    done = threading.Event()
    wrong: list[str] = []

    def look():
        reader = ModelStore(tmp_path / "models")
        while not done.is_set():
            model = reader.answering("pump")
            try:
                found = model.model_path.read_bytes().decode()
            except FileNotFoundError:
                continue  # deleted after two newer ones came: the reader asks again
            if found != f"weights of {model.version}":
                wrong.append(f"{model.version}: {found}")

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(2, 40):
        install(writer, f"{number}.0.0")
        writer.collect()
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_path_of_a_bundle_holds_its_digest(writer, tmp_path):
    digest = install(writer, "1.0.0")
    assert writer.active("pump").folder == Path(tmp_path / "models" / "bundles" / "pump" / f"1.0.0-{digest[:16]}")
