"""Tensors as the Open Inference Protocol names and lays them out, over numpy; no generated code.

A tensor's bytes are its elements in row-major order, little-endian. ``BYTES`` elements have each a 4-byte
little-endian length in front; in numpy they are an object array whose elements are ``bytes`` (or ``str``, which
counts as its UTF-8). ``BF16``, which numpy lacks, is an array of :data:`BF16`; :func:`to_bf16` and :func:`from_bf16`
make it of FP32 and back. Everything here is pure and thread-safe; what does not fit together is an InvalidInputError.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from outstation.errors import InvalidInputError

Array = npt.NDArray[Any]

# One element of BF16: the upper half of an FP32, as a dtype that is no other type's.
BF16 = np.dtype([("bf16", "<u2")])

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "BF16": BF16,
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# numpy's arrays have no more dimensions than this (32 before numpy 2).
MAX_RANK = 32
_LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name for the elements of *array*; "" when it has none. Text and fixed-width bytes are BYTES."""
    return _NAMES.get(array.dtype) or ("BYTES" if array.dtype.kind in "SU" else "")


def described(datatype: str, shape: Sequence[int]) -> str:
    """A tensor's type for a message: ``FP32 [-1, 8, 8]``."""
    return f"{datatype} [{', '.join(map(str, shape))}]"


def element_count(shape: Sequence[int], name: str) -> int:
    """How many elements a tensor of *shape* has; InvalidInputError for a shape that no tensor can have."""
    if len(shape) > MAX_RANK:
        raise InvalidInputError(f"{name} has {len(shape)} dimensions; {MAX_RANK} is the most.")
    if any(size < 0 for size in shape):
        raise InvalidInputError(f"{name} has a negative dimension: {list(shape)}.")
    return math.prod(shape)


def from_raw(name: str, datatype: str, shape: Sequence[int], data: bytes | memoryview) -> Array:
    """The tensor whose bytes are *data*. It shares their memory and is read-only, except for BYTES.

    *name* is only for the message of the InvalidInputError: unknown datatype, or a size that is not the shape's.
    Nothing is allocated before the size is known to be right, so a claim of 2 GB costs nothing.
    """
    dtype = DTYPES.get(datatype)
    if dtype is None:
        raise InvalidInputError(f"{name} has the unknown datatype {datatype!r}.", hint=f"Known: {', '.join(DTYPES)}.")
    count = element_count(shape, name)
    if datatype == "BYTES":
        return _elements(name, count, data).reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise InvalidInputError(
            f"{name} has {len(data)} bytes; {described(datatype, shape)} needs {count * dtype.itemsize}."
        )
    return np.frombuffer(data, dtype).reshape(shape)


def to_raw(array: Array) -> bytes:
    """The bytes of *array*: what :func:`from_raw` reads."""
    if array.dtype.kind in "OSU":
        return b"".join(_prefixed(element) for element in array.ravel().tolist())
    return array.tobytes()


def to_bf16(array: Array) -> Array:
    """*array* of FP32 as BF16, rounded to the nearest, ties to even. Infinities and NaN stay what they are."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    upper = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # wraps for some NaN, which are set below
    upper = np.where(np.isnan(array), bits >> 16 | 0x40, upper)
    return upper.astype(np.uint16).view(BF16).reshape(array.shape)


def from_bf16(array: Array) -> Array:
    """*array* of BF16 as FP32; exact."""
    bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
    return bits.view(np.float32).reshape(array.shape)


def as_bytes(element: Any) -> bytes:
    """One element of a BYTES tensor as bytes; text is UTF-8, undecodable bytes in it come back as they were."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode("utf-8", "surrogateescape")
    raise InvalidInputError(f"An element of a BYTES tensor is {type(element).__name__}; it must be bytes or str.")


def object_array(elements: Sequence[Any]) -> Array:
    """*elements* as a one-dimensional object array, whatever they are."""
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


def _prefixed(element: Any) -> bytes:
    data = as_bytes(element)
    return _LENGTH.pack(len(data)) + data


def _elements(name: str, count: int, data: bytes | memoryview) -> Array:
    if count * _LENGTH.size > len(data):
        raise InvalidInputError(f"{name} has {len(data)} bytes: too few for {count} BYTES elements.")
    elements: list[bytes] = []
    at = 0
    for _ in range(count):
        if at + _LENGTH.size > len(data):
            raise InvalidInputError(f"{name} ends inside element {len(elements)} of {count}.")
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if at + size > len(data):
            raise InvalidInputError(
                f"{name} claims {size} bytes for element {len(elements)}; {len(data) - at} are left."
            )
        elements.append(bytes(data[at : at + size]))
        at += size
    if at != len(data):
        raise InvalidInputError(f"{name} has {len(data) - at} bytes after its last element.")
    return object_array(elements)
