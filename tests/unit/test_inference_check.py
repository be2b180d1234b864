"""A version is tried in a process of its own; whatever happens there is a reason, never our crash."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import tiny_models
from inference_support import install, scaling
from outstation.errors import CheckFailedError, InferenceError, ModelLoadError
from outstation.inference.check import SubprocessChecker
from outstation.models.manifest import Budgets, TensorSpec
from support import wait_until

GOLDEN = {"input/x": np.ones((3, 4), np.float32), "output/y": np.full((3, 4), 2, np.float32)}
EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading/models"


def failure(model, checker=SubprocessChecker(), kind=CheckFailedError, timeout=60):  # noqa: B008 - stateless
    with pytest.raises(kind) as caught:
        checker.check(model, timeout)
    return str(caught.value)


def test_the_memory_of_whoever_asks_is_not_the_models(tmp_path):
    held = bytearray(b"x") * (400 << 20)
    budgets = Budgets(1.0, 300 << 20)
    assert SubprocessChecker().check(scaling(tmp_path / "a", 2, golden=GOLDEN, budgets=budgets), 60).cases
    del held


def test_a_version_that_meets_its_golden_outputs_passes_and_is_measured(tmp_path):
    result = SubprocessChecker().check(scaling(tmp_path / "a", 2, golden=GOLDEN, budgets=Budgets(1.0, 1 << 30)), 60)
    assert result.cases == 3
    assert 0 < result.p95_latency < 1
    assert 0 < result.peak_memory_bytes < 1 << 30


def test_a_version_without_golden_inputs_is_still_loaded_and_run(tmp_path):
    assert SubprocessChecker().check(scaling(tmp_path / "a", 2), 60).cases == 0


def test_a_wrong_answer_is_told_with_case_output_and_difference(tmp_path):
    said = failure(scaling(tmp_path / "a", 3, golden=GOLDEN))
    assert said.startswith("tiny 3.0.0 failed golden case 0, output 'y'[0][0] is 3 instead of 2, 1 off")


def test_a_budget_that_is_not_met_is_told_with_both_numbers(tmp_path):
    assert "the budget is 1e-06 ms" in failure(scaling(tmp_path / "a", 2, budgets=Budgets(p95_latency=1e-9)))
    assert "the budget is 10." in failure(scaling(tmp_path / "b", 2, budgets=Budgets(peak_memory_bytes=10)))


def test_a_file_that_cannot_be_loaded_is_a_load_error_with_its_hint(tmp_path):
    with pytest.raises(ModelLoadError, match="is no ONNX file") as caught:
        SubprocessChecker().check(install(tmp_path / "a", "1.0.0", b"not a model"), 60)
    assert "exported as ONNX" in caught.value.hint


def stand_in(tmp_path, script) -> SubprocessChecker:
    """A checker whose Python runs *script* instead: what a child may do that goes wrong."""
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{script}")
    path.chmod(0o755)
    return SubprocessChecker(python=str(path))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("print('garbage')", "ended with 0 and no verdict"),
        ("print('[]')", "no verdict"),
        ("import sys; sys.exit('no memory left')", "ended with 1 and no verdict: no memory left"),
        ("import sys; print('{}'); sys.exit(3)", "ended with 3"),
        ("", "no verdict"),
    ],
)
def test_a_child_that_crashes_or_says_anything_else_fails_the_version(tmp_path, script, words):
    assert words in failure(scaling(tmp_path / "a", 2), stand_in(tmp_path, script))


def test_a_child_that_hangs_is_stopped(tmp_path):
    checker = stand_in(tmp_path, "import time; time.sleep(60)")
    assert "did not end within 0.3 s" in failure(scaling(tmp_path / "a", 2), checker, timeout=0.3)


def test_a_check_that_could_not_be_carried_out_says_nothing_of_the_version(tmp_path):
    model = scaling(tmp_path / "a", 2)
    nowhere = SubprocessChecker(python=str(tmp_path / "nowhere"))
    assert "could not be started" in failure(model, nowhere, kind=InferenceError)
    stopped = stand_in(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert "stopped by SIGTERM" in failure(model, stopped, kind=InferenceError)


def test_a_runtime_that_is_not_installed_is_no_fault_of_the_version(tmp_path):
    said = '{"error": "MissingExtraError", "message": "openvino is missing.", "hint": "Install it."}'
    lacking = stand_in(tmp_path, f"print({said!r})")
    assert "could not be carried out: openvino is missing" in failure(
        scaling(tmp_path / "a", 2), lacking, kind=InferenceError
    )


def test_closing_stops_a_check_that_runs_and_says_nothing_of_the_version(tmp_path):
    checker = stand_in(tmp_path, "import time; time.sleep(600)")
    raised: list[BaseException] = []

    def check() -> None:
        try:
            checker.check(scaling(tmp_path / "a", 2), 600)
        except InferenceError as exc:
            raised.append(exc)

    thread = threading.Thread(target=check)
    thread.start()
    wait_until(lambda: checker._children)
    checker.close()
    thread.join(20)
    assert not thread.is_alive()
    assert "stopped by SIGTERM" in str(raised[0])
    with pytest.raises(InferenceError, match="station is closing"):
        checker.check(scaling(tmp_path / "b", 2), 60)


def test_the_child_is_told_no_secret(tmp_path, monkeypatch):
    monkeypatch.setenv("OUTSTATION_BUFFER__KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    checker = stand_in(tmp_path, "import os, sys; sys.exit(' '.join(sorted(os.environ)))")
    said = failure(scaling(tmp_path / "a", 2), checker)
    assert "PATH" in said
    assert "KEY" not in said
    assert "HOME" not in said.split()


def test_a_python_file_in_a_bundle_is_never_run(tmp_path):
    model = scaling(tmp_path / "a", 2, golden=GOLDEN)
    for name in ("numpy", "json", "msgspec", "onnxruntime", "sitecustomize"):
        (model.folder / f"{name}.py").write_text("raise SystemExit('run')")
    assert SubprocessChecker().check(model, 60).cases == 3


def test_the_examples_models_pass_and_the_one_with_the_bad_label_map_does_not(tmp_path):
    def bundle(name):
        with np.load(EXAMPLE / f"{name}.golden.npz") as golden:
            return install(
                tmp_path / name,
                f"{name[1:]}.0.0",
                (EXAMPLE / f"{name}.onnx").read_bytes(),
                name="meter-digits",
                inputs=(TensorSpec("image", "FP32", (-1, 8, 8)),),
                outputs=(TensorSpec("digit", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 10))),
                golden=dict(golden),
            )

    for name in ("v1", "v2"):
        assert SubprocessChecker().check(bundle(name), 60).cases == 12
    assert "golden case 0, output 'digit'[0] is" in failure(bundle("v4"))


def test_the_tiny_identity_is_no_scaling(tmp_path):
    assert "golden case 0" in failure(install(tmp_path / "a", "1.0.0", tiny_models.identity(), golden=GOLDEN))
