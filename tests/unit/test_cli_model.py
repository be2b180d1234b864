from __future__ import annotations

import json

import numpy as np
import pytest

import tiny_models
from model_parts import flip, run
from outstation.errors import InvalidInputError, OutstationError, RepositoryError


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A folder to work in, with a model and golden inputs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.onnx").write_bytes(tiny_models.scale(2.0))
    np.savez(tmp_path / "golden.npz", x=np.ones((2, 4), np.float32))
    return tmp_path


def publish(version, *more):
    where = ("--repository", "repo", "--keys", "keys", "--name", "pump", "--version", version)
    return run("publish", "m.onnx", *where, *more)


def test_a_repository_is_made_published_to_listed_and_verified(desk):
    made = run("init", "repo", "--keys", "keys").output
    assert "repo/metadata/1.root.json (sha256 " in made
    said = publish(
        "1.0.0", "--golden", "golden.npz", "--budget", "p95=20ms,memory=64MiB", "--metric", "accuracy=0.97"
    ).output
    assert "published pump 1.0.0: 2 files" in said
    assert "p95 latency at most 20 ms" in said
    assert "peak memory at most 67108864 bytes" in said
    publish("2.0.0")
    lines = run("list", "repo").output.splitlines()
    assert [line.split()[:2] for line in lines] == [["pump", "2.0.0"], ["pump", "1.0.0"]]
    assert "accuracy=0.97" in lines[1]
    assert "5 files of 2 versions" in run("verify", "repo").output


def test_a_version_is_withdrawn_and_the_repository_refreshed(desk):
    run("init", "repo", "--keys", "keys")
    publish("1.0.0")
    where = ("--repository", "repo", "--keys", "keys")
    assert "withdrew pump 1.0.0" in run("yank", "pump", "1.0.0", "--reason", "wrong scaler", *where).output
    assert "wrong scaler" in run("list", "repo").output
    assert "fresh for 90 days more" in run("refresh", "repo", "--keys", "keys").output
    assert run("verify", "repo").exit_code == 0


def test_list_and_verify_speak_json(desk):
    run("init", "repo", "--keys", "keys")
    publish("1.0.0", "--metric", "accuracy=0.97", "--metric", "recall=0.9")
    (row,) = json.loads(run("list", "repo", "--json").output)
    assert (row["version"], row["metrics"]) == ("1.0.0", {"accuracy": 0.97, "recall": 0.9})
    assert json.loads(run("verify", "repo", "--json").output)["problems"] == []


def test_verify_exits_with_1_and_the_reasons(desk):
    run("init", "repo", "--keys", "keys")
    publish("1.0.0")
    (model,) = (desk / "repo" / "targets" / "pump" / "1.0.0").glob("*.onnx")
    flip(model)
    result = run("verify", "repo")
    assert result.exit_code == 1
    assert "pump/1.0.0/model.onnx has sha256" in result.output
    (problem,) = json.loads(run("verify", "repo", "--json").output)["problems"]
    assert "the publisher signed" in problem


def test_keys_may_have_a_passphrase(desk):
    (desk / "secret").write_text("correct horse\n")
    run("init", "repo", "--keys", "keys", "--passphrase-file", "secret")
    publish("1.0.0", "--passphrase-file", "secret")
    with pytest.raises(OutstationError, match="is encrypted") as caught:
        publish("2.0.0")
    assert "--passphrase-file" in caught.value.hint
    (desk / "empty").write_text("\n")
    with pytest.raises(InvalidInputError, match="no passphrase"):
        publish("2.0.0", "--passphrase-file", "empty")


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--budget", "p99=3ms", "p95 or memory"),
        ("--budget", "p95", "p95 or memory"),
        ("--budget", "p95=fast", "no duration"),
        ("--budget", "p95=0", "no duration"),
        ("--budget", "memory=2XB", "no size"),
        ("--requires", "memory=", "memory or instructions"),
        ("--metric", "accuracy=high", "no number"),
        ("--metric", "accuracy", "NAME=NUMBER"),
    ],
)
def test_options_that_are_no_options_are_wrong_input(desk, option, value, says):
    run("init", "repo", "--keys", "keys")
    with pytest.raises(InvalidInputError, match=says):
        publish("1.0.0", option, value)


@pytest.mark.parametrize(
    ("text", "seconds", "size"),
    [("p95=0.5", 0.5, None), ("p95=250us", 0.00025, None), ("memory=1.5GB", None, 1_500_000_000)],
)
def test_budgets_have_units(desk, text, seconds, size):
    run("init", "repo", "--keys", "keys")
    publish("1.0.0", "--budget", text)
    (manifest,) = (desk / "repo" / "targets" / "pump" / "1.0.0").glob("*.manifest.json")
    budgets = json.loads(manifest.read_bytes())["budgets"]
    assert (budgets["p95_latency"], budgets["peak_memory_bytes"]) == (seconds, size)


def test_an_empty_folder_is_no_repository(desk):
    (desk / "empty").mkdir()
    for command in ("list", "verify"):
        with pytest.raises(RepositoryError, match="empty holds no repository"):
            run(command, "empty")


@pytest.mark.parametrize("command", ["init", "publish", "list", "verify", "refresh", "yank"])
def test_every_command_explains_itself_with_an_example(command):
    assert "Example: outstation model" in " ".join(run(command, "--help").output.split())
