"""The processing of a manifest, carried out with numpy. Pure but for its cache of weights; thread-safe.

The first axis counts rows. Images of several sizes lie side by side in a list until they are resized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from outstation.errors import InferenceError, InvalidInputError
from outstation.models.manifest import Manifest
from outstation.models.media import files_of, pack_png, pack_wav, unpack_images, unpack_recordings
from outstation.models.processing import (
    Cast,
    Image,
    InputStep,
    Labels,
    Layout,
    MadeOutput,
    Normalise,
    OutputStep,
    PreparedInput,
    Resize,
    Scale,
    Softmax,
    Threshold,
    TopK,
    Wav,
)
from outstation.wire.datatypes import DTYPES, Array, object_array

# Pairs of sizes whose weights are kept: a camera has one size, a few cameras a few.
_KEPT_WEIGHTS = 64
# A picture and a sound to try a model with that takes files, where the manifest says no size.
_SAMPLE_SIDE, _SAMPLE_SECONDS = 64, 1

Pieces = Array | list[Array]  # a list: of several sizes, one for each row


class Pipeline:
    """From what a caller gives to what the model takes, and back from what it answers."""

    def __init__(self, manifest: Manifest, labels: Sequence[str]) -> None:
        """*manifest* was checked: ``manifest.processing`` is there and fits the model."""
        assert manifest.processing is not None
        self.inputs = manifest.call_inputs
        self.outputs = manifest.call_outputs
        self._labels = object_array(list(labels))
        self._prepared = {made.name: made for made in manifest.processing.inputs}
        plain = tuple(MadeOutput(spec.name) for spec in manifest.outputs)
        self._made = {made.name: made for made in manifest.processing.outputs or plain}

    def feed(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the model takes. UnreadableFileError for a file, InvalidInputError for images that do not fit."""
        return {
            name: _prepared(name, self._prepared[name], array) if name in self._prepared else array
            for name, array in inputs.items()
        }

    def sources(self, names: Sequence[str]) -> list[str]:
        """The model's outputs that the outputs *names* are made of, each once."""
        return list(dict.fromkeys(self._made[name].source for name in names))

    def answers(self, names: Sequence[str], values: Mapping[str, Array]) -> list[Array]:
        """The outputs *names*, made of the model's *values*. InferenceError when one cannot be made of them."""
        return [self._answer(self._made[name], values[self._made[name].source]) for name in names]

    def samples(self) -> dict[str, Array]:
        """For each input that takes files: a black image, or silence, as many as one call needs."""
        return {
            spec.name: object_array([_sample(self._prepared[spec.name])] * max(1, spec.shape[0]))
            for spec in self.inputs
            if spec.name in self._prepared and self._prepared[spec.name].reads_files
        }

    def _answer(self, made: MadeOutput, value: Array) -> Array:
        try:
            for step in made.steps:
                value = _after(step, value, self._labels)
        except (ValueError, IndexError, TypeError) as exc:
            raise InferenceError(f"Output {made.name!r} cannot be made of what the model answers: {exc}.") from exc
        return value


def _prepared(name: str, prepared: PreparedInput, array: Array) -> Array:
    pieces: Pieces = array
    try:
        for step in prepared.steps:
            pieces = _before(step, pieces)
    except ValueError as exc:
        if isinstance(exc, InvalidInputError):
            raise
        raise InvalidInputError(f"Input {name!r} cannot be prepared for the model: {exc}.") from exc
    if isinstance(pieces, list):
        sizes = ", ".join(sorted({"x".join(map(str, piece.shape[:-1])) for piece in pieces}))
        raise InvalidInputError(
            f"Input {name!r} holds pieces of several sizes ({sizes}), which the model takes one at a time."
        )
    return np.ascontiguousarray(pieces)


def _before(step: InputStep, pieces: Pieces) -> Pieces:
    if isinstance(step, Resize):
        return _joined([resized(piece, step) for piece in pieces]) if len(pieces) else _no_rows(pieces, step)
    if isinstance(pieces, list):
        return _joined([_before(step, piece[None])[0] for piece in pieces])
    if isinstance(step, Image):
        unpacked = unpack_images(files_of(pieces), step)
        return _joined(unpacked) if unpacked else np.zeros((0, 1, 1, 3 if step.mode == "rgb" else 1), np.uint8)
    if isinstance(step, Wav):
        recordings = unpack_recordings(files_of(pieces), step)
        return _joined(recordings) if recordings else np.zeros((0, step.samples or 0), np.float32)
    return _plain(step, pieces)


def _after(step: OutputStep, value: Array, labels: Array) -> Array:
    if isinstance(step, Softmax):
        scores = value.astype(np.float32)
        odds: Array = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        odds /= odds.sum(axis=-1, keepdims=True)
        return odds
    if isinstance(step, Threshold):
        reached: Array = value >= step.minimum
        return reached
    if isinstance(step, TopK):
        return _top(step, value, labels)
    if isinstance(step, Labels):
        return _named(value, labels)
    return _plain(step, value)


def _plain(step: Scale | Normalise | Layout | Cast, value: Array) -> Array:
    if isinstance(step, Scale):
        scaled: Array = value.astype(np.float32) * np.float32(step.factor)
        scaled += np.float32(step.offset)
        return scaled
    if isinstance(step, Normalise):
        return (value.astype(np.float32) - np.array(step.mean, np.float32)) / np.array(step.deviation, np.float32)
    if isinstance(step, Layout):
        return _laid_out(value, step)
    return cast(value, DTYPES[step.datatype])


def cast(value: Array, dtype: np.dtype[Any]) -> Array:
    """*value* as *dtype*; to integers rounded and brought into the range, what is no number becomes 0."""
    if dtype.kind not in "iu" or value.dtype.kind == "b":
        return value.astype(dtype)
    limits = np.iinfo(dtype)
    if value.dtype.kind == "f":
        # The largest INT64 is no floating point number: the one below it is the limit then.
        high = float(limits.max) if int(float(limits.max)) == limits.max else np.nextafter(float(limits.max), 0.0)
        whole = np.clip(np.rint(value.astype(np.float64)), float(limits.min), high)
        return np.where(np.isnan(whole), 0.0, whole).astype(dtype)
    own = np.iinfo(value.dtype)
    return np.clip(value, max(limits.min, own.min), min(limits.max, own.max)).astype(dtype)


def resized(image: Array, step: Resize) -> Array:
    """*image* [height, width, channels] as *step* wants it; of its own type, UINT8 rounded."""
    height, width, channels = image.shape
    if not height or not width:
        raise ValueError("an image without pixels")
    if step.fit == "stretch":
        return _sampled(image, step.height, step.width, step.sampling)
    ratios = step.height / height, step.width / width
    ratio = min(ratios) if step.fit == "contain" else max(ratios)
    inner_height, inner_width = (max(1, round(side * ratio)) for side in (height, width))
    if step.fit == "cover":
        inner_height, inner_width = max(inner_height, step.height), max(inner_width, step.width)
        inner = _sampled(image, inner_height, inner_width, step.sampling)
        top, left = (inner_height - step.height) // 2, (inner_width - step.width) // 2
        return inner[top : top + step.height, left : left + step.width]
    inner_height, inner_width = min(inner_height, step.height), min(inner_width, step.width)
    inner = _sampled(image, inner_height, inner_width, step.sampling)
    whole = np.full((step.height, step.width, channels), cast(np.array(step.fill), image.dtype))
    top, left = (step.height - inner_height) // 2, (step.width - inner_width) // 2
    whole[top : top + inner_height, left : left + inner_width] = inner
    return whole


def _sampled(image: Array, height: int, width: int, sampling: str) -> Array:
    if image.shape[:2] == (height, width):
        return image
    if sampling == "nearest":
        rows, columns = (
            (np.arange(new) * 2 + 1) * old // (2 * new)
            for new, old in ((height, image.shape[0]), (width, image.shape[1]))
        )
        nearest: Array = image[rows][:, columns]
        return nearest
    tall = _along_first(image, height)
    wide = _along_first(np.ascontiguousarray(tall.transpose(1, 0, 2)), width).transpose(1, 0, 2)
    return cast(wide, image.dtype)


def _along_first(image: Array, length: int) -> Array:
    """*image* with *length* rows, FP32. Only the rows under one new row are FP32 at a time: a picture may be large."""
    if image.shape[0] == length:
        return image.astype(np.float32)
    made = np.empty((length, image.shape[1] * image.shape[2]), np.float32)
    for row, (begin, weights) in enumerate(_weights(image.shape[0], length)):
        under = image[begin : begin + len(weights)].reshape(len(weights), -1)
        np.dot(weights, under.astype(np.float32, copy=False), out=made[row])
    return made.reshape(length, *image.shape[1:])


@lru_cache(maxsize=_KEPT_WEIGHTS)
def _weights(old: int, new: int) -> tuple[tuple[int, Array], ...]:
    """For each of *new* places along a side of *old*: the first pixel that counts, and by how much each does.

    A triangle as wide as a new pixel on either side, and at least as wide as an old one: Pillow's BILINEAR.
    """
    scale = old / new
    reach = max(1.0, scale)
    made = []
    for place in range(new):
        centre = (place + 0.5) * scale
        begin, end = max(0, int(centre - reach + 0.5)), min(old, int(centre + reach + 0.5))
        weights = np.maximum(0.0, 1.0 - np.abs((np.arange(begin, end) + 0.5 - centre) / reach))
        made.append((begin, (weights / weights.sum()).astype(np.float32)))
    return tuple(made)


def _laid_out(value: Array, step: Layout) -> Array:
    if value.ndim != len(step.before):
        raise ValueError(f"{step.before!r} for an array of {value.ndim} axes")
    gone = tuple(axis for axis, letter in enumerate(step.before) if letter not in step.to)
    if any(value.shape[axis] != 1 for axis in gone):
        raise ValueError(f"{step.to!r} leaves out an axis that is longer than 1: {list(value.shape)}")
    kept = [letter for letter in step.before if letter in step.to]
    made = value.squeeze(gone).transpose([kept.index(letter) for letter in step.to if letter in kept])
    return np.expand_dims(made, tuple(axis for axis, letter in enumerate(step.to) if letter not in kept))


def _top(step: TopK, value: Array, labels: Array) -> Array:
    if value.shape[-1] < step.k:
        raise ValueError(f"the {step.k} highest of {value.shape[-1]}")
    # Of equals the first comes first; what is no number comes last.
    order = np.argsort(-value.astype(np.float64), axis=-1, kind="stable")
    places = order[..., : step.k]
    scores = np.take_along_axis(value, places, axis=-1)
    if step.gives == "scores":
        return scores
    if step.minimum is not None:
        places = np.where(scores >= step.minimum, places, -1)
    places = places.astype(np.int64)
    return places if step.gives == "places" else _named(places, labels)


def _named(places: Array, labels: Array) -> Array:
    if places.size and not -1 <= int(places.min()) <= int(places.max()) < len(labels):
        raise ValueError(f"there are {len(labels)} labels, and the model answers {places.min()} to {places.max()}")
    with_none: Array = np.append(labels, "")
    return np.asarray(with_none[places.astype(np.int64)])


def _joined(pieces: list[Array]) -> Pieces:
    if any(piece.shape != pieces[0].shape for piece in pieces):
        return pieces
    return np.stack(pieces)


def _no_rows(pieces: Pieces, step: Resize) -> Array:
    assert not isinstance(pieces, list)
    return np.zeros((0, step.height, step.width, pieces.shape[-1]), pieces.dtype)


def _sample(prepared: PreparedInput) -> bytes:
    first, *rest = prepared.steps
    if isinstance(first, Wav):
        return pack_wav(np.zeros(first.samples or _SAMPLE_SECONDS * first.sample_rate, np.float32), first.sample_rate)
    sizes = [(step.height, step.width) for step in rest if isinstance(step, Resize)]
    height, width = sizes[0] if sizes else (_SAMPLE_SIDE, _SAMPLE_SIDE)
    return pack_png(np.zeros((height, width, 1), np.uint8))
