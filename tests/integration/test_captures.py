"""A model that takes images, in the component and in the process; its captures offline, at the hub, and exported."""

from __future__ import annotations

import io
import json
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from hub_parts import drained, hub_settings, rows
from inference_support import install, put, scaling
from outstation.cli.main import app
from outstation.inference.host import ModelHost
from outstation.inference.remote import RemoteModels
from outstation.models.manifest import TensorSpec, parse_processing
from outstation.models.store import ModelStore
from outstation.settings import (
    BatchingSettings,
    BufferSettings,
    CaptureSettings,
    InferenceSettings,
    Settings,
    StationSettings,
)
from outstation_agent import Agent
from outstation_hub import Hub
from outstation_inference import InferenceProcess
from support import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading"
PROCESSING = {
    "inputs": [
        {
            "name": "image",
            "steps": [
                {"step": "image", "mode": "grey"},
                {"step": "resize", "height": 8, "width": 8},
                {"step": "scale", "factor": 16 / 255},
                {"step": "layout", "from": "NHWC", "to": "NHW"},
            ],
        }
    ],
    "outputs": [
        {"name": "label", "of": "digit", "steps": [{"step": "labels"}]},
        {"name": "probabilities"},
    ],
}


def bundle(folder):
    return install(
        folder,
        "2.0.0",
        (EXAMPLE / "models/v2.onnx").read_bytes(),
        name="meter-digits",
        inputs=(TensorSpec("image", "FP32", (-1, 8, 8)),),
        outputs=(TensorSpec("digit", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 10))),
        processing=parse_processing(json.dumps(PROCESSING).encode()),
        labels="\n".join(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]),
    )


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture
def scans():
    """Scans as a camera gives them: PNG files, 48 by 48."""
    with np.load(EXAMPLE / "digits.npz") as file:
        images = file["images"][file["held_out"]][:40]
    made = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray((image.astype(np.float32) * 255 / 16).astype(np.uint8)).resize((48, 48)).save(file, "PNG")
        made.append(np.array([file.getvalue()], object))
    return made


def export(*arguments) -> str:
    done = CliRunner().invoke(app, ["capture", "export", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def test_a_client_of_rest_asks_for_a_capture_by_a_parameter(tmp_path):
    settings = Settings(
        station=StationSettings(name="press-7", data_dir=str(tmp_path / "data")),
        inference=InferenceSettings(listen="127.0.0.1:0"),
    )
    writer = ModelStore(tmp_path / "data/models").claim()
    put(writer, scaling(tmp_path / "bundle", 2))
    writer.close()
    agent = Agent(settings)
    process = InferenceProcess.from_store(settings)
    try:
        call = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
        for parameters in ({}, {"capture": "by hand"}, {"capture": 7}):
            body = json.dumps(call | {"parameters": parameters}).encode()
            with urlopen(Request(f"http://{process.addresses[0]}/v2/models/tiny/infer", body), timeout=10) as answer:
                assert json.load(answer)["outputs"][0]["data"] == [2, 4, 6, 8]
    finally:
        process.close()
        agent.close()
    assert export(tmp_path / "npz", "--data", tmp_path / "data").startswith("1 captures in 2 files")
    (line,) = (tmp_path / "npz/tiny-0001.jsonl").read_text().splitlines()
    assert (json.loads(line)["reason"], json.loads(line)["note"]) == ("manual", "by hand")


def test_what_the_component_captures_survives_the_outage_and_comes_out_as_files(tmp_path, scans):
    port = free_port()
    settings = Settings(
        provider="hub",
        options={"hub": {"address": f"127.0.0.1:{port}"}},
        station=StationSettings(name="press-7", data_dir=str(tmp_path / "data")),
        buffer=BufferSettings(group_interval=0.01),
        inference=InferenceSettings(
            listen="127.0.0.1:0",
            batching={"meter-digits": BatchingSettings(max_calls=4)},
            capture={"meter-digits": CaptureSettings(classes=("seven",), output="label")},
        ),
    )
    writer = ModelStore(tmp_path / "data/models").claim()
    put(writer, bundle(tmp_path / "bundle"))
    writer.close()
    agent = Agent(settings)
    process = InferenceProcess.from_store(settings)
    try:
        with RemoteModels(process.addresses[0]) as models, ModelHost(ModelStore(tmp_path / "data/models")) as host:
            far, near = models.get("meter-digits"), host.get("meter-digits")
            answers = [far.run({"image": scan}) for scan in scans]
            for scan, answer in zip(scans, answers, strict=True):
                here = near.run({"image": scan})
                assert here["label"].tolist() == answer["label"].tolist()
                assert (here["probabilities"] == answer["probabilities"]).all()
            sevens = sum(answer["label"].tolist() == ["seven"] for answer in answers)
            assert 0 < sevens < len(scans)
            assert host.get("meter-digits").current.signature.batchable
            with ThreadPoolExecutor(8) as pool:  # some of them are computed together
                together = list(pool.map(lambda scan: far.run({"image": scan}), scans[:16]))
            for one, other in zip(answers, together, strict=False):
                assert one["label"].tolist() == other["label"].tolist()
            sevens += sum(answer["label"].tolist() == ["seven"] for answer in together)
            far.capture({"image": scans[0]}, "the right answer")
            assert len(far.run_many([{"image": scan} for scan in scans[:3]])) == 3
        again = sum(answer["label"].tolist() == ["seven"] for answer in answers[:3])
    finally:
        process.close()
        agent.close()
    expected = sevens + again + 1
    out = export(tmp_path / "npz", "--data", tmp_path / "data")
    assert out.startswith(f"{expected} captures in 2 files")
    with np.load(tmp_path / "npz/meter-digits-0001.npz", allow_pickle=False) as file:
        assert file["output/label"].tolist().count(b"seven") >= sevens
        assert len(file["input/image"]) == expected

    agent = Agent(settings)  # the same buffer, and now somebody answers
    hub = Hub(hub_settings(tmp_path, listen=f"127.0.0.1:{port}"))
    hub.start()
    try:
        wait_until(lambda: agent._parts.buffer.stream("captures").ledger().pending == 0, 30)
        drained(hub)
    finally:
        agent.close()
        hub.close()
    told = [
        json.loads(row["payload"])
        for row in rows(tmp_path / "hub/parquet")
        if dict(row["attributes"]).get("event") == "model"
    ]
    assert [(one["model"], one["runtime"], one["accelerator"]) for one in told] == [("meter-digits", "onnx", "cpu")]
    out = export(tmp_path / "images", "--images", "--parquet", tmp_path / "hub/parquet")
    assert out.startswith(f"{expected} captures in {expected + 1} files")
    folder = tmp_path / "images/meter-digits"
    assert len(list((folder / "seven").glob("*.png"))) == expected - 1
    (noted,) = (folder / "the-right-answer").glob("*.png")
    assert noted.read_bytes() == scans[0][0]
