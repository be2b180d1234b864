"""Versions of models: semantic versions, MAJOR.MINOR.PATCH with an optional pre-release part. Pure.

The build part ("+7") of the specification is not taken: two versions that differ only there would be equal in
order and still be two, and a device could not say which of them is the newer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from outstation.errors import InvalidNameError

_NUMBER = r"(?:0|[1-9][0-9]{0,8})"
_LABEL = r"(?:0|[1-9][0-9]*|[0-9]*[A-Za-z-][0-9A-Za-z-]*)"
VERSION = re.compile(rf"({_NUMBER})\.({_NUMBER})\.({_NUMBER})(?:-({_LABEL}(?:\.{_LABEL})*))?")
MAX_LENGTH = 64  # a version is part of file names and of topics

_Label = tuple[int, int, str]
Precedence = tuple[int, int, int, bool, tuple[_Label, ...]]


def is_version(text: str) -> bool:
    """Whether *text* is a version."""
    return len(text) <= MAX_LENGTH and VERSION.fullmatch(text) is not None


def checked_version(text: str) -> str:
    """*text* if it is a version, else InvalidNameError."""
    if not is_version(text):
        raise InvalidNameError(f"{text!r} is no version.", hint="Write MAJOR.MINOR.PATCH, as in 1.2.0 or 2.0.0-rc.1.")
    return text


def is_prerelease(version: str) -> bool:
    """Whether *version* has a pre-release part."""
    return "-" in version


def precedence(version: str) -> Precedence:
    """A key that sorts versions as the specification orders them: numbers first, a pre-release before its release."""
    match = VERSION.fullmatch(version)
    if match is None:
        raise InvalidNameError(f"{version!r} is no version.")
    major, minor, patch, labels = match.groups()
    parts = tuple((0, int(part), "") if part.isdigit() else (1, 0, part) for part in (labels or "").split(".") if part)
    return int(major), int(minor), int(patch), not labels, parts


def newest_first(versions: Iterable[str]) -> tuple[str, ...]:
    """*versions* from the newest down."""
    return tuple(sorted(versions, key=precedence, reverse=True))
