"""What a model takes and gives, and whether a call fits: pure, and quick where the call does fit."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np

from outstation.errors import InvalidInputError
from outstation.models.manifest import ANY, TensorSpec
from outstation.wire.datatypes import DTYPES, Array, as_bytes, datatype_of, described

NO_FILES: Mapping[str, Array] = {}
_TEXT = "OSU"  # numpy kinds that hold text or bytes: BYTES, all of them


class Signature:
    """The inputs and outputs of one version. Immutable, thread-safe."""

    def __init__(
        self,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        files: Mapping[str, Array] = NO_FILES,
    ) -> None:
        """*files* has an example for each input that takes files: its bytes are no text."""
        self.inputs = inputs
        self.outputs = outputs
        self._files = files
        self.output_names = [spec.name for spec in outputs]
        self._known_outputs = frozenset(self.output_names)
        self._text = [spec.name for spec in inputs if spec.datatype == "BYTES" and spec.name not in files]
        # Every tensor has a free first axis, and no input is text: rows of several calls can lie in one array.
        self.batchable = (
            bool(inputs) and all(spec.shape[:1] == (ANY,) for spec in (*inputs, *outputs)) and not self._text
        )
        # What `fits` walks: name, dtype, rank (None = unknown: the runtime checks), and the dimensions that are fixed.
        self._expected = tuple(
            (
                spec.name,
                DTYPES[spec.datatype],
                len(spec.shape) or None,
                tuple((axis, size) for axis, size in enumerate(spec.shape) if size != ANY),
            )
            for spec in inputs
        )

    def fits(self, inputs: Mapping[str, Array]) -> bool:
        """Whether names, types and shapes of *inputs* are those of the model. About a microsecond an input."""
        if len(inputs) != len(self._expected):
            return False
        for name, dtype, rank, fixed in self._expected:
            array = inputs.get(name)
            if not isinstance(array, np.ndarray):
                return False
            if array.dtype != dtype and not (dtype.kind == "O" and array.dtype.kind in _TEXT):
                return False
            shape = array.shape
            if rank is not None and len(shape) != rank:
                return False
            for axis, size in fixed:
                if shape[axis] != size:
                    return False
        return True

    def check(self, inputs: Mapping[str, Array]) -> None:
        """InvalidInputError that says which input is wrong and how, unless :meth:`fits`."""
        if not self.fits(inputs):
            raise self._problem(inputs)

    def check_outputs(self, names: tuple[str, ...]) -> None:
        """InvalidInputError if the model has no output of one of *names*."""
        for name in names:
            if name not in self._known_outputs:
                raise _unknown("output", name, self.output_names)

    def feed(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """*inputs* as the runtime takes them: elements of BYTES as text."""
        if not self._text:
            return inputs
        text = {name: _as_text(name, inputs[name]) for name in self._text if inputs[name].dtype.kind in "OS"}
        return {**inputs, **text}

    def zeros(self) -> dict[str, Array]:
        """Inputs that fit, all zero (or empty text, or an example of a file), one along every free dimension."""
        feed: dict[str, Array] = dict(self._files)
        for spec in self.inputs:
            if spec.name in feed:
                continue
            shape = tuple(1 if size == ANY else size for size in spec.shape)
            text = spec.datatype == "BYTES"
            feed[spec.name] = np.full(shape, "", np.object_) if text else np.zeros(shape, DTYPES[spec.datatype])
        return feed

    def _problem(self, inputs: Mapping[str, Any]) -> InvalidInputError:
        names = [spec.name for spec in self.inputs]
        for name in inputs:
            if name not in names:
                return _unknown("input", name, names)
        for spec in self.inputs:
            if spec.name not in inputs:
                given = ", ".join(map(repr, inputs)) or "none"
                return InvalidInputError(f"Input {spec.name!r} is missing (given: {given}).", hint=_takes(spec))
            problem = _misfit(spec, inputs[spec.name])
            if problem is not None:
                return problem
        return InvalidInputError("The inputs do not fit the model.")


def _misfit(spec: TensorSpec, value: Any) -> InvalidInputError | None:
    if not isinstance(value, np.ndarray):
        return InvalidInputError(
            f"Input {spec.name!r} is {type(value).__name__}; it must be a numpy array.",
            hint=f"numpy.asarray(value, dtype=numpy.{DTYPES[spec.datatype].name})",
        )
    datatype = datatype_of(value)
    if datatype != spec.datatype:
        # An array in the other byte order has a dtype that the protocol has no name for.
        found = datatype or value.dtype.str
        return InvalidInputError(
            f"Input {spec.name!r} is {found}; the model takes {described(spec.datatype, spec.shape)}.",
            hint=f"Convert it with .astype(numpy.{DTYPES[spec.datatype].name}).",
        )
    same_rank = not spec.shape or value.ndim == len(spec.shape)
    if not same_rank or any(size not in (ANY, have) for size, have in zip(spec.shape, value.shape, strict=False)):
        return InvalidInputError(
            f"Input {spec.name!r} has the shape {list(value.shape)}; "
            f"the model takes {described(spec.datatype, spec.shape)}.",
            hint="-1 stands for any length." if ANY in spec.shape else "",
        )
    return None


def _takes(spec: TensorSpec) -> str:
    return f"The model takes {spec.name!r} as {described(spec.datatype, spec.shape)}."


def _unknown(kind: str, name: object, known: list[str]) -> InvalidInputError:
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(map(repr, known))}."
    return InvalidInputError(f"The model has no {kind} {name!r}.", hint=hint)


def _as_text(name: str, array: Array) -> Array:
    text = np.empty(array.shape, np.object_)
    try:
        text.ravel()[:] = [as_bytes(element).decode() for element in array.ravel().tolist()]
    except UnicodeError as exc:
        raise InvalidInputError(
            f"Input {name!r} holds bytes that are not UTF-8; the model's strings are text: {exc}."
        ) from exc
    return text
