"""The baseline in a manifest is what the training data looked like, within bounds."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import pytest

import tiny_models
from model_parts import Desk, run
from outstation.errors import InvalidInputError
from outstation.models import baseline as profiling
from outstation.models.baseline import histogram, profile
from outstation.models.probe import ModelProbe
from outstation.models.repository import Repository

DICE = np.random.default_rng(7)


@pytest.fixture
def probe(tmp_path):
    path = tmp_path / "scale.onnx"
    path.write_bytes(tiny_models.scale(2))
    return ModelProbe(path)


def saved(folder, **arrays):
    path = folder / "training.npz"
    np.savez(path, **arrays)
    return path


def test_many_numbers_fall_into_tenths_with_open_ends():
    found = histogram(DICE.normal(size=10_000))
    assert len(found.edges) == 9
    assert found.counts == (1000,) * 10
    assert found.edges[0] == pytest.approx(-1.28, abs=0.05)


def test_a_number_on_an_edge_belongs_to_the_bin_that_begins_there():
    found = histogram([0.0] * 50 + list(range(1, 41)))
    counted = [sum(low <= n < high for n in [0.0] * 50 + list(range(1, 41))) for low, high in _bins(found)]
    assert list(found.counts) == counted
    assert sum(found.counts) == 90


def test_a_few_levels_have_a_bin_each_and_what_is_outside_of_them_its_own():
    found = histogram(np.array([3, 3, 4, 7], dtype=np.int64))
    assert found.counts == (0, 2, 1, 1, 0)
    live = np.array([2.9, 3, 4, 7, 7.1])
    assert np.bincount(np.searchsorted(found.edges, live, side="right"), minlength=5).tolist() == [1, 1, 1, 1, 1]


def test_what_never_changes_is_told_from_all_else():
    found = histogram([5.0] * 10)
    assert found.counts == (0, 10, 0)
    assert histogram([True, False, True]).counts == (0, 1, 2, 0)


def test_missing_and_infinite_numbers_are_counted():
    found = histogram([np.nan, np.nan, 1.0, np.inf, -np.inf])
    assert (found.missing, found.counts) == (2, (1, 1, 1))
    assert histogram([np.nan]).counts == (0,)


def test_each_element_of_a_small_row_is_a_feature(probe, tmp_path):
    rows = DICE.normal(size=(500, 4)).astype(np.float32)
    found = profile(probe, saved(tmp_path, x=rows))
    assert found.rows == 500
    assert list(found.inputs) == ["x[0]", "x[1]", "x[2]", "x[3]"]
    assert list(found.outputs) == ["y[0]", "y[1]", "y[2]", "y[3]"]
    for column in range(4):
        assert found.inputs[f"x[{column}]"] == histogram(rows[:, column])
        assert found.outputs[f"y[{column}]"] == histogram(2 * rows[:, column])


def test_cases_may_have_an_axis_of_their_own(probe, tmp_path):
    rows = DICE.normal(size=(50, 4)).astype(np.float32)
    assert profile(probe, saved(tmp_path, x=rows[:, None])) == profile(probe, saved(tmp_path, x=rows))
    several = profile(probe, saved(tmp_path, x=DICE.normal(size=(50, 3, 4)).astype(np.float32)))
    assert (list(several.inputs), list(several.outputs)) == (["x"], ["y"])
    assert sum(several.inputs["x"].counts) == 50 * 3 * 4


def test_an_image_is_one_feature(tmp_path):
    path = tmp_path / "image.onnx"
    path.write_bytes(tiny_models.scale(2, width=profiling.MAX_ELEMENTS + 1))
    rows = DICE.normal(size=(20, profiling.MAX_ELEMENTS + 1)).astype(np.float32)
    found = profile(ModelProbe(path), saved(tmp_path, x=rows))
    assert list(found.inputs) == ["x"]
    assert sum(found.inputs["x"].counts) == rows.size
    assert list(found.outputs) == ["y"]


def test_of_a_large_set_some_answers_stand_for_all(probe, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "MAX_ANSWERED", 100)
    found = profile(probe, saved(tmp_path, x=DICE.normal(size=(1000, 4)).astype(np.float32)))
    assert sum(found.inputs["x[0]"].counts) == found.rows == 1000
    assert sum(found.outputs["y[0]"].counts) == 100


def test_more_features_than_a_device_counts_are_refused(probe, tmp_path, monkeypatch):
    monkeypatch.setattr(profiling, "MAX_FEATURES", 3)
    with pytest.raises(InvalidInputError, match="4 features"):
        profile(probe, saved(tmp_path, x=np.zeros((3, 4), np.float32)))


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"z": np.zeros((3, 4), np.float32)}, "no array input/x"),
        ({"x": np.zeros((0, 4), np.float32)}, "0"),
        ({"x": np.float32(1)}, "0"),
    ],
)
def test_what_is_no_training_data_of_this_model_is_refused(probe, tmp_path, arrays, says):
    with pytest.raises(InvalidInputError, match=says):
        profile(probe, saved(tmp_path, **arrays))


def test_publish_signs_the_baseline_and_says_so(tmp_path):
    desk = Desk(tmp_path)
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_models.scale(3))
    data = saved(tmp_path, x=DICE.normal(size=(300, 4)).astype(np.float32))
    words = ["publish", model, "--repository", desk.repository, "--keys", desk.keys, "--name", "pump"]
    said = run(*map(str, words), "--version", "1.0.0", "--baseline", str(data)).output
    assert "baseline of 300 rows: 4 features of inputs, 4 of outputs" in said
    assert "a device will check:" in said
    manifest = Repository(desk.repository).published("pump", "1.0.0").manifest
    assert manifest.baseline == profile(ModelProbe(model), data)
    kept = json.loads(desk.file("1.0.0", ".manifest.json").read_text())["baseline"]["inputs"]["x[0]"]
    assert sum(kept["counts"]) == 300


def _bins(found):
    edges = [-np.inf, *found.edges, np.inf]
    return list(pairwise(edges))
