"""``outstation buffer``: look into the store-and-forward buffer of a station, running or not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from outstation.cli.process import DataDir, SettingsPath, load_settings

if TYPE_CHECKING:
    from outstation.buffer.view import StreamView

app = typer.Typer(help="Look into the buffer.\n\nExample: outstation buffer ls", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Look into the buffer of a station, running or not, without disturbing it."""


@app.command("ls")
def list_streams(settings: SettingsPath = None, data: DataDir = None) -> None:
    """List the streams: records pending, bytes on the disk, last number.

    Example: outstation buffer ls --data /var/lib/outstation
    """
    for view in _views(settings, data):
        balance = view.found.balance
        print(f"{view.name}\t{balance.accounted_pending}\t{view.stored_bytes}\t{balance.last_sequence}")


def _views(settings: Path | None, data: Path | None) -> list[StreamView]:
    from outstation.buffer.encryption import Keys  # noqa: PLC0415  a quick --help
    from outstation.buffer.view import look  # noqa: PLC0415

    known = load_settings(settings, data)
    return look(known.data_dir / "buffer", Keys.of(known.buffer))
