"""What this device has, beside what a model requires."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from outstation.models.manifest import Requires

_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True)
class Device:
    """Memory in all, and the names of the instruction sets; empty where the system does not say."""

    memory_bytes: int
    instruction_sets: frozenset[str]


def this_device(cpuinfo: Path = _CPUINFO) -> Device:
    """The machine that this runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = cpuinfo.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        lines = []
    flags = (line.partition(":")[2] for line in lines if line.partition(":")[0].strip() in {"flags", "Features"})
    return Device(memory, frozenset(next(flags, "").split()))


def unmet(requires: Requires, device: Device) -> str:
    """What *device* lacks, as a sentence, or ""."""
    if requires.memory_bytes > device.memory_bytes:
        return f"It needs {requires.memory_bytes} bytes of memory; this device has {device.memory_bytes}."
    missing = sorted(set(requires.instruction_sets) - device.instruction_sets)
    return f"It needs {', '.join(missing)}, which this processor has not." if missing else ""
