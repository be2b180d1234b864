"""The tree of errors is the one its docstring draws, and foreign exceptions are translated at the boundary."""

from __future__ import annotations

import errno
import inspect
import os
import re

import pytest

from outstation import errors
from outstation.errors import DiskError, DiskFullError, LinkDownError, OutstationError, StorageError, mapped


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    drawn: dict[str, str] = {}
    trail: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.search(r"\b([A-Z]\w+Error)\b", line)
        if found is None or line.strip().startswith("Every"):
            continue
        depth = found.start()
        trail = [(at, name) for at, name in trail if at < depth]
        if trail:
            drawn[found.group(1)] = trail[-1][1]
        trail.append((depth, found.group(1)))
    real = {
        name: next(base.__name__ for base in kind.__bases__ if issubclass(base, OutstationError))
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, OutstationError) and kind is not OutstationError
    }
    assert drawn == real


@pytest.mark.parametrize(
    ("number", "kind", "said"),
    [
        (errno.ENOSPC, DiskFullError, "no space left"),
        (errno.EDQUOT, DiskFullError, "no space left"),
        (errno.EFBIG, DiskFullError, "no space left"),
        (errno.EACCES, DiskError, "no permission"),
        (errno.EROFS, DiskError, "read-only"),
        (errno.EIO, DiskError, "Input/output error"),
    ],
)
def test_each_failure_of_a_disk_has_its_error(number: int, kind: type[StorageError], said: str) -> None:
    got = errors.from_os_error(OSError(number, os.strerror(number)), doing="write", path="/data")
    assert type(got) is kind
    assert said in str(got)
    assert got.hint


def test_a_foreign_exception_becomes_ours_and_stays_as_the_cause() -> None:
    with (
        pytest.raises(LinkDownError, match="Could not publish: gone") as caught,
        mapped({OSError: LinkDownError}, doing="publish"),
    ):
        raise ConnectionResetError("gone")
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    assert caught.value.retryable


def test_an_error_of_ours_passes_unchanged() -> None:
    with pytest.raises(DiskFullError), mapped({Exception: LinkDownError}, doing="publish"):
        raise DiskFullError("full")


def test_a_missing_extra_says_what_to_install() -> None:
    got = errors.MissingExtraError("hub", "The hub provider")
    assert got.hint == "pip install 'outstation[hub]'"
