"""NVIDIA's load generator, which asks for configuration and statistics too, works unchanged against the component."""

from __future__ import annotations

import os

import pytest

import tiny_models
from inference_process import served
from outstation.settings import BatchingSettings
from perf_analyzer import MISSING, analyzed, runs_here


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    if not runs_here():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    path = tmp_path_factory.mktemp("m") / "m.onnx"
    path.write_bytes(tiny_models.scale(2))
    with served(path, "m", batching={"m": BatchingSettings(max_calls=8)}) as made:
        yield made


@pytest.mark.parametrize(
    "options",
    [
        "-i grpc --concurrency-range 4",
        "-i grpc --streaming --async --concurrency-range 2",
        "-i grpc --grpc-compression-algorithm gzip",
        "-i http --concurrency-range 2",
        "-i http --input-tensor-format json --output-tensor-format json",
        "-i grpc --shared-memory system --output-shared-memory-size 4096",
        "-i http --shared-memory system --output-shared-memory-size 4096",
    ],
)
def test_every_call_is_answered_and_counted(address, options):
    measured = analyzed(address, "m", "--shape", "x:1,4", "--request-count", "100", *options.split())
    assert "Unable" not in measured.said  # to let go of shared memory at its end
    # What the server has counted, which it is asked for over the same protocol: between two moments of the load, and a
    # call is counted once it is answered.
    assert 90 <= int(measured.said.partition("Successful request count: ")[2].split()[0]) <= 110


def test_a_model_that_is_not_there_is_told(address):
    with pytest.raises(RuntimeError, match="other"):
        analyzed(address, "other", "-i", "grpc")
