"""Captures as files to train with: ``.npz`` for programs, images in a folder a class for people and for most trainers.

A capture that cannot be read is counted and passed over. What lies under a name of ours is replaced.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from outstation.durable import make_directories, write_atomically
from outstation.errors import InvalidInputError, OutstationError, mapped_os_errors
from outstation.inference.captured import CONTENT_TYPE, Capture, decode_capture, unpacked
from outstation.models.media import files_of, pack_png
from outstation.types import MODEL_NAME, Record
from outstation.wire.datatypes import Array

# Of one .npz: as many as a golden file may hold, so that one can be published as it is, and no more than a small
# machine's memory bears.
MAX_CASES = 1024
MAX_FILE_BYTES = 256 << 20
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"RIFF": "wav"}
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(slots=True)
class Exported:
    """What an export did."""

    captures: int = 0
    files: list[Path] = field(default_factory=list)
    unreadable: int = 0


@dataclass(frozen=True, slots=True)
class _Call:
    capture: Capture
    origin: str  # names the record for good: station or stream, and its number
    inputs: dict[str, Array]
    outputs: dict[str, Array]


def export_npz(records: Iterable[tuple[str, Record]], folder: Path, model: str = "") -> Exported:
    """Write ``MODEL-0001.npz`` and so on: arrays ``input/NAME`` and ``output/NAME``, the first axis the cases.

    Beside each lies a ``.jsonl`` with one line a case: where it comes from, reason, note, class, score. Calls whose
    tensors have other shapes go into files of their own. *records* are (origin, record).
    """
    done = Exported()
    waiting: dict[Any, list[_Call]] = defaultdict(list)
    sizes: dict[Any, int] = defaultdict(int)
    numbers: dict[str, int] = defaultdict(int)

    def write(key: Any) -> None:
        calls = waiting.pop(key)
        del sizes[key]
        name = calls[0].capture.model
        numbers[name] += 1
        _write_npz(folder / f"{name}-{numbers[name]:04d}", calls, done)

    make_directories(folder)
    for call in _calls(records, model, done):
        done.captures += 1
        key = call.capture.model, _shapes(call.inputs), _shapes(call.outputs)
        waiting[key].append(call)
        sizes[key] += sum(array.nbytes for array in (*call.inputs.values(), *call.outputs.values()))
        if len(waiting[key]) >= MAX_CASES or sum(sizes.values()) >= MAX_FILE_BYTES:
            write(max(sizes, key=lambda each: sizes[each]))
    for key in list(waiting):
        write(key)
    return done


def export_images(records: Iterable[tuple[str, Record]], folder: Path, model: str = "") -> Exported:
    """Write ``MODEL/CLASS/ORIGIN-ROW.png``, the class by the note if there is one, and ``MODEL/labels.jsonl``.

    Of each call the first input that looks like images: files go as they came (also WAV), pixels become PNG. Numbers
    other than UINT8 are stretched from their lowest to their highest: to look at, not to train with.
    """
    done = Exported()
    lines: dict[str, list[bytes]] = defaultdict(list)
    make_directories(folder)
    for call in _calls(records, model, done):
        pictures = next(filter(None, map(_pictures, call.inputs.values())), None)
        if pictures is None:
            done.unreadable += 1
            continue
        done.captures += 1
        for row, (data, ending) in enumerate(pictures):
            said = _about(call, row)
            label = str(said["note"] or said["class"] or "unknown")
            path = folder / call.capture.model / _safe(label) / f"{_safe(call.origin)}-{row}.{ending}"
            make_directories(path.parent)
            write_atomically(path, data)
            done.files.append(path)
            where = path.relative_to(folder / call.capture.model).as_posix()
            lines[call.capture.model].append(msgspec.json.encode({"file": where, "label": label, **said}))
    for name, made in lines.items():
        path = folder / name / "labels.jsonl"
        write_atomically(path, b"\n".join(made) + b"\n")
        done.files.append(path)
    return done


def _calls(records: Iterable[tuple[str, Record]], model: str, done: Exported) -> Iterator[_Call]:
    """The captures of *model* ("" = of all) that can be read."""
    for origin, record in records:
        if model and record.attributes.get("model") != model:
            continue
        call = _call(origin, record)
        if call is None:
            done.unreadable += 1
        else:
            yield call


def _call(origin: str, record: Record) -> _Call | None:
    if record.content_type != CONTENT_TYPE:
        return None
    try:
        capture = decode_capture(record.payload)
        if MODEL_NAME.fullmatch(capture.model) is None:  # it becomes the name of a file
            return None
        return _Call(capture, origin, unpacked(capture.inputs), unpacked(capture.outputs))
    except OutstationError:
        return None


def _write_npz(stem: Path, calls: list[_Call], done: Exported) -> None:
    arrays: dict[str, Any] = {}
    rows = _rows(calls[0])
    for prefix, tensors in (("input", [call.inputs for call in calls]), ("output", [call.outputs for call in calls])):
        for name in tensors[0]:
            pieces = [_without_objects(each[name]) for each in tensors]
            # One row a case where the calls have rows, as a golden file has them; else a call a case.
            arrays[f"{prefix}/{name}"] = np.concatenate(pieces) if rows else np.stack(pieces)
    path = stem.with_suffix(".npz")
    with mapped_os_errors(doing="write the captures", path=path):
        np.savez_compressed(path, **arrays)
        lines = [msgspec.json.encode(_about(call, row)) for call in calls for row in range(max(1, rows or 1))]
        stem.with_suffix(".jsonl").write_bytes(b"\n".join(lines) + b"\n")
    done.files += [path, stem.with_suffix(".jsonl")]


def _rows(call: _Call) -> int:
    """How many rows every tensor of *call* has; 0 when they have no number in common."""
    lengths = {array.shape[0] if array.ndim else 0 for array in (*call.inputs.values(), *call.outputs.values())}
    return lengths.pop() if len(lengths) == 1 else 0


def _about(call: _Call, row: int) -> dict[str, Any]:
    capture = call.capture
    return {
        "origin": call.origin,
        "row": row,
        "version": capture.version,
        "reason": capture.reason,
        "note": capture.note,
        "class": capture.classes[row] if row < len(capture.classes) else "",
        "score": capture.scores[row] if row < len(capture.scores) else None,
        "time_unix_nano": capture.time_unix_nano,
    }


def _shapes(tensors: Mapping[str, Array]) -> tuple[Any, ...]:
    return tuple((name, array.dtype.str, array.shape) for name, array in tensors.items())


def _without_objects(array: Array) -> Array:
    """Bytes in numpy's fixed width: an array of objects would be written as a pickle."""
    return array.astype(np.bytes_) if array.dtype.kind == "O" else array


def _pictures(array: Array) -> list[tuple[bytes, str]] | None:
    """The rows of *array* as files and their endings; None when it does not look like images or recordings."""
    if array.dtype.kind in "OS":
        files = files_of(array)
        endings = [next((end for magic, end in _MAGIC.items() if data.startswith(magic)), "") for data in files]
        return list(zip(files, endings, strict=True)) if files and all(endings) else None
    if array.dtype.kind not in "uif" or array.ndim not in (3, 4) or not array.size:
        return None
    rows = array[..., None] if array.ndim == 3 else array
    if rows.shape[3] not in (1, 3):
        if rows.shape[1] not in (1, 3):
            return None
        rows = rows.transpose(0, 2, 3, 1)
    try:
        return [(pack_png(np.ascontiguousarray(_pixels(row))), "png") for row in rows]
    except (ValueError, TypeError):
        return None


def _pixels(row: Array) -> Array:
    if row.dtype == np.uint8:
        return row
    numbers = np.nan_to_num(row.astype(np.float64))
    low, high = numbers.min(), numbers.max()
    stretched: Array = np.rint((numbers - low) * (255.0 / (high - low) if high > low else 0.0)).astype(np.uint8)
    return stretched


def _safe(text: str) -> str:
    """*text* as the name of a file or folder: whatever a far end put into it."""
    return _UNSAFE.sub("-", text).strip(".-")[:100] or "unnamed"


def checked_model(name: str) -> str:
    """*name* if a model may be called so, or "" for all."""
    if name and MODEL_NAME.fullmatch(name) is None:
        raise InvalidInputError(f"{name!r} is no name of a model.", hint=f"It must match {MODEL_NAME.pattern}.")
    return name
