"""The best classes of an output, in Triton's words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outstation.errors import InvalidInputError
from outstation.wire.datatypes import object_array, to_bf16
from outstation_inference.classification import best_classes

SCORES = np.array([[0.25, 0.5, 0.125], [3, -1, 3]], np.float32)


def test_each_row_tells_its_largest_first_with_the_names_of_classes():
    assert best_classes("y", SCORES, 2, ("a", "b", "c")).tolist() == [
        ["0.500000:1:b", "0.250000:0:a"],
        ["3.000000:0:a", "3.000000:2:c"],
    ]


def test_labels_that_are_not_of_these_elements_are_left_out():
    assert best_classes("y", SCORES[0], 1, ("a", "b")).tolist() == ["0.500000:1"]


def test_more_than_there_are_is_all_of_them():
    assert best_classes("y", SCORES, 1 << 40, ()).shape == (2, 3)
    assert best_classes("y", np.zeros((2, 0), np.float32), 3, ()).shape == (2, 0)
    assert best_classes("y", np.float32(2), 3, ()).tolist() == ["2.000000:0"]


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float16, np.bool_])
def test_every_number_has_an_order(dtype):
    assert best_classes("y", np.array([0, 1, 1]).astype(dtype), 3, ())[0].partition(":")[2] == "1"


def test_bf16_is_compared_by_its_values_and_nan_comes_last():
    values = np.array([np.nan, -1, 2], np.float32)
    for array in (values, to_bf16(values)):
        assert best_classes("y", array, 3, ()).tolist() == ["2.000000:2", "-1.000000:1", "nan:0"]


def test_text_has_no_classes():
    with pytest.raises(InvalidInputError, match="Output 'y' has no classes"):
        best_classes("y", object_array(["a"]), 1, ())


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=12), st.integers(1, 15))
def test_the_best_are_those_that_sorting_puts_first(row, count):
    found = best_classes("y", np.array([row], np.int64), count, ())[0].tolist()
    best = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
    assert found == [f"{row[index]}:{index}" for index in best]
