"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from outstation.demo.account import Account

# On a terminal the table moves with the eye; lines in a log need not come as often.
LINE_INTERVAL = 2.0
_STATE = {"up": "green", "DOWN": "red"}
_COLOUR = {"online": "green", "probing": "yellow", "offline": "red", "agent killed": "bold red"}


@dataclass(slots=True)
class Figures:
    """The state of things at one moment."""

    link: str = "up"  # what the demo did to the link: up or DOWN
    uplink: str = "-"  # what the agent makes of it: offline, probing, online, or "agent killed"
    depth: int = 0
    active: str = "-"
    produced: int = 0
    rate: float = 0.0
    accuracy: float | None = None


class Screen:
    """Shows steps as they happen and the figures beside them. A context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begin = time.monotonic()
        self._figures = Figures()
        self._last_line = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=8, transient=True)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, exc, trace)

    def step(self, sentence: str) -> None:
        """Something happened."""
        stamp = f"{time.monotonic() - self._begin:5.1f} s"
        self._console.print(Text.assemble((stamp, "dim"), "  ", sentence), soft_wrap=True)

    def command(self, line: str) -> None:
        """A command that a person would type."""
        self._console.print(Text(f"         $ {line}", style="cyan"), soft_wrap=True)

    def update(self, figures: Figures) -> None:
        """The figures now; drawn on a terminal, said every two seconds elsewhere."""
        self._figures = figures
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() - self._last_line >= LINE_INTERVAL:
            self._last_line = time.monotonic()
            self.step("; ".join(f"{name} {value}" for name, value, _ in _rows(figures)))

    def _table(self) -> Table:
        table = Table(title="the station", title_justify="left", expand=False)
        rows = list(_rows(self._figures))
        for name, _, _ in rows:
            table.add_column(name, justify="right", min_width=len(name))
        table.add_row(*(Text(value, style=style) for _, value, style in rows))
        return table


def _rows(figures: Figures) -> Iterable[tuple[str, str, str]]:
    """Name, value and style of each figure."""
    yield "link", figures.link, _STATE.get(figures.link, "")
    yield "uplink", figures.uplink, _COLOUR.get(figures.uplink, "")
    yield "buffer depth", f"{figures.depth:,}", ""
    yield "active version", figures.active, ""
    yield "readings", f"{figures.produced:,}", ""
    yield "readings/s", f"{figures.rate:.0f}", ""
    yield "accuracy", "-" if figures.accuracy is None else f"{figures.accuracy:.1%}", ""


def show_account(console: Console, account: Account, look: str) -> None:
    """The account as tables, and the command to look at the Parquet files."""
    counts = Table(title="account of the readings", title_justify="left")
    for name in ("produced", "delivered", "duplicates", "lost", "dropped", "failed calls"):
        counts.add_column(name, justify="right")
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in account.dropped.items() if count) or "0"
    values = (account.produced, account.delivered, account.duplicates, account.lost)
    counts.add_row(*(f"{value:,}" for value in values), dropped, f"{account.failed_calls:,}")
    models = Table(title="model versions", title_justify="left")
    models.add_column("version")
    models.add_column("outcome")
    models.add_column("accuracy", justify="right")
    models.add_column("reason", overflow="fold")
    for model in account.models:
        accuracy = "-" if model.accuracy is None else f"{model.accuracy:.1%}"
        models.add_row(model.version, model.outcome, accuracy, Text(model.reason or "-"))
    outage = (
        f"Outage of {account.outage_seconds:.1f} s with {account.kills} SIGKILL of the agent; a backlog of "
        f"{account.backlog:,} readings drained in {account.drain_seconds:.2f} s "
        f"({account.drain_records_per_second:,.0f} records/s)."
    )
    console.print(Group(Text(), counts, models, Text(outage), Text("To look at what arrived:")))
    console.print(Text(f"  {look}", "cyan"), soft_wrap=True)
