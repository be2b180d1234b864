"""``outstation model publish --like``: quantise first, with the scales of a version before if they still fit."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from outstation.errors import InvalidInputError

Like = Annotated[
    str,
    typer.Option("--like", metavar="VERSION", help="FILE is a float model: quantise it with that version's scales."),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", help=".npz with input/NAME arrays, to calibrate and compare with.", show_default=False),
]


@contextmanager
def quantised(
    source: Path, like: str, data: Path | None, repository: str, name: str
) -> Iterator[tuple[Path, dict[str, str]]]:
    """What to publish instead of *source*, and a line of provenance. Prints which scales were taken.

    Without a version *like* it is *source* itself.
    """
    if not like:
        yield source, {}
        return
    if data is None or not source.is_file():
        raise InvalidInputError("--like needs one float model as FILE, and --data FILE.npz to judge the scales by.")
    from outstation.models.quantising import quantise_like  # noqa: PLC0415 - onnx and its quantiser are heavy
    from outstation.models.repository import Repository  # noqa: PLC0415

    desk = Repository(repository)
    manifest = desk.published(name, like).manifest
    with tempfile.TemporaryDirectory(prefix="outstation-like-") as folder:
        target = Path(folder) / source.name
        found = quantise_like(source, desk.file(manifest, manifest.model, Path(folder)), data, target)
        errors = f"off by {100 * found.error_kept:.3g} % with them, {100 * found.error_fresh:.3g} % with fresh ones"
        if found.kept:
            print(f"quantised with the scales of {like}: {errors}")
        else:
            print(f"quantised with fresh scales, those of {like} do not fit: {errors}; the delta will be large")
        yield target, {"scales": f"of {like}" if found.kept else "fresh"}
