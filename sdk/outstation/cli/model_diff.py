"""``outstation model diff``: what changed between two versions, and what it costs to send."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outstation.cli.tables import draw
from outstation.errors import InvalidInputError

if TYPE_CHECKING:
    from outstation.models.delta_diff import FileDiff, TensorChange


def diff(
    before: Annotated[str, typer.Argument(metavar="V1", help="A version, or an .onnx file.", show_default=False)],
    after: Annotated[str, typer.Argument(metavar="V2", help="A version, or an .onnx file.", show_default=False)],
    repository: Annotated[str, typer.Option("--repository", help="V1 and V2 are versions in it.")] = "",
    name: Annotated[str, typer.Option("--name", help="The model's name, with --repository.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Show which tensors changed, by how much, and the size of the delta beside the whole file and zstd.

    Example: outstation model diff 1.0.0 1.1.0 --repository ./repository --name meter
    """
    from outstation.models.delta_diff import diff_files  # noqa: PLC0415 - numpy is an extra

    with tempfile.TemporaryDirectory(prefix="outstation-diff-") as folder:
        files = [_file(given, repository, name, Path(folder)) for given in (before, after)]
        found = diff_files(*files)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    if sys.stdout.isatty():
        draw(("tensor", "bytes", "sent as", "in bytes", "changed", "largest", "relative"), map(_row, found.tensors))
    else:
        for change in found.tensors:
            print(" ".join(str(cell) for cell in _row(change) if cell not in ("", None)))
    print(_summary(found))


def _file(given: str, repository: str, name: str, scratch: Path) -> Path:
    if not repository:
        path = Path(given)
        if not path.is_file():
            raise InvalidInputError(
                f"There is no file {path}.", hint="For versions in a repository give --repository and --name."
            )
        return path
    if not name:
        raise InvalidInputError("Give the model's --name.", hint="See `outstation model list`.")
    from outstation.models.repository import Repository  # noqa: PLC0415

    desk = Repository(repository)
    manifest = desk.published(name, given).manifest
    return desk.file(manifest, manifest.model, scratch)


def _row(change: TensorChange) -> tuple[object, ...]:
    changed = "" if change.changed is None else f"{100 * change.changed:.3g} %"
    largest, relative = ("" if value is None else f"{value:.3g}" for value in (change.largest, change.relative))
    return change.name or "(no name)", change.bytes, change.way, change.packed_bytes, changed, largest, relative


def _summary(found: FileDiff) -> str:
    def of_whole(size: int) -> str:
        return f"{size:,} bytes" + (f" ({100 * size / found.whole_bytes:.1f} %)" if found.whole_bytes else "")

    untouched = sum(change.way == "same" for change in found.tensors)
    return (
        f"whole {found.whole_bytes:,} bytes, zstd -19 {of_whole(found.zstd_bytes)}, "
        f"delta {of_whole(found.delta_bytes)}; "
        f"{untouched} of {len(found.tensors)} tensors are the same"
    )
