"""What stands between a caller and a model: pre- and post-processing, declared in the manifest.

Only declarations and what follows from them: which types and shapes a call has. ``pipeline.py`` carries them out with
numpy, the same way in an application, in the inference component and in the check of the golden answers. There is no
scripting: a step that is not listed here belongs into the model's graph.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec

ANY = -1
# A tensor goes through a handful of steps; more is a program.
MAX_STEPS = 16
# Of all images of one call together: what 16 million pixels unpack to, 48 MB, a small device can bear.
MAX_PIXELS = 16_000_000

_NUMBERS = frozenset({"FP16", "FP32", "FP64"} | {f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64)})
_FLOATS = frozenset({"FP16", "FP32", "FP64"})
_PIXELS = frozenset({"UINT8", "FP32"})
_INTEGERS = _NUMBERS - _FLOATS

Side = Annotated[int, msgspec.Meta(ge=1, le=8192)]
Numbers = Annotated[tuple[float, ...], msgspec.Meta(min_length=1, max_length=4096)]


class Kind(NamedTuple):
    """A tensor's type; -1 in ``shape`` is any length, an empty shape is an unknown one."""

    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.datatype} [{', '.join(map(str, self.shape))}]"


class StepError(ValueError):
    """A step that cannot follow the one before it; the text says why."""


class _Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step"):
    """One step. ``after`` says what it makes of a tensor's type; StepError when it cannot take that."""

    def after(self, kind: Kind) -> Kind:
        raise NotImplementedError


class Image(_Step, frozen=True, tag="image"):
    """JPEG or PNG files, BYTES [n], become UINT8 [n, height, width, 3], or 1 for grey. More than
    ``max_pixels`` in one call are refused before they are unpacked.
    """

    mode: Literal["rgb", "grey"] = "rgb"
    max_pixels: Annotated[int, msgspec.Meta(ge=1, le=1_000_000_000)] = MAX_PIXELS

    def after(self, kind: Kind) -> Kind:
        return Kind("UINT8", (_files(kind), ANY, ANY, 3 if self.mode == "rgb" else 1))


class Wav(_Step, frozen=True, tag="wav"):
    """WAV files, BYTES [n], become FP32 [n, samples] in -1 to 1, channels averaged. Other sample rates are refused.

    With ``samples`` each is cut or filled with silence at its end.
    """

    sample_rate: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    samples: Annotated[int, msgspec.Meta(ge=1, le=1 << 26)] | None = None

    def after(self, kind: Kind) -> Kind:
        return Kind("FP32", (_files(kind), self.samples or ANY))


class Resize(_Step, frozen=True, tag="resize"):
    """Images [n, height, width, channels], UINT8 or FP32, become *height* by *width*.

    ``fit``: "stretch"; "contain", the whole image in the middle, ``fill`` around it; "cover", the middle of it.
    ``sampling``: "linear", over all pixels that a new one covers, as Pillow does it; or "nearest".
    """

    height: Side
    width: Side
    fit: Literal["stretch", "contain", "cover"] = "stretch"
    sampling: Literal["linear", "nearest"] = "linear"
    fill: float = 0.0

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _PIXELS, "UINT8 or FP32", rank=4)
        count, *_, channels = kind.shape or (ANY, ANY)
        return Kind(kind.datatype, (count, self.height, self.width, channels))


class Scale(_Step, frozen=True, tag="scale"):
    """``x * factor + offset``, as FP32."""

    factor: float = 1.0
    offset: float = 0.0

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _NUMBERS, "numbers")
        return Kind("FP32", kind.shape)


class Normalise(_Step, frozen=True, tag="normalise"):
    """``(x - mean) / deviation``, as FP32: one number for all, or one for each place of the last axis."""

    mean: Numbers
    deviation: Numbers

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _NUMBERS, "numbers")
        if any(number == 0.0 for number in self.deviation):
            raise StepError("a deviation of 0")
        last = kind.shape[-1] if kind.shape else ANY
        for numbers in (self.mean, self.deviation):
            if len(numbers) > 1 and last not in (ANY, len(numbers)):
                raise StepError(f"{len(numbers)} numbers for a last axis of {last}")
        return Kind("FP32", kind.shape)


class Layout(_Step, frozen=True, tag="layout"):
    """Axes in another order, each a letter: from "NHWC" to "NCHW". One that is left out must have the length 1; one
    that is new gets it.
    """

    before: Annotated[str, msgspec.Meta(pattern="^[A-Z]{1,8}$")] = msgspec.field(name="from")
    to: Annotated[str, msgspec.Meta(pattern="^[A-Z]{1,8}$")]

    def after(self, kind: Kind) -> Kind:
        for letters in (self.before, self.to):
            if len(set(letters)) != len(letters):
                raise StepError(f"{letters!r} has a letter twice")
        if kind.shape and len(kind.shape) != len(self.before):
            raise StepError(f"{self.before!r} for {kind}")
        lengths = dict(zip(self.before, kind.shape or (ANY,) * len(self.before), strict=True))
        for letter in set(self.before) - set(self.to):
            if lengths[letter] not in (ANY, 1):
                raise StepError(f"{self.to!r} leaves out {letter!r}, which is {lengths[letter]} long")
        return Kind(kind.datatype, tuple(lengths.get(letter, 1) for letter in self.to))


class Cast(_Step, frozen=True, tag="cast"):
    """Numbers of another type; to integers they are rounded, and brought into its range."""

    datatype: str

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _NUMBERS | {"BOOL"}, "numbers")
        if self.datatype not in _NUMBERS:
            raise StepError(f"{self.datatype!r} is no type of numbers")
        return Kind(self.datatype, kind.shape)


class Softmax(_Step, frozen=True, tag="softmax"):
    """Along the last axis, as FP32."""

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _FLOATS, "floating point numbers")
        return Kind("FP32", kind.shape)


class Threshold(_Step, frozen=True, tag="threshold"):
    """BOOL: whether each number is at least ``minimum``."""

    minimum: float

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _NUMBERS, "numbers")
        return Kind("BOOL", kind.shape)


class TopK(_Step, frozen=True, tag="top_k"):
    """The ``k`` highest along the last axis, best first: their scores, their places (INT64), or what the labels call
    them (BYTES). Places and labels of scores under ``minimum`` are -1 and "".
    """

    k: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    gives: Literal["scores", "places", "labels"]
    minimum: float | None = None

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _NUMBERS, "numbers")
        if kind.shape and 0 <= kind.shape[-1] < self.k:
            raise StepError(f"the {self.k} highest of {kind.shape[-1]}")
        given = {"scores": kind.datatype, "places": "INT64", "labels": "BYTES"}[self.gives]
        return Kind(given, (*kind.shape[:-1], self.k) if kind.shape else ())


class Labels(_Step, frozen=True, tag="labels"):
    """What the labels call each place (integers from 0) as BYTES; -1 is ""."""

    def after(self, kind: Kind) -> Kind:
        _expect(kind, _INTEGERS, "integers")
        return Kind("BYTES", kind.shape)


InputStep: TypeAlias = Image | Wav | Resize | Scale | Normalise | Layout | Cast
OutputStep: TypeAlias = Softmax | Scale | Layout | Cast | Threshold | TopK | Labels
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class Taken(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The type of tensor that a caller gives."""

    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=ANY)], ...]


class PreparedInput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """How the model's input ``name`` is made from what a caller gives under that name.

    Without ``takes`` a caller gives files, if the first step reads them, else what the model itself takes.
    """

    name: Name
    steps: Annotated[tuple[InputStep, ...], msgspec.Meta(max_length=MAX_STEPS)]
    takes: Taken | None = None

    @property
    def reads_files(self) -> bool:
        return bool(self.steps) and isinstance(self.steps[0], Image | Wav)


class MadeOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The output ``name`` of a call, made from the model's output ``of`` ("" = of the same name)."""

    name: Name
    of: str = ""
    steps: Annotated[tuple[OutputStep, ...], msgspec.Meta(max_length=MAX_STEPS)] = ()

    @property
    def source(self) -> str:
        return self.of or self.name


class Processing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Inputs that are not named pass as they are. With ``outputs`` a call answers those, else the model's own."""

    inputs: Annotated[tuple[PreparedInput, ...], msgspec.Meta(max_length=64)] = ()
    outputs: Annotated[tuple[MadeOutput, ...], msgspec.Meta(max_length=64)] = ()

    @property
    def needs_labels(self) -> bool:
        steps = [step for output in self.outputs for step in output.steps]
        return any(isinstance(step, Labels) or (isinstance(step, TopK) and step.gives == "labels") for step in steps)


def taken_kind(prepared: PreparedInput, model: Kind) -> Kind:
    """What a caller gives for *prepared*, of which the model takes *model*; not checked."""
    if prepared.takes is not None:
        return Kind(prepared.takes.datatype, prepared.takes.shape)
    if prepared.reads_files:
        return Kind("BYTES", (model.shape[0] if model.shape else ANY,))
    return model


def fits(given: Kind, wanted: Kind) -> bool:
    """Whether a tensor of the type *given* may be one of the type *wanted*; lengths that are not known may."""
    if given.datatype != wanted.datatype:
        return False
    if not given.shape or not wanted.shape:
        return True
    return len(given.shape) == len(wanted.shape) and all(
        ANY in (one, other) or one == other for one, other in zip(given.shape, wanted.shape, strict=True)
    )


def _files(kind: Kind) -> int:
    """How many files *kind* holds."""
    if kind.datatype != "BYTES" or len(kind.shape) != 1:
        raise StepError(f"it reads files, BYTES [n], and must be the first step; there is {kind}")
    return kind.shape[0]


def _expect(kind: Kind, datatypes: frozenset[str], words: str, *, rank: int | None = None) -> None:
    if kind.datatype not in datatypes:
        raise StepError(f"it takes {words}, not {kind}")
    if rank is not None and kind.shape and len(kind.shape) != rank:
        raise StepError(f"it takes {rank} axes, not {kind}")
