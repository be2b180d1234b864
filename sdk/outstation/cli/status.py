"""``outstation status`` and ``outstation metered``: what is this station doing, and what does its link cost?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.cli.tables import ago, draw, placed
from outstation.telemetry.prometheus import page
from outstation.types import ModelReport, StationStatus, StreamReport

if TYPE_CHECKING:
    from outstation.agent import AgentClient

Socket = Annotated[Path | None, typer.Option("--socket", help="The agent's socket.", show_default=False)]


def status(
    settings: SettingsPath = None,
    data: DataDir = None,
    socket: Socket = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    as_metrics: Annotated[bool, typer.Option("--metrics", help="Metrics in Prometheus' text format.")] = False,
) -> None:
    """Show what the station on this device is doing: link, backlog, model versions.

    Exit code 1 when no agent answers. Example: outstation status --data /var/lib/outstation
    """
    with _agent(socket, settings, data) as client:
        now = client.status(timeout=5.0)
    if as_json:
        print(msgspec.json.encode(now).decode())
    elif as_metrics:
        print(page(now), end="")
    else:
        _show(now)


class Switch(str, Enum):
    """What ``outstation metered`` takes."""

    ON = "on"
    OFF = "off"


def metered(
    switch: Annotated[Switch, typer.Argument(help="on: every byte costs; off: no longer.", show_default=False)],
    settings: SettingsPath = None,
    data: DataDir = None,
    socket: Socket = None,
) -> None:
    """Say whether every byte over the link costs: then only urgent streams are sent.

    It begins at once and lasts until the agent restarts, which goes by uplink.metered. Made for a modem's scripts.
    Example: outstation metered on --data /var/lib/outstation
    """
    with _agent(socket, settings, data) as client:
        client.set_metered(switch is Switch.ON, timeout=5.0)
    print("metered: only urgent streams are sent" if switch is Switch.ON else "not metered: everything is sent")


@contextmanager
def _agent(socket: Path | None, settings: Path | None, data: Path | None) -> Iterator[AgentClient]:
    """A client of the agent, for as long as this lasts."""
    from outstation.agent import AgentClient  # noqa: PLC0415  the other commands need no gRPC

    client = AgentClient(socket or load_settings(settings, data).agent_socket)
    try:
        yield client
    finally:
        client.close()


def _show(now: StationStatus) -> None:
    print(f"station {now.station} by provider {now.provider}, pid {now.pid}, up {ago(now.started_unix_nano)}")
    link = now.reported.link
    if link is not None:
        why = f": {link.reason}" if link.reason else ""
        metered = ", metered" if link.metered else ""
        print(f"link {link.state.value} for {ago(link.since_unix_nano)}{metered}{why}")
    if now.reported.streams:
        draw(
            ("stream", "pending", "bytes", "acknowledged", "dropped"), map(_row, now.reported.streams), title="streams"
        )
    else:
        print("no records yet")
    if now.reported.models:
        draw(
            ("model", "version", "phase", "computed by", "saved bytes", "reason"),
            _versions(now.reported.models),
            title="models (* answers)",
        )


def _row(report: StreamReport) -> tuple[object, ...]:
    ledger = report.ledger
    dropped = ", ".join(f"{count:,} {reason.value}" for reason, count in ledger.dropped.items() if count)
    return report.stream, ledger.pending, report.pending_bytes, ledger.acknowledged, dropped or 0


def _versions(models: tuple[ModelReport, ...]) -> Iterator[tuple[object, ...]]:
    for model in models:
        for version in model.versions:
            answers = version.version == model.active
            mark, place = (" *", placed(model.placement)) if answers else ("", None)
            saved = version.saved_bytes or None
            yield model.name, version.version + mark, version.phase.value, place, saved, version.reason
