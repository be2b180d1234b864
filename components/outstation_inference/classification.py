"""The best classes of an output in words, as clients of Triton may ask for them instead of its elements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from outstation.errors import InvalidInputError
from outstation.wire.datatypes import BF16, Array, from_bf16, object_array


def best_classes(name: str, array: Array, count: int, labels: Sequence[str]) -> Array:
    """The *count* largest elements of each row, largest first, as text "VALUE:INDEX", or "VALUE:INDEX:LABEL".

    Rows are along the last axis; of equal ones the first comes first, and NaN comes last. *labels* count where there
    is one for each element of a row. InvalidInputError for the output *name* when it holds no numbers.
    """
    if array.dtype.kind not in "fiub" and array.dtype != BF16:
        raise InvalidInputError(f"Output {name!r} has no classes: its elements are no numbers.")
    rows = np.atleast_1d(from_bf16(array) if array.dtype == BF16 else array)
    size = rows.shape[-1]
    keys = np.where(np.isnan(rows), -np.inf, rows) if rows.dtype.kind == "f" else rows
    order = size - 1 - np.argsort(keys[..., ::-1], axis=-1, kind="stable")[..., ::-1][..., :count]
    values = np.take_along_axis(rows, order, axis=-1)
    number = "{:f}" if rows.dtype.kind == "f" else "{:d}"
    ends = [f":{index}:{label}" for index, label in enumerate(labels)] if len(labels) == size else None
    words = [
        number.format(value) + (f":{index}" if ends is None else ends[index])
        for value, index in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)
    ]
    found: Array = object_array(words).reshape(order.shape)
    return found
