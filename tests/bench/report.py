"""What every benchmark prints and writes: one row a comparison, ours beside a peer's in the same run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """``reach`` is the wanted ratio of ours to the peer's (or the wanted figure, with no peer); None = only shown.

    ``smaller`` says that less is better. ``met`` is None when nothing is wanted.
    """

    work: str
    ours: float
    peer_name: str = ""
    peer: float | None = None
    reach: float | None = None
    smaller: bool = False
    unit: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.peer if self.peer else None

    @property
    def met(self) -> bool | None:
        if self.reach is None:
            return None
        value = self.ours if self.peer is None else self.ratio
        if value is None:
            return None
        return value <= self.reach if self.smaller else value >= self.reach

    def as_json(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio, "met": self.met}


def figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def show(name: str, rows: list[Row]) -> None:
    table = Table(title=f"{name}, ours beside others in the same run", title_justify="left")
    for column in ("work", "unit"):
        table.add_column(column)
    for column in ("ours", "peer", "ratio", "reach"):
        table.add_column(column, justify="right")
    table.add_column("met")
    for row in rows:
        peer = f"{figure(row.peer)} {row.peer_name}" if row.peer is not None else ""
        reach = "" if row.reach is None else ("≤ " if row.smaller else "≥ ") + figure(row.reach)
        met = {True: "yes", False: "NO", None: ""}[row.met]
        table.add_row(row.work, row.unit, figure(row.ours), peer, figure(row.ratio), reach, met)
    Console(width=150).print(table)


def main(name: str, run: Callable[[float], list[Row]]) -> None:
    """The command line of a benchmark: ``--out FILE`` and ``--scale F`` (1 = the full work)."""
    parser = argparse.ArgumentParser(description=f"Benchmark: {name}")
    parser.add_argument("--out", type=Path, help="write the rows as JSON to this file")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full work, for a quick look")
    arguments = parser.parse_args()
    rows = run(arguments.scale)
    show(name, rows)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")
