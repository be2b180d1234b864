"""What tests of every room share."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Return once *condition* is true; AssertionError when it is not within *timeout* seconds."""
    until = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < until, f"not so within {timeout} s"
        time.sleep(0.005)
