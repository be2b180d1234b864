"""Deltas between versions of a model beside zstd, content-defined chunks, bsdiff4 and zstd with the old file as prefix.

Three changes of a net of MobileNetV2's shape: a new head, every fp32 weight moved a little, and the same in int8 with
the old version's scales; and the same three of a net that was really trained (peers/trained_nets.py). Each way makes
and applies its delta in a process of its own, and the result is compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import report
from report import Row

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))
import delta_peers  # noqa: E402  they lie in the folder that was just named
import trained_nets  # noqa: E402

# Percent of the new file that our delta may have.
REACH = {"head retrained": 31.1, "fp32 fine-tune": 57.2, "int8 fine-tune, scales kept": 2.8}
# How many weights cross a border between two int8 numbers depends on the net; beside bsdiff4 that falls out.
BESIDE_BSDIFF = {"int8 fine-tune, scales kept": 2.8 / 3.0}
MAKE_SECONDS, MAKE_MB, APPLY_SECONDS, APPLY_MB = 0.33, 101.0, 0.06, 31.0
ROUNDS = 3


def measure(way: str, what: str, files: tuple[Path, Path, Path], rounds: int) -> dict[str, float]:
    """The best time and the lowest peak of a few rounds: the others measured the machine's other work."""
    command = [sys.executable, str(PEERS / "delta_peers.py"), way, what, *map(str, files)]
    answers = [
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout) for _ in range(rounds)
    ]
    return {key: min(answer[key] for answer in answers) for key in answers[0]}


def column(name: str, base: Path, result: Path, folder: Path, rounds: int) -> Iterator[Row]:
    found = {}
    for way in delta_peers.WAYS:
        delta, again = folder / "delta", folder / "again"
        # The slow ones are slow by their nature: one round shows it.
        make = measure(way, "make", (base, result, delta), rounds if way == "ours" else 1)
        apply = measure(way, "apply", (base, again, delta), rounds)
        if again.read_bytes() != result.read_bytes():
            raise SystemExit(f"{way} gave another file than it was made from ({name}).")
        share = 100 * delta.stat().st_size / result.stat().st_size
        found[way] = {"bytes": share, "make": make, "apply": apply}
    ours = found.pop("ours")
    yield Row(f"{name}: bytes to send", ours["bytes"], reach=REACH.get(name), smaller=True, unit="% of file")
    for way, figures in found.items():
        reach = BESIDE_BSDIFF.get(name) if way == "bsdiff4" else None
        yield Row(f"{name}: bytes to send", ours["bytes"], way, figures["bytes"], reach, smaller=True, unit="% of file")
    if name not in REACH:  # small: what it costs to make and apply says little
        return
    reaches = {"make": (MAKE_SECONDS, MAKE_MB), "apply": (APPLY_SECONDS, APPLY_MB)}
    for what, (seconds, peak) in reaches.items():
        for key, unit, reach in (("seconds", "s", seconds), ("peak_mb", "MB", peak)):
            yield Row(f"{name}: {what}", ours[what][key], reach=reach, smaller=True, unit=unit)
            for way, figures in found.items():
                yield Row(f"{name}: {what}", ours[what][key], way, figures[what][key], smaller=True, unit=unit)


def run(scale: float) -> list[Row]:
    """*scale* below 1 leaves columns out, from the last one on: the nets have the size that they have."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        columns = delta_peers.write_columns(Path(place)) | trained_nets.write_trained(Path(place))
        for name in list(columns)[: max(1, round(len(columns) * scale))]:
            rows += column(name, *columns[name], Path(place), ROUNDS)
    return rows


if __name__ == "__main__":
    report.main("delta", run)
