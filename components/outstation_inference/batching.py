"""Several calls of one model computed as one: only where the settings say that its first axis counts independent rows.

Nothing in an ONNX file tells a batch from a sequence, so this is never guessed. A batch that fails is computed again
call by call, so that no caller suffers from another's input.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from outstation.errors import DeadlineError, InferenceError, OutstationError
from outstation.inference.capturing import note_of
from outstation.inference.deadlines import Deadlines
from outstation.inference.model import Result, Version
from outstation.settings import BatchingSettings
from outstation.wire.datatypes import Array
from outstation.wire.tensors import InferRequest, InferResponse
from outstation_inference.classification import best_classes
from outstation_inference.jobs import Job
from outstation_inference.regions import Regions

log = logging.getLogger("outstation.inference")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call, decoded and checked, and the version that will answer it."""

    job: Job
    request: InferRequest
    version: Version
    regions: Regions
    deadline: float | None  # when the caller stops waiting, by the connection or by the call's own words

    def answer(self, outputs: Mapping[str, Array]) -> int:
        """Answer with *outputs*, in shared memory those that are wanted there; how many calls were answered: 1 or 0."""
        try:
            return self._answer(outputs)
        except Exception:  # noqa: BLE001 - told to the caller, kept in the log
            failed_inside(self.job)
        return 0

    def _answer(self, outputs: Mapping[str, Array]) -> int:
        request = self.request
        if self.version.sampler is not None:  # before the answer: then the caller may overwrite what it shares with us
            self.version.sampler.offer(request.inputs, outputs, note_of(request.parameters))
        try:
            if request.classes:
                outputs = {**outputs, **self._classified(outputs)}
            into = self.regions.write(request.into, outputs) if request.into else {}
        except OutstationError as exc:
            self.job.fail(exc)
            return 0
        self.job.answer(InferResponse(request.model, self.version.version, outputs, request.id, request.raw, into))
        return 1

    def _classified(self, outputs: Mapping[str, Array]) -> dict[str, Array]:
        labels = self.version.labels
        return {name: best_classes(name, outputs[name], count, labels) for name, count in self.request.classes.items()}

    def run(self, deadlines: Deadlines | None) -> int:
        """Compute it alone, within its time if *deadlines* watch over it; how many calls were answered: 1 or 0."""
        try:
            left = None if deadlines is None else time_left(self.deadline)
            outputs = self.version.run(self.request.inputs, self.request.outputs or None, left, deadlines)
        except OutstationError as exc:
            self.job.fail(exc)
            return 0
        except Exception:  # noqa: BLE001 - as in answer
            failed_inside(self.job)
            return 0
        return self.answer(outputs)


def time_left(deadline: float | None) -> float | None:
    """Seconds until *deadline* on the monotonic clock; DeadlineError when it has passed."""
    if deadline is None:
        return None
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeadlineError("The call's time was up before it was computed.")
    return left


def batches(calls: Sequence[Prepared], settings: Mapping[str, BatchingSettings]) -> list[list[Prepared]]:
    """*calls* grouped into what may be computed together, each group in the order of arrival."""
    if len(calls) == 1:
        return [list(calls)]
    groups: list[list[Prepared]] = []
    open_groups: dict[Any, list[Prepared]] = {}
    for call in calls:
        batching = settings.get(call.request.model)
        key = _likeness(call) if batching is not None else None
        group = open_groups.get(key) if key is not None else None
        if group is None or batching is None or len(group) >= batching.max_calls:
            group = []
            groups.append(group)
            if key is not None:
                open_groups[key] = group
        group.append(call)
    return groups


def compute_together(calls: Sequence[Prepared], deadlines: Deadlines | None) -> int:
    """Compute *calls*, which are alike, in one run, and answer each with its rows; how many were answered.

    *deadlines*, if any, end the run when nobody waits for it any more.
    """
    first = calls[0]
    ends = [call.deadline for call in calls if call.deadline is not None]
    try:
        left = time_left(max(ends)) if deadlines is not None and len(ends) == len(calls) else None
        inputs = {name: np.concatenate([call.request.inputs[name] for call in calls]) for name in first.request.inputs}
        result = first.version.run(inputs, first.request.outputs or None, left, deadlines, calls=len(calls))
        rows = [len(next(iter(call.request.inputs.values()))) for call in calls]
        parts = _split(result, rows)
    except OutstationError as exc:
        log.debug("a batch of %d calls failed and is computed one by one: %s", len(calls), exc)
    except Exception:  # there was no memory to join them, say
        log.exception("a batch of %d calls failed inside the server and is computed one by one", len(calls))
    else:
        return sum(call.answer(part) for call, part in zip(calls, parts, strict=True))
    return sum(call.run(deadlines) for call in calls if not call.job.cancelled)


def failed_inside(job: Job) -> None:
    """Fail *job* after an exception that is none of ours; called where it is handled."""
    # The caller learns that it failed, not how we are built; the log knows the rest.
    log.exception("a call failed inside the server")
    job.fail(InferenceError("The call failed inside the server; its log says why."))


def _likeness(call: Prepared) -> Any:
    """What calls must share to go together; None when this one cannot go with any."""
    signature = call.version.signature
    if not signature.batchable or not signature.fits(call.request.inputs):
        return None
    inputs = call.request.inputs
    lengths = {len(array) for array in inputs.values()}
    if len(lengths) != 1:
        return None
    shapes = tuple((name, array.shape[1:]) for name, array in sorted(inputs.items()))
    return id(call.version), call.request.outputs, shapes


def _split(result: Result, rows: Sequence[int]) -> list[dict[str, Array]]:
    total = sum(rows)
    for name, array in result.items():
        if array.shape[:1] != (total,):
            raise InferenceError(
                f"Output {name!r} has {array.shape[:1]} rows for {total}; the model cannot be batched."
            )
    parts: list[dict[str, Array]] = []
    begin = 0
    for count in rows:
        parts.append({name: array[begin : begin + count] for name, array in result.items()})
        begin += count
    return parts
