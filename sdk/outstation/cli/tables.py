"""Tables for people. rich takes a tenth of a second to load, so it is loaded when the first table is drawn."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from outstation.types import Placement


def draw(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """Print *rows* as a table; whole numbers with separators and to the right, None as nothing."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")  # a name that is cut short could be another one
    for row in rows:
        # As Text, so that a bracket in somebody's reason is not taken for markup.
        cells = [Text(_shown(value), justify="right" if isinstance(value, int) else "left") for value in row]
        table.add_row(*cells)
    Console(highlight=False).print(table)


def ago(time_unix_nano: int) -> str:
    """How long ago a moment was: "3.2 s", "5.0 min", "2.1 h", "4.0 d"; never less than nothing."""
    seconds = max(0.0, (time.time_ns() - time_unix_nano) / 1e9)
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def placed(placement: Placement | None) -> str | None:
    """What computes a model, as in "onnx on cpu (cuda: not in this build of ONNX Runtime)"."""
    if placement is None:
        return None
    why = f" ({'; '.join(placement.fallbacks)})" if placement.fallbacks else ""
    return f"{placement.runtime} on {placement.accelerator}{why}"


def _shown(value: object) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
