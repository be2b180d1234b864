"""Publishing makes deltas beside a version, signs them, and forgets those that nobody needs any more."""

from __future__ import annotations

import datetime
import json
import logging

import numpy as np
import pytest

import tiny_models
from delta_parts import external_model, sha256
from model_parts import UTC, Desk, error_of, flip, run
from outstation.errors import InvalidInputError
from outstation.models import publish as publishing
from outstation.models.bundle import Draft
from outstation.models.chain import SignedFile
from outstation.models.delta import apply_delta
from outstation.models.deltas import DELTAS, MAX_CHUNKS, delta_path, expected_delta, offered
from outstation.models.publish import publish
from outstation.models.repository import Repository

INPUTS, OUTPUTS = 64, 96  # 24 KiB of weights


def weights(step: int) -> np.ndarray:
    """Those of one training run, a little further with each *step*."""
    base = np.random.default_rng(0).standard_normal((INPUTS, OUTPUTS))
    moved = np.random.default_rng(step).standard_normal((INPUTS, OUTPUTS))
    return (base + 1e-3 * step * moved).astype(np.float32)


def put(desk: Desk, version: str, step: int, **options) -> None:
    source = desk.folder / "source.onnx"
    source.write_bytes(tiny_models.linear(weights(step), np.zeros(OUTPUTS)))
    publish(
        source,
        repository=desk.repository,
        keys=desk.keys,
        draft=Draft(name="pump", version=version),
        **options,
    )


@pytest.fixture
def desk(tmp_path):
    return Desk(tmp_path)


def froms(desk, version):
    return sorted(delta.custom["from"] for delta in Repository(desk.repository).deltas("pump", version))


def problems(desk):
    return list(Repository(desk.repository).problems(datetime.datetime.now(UTC)))


def test_a_version_has_deltas_from_the_three_before_it(desk):
    for step in range(5):
        put(desk, f"1.{step}.0", step)
    assert froms(desk, "1.0.0") == []
    assert froms(desk, "1.4.0") == ["1.1.0", "1.2.0", "1.3.0"]
    assert problems(desk) == []


def test_a_delta_is_signed_and_gives_the_file(desk, tmp_path):
    put(desk, "1.0.0", 0)
    put(desk, "1.1.0", 1)
    repository = Repository(desk.repository)
    (delta,) = repository.deltas("pump", "1.1.0")
    old, new = desk.file("1.0.0"), desk.file("1.1.0")
    place = desk.repository / delta.source_path
    assert delta.sha256 == sha256(place.read_bytes())
    assert delta.size_bytes < 0.9 * new.stat().st_size
    whole = repository.chain.targets.targets["pump/1.1.0/model.onnx"]
    assert offered(whole.custom) == {sha256(old.read_bytes()): delta.path}
    data = new.read_bytes()
    apply_delta(place, old, tmp_path / "made", sha256=sha256(data), size_bytes=len(data))
    assert (tmp_path / "made").read_bytes() == data


def test_the_manifest_knows_nothing_of_deltas(desk):
    put(desk, "1.0.0", 0)
    put(desk, "1.1.0", 1)
    assert b"delta" not in desk.file("1.1.0", ".manifest.json").read_bytes()
    assert Repository(desk.repository).versions() == [("pump", "1.1.0"), ("pump", "1.0.0")]


def test_no_delta_is_made_where_it_saves_too_little(desk):
    put(desk, "1.0.0", 0)
    put(desk, "2.0.0", 5000)  # other weights altogether: 83 % of the file by planes, so made
    source = desk.folder / "source.onnx"
    source.write_bytes(
        tiny_models.linear(np.frombuffer(np.random.default_rng(1).bytes(4 * 6144), "<f4").reshape(64, 96), np.zeros(96))
    )
    publish(source, repository=desk.repository, keys=desk.keys, draft=Draft(name="pump", version="3.0.0"))
    assert froms(desk, "3.0.0") == []
    assert problems(desk) == []


def test_none_is_made_for_a_small_file_nor_when_none_is_wanted(desk):
    desk.publish("1.0.0")
    desk.publish("2.0.0")
    assert froms(desk, "2.0.0") == []
    put(desk, "3.0.0", 0)
    put(desk, "3.1.0", 1, deltas=0)
    assert froms(desk, "3.1.0") == []
    assert isinstance(error_of(lambda: put(desk, "3.2.0", 2, deltas=-1)), InvalidInputError)


def test_only_versions_before_are_bases(desk):
    put(desk, "1.0.0", 0)
    put(desk, "2.0.0", 2)
    put(desk, "1.1.0", 1)
    assert froms(desk, "1.1.0") == ["1.0.0"]


def test_deltas_of_old_versions_are_forgotten_and_deleted(desk):
    for step in range(5):
        put(desk, f"1.{step}.0", step)
    assert froms(desk, "1.1.0") == []
    assert froms(desk, "1.2.0") == ["1.0.0", "1.1.0"]
    targets = Repository(desk.repository).chain.targets.targets
    assert targets["pump/1.1.0/model.onnx"].custom == {DELTAS: {}}
    assert not list((desk.repository / "targets/pump/1.1.0").glob("~deltas/*/*"))
    assert list((desk.repository / "targets/pump/1.2.0").glob("~deltas/*/*"))
    assert problems(desk) == []


def test_a_publisher_that_is_interrupted_leaves_the_old_state(desk, monkeypatch):
    put(desk, "1.0.0", 0)

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing, "_write_next", stop)
    with pytest.raises(KeyboardInterrupt):
        put(desk, "1.1.0", 1)
    monkeypatch.undo()
    assert Repository(desk.repository).versions() == [("pump", "1.0.0")]
    put(desk, "1.1.0", 1)
    assert froms(desk, "1.1.0") == ["1.0.0"]
    assert problems(desk) == []


def test_a_damaged_version_at_the_desk_is_no_base_and_no_obstacle(desk, caplog):
    put(desk, "1.0.0", 0)
    put(desk, "1.1.0", 1)
    flip(desk.file("1.1.0"))
    with caplog.at_level(logging.WARNING):
        put(desk, "1.2.0", 2)
    assert froms(desk, "1.2.0") == ["1.0.0"]
    assert "No delta from pump 1.1.0" in caplog.text


def test_yanking_keeps_the_deltas(desk):
    put(desk, "1.0.0", 0)
    put(desk, "1.1.0", 1)
    publishing.yank("pump", "1.1.0", "wrong", repository=desk.repository, keys=desk.keys)
    assert froms(desk, "1.1.0") == ["1.0.0"]


def test_what_is_offered_is_read_with_care():
    base = "ab" * 32
    path = delta_path("pump", "1.0.0", base, "model.onnx")
    assert offered({DELTAS: {base: path}}) == {base: path}
    for wrong in (None, [], {base: 1}, {base: "pump/1.0.0/model.onnx"}, {"xy": path}, {base: "../../etc/passwd"}):
        assert offered({DELTAS: wrong}) == {}
    many = {f"{number:064x}": path for number in range(1000)}
    assert len(offered({DELTAS: many})) < 20


def test_hashes_of_chunks_count_only_when_they_fit_the_size():
    good = {"chunk_bytes": 100, "chunks": ["0" * 64] * 3}
    assert len(expected_delta(SignedFile("p", "a", 250, "s", good)).chunks) == 3
    for wrong in ({}, {**good, "chunk_bytes": 0}, {**good, "chunk_bytes": 10}, {**good, "chunks": ["x"] * 3}):
        assert expected_delta(SignedFile("p", "a", 250, "s", wrong)).chunks == ()
    assert MAX_CHUNKS == 64


# -- the command ---------------------------------------------------------------------------------------------------


def test_publish_says_what_the_deltas_cost(desk, tmp_path):
    put(desk, "1.0.0", 0)
    source = tmp_path / "new.onnx"
    source.write_bytes(tiny_models.linear(weights(1), np.zeros(OUTPUTS)))
    where = ("--repository", str(desk.repository), "--keys", str(desk.keys), "--name", "pump")
    assert "delta of model.onnx from 1.0.0: " in run("publish", str(source), *where, "--version", "1.1.0").output
    assert "delta" not in run("publish", str(source), *where, "--version", "1.2.0", "--deltas", "0").output


def test_diff_tells_what_changed(desk):
    put(desk, "1.0.0", 0)
    put(desk, "1.1.0", 1)
    where = ("--repository", str(desk.repository), "--name", "pump")
    found = json.loads(run("diff", "1.0.0", "1.1.0", *where, "--json").output)
    (tensor, bias) = sorted(found["tensors"], key=lambda entry: -entry["bytes"])
    assert (tensor["name"], tensor["way"], tensor["bytes"]) == ("weights", "difference", 4 * INPUTS * OUTPUTS)
    assert (bias["name"], bias["way"], bias["changed"]) == ("bias", "same", 0.0)
    assert tensor["changed"] > 0.99
    assert 0.0005 < tensor["relative"] < 0.002
    assert 0.002 < tensor["largest"] < 0.01
    assert found["delta_bytes"] < found["zstd_bytes"] < found["whole_bytes"]
    shown = run("diff", "1.0.0", "1.1.0", *where).output
    assert "1 of 2 tensors are the same" in shown
    assert "weights 24576 difference" in shown


def test_diff_takes_files_and_says_what_is_new_and_what_is_gone(tmp_path):
    (tmp_path / "a.onnx").write_bytes(tiny_models.linear(weights(0), np.zeros(OUTPUTS)))
    (tmp_path / "b.onnx").write_bytes(tiny_models.linear(weights(0)[:, :80], np.ones(80)))
    found = json.loads(run("diff", str(tmp_path / "a.onnx"), str(tmp_path / "b.onnx"), "--json").output)
    assert sorted(tensor["way"] for tensor in found["tensors"]) == ["gone", "gone", "new", "new"]
    assert isinstance(error_of(lambda: run("diff", "1.0.0", "1.1.0")), InvalidInputError)
    assert isinstance(error_of(lambda: run("diff", "1", "2", "--repository", str(tmp_path))), InvalidInputError)


def test_external_data_has_a_delta_by_its_tensors(desk, tmp_path):
    for step in range(2):
        folder = tmp_path / str(step)
        folder.mkdir()
        external_model(folder, {"w": weights(step)})
        publish(folder, repository=desk.repository, keys=desk.keys, draft=Draft(name="pump", version=f"1.{step}.0"))
    (delta,) = Repository(desk.repository).deltas("pump", "1.1.0")
    assert delta.path.endswith("/weights.bin")
    assert delta.size_bytes < 0.65 * weights(0).nbytes
    assert problems(desk) == []
