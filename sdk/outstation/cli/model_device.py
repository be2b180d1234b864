"""The commands of ``outstation model`` at the box: what is here, and what shall answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.cli.tables import draw
from outstation.errors import BufferLockedError, InvalidInputError, ModelNotFoundError

if TYPE_CHECKING:
    from outstation.models.store import ModelStore

Name = Annotated[str, typer.Argument(metavar="NAME", help="The model's name.", show_default=False)]


def add_to(app: typer.Typer) -> None:
    """Register these commands."""
    for command in (ls, show, pin, rollback, retry, gc):
        app.command(command.__name__)(command)


def ls(
    settings: SettingsPath = None,
    data: DataDir = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show every version on this device, its phase and why.

    Example: outstation model ls --data /var/lib/outstation
    """
    store = _store(settings, data)
    rows = [
        [
            report.name,
            row.version,
            _marks(store, report.name, row.version),
            row.phase.value,
            row.reason,
            row.saved_bytes,
        ]
        for report in store.reports()
        for row in report.versions
    ]
    if as_json:
        keys = ("name", "version", "marks", "phase", "reason", "saved_bytes")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], indent=2))
    elif sys.stdout.isatty():
        draw(("model", "version", "", "phase", "reason", "saved bytes"), rows)
    else:
        for row in rows:
            print(" ".join(filter(None, map(str, row[:-1]))))


def show(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="Else the one that answers.")] = "",
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Print the manifest of a version on this device.

    Example: outstation model show meter --data /var/lib/outstation
    """
    from outstation.models.manifest import encode_manifest  # noqa: PLC0415

    store = _store(settings, data)
    found = store.installed(name, version or store.model(name).answering)
    if found is None:
        raise ModelNotFoundError(
            f"{name} {version}".rstrip() + " is not on this device.", hint="See `outstation model ls`."
        )
    print(encode_manifest(found.manifest).decode(), end="")


def pin(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="[VERSION]", help="The version to hold.")] = "",
    off: Annotated[bool, typer.Option("--off", help="Let go: what the far end wants counts again.")] = False,
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Hold a model at one version, whatever the far end wants.

    Example: outstation model pin meter 1.0.0 --data /var/lib/outstation
    """
    if bool(version) == off:
        raise InvalidInputError("Give a version to hold, or --off to let go.")
    _order(_store(settings, data), "pin", name, version)
    print(f"{name} is to be held at {version}" if version else f"{name} is to follow the far end again")


def rollback(name: Name, settings: SettingsPath = None, data: DataDir = None) -> None:
    """Go back to the last good version, and hold it.

    Example: outstation model rollback meter --data /var/lib/outstation
    """
    store = _store(settings, data)
    last_good = store.model(name).last_good
    if not last_good:
        raise ModelNotFoundError(f"There is no version of {name} to go back to.", hint="See `outstation model ls`.")
    _order(store, "pin", name, last_good)
    print(f"{name} is to go back to {last_good} and be held there; `outstation model pin {name} --off` lets go")


def retry(
    name: Name,
    version: Annotated[str, typer.Argument(metavar="VERSION", show_default=False)],
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Try a version again that was refused, rejected or rolled back.

    Example: outstation model retry meter 2.0.0 --data /var/lib/outstation
    """
    _order(_store(settings, data), "retry", name, version)
    print(f"{name} {version} is to be tried again")


def gc(settings: SettingsPath = None, data: DataDir = None) -> None:
    """Delete what no version needs, and show what is kept and why; a running agent is asked to do it.

    Example: outstation model gc --data /var/lib/outstation
    """
    from outstation.models.orders import Order, OrderKind, give_order  # noqa: PLC0415

    chosen = load_settings(settings, data)
    store = _store(settings, data)
    try:
        writer = store.claim()
    except BufferLockedError as exc:
        give_order(store.directory, Order(OrderKind.COLLECT))
        print(f"process {exc.pid or '?'} has the store and was asked to delete what nobody needs")
    else:
        try:
            print(f"freed {writer.collect()} bytes")
        finally:
            writer.close()
    for kept in store.kept():
        print(f"kept {kept.name} {kept.version} ({kept.why}): {kept.size_bytes} bytes")
    used, bound = store.used_bytes(), chosen.models.max_store_bytes
    print(f"{used} of {bound} bytes are in use" + (": more than models.max_store_bytes" if used > bound else ""))


def _store(settings: Path | None, data: Path | None) -> ModelStore:
    from outstation.models.store import ModelStore  # noqa: PLC0415

    return ModelStore(load_settings(settings, data).data_dir / "models")


def _order(store: ModelStore, kind: str, name: str, version: str) -> None:
    from outstation.models.orders import Order, OrderKind, give_order  # noqa: PLC0415

    if name not in store.names():
        raise ModelNotFoundError(f"Nothing is known of a model {name!r} here.", hint="See `outstation model ls`.")
    give_order(store.directory, Order(OrderKind(kind), name, version))


def _marks(store: ModelStore, name: str, version: str) -> str:
    model = store.model(name)
    marks = {"answers": model.answering, "last good": model.last_good, "pinned": model.pinned}
    return ", ".join(mark for mark, marked in marks.items() if marked == version)
