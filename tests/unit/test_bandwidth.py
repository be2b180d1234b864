"""What a station may put on its link: records first, models with what is left, and never starved."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outstation.bandwidth import Allowance


@given(st.floats(1, 1e6), st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50))
def test_no_more_leaves_than_is_allowed(per_second: float, sizes: list[float]) -> None:
    allowance, now, taken = Allowance(per_second), 0.0, 0.0
    for size in sizes:
        now += allowance.wait(now) + 1e-9
        assert allowance.wait(now) <= 1e-6
        assert taken <= per_second * (now + 1) * (1 + 1e-6) + 1e-3
        allowance.take(size)
        taken += size


def test_without_a_bound_nothing_waits() -> None:
    allowance = Allowance(None)
    allowance.take(1e12)
    assert allowance.wait(0.0) == 0.0
