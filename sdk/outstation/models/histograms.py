"""How the numbers of a training set are spread, as the manifest keeps it. Pure; ``baseline.py`` makes it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Annotated

import msgspec

# A device keeps as many counters for each feature as it has bins.
MAX_FEATURES = 1024
MAX_EDGES = 64

_ELEMENT = re.compile(r"\[[0-9]+(,[0-9]+)*\]$")

Count = Annotated[int, msgspec.Meta(ge=0)]


class Histogram(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the numbers of one feature were spread: ``counts[i]`` of them from ``edges[i - 1]`` on, below ``edges[i]``.

    The first bin is open downwards, the last upwards. ``missing`` counts NaN.
    """

    edges: tuple[float, ...]
    counts: tuple[Count, ...]
    missing: Count = 0


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the training set looked like, to tell later whether live traffic still does.

    By feature: ``NAME[2,5]``, an element of the input or output NAME, or ``NAME``, all of its elements together.
    """

    rows: Annotated[int, msgspec.Meta(gt=0)]
    inputs: dict[str, Histogram] = {}
    outputs: dict[str, Histogram] = {}


def histogram_problem(histograms: Mapping[str, Histogram], names: Collection[str]) -> tuple[str, str] | None:
    """What types cannot say of *histograms*: the field below it and what is wrong there, or None.

    *names* are those of the model's inputs, or of its outputs.
    """
    if len(histograms) > MAX_FEATURES:
        return "", f"holds {len(histograms)} features; {MAX_FEATURES} is the most"
    for feature, histogram in histograms.items():
        edges = histogram.edges
        if feature not in names and _ELEMENT.sub("", feature) not in names:
            return f".{feature}", "is of no such input or output"
        if len(edges) > MAX_EDGES or len(histogram.counts) != len(edges) + 1:
            return f".{feature}", f"must hold at most {MAX_EDGES} edges, and one count more than edges"
        if any(low >= high for low, high in pairwise(edges)) or not all(map(math.isfinite, edges)):
            return f".{feature}.edges", "must be finite numbers that rise"
    return None
