"""The profile of a training set: into which bins its numbers fall, by feature. What a device needs to tell drift.

Bins are fixed, so that counts of live traffic are added up with ten counters a feature and compared at any time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from outstation.errors import InvalidInputError
from outstation.models.histograms import MAX_FEATURES, Baseline, Histogram
from outstation.models.manifest import ANY, TensorSpec
from outstation.models.probe import ModelProbe, calls, read_rows

# A spread is known long before this; a larger set is sampled by whoever makes the file.
MAX_ROWS = 1_000_000
# A model needs up to milliseconds for each: so many rows, evenly spread over the set, stand for all of its answers.
MAX_ANSWERED = 10_000
# Of numbers that are counted together, as the pixels of an image: so many of one answer, and of all rows.
MAX_OF_ANSWER = 4096
MAX_POOLED = 4_000_000
BINS = 10
# An input with more elements a row is an image or a waveform: the place of a number in it means little.
MAX_ELEMENTS = 256
# As many different numbers are classes or levels: each has a bin of its own.
MAX_LEVELS = 32


def profile(probe: ModelProbe, source: Path) -> Baseline:
    """The baseline of the training data in *source*, an .npz as for golden inputs; outputs are what the model answers.

    Text has none. InvalidInputError says what is wrong with the file, or that the model has too many features.
    """
    rows, inputs = read_rows(probe, source, MAX_ROWS)
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, MAX_ANSWERED)).astype(int))
    asked = {name: array[chosen] for name, array in inputs.items()}
    outputs = _answered(probe, calls(probe, len(chosen), asked))
    return Baseline(rows, _histograms(probe.inputs, inputs, source), _histograms(probe.outputs, outputs, source))


def histogram(values: Any) -> Histogram:
    """The spread of *values*, any numeric array: a bin for each of a few levels, else tenths of them.

    What lies outside of a few levels has bins of its own, with nothing in them.
    """
    numbers = np.asarray(values, dtype=np.float64).ravel()
    missing = int(np.isnan(numbers).sum())
    numbers = numbers[~np.isnan(numbers)]
    edges = _edges(numbers)
    counts = np.bincount(np.searchsorted(edges, numbers, side="right"), minlength=len(edges) + 1)
    return Histogram(tuple(map(float, edges)), tuple(map(int, counts)), missing)


def _edges(numbers: Any) -> Any:
    finite = numbers[np.isfinite(numbers)]
    levels = np.unique(finite)
    if len(levels) > MAX_LEVELS:
        return np.unique(np.quantile(finite, np.linspace(0, 1, BINS + 1)[1:-1]))
    if not len(levels):
        return levels
    between = (levels[:-1] + levels[1:]) / 2
    return np.unique(np.concatenate([levels[:1], between, np.nextafter(levels[-1:], math.inf)]))


def _answered(probe: ModelProbe, asked: list[dict[str, Any]]) -> dict[str, Any]:
    """What the model answers to each call, first axis the calls; flat where answers are large or not of one shape."""
    kept: dict[str, list[Any]] = {spec.name: [] for spec in probe.outputs}
    for one in asked:
        for name, answer in probe.run(one).items():
            array = np.asarray(answer)
            kept[name].append(array if array.size <= MAX_ELEMENTS else _thinned(array, MAX_OF_ANSWER))
    alike = {name: len({array.shape for array in arrays}) == 1 for name, arrays in kept.items()}
    return {
        name: np.stack(arrays) if alike[name] else np.concatenate([array.ravel() for array in arrays])
        for name, arrays in kept.items()
    }


def _histograms(specs: tuple[TensorSpec, ...], arrays: dict[str, Any], source: Path) -> dict[str, Histogram]:
    found: dict[str, Histogram] = {}
    for spec in specs:
        if arrays[spec.name].dtype.kind in "fiub":
            found.update(_features(spec, arrays[spec.name]))
    if len(found) > MAX_FEATURES:
        raise InvalidInputError(f"{source.name}: the model has {len(found)} features; {MAX_FEATURES} is the most.")
    return found


def _features(spec: TensorSpec, array: Any) -> Iterator[tuple[str, Histogram]]:
    """The features of one input or output and their spread; *array* holds the rows along its first axis."""
    shape, promised = array.shape[1:], spec.shape
    if array.ndim == len(promised):
        promised = promised[1:]  # the model's own first axis counts the rows
    elif promised and shape[0] == 1 and promised[0] in {ANY, 1}:
        shape, promised = shape[1:], promised[1:]  # it counts one row in each case
    elements = math.prod(shape)
    if len(shape) != len(promised) or ANY in promised or not 0 < elements <= MAX_ELEMENTS:
        yield spec.name, histogram(_thinned(array, MAX_POOLED))
        return
    columns = array.reshape(len(array), elements)
    for element in range(elements):
        place = ",".join(str(int(index)) for index in np.unravel_index(element, shape)) if shape else ""
        yield f"{spec.name}[{place}]" if elements > 1 else spec.name, histogram(columns[:, element])


def _thinned(array: Any, most: int) -> Any:
    """At most *most* of the numbers in *array*, evenly spaced."""
    flat = array.ravel()
    return flat[:: max(1, -(-flat.size // most))]
