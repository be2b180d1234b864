"""docs/settings.md lists every key as the code has it. ``OUTSTATION_TEST_WRITE=1`` writes the page anew."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from outstation.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/settings.md"


def kind(annotation: Any) -> str:
    if hasattr(annotation, "__metadata__"):
        return kind(get_args(annotation)[0])
    parts = get_args(annotation)
    if parts and type(None) in parts:
        return f"{kind(parts[0])}, or none"
    if get_origin(annotation) is tuple:
        return f"list of {kind(parts[0])}"
    if get_origin(annotation) is dict:
        return "table"
    return "str" if issubclass(annotation, str) else annotation.__name__


def rows(shape: type[msgspec.Struct], trail: str = "") -> Iterator[str]:
    comments = dict(re.findall(r"^    (\w+): .*?  # (.+)$", inspect.getsource(shape), flags=re.M))
    for field in msgspec.structs.fields(shape):
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from rows(field.type, f"{trail}{field.name}.")
        else:
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            shown = msgspec.json.encode(default).decode()
            yield f"| `{trail}{field.name}` | {kind(field.type)} | `{shown}` | {comments.get(field.name, '')} |"
            entry = get_args(field.type)[1] if get_origin(field.type) is dict else None
            if isinstance(entry, type) and issubclass(entry, msgspec.Struct):
                yield from rows(entry, f"{trail}{field.name}.NAME.")


def test_the_page_lists_every_key_as_the_code_has_it() -> None:
    table = "\n".join(["| key | type | default | |", "|---|---|---|---|", *rows(Settings)])
    text = PAGE.read_text()
    wanted = re.sub(
        r"(<!-- generated -->\n).*(<!-- /generated -->)", lambda m: m[1] + table + "\n" + m[2], text, flags=re.S
    )
    if os.environ.get("OUTSTATION_TEST_WRITE"):
        PAGE.write_text(wanted)
    assert PAGE.read_text() == wanted, "run this test with OUTSTATION_TEST_WRITE=1 and commit the page"
