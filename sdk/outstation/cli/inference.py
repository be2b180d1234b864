"""``outstation inference``: serve the models of this device, or one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from outstation.cli.process import (
    DataDir,
    SettingsPath,
    Verbose,
    load_settings,
    log_to_stderr,
    say_ready,
    stop_on_signals,
)

ModelFile = Annotated[
    Path | None,
    typer.Option("--model", "-m", help="Serve this ONNX file alone: no store, no agent.", show_default=False),
]
ModelName = Annotated[
    str, typer.Option("--name", "-n", help="What the file's model is called; else the file's name.", show_default=False)
]
Listen = Annotated[
    str | None,
    typer.Option("--listen", help='host:port of gRPC and REST; "" = none; else of the settings.', show_default=False),
]
Socket = Annotated[
    Path | None, typer.Option("--socket", help="Path of a unix socket; else of the settings.", show_default=False)
]

Batch = Annotated[
    int,
    typer.Option(
        "--batch",
        min=0,
        help="Compute up to so many waiting calls of the file's model in one run, where its first axis counts "
        "independent rows. 0 = never.",
    ),
]


def inference(
    *,
    model: ModelFile = None,
    name: ModelName = "",
    batch: Batch = 0,
    listen: Listen = None,
    socket: Socket = None,
    settings: SettingsPath = None,
    data: DataDir = None,
    verbose: Verbose = False,
) -> None:
    """Serve models over the Open Inference Protocol until SIGTERM: those of the station's store, or one file.

    Example: outstation inference --model digits.onnx --name digits --listen 127.0.0.1:8001
    """
    from outstation_inference import InferenceProcess  # noqa: PLC0415  the other commands need no runtime

    log_to_stderr(verbose)
    given: dict[str, Any] = {}
    if listen is not None:
        given["listen"] = listen
    if socket is not None:
        given["socket"] = str(socket)
    chosen = load_settings(settings, data, inference=given)
    if model is None:
        process = InferenceProcess.from_store(chosen)
    else:
        name = name or _name_of(model)
        if batch:
            given["batching"] = {name: {"max_calls": batch}}
            chosen = load_settings(settings, data, inference=given)
        process = InferenceProcess.of_file(model, name, chosen.inference)
    stop_on_signals(process.stop)
    say_ready(f"inference ready on {' and '.join(process.addresses)}")
    process.run()


def _name_of(path: Path) -> str:
    """The file's name without its ending, in the alphabet of model names."""
    plain = "".join(char if char.isalnum() and char.isascii() else "-" for char in path.stem.lower())
    return plain.strip("-")[:63] or "model"
