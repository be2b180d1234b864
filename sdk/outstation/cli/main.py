"""The commands put together, and the one place where errors become sentences and exit codes.

Exit codes: 0 done; 1 it failed; 2 you asked wrongly (a wrong option, a wrong setting, a wrong input).
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from outstation._version import __version__
from outstation.cli.agent import agent
from outstation.cli.buffer import app as buffer
from outstation.cli.capture import app as capture
from outstation.cli.demo import demo
from outstation.cli.enroll import enroll
from outstation.cli.fleet import app as fleet
from outstation.cli.hub import app as hub
from outstation.cli.inference import inference
from outstation.cli.model import app as model
from outstation.cli.status import metered, status
from outstation.errors import ConfigurationError, InvalidInputError, OutstationError

FAILED, ASKED_WRONGLY = 1, 2

app = typer.Typer(
    name="outstation",
    help="Run ML in the field; sync when connected.\n\nExample: outstation demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command("demo")(demo)
app.command("agent")(agent)
app.command("inference")(inference)
app.command("enroll")(enroll)
app.command("status")(status)
app.command("metered")(metered)
app.add_typer(hub, name="hub")
app.add_typer(model, name="model")
app.add_typer(fleet, name="fleet")
app.add_typer(buffer, name="buffer")
app.add_typer(capture, name="capture")


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and stop.", is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        typer.echo(f"outstation {__version__}")
        raise typer.Exit


def main() -> None:
    """The console script ``outstation``."""
    try:
        app()  # ends by SystemExit: 0, 2 for a wrong option, or the code that a command chose
    except OutstationError as exc:
        if "--debug" in sys.argv[1:]:
            raise
        print(f"error: {exc}", file=sys.stderr)
        if exc.hint:
            print(f"hint: {exc.hint}", file=sys.stderr)
        sys.exit(ASKED_WRONGLY if isinstance(exc, ConfigurationError | InvalidInputError) else FAILED)
