"""The trial of a version, in this process: what the child of ``check.py`` does."""

from __future__ import annotations

import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from outstation.errors import CheckFailedError
from outstation.inference.golden import difference, golden_cases
from outstation.inference.loading import load_installed
from outstation.inference.model import Version
from outstation.inference.runtime import RuntimeOptions, runtime
from outstation.models.checking import CheckResult
from outstation.models.manifest import MANIFEST, Budgets, parse_manifest
from outstation.models.store import InstalledModel
from outstation.wire.datatypes import Array

# The 95th percentile means little of fewer runs than this; more than a few seconds would only wear the device.
MIN_RUNS = 40
MAX_TIMED_SECONDS = 2.0


def check_folder(folder: Path, options: RuntimeOptions) -> CheckResult:
    """Load the bundle in *folder*, compare its golden outputs, measure it. ModelLoadError, CheckFailedError."""
    manifest = parse_manifest((folder / MANIFEST).read_bytes())
    model = InstalledModel(manifest.name, manifest.version, folder, manifest)
    runtime(options.runtime or manifest.runtime.name)  # what it takes to import is no cost of the model
    before = _resident_bytes()
    version = load_installed(model, options)
    cases = golden_cases(model)
    for case in cases:
        answer = version.run(case.inputs)
        problem = None if manifest.golden is None else difference(case, answer, manifest.golden)
        if problem is not None:
            raise CheckFailedError(f"{manifest.name} {manifest.version} failed {problem}")
    inputs = [case.inputs for case in cases] or [version.signature.zeros()]
    p95 = _p95_latency(version, inputs)
    memory = max(0, _peak_resident_bytes() - before)
    _check_budgets(manifest.budgets, p95, memory)
    return CheckResult(len(cases), p95, memory)


def _p95_latency(version: Version, inputs: Sequence[Mapping[str, Array]]) -> float:
    """Seconds that 95 of 100 calls take at the most, measured over the cases in turn."""
    times: list[float] = []
    until = time.perf_counter() + MAX_TIMED_SECONDS
    while len(times) < max(MIN_RUNS, len(inputs)):
        begin = time.perf_counter()
        version.run(inputs[len(times) % len(inputs)])
        times.append(time.perf_counter() - begin)
        if begin > until:
            break
    return sorted(times)[int(0.95 * (len(times) - 1))]


def _check_budgets(budgets: Budgets, p95: float, memory: int) -> None:
    if budgets.p95_latency is not None and p95 > budgets.p95_latency:
        raise CheckFailedError(
            f"A call takes {p95 * 1000:.3g} ms at the 95th percentile; "
            f"the budget is {budgets.p95_latency * 1000:.3g} ms."
        )
    if budgets.peak_memory_bytes is not None and memory > budgets.peak_memory_bytes:
        raise CheckFailedError(
            f"Loading and running took {memory} bytes of memory; the budget is {budgets.peak_memory_bytes}."
        )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _peak_resident_bytes() -> int:
    # Not ru_maxrss: that begins with what the parent had when it made this process.
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024  # in kB, which are KiB
