"""NVIDIA's ``perf_analyzer``, a client in C++ that makes load and measures it, as `make perf-analyzer` installs it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build/perf-analyzer"
PROGRAM = FOLDER / "bin/perf_analyzer"
LIBRARIES = FOLDER / "nvidia/cuda_runtime/lib"
MISSING = "needs perf_analyzer (make perf-analyzer; apt-get install libb64-0d)"


@dataclass(frozen=True)
class Measured:
    """What it says of one level of load; seconds."""

    calls_per_second: float
    median: float
    said: str


def analyzed(address: str, model: str, *options: str, timeout: float = 120.0) -> Measured:
    """Put load on *model* at HOST:PORT as *options* say; RuntimeError with its words if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        done = subprocess.run(
            [PROGRAM, "-m", model, "-u", address, "-f", report, *options],
            env={**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        said = done.stdout + done.stderr
        if done.returncode != 0 or not report.exists():
            raise RuntimeError(f"perf_analyzer ended with {done.returncode}: {said}")
        row = next(csv.DictReader(report.read_text().splitlines()))
    return Measured(float(row["Inferences/Second"]), float(row["p50 latency"]) / 1e6, said)


def runs_here() -> bool:
    """Whether it is installed, with the libraries of this system that it needs."""
    if sys.platform != "linux" or not PROGRAM.exists():
        return False
    environ = {**os.environ, "LD_LIBRARY_PATH": str(LIBRARIES)}
    return subprocess.run([PROGRAM, "--version"], env=environ, capture_output=True, check=False).returncode == 0
