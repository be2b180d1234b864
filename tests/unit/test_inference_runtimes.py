"""What every runtime does alike: the same files, the same answers, the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import tiny_models
from inference_support import HandStore, install, scaling
from outstation.errors import CheckFailedError, DeadlineError, InferenceError, ModelLoadError
from outstation.inference import openvino
from outstation.inference.check import SubprocessChecker
from outstation.inference.host import ModelHost
from outstation.inference.loading import load_file, load_installed
from outstation.inference.model import Model
from outstation.inference.runtime import RuntimeOptions, runtime
from outstation.models.manifest import RuntimeRequirement
from outstation.settings import InferenceSettings
from support import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading"
TYPES = {
    TensorProto.BOOL: np.bool_,
    TensorProto.UINT8: np.uint8,
    TensorProto.UINT16: np.uint16,
    TensorProto.UINT32: np.uint32,
    TensorProto.UINT64: np.uint64,
    TensorProto.INT8: np.int8,
    TensorProto.INT16: np.int16,
    TensorProto.INT32: np.int32,
    TensorProto.INT64: np.int64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
}


@pytest.fixture(params=["onnx", "openvino"])
def options(request) -> RuntimeOptions:
    return RuntimeOptions(runtime=request.param)


def written(tmp_path, data, name="model.onnx"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


def identity(kind, shape=("n", "m")) -> bytes:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, shape)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def refusal(path, options):
    with pytest.raises(ModelLoadError) as caught:
        load_file(path, options)
    assert "\n" not in str(caught.value)
    return f"{caught.value} {caught.value.hint}"


def test_the_example_reads_every_held_out_scan_as_the_other_runtime_does(options):
    with np.load(EXAMPLE / "digits.npz") as file:
        scans = file["images"][file["held_out"]].astype(np.float32)
    other = replace(options, runtime="onnx" if options.runtime == "openvino" else "openvino")
    ours, theirs = (load_file(EXAMPLE / "models/v2.onnx", chosen).run({"image": scans}) for chosen in (options, other))
    assert list(ours) == ["digit", "probabilities"]
    assert (ours["digit"] == theirs["digit"]).all()
    np.testing.assert_allclose(ours["probabilities"], theirs["probabilities"], atol=1e-5)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: np.dtype(TYPES[kind]).name)
def test_every_datatype_goes_in_and_comes_out(options, kind, tmp_path):
    version = load_file(written(tmp_path, identity(kind)), options)
    for rows in (1, 3, 0):
        x = np.arange(rows * 2).reshape(rows, 2).astype(TYPES[kind])
        x.flags.writeable = False
        answer = version.run({"x": x})["y"]
        assert answer.dtype == x.dtype
        assert answer.tolist() == x.tolist()


def test_answers_belong_to_the_caller_and_inputs_may_be_views(options, tmp_path):
    version = load_file(written(tmp_path, tiny_models.scale(2)), options)
    whole = np.arange(16, dtype=np.float32).reshape(2, 8)
    with Model("tiny", version) as model:
        for timeout in (None, 30.0):
            first = model.run({"x": whole[:, ::2]}, timeout=timeout)["y"]
            model.run({"x": np.zeros((2, 4), np.float32)}, timeout=timeout)
            assert first.tolist() == (2 * whole[:, ::2]).tolist()
            first[:] = 0  # nobody else's


def test_eight_threads_get_their_own_answers(options, tmp_path):
    version = load_file(written(tmp_path, tiny_models.scale(2)), options)
    wrong = []

    def call(seed):
        x = np.full((1, 4), seed, np.float32)
        wrong.extend(seed for _ in range(50) if version.run({"x": x})["y"][0, 0] != 2 * seed)

    threads = [threading.Thread(target=call, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (version.health.calls, version.health.errors) == (400, 0)


def test_a_file_that_cannot_be_loaded_is_told_on_one_line(options, tmp_path):
    assert "exported as ONNX" in refusal(written(tmp_path, b"\x89PNG\r\n" * 100), options)
    assert "is empty. The export or the copy of it was cut short." in refusal(written(tmp_path, b""), options)
    assert "There is no file" in refusal(tmp_path / "missing.onnx", options)


def test_an_accelerator_that_is_not_there_is_reported_and_the_processor_computes(options, tmp_path):
    path = written(tmp_path, tiny_models.scale(1))
    placement = load_file(path, replace(options, accelerators=("cuda", "cpu"))).placement
    assert (placement.accelerator, placement.runtime) == ("cpu", options.runtime)
    assert len(placement.fallbacks) == 1
    assert placement.fallbacks[0].startswith("cuda: not in this build of ")
    assert load_file(path, options).placement.fallbacks == ()
    assert "'abacus'" in refusal(path, replace(options, accelerators=("abacus",)))


def test_threads_arena_and_execution_mode_change_no_answer(options):
    scan = np.ones((1, 8, 8), np.float32)
    expected = load_file(EXAMPLE / "models/v2.onnx", options).run({"image": scan})
    for threads, parallel, arena in ((0, False, True), (2, True, False)):
        chosen = replace(options, threads=threads, parallel=parallel, arena=arena)
        answer = load_file(EXAMPLE / "models/v2.onnx", chosen).run({"image": scan})
        np.testing.assert_allclose(answer["probabilities"], expected["probabilities"], atol=1e-6)


def test_an_unknown_runtime_is_refused():
    with pytest.raises(ModelLoadError, match="'tflite'"):
        runtime("tflite")


def endless() -> bytes:
    """A loop of many million steps: what takes too long."""
    step = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["go_on"]), helper.make_node("Add", ["v", "one"], ["v_next"])],
        "step",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v_next", TensorProto.FLOAT, [1]),
        ],
        [numpy_helper.from_array(np.ones(1, np.float32), "one")],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["times", "", "x"], ["y"], body=step)],
        "endless",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]),
            helper.make_tensor_value_info("times", TensorProto.INT64, []),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def test_a_call_ends_at_its_timeout_and_the_next_one_works(options, tmp_path):
    with Model("slow", load_file(written(tmp_path, endless()), options)) as model:
        x = np.zeros(1, np.float32)
        for timeout in (0.05, 0.01):
            with pytest.raises(DeadlineError, match="its time was up"):
                # OpenVINO computes a loop to its end: this one takes it about half a second.
                model.run(
                    {"x": x, "times": np.array(1 << 40 if options.runtime == "onnx" else 1 << 18)}, timeout=timeout
                )
        assert model.run({"x": x, "times": np.array(3)}, timeout=60)["y"].tolist() == [3.0]
        assert model.run({"x": x, "times": np.array(3)})["y"].tolist() == [3.0]
    assert not any(thread.name == "outstation-deadlines" for thread in threading.enumerate())


def test_calls_that_were_given_up_are_bounded_and_their_places_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(openvino, "MAX_ABANDONED", 1)
    with Model("slow", load_file(written(tmp_path, endless()), RuntimeOptions(runtime="openvino"))) as model:
        long, short = ({"x": np.zeros(1, np.float32), "times": np.array(times)} for times in (1 << 18, 3))
        with pytest.raises(DeadlineError):
            model.run(long, timeout=0.01)
        with pytest.raises(InferenceError, match="still being computed"):
            model.run(short)

        def answers() -> bool:
            try:
                return model.run(short)["y"].tolist() == [3.0]
            except InferenceError:
                return False

        wait_until(answers, timeout=60)


def test_text_is_not_for_openvino(tmp_path):
    path = written(tmp_path, identity(TensorProto.STRING))
    assert "ONNX Runtime: inference.runtime" in refusal(path, RuntimeOptions(runtime="openvino"))


def test_the_manifest_names_the_runtime_and_the_settings_another(tmp_path):
    installed = scaling(tmp_path / "a", 2, runtime=RuntimeRequirement("openvino", "2025.0"))
    assert load_installed(installed, RuntimeOptions()).placement.runtime == "openvino"
    assert load_installed(installed, RuntimeOptions(runtime="onnx")).placement.runtime == "onnx"
    late = scaling(tmp_path / "b", 2, runtime=RuntimeRequirement("openvino", "9999.0"))
    with pytest.raises(ModelLoadError, match=r"needs openvino 9999\.0"):
        load_installed(late, RuntimeOptions())
    chosen = RuntimeOptions(runtime="onnx")
    assert load_installed(late, chosen).version == "2.0.0"
    assert SubprocessChecker(chosen).check(late, 60).cases == 0
    with pytest.raises(ModelLoadError, match=r"needs openvino 9999\.0"):
        SubprocessChecker().check(late, 60)


def test_a_host_and_the_check_before_it_use_the_runtime_of_the_settings(options, tmp_path):
    golden = {"input/x": np.ones((3, 4), np.float32), "output/y": np.full((3, 4), 2, np.float32)}
    good = scaling(tmp_path / "a", 2, golden=golden)
    checker = SubprocessChecker(options)
    assert checker.check(good, 60).cases == 3
    with pytest.raises(CheckFailedError, match="golden case 0"):
        checker.check(install(tmp_path / "b", "3.0.0", tiny_models.scale(3), golden=golden), 60)
    with ModelHost(HandStore(good), InferenceSettings(runtime=options.runtime)) as host:
        model = host.get("tiny", timeout=30)
        assert model.placement.runtime == options.runtime
        assert model.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[2.0] * 4]


def test_openvino_tells_nobody_anything_and_leaves_no_trace(tmp_path):
    """Its telemetry asks for HOME first, then opens a connection from a child process: neither happens."""
    script = (
        "import sys; calls = []\n"
        "sys.addaudithook(lambda event, _: calls.append(event) if event in WATCHED else None)\n"
        "WATCHED = {'socket.connect', 'socket.getaddrinfo', 'os.fork', 'subprocess.Popen', 'urllib.Request'}\n"
        "from pathlib import Path\n"
        "from outstation.inference.loading import load_file\n"
        "from outstation.inference.runtime import RuntimeOptions\n"
        f"load_file(Path({str(EXAMPLE / 'models/v1.onnx')!r}), RuntimeOptions(runtime='openvino'))\n"
        "assert calls == [], calls\n"
        "assert not any(name.startswith('openvino_telemetry.') for name in sys.modules)\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "CI"}
    (tmp_path / "home").mkdir()
    environ |= {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], check=True, env=environ, timeout=120)
    assert [path.name for path in tmp_path.rglob("*")] == ["home"]
