"""Tensors that lie in shared memory instead of in a message: how a call names them, as Triton's clients do.

Pure and thread-safe. What contradicts itself is an InvalidInputError. Nothing here looks into any memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from outstation.errors import InvalidInputError

REGION, SIZE, OFFSET = "shared_memory_region", "shared_memory_byte_size", "shared_memory_offset"
# The protocol's numbers are unsigned 64-bit in one place and signed in another; no memory is larger than this.
MAX_BYTES = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Window:
    """``size_bytes`` of the region that was registered as ``region``, from ``offset`` bytes into it."""

    region: str
    offset: int
    size_bytes: int

    @property
    def parameters(self) -> dict[str, str | int]:
        """How it is written beside a tensor."""
        place = {OFFSET: self.offset} if self.offset else {}
        return {REGION: self.region, SIZE: self.size_bytes, **place}


@dataclass(frozen=True, slots=True)
class SharedTensor:
    """A tensor whose bytes lie in ``window``."""

    datatype: str
    shape: tuple[int, ...]
    window: Window


@dataclass(frozen=True, slots=True)
class Region:
    """``size_bytes`` of the POSIX shared memory ``key``, from ``offset``, registered as ``name``."""

    name: str
    key: str
    offset: int
    size_bytes: int


def window_of(parameters: Mapping[str, Any], where: str) -> Window | None:
    """The window that the *parameters* of a tensor name; None when the tensor travels in the message."""
    if REGION not in parameters:
        if SIZE in parameters or OFFSET in parameters:
            raise InvalidInputError(f"{where} names a place in shared memory, but no {REGION}.")
        return None
    region, size, offset = parameters[REGION], parameters.get(SIZE), parameters.get(OFFSET, 0)
    if type(region) is not str or not region:
        raise InvalidInputError(f"{where} has a {REGION} that is no name.")
    return Window(region, _size(offset, OFFSET, where), _size(size, SIZE, where))


def _size(value: Any, name: str, where: str) -> int:
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise InvalidInputError(f"{where} has the {name} {value!r}; it must be a number of bytes.")
    return value
