"""The command line as a user meets it: help with an example, exit codes, one sentence and a hint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from outstation._version import __version__
from outstation.cli.main import app


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outstation", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=folder)


def commands(command: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every command below *command* by its words; typer's own classes have no public names to check against."""
    if not hasattr(command, "commands"):
        return {path: command}
    found: dict[tuple[str, ...], Any] = {}
    for name, child in command.commands.items():
        found |= commands(child, (*path, name))
    return found


ALL = commands(typer.main.get_command(app))


@pytest.mark.parametrize("path", list(ALL), ids=" ".join)
def test_every_command_says_what_it_does_with_an_example(path: tuple[str, ...]) -> None:
    text = ALL[path].help or ""
    assert f"Example: outstation {' '.join(path)}" in " ".join(text.split())


@pytest.mark.parametrize("path", list(ALL), ids=" ".join)
def test_every_option_of_every_command_is_explained(path: tuple[str, ...]) -> None:
    for parameter in ALL[path].params:
        if parameter.param_type_name == "option":
            assert parameter.help, f"{path}: {parameter.name}"


def test_version_and_help_end_with_zero() -> None:
    assert run("--version").stdout == f"outstation {__version__}\n"
    assert run("--help").returncode == 0


@pytest.mark.parametrize(
    "arguments", [("nonsense",), ("demo", "--nonsense"), ("demo", "--seconds", "x"), ("model", "publish")]
)
def test_asking_wrongly_is_two_and_says_what_is_wrong(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_setting_is_two_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "outstation.toml").write_text("[bufer]\nmax_bytes = 1\n")
    done = run("agent", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: Unknown key 'bufer' in outstation.toml.\nhint: Did you mean 'buffer'?\n"


def test_a_failure_is_one_with_a_hint_and_no_traceback(tmp_path: Path) -> None:
    done = run("status", "--data", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: No agent answers on")
    assert "hint: Start one with `outstation agent`." in done.stderr


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("--debug", "status", "--data", str(tmp_path))
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("command", ["list", "verify"])
def test_an_empty_folder_is_no_repository(command: str, tmp_path: Path) -> None:
    done = run("model", command, str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"this is no model")
    done = run("inference", "--model", str(path), "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr
