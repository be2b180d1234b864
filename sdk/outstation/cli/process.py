"""What the commands that run a process share: settings, signals, a first line."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from outstation import settings as settings_room
from outstation.settings import Settings

SettingsPath = Annotated[
    Path | None, typer.Option("--settings", "-s", help="The settings file; else outstation.toml.", show_default=False)
]
DataDir = Annotated[
    Path | None,
    typer.Option("--data", "-d", help="The station's data folder; else of the settings.", show_default=False),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.")]


def load_settings(path: Path | None, data_dir: Path | None = None, **overrides: Any) -> Settings:
    """Settings from file, environment and the command's options, in that order."""
    if data_dir is not None:
        overrides.setdefault("station", {})["data_dir"] = str(data_dir)
    return settings_room.load(path, environ=os.environ, overrides=overrides)


def log_to_stderr(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def stop_on_signals(stop: Callable[[], None]) -> None:
    """SIGTERM and SIGINT call *stop*, so that the process ends in order with exit code 0."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop())


def say_ready(sentence: str) -> None:
    """The first line on stdout: whoever started us waits for it."""
    print(sentence, flush=True)
