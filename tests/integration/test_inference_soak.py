"""Versions that change under load, and connections by the thousand; the long runs only with `make soak`."""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
from pathlib import Path

import numpy as np
import pytest
from tritonclient import grpc as triton

from inference_process import InferenceServer
from inference_support import HandStore, scaling
from outstation.inference.host import ModelHost
from outstation.inference.remote import RemoteModels
from outstation.settings import InferenceSettings
from outstation_inference import InferenceProcess
from support import wait_until

MODEL = Path(__file__).parents[2] / "examples/meter-reading/models/v2.onnx"


def resident_bytes(pid="self"):
    return int(Path(f"/proc/{pid}/status").read_text().partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.parametrize("swaps", [10, pytest.param(100, marks=pytest.mark.soak)])
def test_swaps_under_load_fail_no_call_mix_none_and_keep_memory_flat(tmp_path, swaps):
    versions = [scaling(tmp_path / str(number), number, name="m") for number in range(1, 5)]
    store = HandStore(versions[0])
    process = InferenceProcess(ModelHost(store, preload=True), InferenceSettings(), ("127.0.0.1:0",))
    done, problems, calls = threading.Event(), [], []

    def call():
        tensor = triton.InferInput("x", [1, 4], "FP32")
        tensor.set_data_from_numpy(np.ones((1, 4), np.float32))
        with triton.InferenceServerClient(process.addresses[0]) as client:
            while not done.is_set():
                try:
                    result = client.infer("m", [tensor])
                except Exception as exc:  # noqa: BLE001 - any is one too many
                    problems.append(exc)
                    return
                calls.append(result.get_response().model_version)
                if result.as_numpy("y")[0, 0] != float(calls[-1][0]):
                    problems.append(result.get_response())

    with RemoteModels(process.addresses[0]) as models:
        model = models.get("m", timeout=10)
        threads = [threading.Thread(target=call) for _ in range(4)]
        for thread in threads:
            thread.start()
        warm = 0
        for swap in range(1, swaps + 1):
            wanted = versions[swap % 4]
            store.answer(wanted)
            wait_until(lambda wanted=wanted: model.version == wanted.version)
            warm = warm or (swap == swaps // 2 and resident_bytes())
        done.set()
        for thread in threads:
            thread.join()
    process.close()
    assert problems == []
    assert set(calls) == {version.version for version in versions}
    assert resident_bytes() - warm < 8 << 20


@pytest.mark.soak
def test_ten_thousand_connections_leave_others_served_and_memory_bounded():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 12_000:
        pytest.skip("this machine gives a process too few files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, hard))
    x = np.ones((1, 8, 8), np.float32)
    with (
        InferenceServer("--model", MODEL, "--name", "m", "--listen", "127.0.0.1:0") as server,
        RemoteModels(server.address) as models,
        contextlib.ExitStack() as opened,
    ):
        model = models.get("m")
        model.run({"image": x})
        before = resident_bytes(server.process.pid)
        host, port = server.address.split(":")
        for number in range(10_000):
            sock = opened.enter_context(socket.create_connection((host, int(port)), 10))
            with contextlib.suppress(OSError):
                sock.sendall(b"PRI * HT")
            if number % 100 == 0:
                model.run({"image": x}, timeout=10)
        assert resident_bytes(server.process.pid) - before < 64 << 20
