"""The handle that an application holds on a model; versions change underneath it."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from outstation.errors import InferenceError, InvalidInputError, ModelNotReadyError, UnreadableFileError
from outstation.inference.captures import Sampler
from outstation.inference.deadlines import Deadlines
from outstation.inference.runtime import Session
from outstation.inference.signature import Signature
from outstation.models.manifest import TensorSpec
from outstation.types import MODEL_NAME, Placement, checked_name
from outstation.wire.datatypes import Array


class Result(dict[str, Array]):
    """The outputs of one call by name, all of one version: ``model_version``."""

    __slots__ = ("model_version",)
    model_version: str


@dataclass(frozen=True, slots=True)
class Health:
    """How a version has done since it began to answer here: calls that it took on, and those that failed by it."""

    version: str
    calls: int
    errors: int


class Version:
    """One version of a model, loaded. Thread-safe; its memory goes with the last reference."""

    def __init__(
        self, version: str, session: Session, signature: Signature, labels: tuple[str, ...], replaces: Version | None
    ) -> None:
        self.version = version
        self.signature = signature
        self.labels = labels
        self.placement = session.placement
        self._session = session
        self._run = session.run
        self._names = signature.output_names
        # Calls that the version before would have taken: refusing them is this one's failure, not the caller's.
        self.sampler: Sampler | None = None  # who keeps calls for retraining
        self._accepted_before = None if replaces is None else replaces.signature.fits
        self._lock = threading.Lock()
        self._calls = 0
        self._errors = 0

    def run(
        self,
        inputs: Mapping[str, Array],
        outputs: Sequence[str] | None = None,
        timeout: float | None = None,
        deadlines: Deadlines | None = None,
        calls: int = 1,
    ) -> Result:
        """Compute *outputs* (None: all); see :meth:`Model.run`. A *timeout* needs *deadlines* to watch over it.

        *calls* is how many calls this one computes; when a batch fails, nothing is counted yet.
        """
        names = self._names if outputs is None else outputs
        try:
            if not self.signature.fits(inputs):
                self.signature.check(inputs)
            feed = self.signature.feed(inputs)
            if timeout is None or deadlines is None:
                values = self._run(names, feed)
            else:
                stop = self._session.stop()
                with deadlines.limit(stop, timeout):
                    values = self._run(names, feed, stop)
        except UnreadableFileError:
            raise  # a file is the caller's, whatever the version before made of it
        except InvalidInputError:
            if self._accepted_before is not None and self._accepted_before(inputs):
                self._count_error()
            raise
        except InferenceError:
            if calls == 1:
                self._count_error()
            raise
        with self._lock:
            self._calls += calls
        result = Result(zip(names, values, strict=True))
        result.model_version = self.version
        return result

    @property
    def health(self) -> Health:
        with self._lock:
            return Health(self.version, self._calls, self._errors)

    def _count_error(self) -> None:
        with self._lock:
            self._calls += 1
            self._errors += 1


class Model:
    """A model by name. Thread-safe; keep it as long as you like: a new version takes over between two calls."""

    def __init__(self, name: str, version: Version | None = None, deadlines: Deadlines | None = None) -> None:
        self.name = checked_name(MODEL_NAME, name, "model")
        self._current = version
        self._owned = Deadlines() if deadlines is None else None
        self._deadlines = deadlines or self._owned

    def run(self, inputs: Mapping[str, Array], *, timeout: float | None = None) -> Result:
        """Compute every output for *inputs*: arrays by name, of exactly the types and shapes in :attr:`inputs`.

        Text inputs are object arrays of str or bytes; text outputs are object arrays of str. The arrays are read
        only, and not kept. All outputs are of one version, ``result.model_version``.

        Raises InvalidInputError that says which name, type or shape is wrong; DeadlineError after *timeout* seconds
        of computing (None: no bound); ModelNotReadyError when no version may answer; InferenceError otherwise.
        """
        current = self._current
        if current is None:
            raise self._not_ready()
        result = current.run(inputs) if timeout is None else current.run(inputs, None, timeout, self._deadlines)
        if current.sampler is not None:
            current.sampler.offer(inputs, result)
        return result

    def run_many(self, calls: Sequence[Mapping[str, Array]], *, timeout: float | None = None) -> list[Result]:
        """:meth:`run` for each of *calls*, in order, all by one version; *timeout* is for each of them."""
        current = self.current
        results = []
        for inputs in calls:
            result = current.run(inputs, None, timeout, self._deadlines)
            if current.sampler is not None:
                current.sampler.offer(inputs, result)
            results.append(result)
        return results

    def capture(self, inputs: Mapping[str, Array], note: str = "", *, timeout: float | None = None) -> Result:
        """:meth:`run`, and keep the call for retraining whatever the settings say, within their bounds.

        *note* is kept with it: the right answer, or a few words. InvalidInputError when nothing is kept here.
        """
        current = self.current
        if current.sampler is None:
            raise InvalidInputError(f"Calls of {self.name!r} cannot be kept here: there is no buffer.")
        result = current.run(inputs, None, timeout, self._deadlines)
        current.sampler.offer(inputs, result, note)
        return result

    @property
    def version(self) -> str:
        """The version that answers now."""
        return self.current.version

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.current.signature.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.current.signature.outputs

    @property
    def labels(self) -> tuple[str, ...]:
        """What the classes are called, in their order; () when the bundle names none."""
        return self.current.labels

    @property
    def placement(self) -> Placement:
        """The accelerator that computes it, and why not a preferred one."""
        return self.current.placement

    @property
    def health(self) -> Health:
        """Calls and errors since the version that answers now began to."""
        return self.current.health

    @property
    def current(self) -> Version:
        """The version that answers now, for several calls that must not mix; ModelNotReadyError without one."""
        current = self._current
        if current is None:
            raise self._not_ready()
        return current

    @property
    def ready(self) -> bool:
        return self._current is not None

    def answer_with(self, version: Version | None) -> None:
        """Let *version* answer from the next call on (None: nobody). Calls in progress end with theirs."""
        self._current = version

    def close(self) -> None:
        """Answer no more. Idempotent; calls in progress end as usual."""
        self._current = None
        if self._owned is not None:
            self._owned.close()

    def _not_ready(self) -> ModelNotReadyError:
        return ModelNotReadyError(f"No version of {self.name!r} may answer.")

    def __repr__(self) -> str:
        current = self._current
        return f"<Model {self.name} {current.version if current else 'not ready'}>"

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False
