"""``outstation capture``: calls that were kept for retraining, as files to train with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.types import Record

app = typer.Typer(
    help="Calls that were kept for retraining.\n\nExample: outstation capture export ./captures",
    no_args_is_help=True,
)


@app.callback()
def capture() -> None:
    """Calls that were kept for retraining."""


@app.command("export")
def export(  # noqa: PLR0917  typer calls it by name
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the files go.", show_default=False)],
    parquet: Annotated[
        Path | None,
        typer.Option("--parquet", help="Read a hub's Parquet files instead of this station's.", show_default=False),
    ] = None,
    model: Annotated[str, typer.Option("--model", help="Of this model alone.")] = "",
    images: Annotated[bool, typer.Option("--images", help="Images in a folder a class instead of .npz files.")] = False,
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Write captures as .npz files, or as images in a folder a class.

    From this station's buffer, running or not, as long as they wait there; from a hub's Parquet files all that came.
    Exit code 1 when one could not be read; the others are written.
    Example: outstation capture export ./captures --images --data /var/lib/outstation
    """
    from outstation.inference import capture_export  # noqa: PLC0415  a quick --help

    write = capture_export.export_images if images else capture_export.export_npz
    done = write(_records(parquet, settings, data), out, capture_export.checked_model(model))
    print(f"{done.captures} captures in {len(done.files)} files under {out}")
    if done.unreadable:
        print(f"{done.unreadable} could not be read as such and were passed over")
        raise typer.Exit(1)


def _records(parquet: Path | None, settings: Path | None, data: Path | None) -> Iterable[tuple[str, Record]]:
    from outstation.inference.capturing import STREAM  # noqa: PLC0415

    if parquet is not None:
        from outstation_hub.sinks.parquet_reading import read_stream  # noqa: PLC0415  pyarrow, an extra

        return read_stream(parquet, STREAM)
    return _of_buffer(settings, data, STREAM)


def _of_buffer(settings: Path | None, data: Path | None, stream: str) -> Iterator[tuple[str, Record]]:
    from outstation.buffer.encryption import Keys  # noqa: PLC0415
    from outstation.buffer.view import look  # noqa: PLC0415

    known = load_settings(settings, data)
    (view,) = look(known.data_dir / "buffer", Keys.of(known.buffer), stream)
    station = known.identity.station
    for record in view.read():
        yield f"{station}.{view.found.epoch:016x}.{record.sequence}", record
