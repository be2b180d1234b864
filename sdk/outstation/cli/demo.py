"""``outstation demo``: a station lives through an outage, before your eyes."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Annotated

import msgspec
import typer


def demo(
    seconds: Annotated[float, typer.Option(min=5.0, max=3600.0, help="How long the station lives.")] = 24.0,
    rate: Annotated[float, typer.Option(min=1.0, max=2000.0, help="Readings per second.")] = 100.0,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write the account as JSON.", show_default=False)
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where the Parquet files and the reader's log are left.")] = Path(
        "outstation-demo"
    ),
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the moment of the kill; else random.", show_default=False)
    ] = None,
) -> None:
    """Show the main job with real processes: hub, link, agent, inference and an application, through an outage.

    Exit code 0 only if no reading was lost or doubled and every model version ended as it should.

    Example: outstation demo --seconds 15 --report account.json
    """
    from rich.console import Console  # noqa: PLC0415  a tenth of a second

    from outstation.demo.screen import show_account  # noqa: PLC0415  grpc and more, which --help does not need
    from outstation.demo.story import tell  # noqa: PLC0415

    interrupted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: interrupted.set())
    console = Console(highlight=False)
    with tempfile.TemporaryDirectory(prefix="outstation-demo-") as scratch:
        account = tell(console, Path(scratch), interrupted, seconds=seconds, rate=rate, seed=seed)
        _leave(Path(scratch), out)
    look = f"import pyarrow.dataset as d; print(*d.dataset('{out}/parquet').head(3).to_pylist(), sep='\\n')"
    show_account(console, account, f'{_from_here(Path(sys.executable))} -c "{look}"')
    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode(account), indent=2) + b"\n")
    faults = account.faults()
    for fault in faults:
        console.print(f"[bold red]{fault}[/]")
    if faults:
        raise typer.Exit(1)
    console.print("[bold green]Nothing lost, nothing doubled; every version ended as it should.[/]")


def _leave(scratch: Path, out: Path) -> None:
    """Move what arrived, and the log it is compared with, to *out*, over those of an earlier demo."""
    out.mkdir(parents=True, exist_ok=True)
    for name in ("parquet", "readings.jsonl"):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        shutil.move(scratch / name, out / name)


def _from_here(path: Path) -> Path:
    """*path* as a person in the working folder would type it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
