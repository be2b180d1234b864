"""Images and recordings as arrays, and the smallest of each. Whoever made the file is not trusted."""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from outstation.errors import MissingExtraError, UnreadableFileError
from outstation.models.processing import Image, Wav
from outstation.wire.datatypes import Array, as_bytes

_MODES = {"rgb": "RGB", "grey": "L"}
_FORMATS = ("JPEG", "PNG")
# Bytes a sample; those of 24 bits have no type of their own in numpy.
_WIDTHS = (1, 2, 3, 4)
_BYTES_24 = 3


def files_of(array: Array) -> list[bytes]:
    """The elements of a BYTES tensor as they are: numpy's fixed width must not eat zeros at the end of a file."""
    if array.dtype.kind == "S":
        width = array.dtype.itemsize
        data = np.ascontiguousarray(array).tobytes()
        return [data[at : at + width] for at in range(0, len(data), width)] if width else [b""] * array.size
    return [as_bytes(element) for element in array.ravel().tolist()]


def unpack_images(files: Sequence[bytes], step: Image) -> list[Array]:
    """Each image as UINT8 [height, width, channels]; UnreadableFileError names the first that cannot be read.

    Sizes are read from the headers of all before one is unpacked.
    """
    pillow = _pillow()
    opened = [_opened(pillow, number, data) for number, data in enumerate(files)]
    pixels = sum(image.width * image.height for image in opened)
    if pixels > step.max_pixels:
        raise UnreadableFileError(
            f"The images of this call have {pixels} pixels; {step.max_pixels} is the most.",
            hint="Send smaller images, or fewer in one call.",
        )
    return [_unpacked(number, image, _MODES[step.mode]) for number, image in enumerate(opened)]


def pack_png(pixels: Array) -> bytes:
    """A PNG file of UINT8 [height, width, 1 or 3]."""
    image = _pillow().fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def unpack_recordings(files: Sequence[bytes], step: Wav) -> list[Array]:
    """Each recording as FP32 [samples]; UnreadableFileError names the first that cannot be read."""
    return [_recording(number, data, step) for number, data in enumerate(files)]


def pack_wav(samples: Array, sample_rate: int) -> bytes:
    """A WAV file, one channel of 16 bits, of FP32 [samples] in -1 to 1."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(sample_rate)
        out.writeframes(np.clip(np.rint(samples * 32767), -32768, 32767).astype("<i2").tobytes())
    return file.getvalue()


@lru_cache(maxsize=1)
def _pillow() -> Any:
    try:
        import PIL.Image  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise MissingExtraError("images", "Reading images") from exc
    return PIL.Image


def _opened(pillow: Any, number: int, data: bytes) -> Any:
    try:
        return pillow.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as exc:  # Pillow raises what the codec of the day does
        raise UnreadableFileError(f"Image {number} of this call is no JPEG or PNG: {exc}.") from exc


def _unpacked(number: int, image: Any, mode: str) -> Array:
    try:
        pixels: Array = np.asarray(image.convert(mode))
    except Exception as exc:  # as above
        raise UnreadableFileError(f"Image {number} of this call is damaged: {exc}.") from exc
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def _recording(number: int, data: bytes, step: Wav) -> Array:
    try:
        with wave.open(io.BytesIO(data), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            # What the header claims is bounded by what came: nothing is unpacked here.
            frames = file.readframes(len(data))
    except (wave.Error, EOFError, ValueError, RuntimeError) as exc:
        raise UnreadableFileError(f"Recording {number} of this call is no WAV file of plain samples: {exc}.") from exc
    if width not in _WIDTHS:
        raise UnreadableFileError(f"Recording {number} of this call has samples of {width} bytes.")
    if rate != step.sample_rate:
        raise UnreadableFileError(
            f"Recording {number} of this call has {rate} samples a second; the model takes {step.sample_rate}.",
            hint="Record at that rate; nothing is resampled here.",
        )
    whole = len(frames) - len(frames) % (channels * width)
    samples: Array = _samples(frames[:whole], width).reshape(-1, channels).mean(axis=1, dtype=np.float32)
    if step.samples is None:
        return samples
    kept = samples[: step.samples]
    return np.pad(kept, (0, step.samples - len(kept)))


def _samples(frames: bytes, width: int) -> Array:
    """Of 8 bits from 0, of more around 0, as WAV has them; in -1 to 1."""
    if width == 1:
        return (np.frombuffer(frames, np.uint8).astype(np.float32) - 128) / 128
    if width == _BYTES_24:
        wide = np.zeros((len(frames) // width, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(frames, np.uint8).reshape(-1, width)
        return np.asarray(wide.view("<i4")[:, 0] / 2.0**31, np.float32)
    return np.asarray(np.frombuffer(frames, f"<i{width}") / 2.0 ** (8 * width - 1), np.float32)
