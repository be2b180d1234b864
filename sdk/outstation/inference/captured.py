"""One captured call as bytes and back: a MessagePack map, its tensors in the Open Inference Protocol's layout.

Readable without Outstation: docs/inference.md lists the keys. Never pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

import msgspec

from outstation.errors import UnsupportedVersionError, WireError
from outstation.shapes import learn
from outstation.wire.datatypes import Array, datatype_of, from_raw, to_raw
from outstation.zstd import ZstdDecompressor, ZstdError, compress

CONTENT_TYPE = "application/x-outstation-capture"
FORMAT = 1
# Larger than any call that a server takes; a claim of more is no capture of ours.
MAX_TENSOR_BYTES = 256 << 20
_LEVEL = 3

Reason: TypeAlias = Literal["rate", "low_confidence", "class", "manual"]


class CapturedTensor(msgspec.Struct, frozen=True):
    """``data`` is what :func:`outstation.wire.datatypes.to_raw` gives, compressed if ``codec`` says so."""

    name: str
    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    codec: Literal["raw", "zstd"]
    size: Annotated[int, msgspec.Meta(ge=0, le=MAX_TENSOR_BYTES)]  # of the data when it is not compressed
    data: bytes


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """One call. ``classes`` and ``scores`` have an entry for each row of the output that was watched."""

    format: int = FORMAT
    model: str
    version: str
    reason: Reason
    time_unix_nano: int
    note: str = ""  # what a person said of it, such as the right answer
    classes: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    inputs: tuple[CapturedTensor, ...]
    outputs: tuple[CapturedTensor, ...]


def packed(tensors: Mapping[str, Array], *, compressed: bool) -> tuple[CapturedTensor, ...]:
    """*tensors* as a capture holds them; *compressed* only where that makes them smaller, as it does no JPEG file."""
    return tuple(_packed(name, array, compressed=compressed) for name, array in tensors.items())


def encode_capture(capture: Capture) -> bytes:
    """The payload of a record."""
    return msgspec.msgpack.encode(capture)


def decode_capture(data: bytes) -> Capture:
    """The capture in *data*; WireError when it is none, UnsupportedVersionError when it is of the future."""
    try:
        capture = msgspec.msgpack.decode(data, type=Capture)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise WireError(f"These {len(data)} bytes are no capture: {exc}.") from exc
    if capture.format > FORMAT:
        raise UnsupportedVersionError(f"A capture of format {capture.format}; this Outstation reads up to {FORMAT}.")
    return capture


def unpacked(tensors: tuple[CapturedTensor, ...]) -> dict[str, Array]:
    """The arrays by name. WireError, or InvalidInputError when a tensor's bytes are not those of its shape."""
    return {tensor.name: from_raw(tensor.name, tensor.datatype, tensor.shape, _raw(tensor)) for tensor in tensors}


def _packed(name: str, array: Array, *, compressed: bool) -> CapturedTensor:
    raw = to_raw(array)
    datatype = datatype_of(array)
    if compressed:
        small = compress(raw, _LEVEL)
        if len(small) < len(raw):
            return CapturedTensor(name, datatype, array.shape, "zstd", len(raw), small)
    return CapturedTensor(name, datatype, array.shape, "raw", len(raw), raw)


def _raw(tensor: CapturedTensor) -> bytes:
    if tensor.codec == "raw":
        return tensor.data
    try:
        # One byte more than there should be: a claim that is too small shows.
        data: bytes = ZstdDecompressor().decompress(tensor.data, tensor.size + 1)
    except ZstdError as exc:
        raise WireError(f"The tensor {tensor.name!r} of a capture is damaged: {exc}.") from exc
    if len(data) != tensor.size:
        raise WireError(f"The tensor {tensor.name!r} of a capture is not of the size that it claims.")
    return data


learn(Capture)
