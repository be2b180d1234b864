"""Keeps calls for retraining: whoever answers a call hands over, one thread packs and appends."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import msgspec

from outstation.clock import Clock, SystemClock
from outstation.durable import write_atomically
from outstation.errors import OutstationError
from outstation.inference.captured import CONTENT_TYPE, Capture, Reason, encode_capture, packed
from outstation.inference.capturing import STREAM, Budget, Rule
from outstation.models.manifest import TensorSpec
from outstation.settings import CaptureSettings
from outstation.shapes import learn
from outstation.wire.datatypes import Array, as_bytes

log = logging.getLogger("outstation.inference")

# What waits for the thread, which takes milliseconds for each: a burst, and no more memory than that.
MAX_WAITING = 16
MAX_WAITING_BYTES = 32 << 20
# What a person says of a call: the right answer, or a few words.
MAX_NOTE = 256
# The counters are told so often, and the budget is written as often, if they changed: a card is not worn by captures,
# and a process that is killed has forgotten a few of them.
INTERVAL = 10.0
# A budget of its own, of the same size: no rule eats into what a person wants. No model's name has a space.
_BY_HAND = "by hand"
_NOTHING = CaptureSettings()

Report = Callable[[str, Mapping[str, Any]], object]


class Streams(Protocol):
    """What is needed of a buffer, in this process or in the agent's."""

    def stream(self, name: str) -> Any: ...


@dataclass(slots=True)
class Counts:
    """Since the start: calls that were kept, and those that should have been, by what kept them out."""

    kept: int = 0
    over_budget: int = 0
    too_large: int = 0
    queue_full: int = 0
    refused: int = 0  # by the buffer


@dataclass(frozen=True, slots=True)
class _Taken:
    sampler: Sampler
    reason: Reason
    note: str
    time_unix_nano: int
    size_bytes: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


class Captures:
    """The captures of one process, and their thread. Thread-safe; close it after the models and before the buffer."""

    def __init__(
        self,
        buffer: Streams,
        settings: Mapping[str, CaptureSettings],
        *,
        state: Path | None = None,
        report: Report | None = None,
        clock: Clock = SystemClock(),
        chance: Callable[[], float] = random.random,
    ) -> None:
        """*settings* by model. *state* is the file that remembers budgets over a restart.

        *report* is told the counters, as the event ``captures``, when they changed: every ten seconds at the most.
        """
        self._buffer = buffer
        self._settings = settings
        self._state = state
        self._report = report
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._queue: deque[_Taken] = deque()
        self._waiting_bytes = 0
        self._closed = False
        self._told = Counts()
        self._written: bytes = b""
        self.counts = Counts()
        self._budgets = _read_budgets(state)  # by model, and by model and hand
        self._thread = threading.Thread(target=self._run, name="outstation-captures", daemon=True)
        self._thread.start()

    def sampler(self, model: str, version: str, outputs: Sequence[TensorSpec], labels: Sequence[str]) -> Sampler:
        """What a version hands its calls to."""
        settings = self._settings.get(model, _NOTHING)
        names = [spec.name for spec in outputs]
        if settings.output and settings.output not in names:
            log.warning("captures of %s look at %r, which %s has not: %s", model, settings.output, version, names)
        return Sampler(self, model, version, settings, Rule(settings, outputs, labels, self._chance))

    def take(
        self, sampler: Sampler, reason: Reason, inputs: Mapping[str, Array], outputs: Mapping[str, Array], note: str
    ) -> bool:
        """Copy the call and hand it over; False when a bound forbids it. Never waits for the thread."""
        size = _size(inputs) + _size(outputs)
        now = self._clock.time_unix_nano()
        settings = sampler.settings
        with self._lock:
            if self._closed:
                return False
            if size > settings.max_bytes:
                self.counts.too_large += 1
                return False
            if len(self._queue) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
                self.counts.queue_full += 1
                return False
            purse = f"{sampler.model} {_BY_HAND}" if reason == "manual" else sampler.model
            if not self._budgets.setdefault(purse, Budget()).spend(now, settings):
                self.counts.over_budget += 1
                return False
            self._waiting_bytes += size
            # Copied, because the arrays are the caller's: the next picture of a camera comes into the same memory.
            taken = _Taken(sampler, reason, note[:MAX_NOTE], now, size, _copied(inputs), _copied(outputs))
            self._queue.append(taken)
        self._wake.set()
        return True

    def close(self) -> None:
        """Append what was taken, tell the counters, end the thread. Idempotent."""
        with self._lock:
            self._closed = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        due = self._clock.monotonic() + INTERVAL
        while True:
            self._wake.clear()
            closing = self._closed
            while self._queue:
                self._keep()
            if closing or self._clock.monotonic() >= due:
                due = self._clock.monotonic() + INTERVAL
                self._remember()
                self._tell()
            if closing:
                return
            self._clock.wait(self._wake, max(0.0, due - self._clock.monotonic()))

    def _keep(self) -> None:
        taken = self._queue[0]  # stays there, and counts, until it is appended
        try:
            self._append(taken)
        except OutstationError as exc:
            log.info("a call of %s was not captured: %s", taken.sampler.model, exc)
            kept = False
        except Exception:  # our thread ends for no call
            log.exception("a call of %s was not captured", taken.sampler.model)
            kept = False
        else:
            kept = True
        with self._lock:
            self._queue.popleft()
            self._waiting_bytes -= taken.size_bytes
            self.counts.kept += kept
            self.counts.refused += not kept

    def _append(self, taken: _Taken) -> None:
        sampler = taken.sampler
        watched = taken.outputs.get(sampler.rule.output)
        capture = Capture(
            model=sampler.model,
            version=sampler.version,
            reason=taken.reason,
            time_unix_nano=taken.time_unix_nano,
            note=taken.note,
            classes=() if watched is None else sampler.rule.classes(watched),
            scores=() if watched is None else sampler.rule.scores(watched),
            inputs=packed(taken.inputs, compressed=sampler.settings.compress),
            outputs=packed(taken.outputs, compressed=sampler.settings.compress),
        )
        self._buffer.stream(STREAM).append(
            encode_capture(capture),
            time_unix_nano=taken.time_unix_nano,
            content_type=CONTENT_TYPE,
            attributes={"model": sampler.model, "version": sampler.version, "reason": taken.reason},
        )

    def _remember(self) -> None:
        if self._state is None:
            return
        with self._lock:
            data = msgspec.json.encode(self._budgets)
        if data == self._written or not self._budgets:
            return
        try:
            write_atomically(self._state, data)
        except OutstationError as exc:
            log.warning("the budget of captures is not remembered: %s", exc)
        else:
            self._written = data

    def _tell(self) -> None:
        with self._lock:
            now = replace(self.counts)
        if self._report is None or now == self._told:
            return
        try:
            self._report(STREAM, asdict(now))
        except OutstationError as exc:
            log.info("the counters of captures could not be told: %s", exc)
        else:
            self._told = now


class Sampler:
    """The captures of one version. Thread-safe."""

    __slots__ = ("_captures", "model", "rule", "settings", "version")

    def __init__(self, captures: Captures, model: str, version: str, settings: CaptureSettings, rule: Rule) -> None:
        self._captures = captures
        self.model = model
        self.version = version
        self.settings = settings
        self.rule = rule

    def offer(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], note: str | None = None) -> bool:
        """Keep the call if its rule says so, or in any case with a *note* ("" is one); whether it was taken.

        Costs a call that is not kept less than a microsecond, or a few where its outputs are looked at.
        """
        try:
            reason: Reason | None = "manual" if note is not None else self.rule.reason(outputs)
            return reason is not None and self._captures.take(self, reason, inputs, outputs, note or "")
        except Exception:  # an answer that is there is not lost for a copy of it
            log.exception("a call of %s was not captured", self.model)
            return False


def _read_budgets(state: Path | None) -> dict[str, Budget]:
    if state is None:
        return {}
    try:
        return msgspec.json.decode(state.read_bytes(), type=dict[str, Budget])
    except (OSError, msgspec.MsgspecError):
        return {}  # none yet, or damaged: it begins anew


def _size(tensors: Mapping[str, Array]) -> int:
    return sum(_text_size(array) if array.dtype.kind == "O" else array.nbytes for array in tensors.values())


def _text_size(array: Array) -> int:
    return sum(4 + len(as_bytes(element)) for element in array.ravel().tolist())


def _copied(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array.copy() for name, array in tensors.items()}


learn(dict[str, Budget])
