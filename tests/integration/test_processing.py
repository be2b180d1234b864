"""From the publisher's desk to an answer in the process: a model that takes photos, and what a station tells of it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import outstation
from outstation.cli.main import app
from outstation.cli.status import _versions
from outstation.errors import InvalidInputError, ManifestError
from outstation.telemetry.prometheus import page
from outstation.types import Placement
from support import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples/meter-reading"


def photo(scan: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray((scan * 15).astype(np.uint8)).resize((64, 64)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def photos() -> tuple[np.ndarray, list[int]]:
    with np.load(EXAMPLE / "digits.npz") as scans:
        chosen = scans["held_out"]
        return np.array([photo(scan) for scan in scans["images"][chosen][:30]]), scans["labels"][chosen][:30].tolist()


def invoke(*arguments: object) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture
def publish(tmp_path):
    desk = ("--repository", tmp_path / "repository", "--keys", tmp_path / "keys", "--name", "meter-digits")
    invoke("model", "init", tmp_path / "repository", "--keys", tmp_path / "keys")

    def run(version: str, *more: object, processing: Path = EXAMPLE / "processing.json") -> str:
        named = ("--labels", EXAMPLE / "labels.txt", "--processing", processing)
        return invoke("model", "publish", EXAMPLE / "models/v2.onnx", *desk, "--version", version, *named, *more)

    return run


def test_a_station_gives_the_publishers_answers_and_says_what_computes_them(tmp_path, publish, photos):
    images, truths = photos
    np.savez(tmp_path / "golden.npz", **{"input/image": images[:6]})
    said = publish("2.0.0", "--golden", tmp_path / "golden.npz", "--runtime", "onnx>=1.18")
    assert "its golden inputs" in said
    settings = {
        "station": {"name": "press-7", "data_dir": str(tmp_path / "data")},
        "buffer": {"group_interval": 0.01},
        "models": {
            "repository": str(tmp_path / "repository"),
            "root": str(tmp_path / "repository/metadata/1.root.json"),
            "names": ["meter-digits"],
        },
        "inference": {"accelerators": ["cuda", "cpu"]},
    }
    with outstation.open(overrides=settings) as station:
        reader = station.models.get("meter-digits", timeout=60)
        answers = [
            str(result["digit"][0, 0]) for result in reader.run_many([{"image": images[n : n + 1]} for n in range(30)])
        ]
        right = sum(answer == reader.labels[truth] for answer, truth in zip(answers, truths, strict=True))
        assert right >= 27
        assert {spec.name: spec.datatype for spec in (*reader.inputs, *reader.outputs)} == {
            "image": "BYTES",
            "digit": "BYTES",
            "probabilities": "FP32",
        }
        with pytest.raises(InvalidInputError, match="Image 0 of this call"):
            reader.run({"image": np.array([b"no photo"])})
        placement = Placement("cpu", ("cuda: not in this build of ONNX Runtime",), "onnx")
        wait_until(lambda: station.status().reported.models[0].placement == placement)
        status = station.status()
        station.buffer.stream("health").flush()
        told = [r for r in station.buffer.stream("health").read() if r.attributes["event"] == "model"]
    assert [json.loads(record.payload)["fallbacks"] for record in told] == [list(placement.fallbacks)]
    (row,) = _versions(status.reported.models)
    assert row[3] == "onnx on cpu (cuda: not in this build of ONNX Runtime)"
    metrics = page(status)
    assert 'outstation_model_placement{station="press-7",model="meter-digits",version="2.0.0",runtime="onnx"' in metrics
    assert 'outstation_model_fallbacks{station="press-7",model="meter-digits"} 1.0' in metrics


def test_a_processing_that_does_not_fit_is_refused_at_the_desk(tmp_path, publish):
    wrong = json.loads((EXAMPLE / "processing.json").read_text())
    del wrong["inputs"][0]["steps"][3]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(ManifestError, match=r"processing\.inputs\[0\]\.steps: they give FP32 \[-1, 8, 8, 1\]"):
        publish("2.0.0", processing=tmp_path / "wrong.json")
    with pytest.raises(InvalidInputError, match="'torch' is no runtime"):
        publish("2.0.0", "--runtime", "torch")
