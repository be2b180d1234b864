"""``outstation status``: what is this station doing?"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.types import LinkState, Reported, StationStatus

_COLOUR = {LinkState.ONLINE: "green", LinkState.PROBING: "yellow", LinkState.OFFLINE: "red"}


def status(
    settings: SettingsPath = None,
    data: DataDir = None,
    socket: Annotated[Path | None, typer.Option("--socket", help="The agent's socket.", show_default=False)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show what the station on this device is doing: link, backlog, model versions.

    Exit code 1 when no agent answers. Example: outstation status --data /var/lib/outstation
    """
    from outstation.agent import AgentClient  # noqa: PLC0415  the other commands need no gRPC

    client = AgentClient(socket or load_settings(settings, data).agent_socket)
    try:
        now = client.status(timeout=5.0)
    finally:
        client.close()
    if as_json:
        print(msgspec.json.encode(now).decode())
    else:
        _show(Console(highlight=False), now)


def _show(console: Console, now: StationStatus) -> None:
    up = max(0.0, (time.time_ns() - now.started_unix_nano) / 1e9)
    console.print(f"station [bold]{now.station}[/] by provider {now.provider}, pid {now.pid}, up {_ago(up)}")
    link = now.reported.link
    if link is not None:
        since = _ago(max(0.0, (time.time_ns() - link.since_unix_nano) / 1e9))
        why = f": {link.reason}" if link.reason else ""
        console.print(f"link [{_COLOUR[link.state]}]{link.state.value}[/] for {since}{why}", soft_wrap=True)
    console.print(_streams(now.reported) if now.reported.streams else "no records yet")
    if now.reported.models:
        console.print(_models(now.reported))


def _streams(reported: Reported) -> Table:
    table = Table(title="streams", title_justify="left")
    table.add_column("stream")
    for column in ("pending", "bytes", "acknowledged", "dropped"):
        table.add_column(column, justify="right")
    for report in reported.streams:
        ledger = report.ledger
        dropped = ", ".join(f"{count:,} {reason.value}" for reason, count in ledger.dropped.items() if count) or "0"
        table.add_row(
            report.stream, f"{ledger.pending:,}", f"{report.pending_bytes:,}", f"{ledger.acknowledged:,}", dropped
        )
    return table


def _models(reported: Reported) -> Table:
    table = Table(title="models", title_justify="left")
    for column in ("model", "version", "phase", "reason"):
        table.add_column(column)
    for model in reported.models:
        for version in model.versions:
            mark = " *" if version.version == model.active else ""
            table.add_row(model.name, version.version + mark, version.phase.value, version.reason)
    return table


def _ago(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"
