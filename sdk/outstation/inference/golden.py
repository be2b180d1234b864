"""Golden inputs and outputs: known answers that a version must give. Pure, except for reading the file."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from outstation.errors import CheckFailedError
from outstation.models.manifest import Golden, TensorSpec
from outstation.models.store import InstalledModel
from outstation.wire.datatypes import Array

# A device has to hold them beside the model; more than this is a test set, not a spot check.
MAX_CASES = 1024
MAX_UNPACKED_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """One call and what it must answer; ``number`` counts from 0, as in the file."""

    number: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


def golden_cases(model: InstalledModel) -> list[Case]:
    """The cases of *model*'s golden file, () when it has none. CheckFailedError says what is wrong with the file."""
    golden = model.manifest.golden
    if golden is None:
        return []
    arrays = _read(model, golden)
    inputs, outputs = (
        {spec.name: spec for spec in specs} for specs in (model.manifest.call_inputs, model.manifest.call_outputs)
    )
    given: dict[str, list[Array]] = {}
    expected: dict[str, list[Array]] = {}
    for key, array in arrays.items():
        kind, _, name = key.partition("/")
        specs, into = {"input": (inputs, given), "output": (outputs, expected)}.get(kind, ({}, given))
        if name not in specs:
            raise CheckFailedError(f"The golden file has {key!r}, which is no input or output of the model.")
        into[name] = _slices(specs[name], key, array)
    for name in inputs.keys() - given.keys():
        raise CheckFailedError(f"The golden file lacks 'input/{name}'.")
    if not expected:
        raise CheckFailedError("The golden file has no output to compare with.")
    counts = {len(slices) for slices in (*given.values(), *expected.values())}
    if len(counts) != 1 or not 0 < max(counts) <= MAX_CASES:
        raise CheckFailedError(f"The golden file's arrays hold {sorted(counts)} cases; all must hold the same number.")
    return [
        Case(
            number,
            {name: slices[number] for name, slices in given.items()},
            {name: slices[number] for name, slices in expected.items()},
        )
        for number in range(max(counts))
    ]


def difference(case: Case, answer: Mapping[str, Array], golden: Golden) -> str | None:
    """How *answer* misses *case*, as a sentence, or None. Numbers within tolerance; text, integers and NaN exactly."""
    for name, expected in case.outputs.items():
        where = f"golden case {case.number}, output {name!r}"
        got = answer[name]
        if got.shape != expected.shape:
            return f"{where}: the shape is {list(got.shape)} instead of {list(expected.shape)}."
        if expected.dtype.kind == "f" and got.dtype.kind == "f":
            problem = _far(expected.astype(np.float64), got.astype(np.float64), golden)
        else:
            problem = _other(_plain(expected), _plain(got))
        if problem is not None:
            return f"{where}{problem}"
    return None


def _far(expected: Array, got: Array, golden: Golden) -> str | None:
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.abs(got - expected)
        allowed = golden.absolute + golden.relative * np.abs(expected)
        fine = (gap <= allowed) | (got == expected) | (np.isnan(got) & np.isnan(expected))
    if fine.all():
        return None
    worst = np.unravel_index(int(np.argmax(np.where(fine, -1.0, np.nan_to_num(gap, nan=np.inf)))), expected.shape)
    place = "".join(f"[{index}]" for index in worst)
    return (
        f"{place} is {got[worst]:.6g} instead of {expected[worst]:.6g}, {gap[worst]:.3g} off "
        f"({allowed[worst]:.3g} is allowed); {int((~fine).sum())} of {fine.size} numbers are off."
    )


def _other(expected: Array, got: Array) -> str | None:
    wrong = np.argwhere(expected != got)
    if not len(wrong):
        return None
    first = tuple(wrong[0])
    place = "".join(f"[{index}]" for index in first)
    return f"{place} is {got[first]!s} instead of {expected[first]!s}; {len(wrong)} of {expected.size} are wrong."


def _plain(array: Array) -> Array:
    """Text in one form, whatever it came in; other arrays as they are."""
    if array.dtype.kind not in "OS":
        return array
    words = [word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in array.ravel()]
    return np.array(words, dtype=np.str_).reshape(array.shape)


def _read(model: InstalledModel, golden: Golden) -> dict[str, Array]:
    path = model.folder / golden.file
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_UNPACKED_BYTES:
            raise CheckFailedError(f"The golden file unpacks to {size} bytes; {MAX_UNPACKED_BYTES} is the most.")
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as exc:
        raise CheckFailedError(f"The golden file {path.name} cannot be read: {exc}.") from exc


def _slices(spec: TensorSpec, key: str, array: Array) -> list[Array]:
    """*array* cut into cases along its first axis, each of the model's rank.

    An array with one dimension more than the model takes holds one call in each row; one with as many holds them
    along the model's own first axis, as many rows to a call as the model asks for.
    """
    if array.ndim == len(spec.shape) + 1:
        return list(array)
    if array.ndim != len(spec.shape) or array.ndim == 0:
        raise CheckFailedError(
            f"{key!r} in the golden file has {array.ndim} dimensions; {len(spec.shape)} or one more were expected."
        )
    rows = max(1, spec.shape[0])
    if len(array) % rows:
        raise CheckFailedError(f"{key!r} in the golden file has {len(array)} rows, which is no multiple of {rows}.")
    return [array[at : at + rows] for at in range(0, len(array), rows)]
