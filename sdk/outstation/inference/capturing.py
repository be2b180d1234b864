"""Which calls are worth keeping, and how many of them: pure, and quick where a call is not.

By rate, by low confidence, by class, or because somebody says so; bounded per hour and per day.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from outstation.settings import BufferSettings, CaptureSettings, StreamSettings

if TYPE_CHECKING:
    from outstation.inference.captured import Reason
    from outstation.models.manifest import TensorSpec

STREAM = "captures"
STATE = "captures.json"  # in the data folder: the budgets
# Behind everything else, and bounded: a week of captures must not push out what the plant measures.
POLICY = StreamSettings(priority=9, max_bytes=128 << 20)
# Of a call over the Open Inference Protocol: its parameter that asks for a capture.
PARAMETER = "capture"
_HOUR_NANO = 3600 * 1_000_000_000
_DAY_NANO = 24 * _HOUR_NANO
# Of one call: a batch of more rows is named by its first.
MAX_ROWS = 1024


def note_of(parameters: Mapping[str, object]) -> str | None:
    """What a call over the wire says of its capture: a note, or true; None when it says nothing."""
    said = parameters.get(PARAMETER)
    return said if isinstance(said, str) else "" if said is True else None


def with_captures(settings: BufferSettings) -> BufferSettings:
    """*settings* with the stream of captures, unless it is configured."""
    return msgspec.structs.replace(settings, streams={STREAM: POLICY, **settings.streams})


class Rule:
    """The settings of one model, for one version of it. Thread-safe."""

    def __init__(
        self,
        settings: CaptureSettings,
        outputs: Sequence[TensorSpec],
        labels: Sequence[str],
        chance: Callable[[], float],
    ) -> None:
        """*chance* gives numbers in [0, 1)."""
        self._rate = settings.rate
        self._below = settings.below
        self._classes = frozenset(settings.classes)
        self._watches = self._below is not None or bool(self._classes)
        self._labels = labels
        self._chance = chance
        self.output = settings.output or _watched(outputs)

    def reason(self, outputs: Mapping[str, Any]) -> Reason | None:
        """Why the call that gave *outputs* is to be kept, or None. A few microseconds where outputs are looked at."""
        if self._rate and self._chance() < self._rate:
            return "rate"
        if not self._watches:
            return None
        array = outputs.get(self.output)
        if array is None or not array.size:
            return None
        if self._below is not None and _is_low(array, self._below):
            return "low_confidence"
        if self._classes and not self._classes.isdisjoint(self.classes(array)):
            return "class"
        return None

    def classes(self, array: Any) -> tuple[str, ...]:
        """What each row of the watched output says: its own words or whole numbers, or the place of its highest score,
        by the label if there is one.
        """
        kind = array.dtype.kind
        if kind in "OSU":
            return tuple(
                word.decode("utf-8", "replace") if isinstance(word, bytes) else str(word) for word in _firsts(array)
            )
        if kind in "iub":
            return tuple(map(self._name, map(int, _firsts(array))))
        if array.ndim < 2 or array.shape[-1] < 2:
            return ()
        if array.size == array.shape[-1]:  # one row, as nearly always
            return (self._name(int(array.argmax())),)
        rows = array.reshape(-1, array.shape[-1])[:MAX_ROWS]
        return tuple(map(self._name, rows.argmax(axis=1).tolist()))

    def scores(self, array: Any) -> tuple[float, ...]:
        """The highest number of each row of the watched output; () when it holds none."""
        if array.dtype.kind != "f" or not array.size:
            return ()
        rows = array.reshape(-1, array.shape[-1] if array.ndim > 1 else 1)[:MAX_ROWS]
        return tuple(float(score) for score in rows.max(axis=1))

    def _name(self, place: int) -> str:
        return self._labels[place] if 0 <= place < len(self._labels) else str(place)


def _watched(outputs: Sequence[TensorSpec]) -> str:
    """The output that looks like scores: the first floating one with several numbers a row, else the first."""
    for spec in outputs:
        if spec.datatype in ("FP32", "FP16", "FP64") and len(spec.shape) > 1 and spec.shape[-1] not in (0, 1):
            return spec.name
    return outputs[0].name


def _is_low(array: Any, below: float) -> bool:
    """Whether the best score of any row is under *below*. What is no number counts as low."""
    if array.dtype.kind != "f":
        return False
    if array.size == array.shape[-1] and array.ndim > 1:  # one row, as nearly always
        return not array.item(array.argmax()) >= below  # a third of what max() costs, and finds what is no number, too
    best = array.max(axis=-1) if array.ndim > 1 else array
    return not bool((best >= below).all())


def _firsts(array: Any) -> list[Any]:
    rows = array.reshape(len(array), -1)[:MAX_ROWS, 0] if array.ndim > 1 else array.ravel()[:MAX_ROWS]
    firsts: list[Any] = rows.tolist()
    return firsts


@dataclass(slots=True)
class Budget:
    """How many calls of one model were kept in the hour and on the day (UTC) that are running. Not thread-safe."""

    hour: int = 0
    day: int = 0
    in_hour: int = 0
    in_day: int = 0

    def spend(self, now_unix_nano: int, settings: CaptureSettings) -> bool:
        """Take one from both, if there is one in each."""
        hour, day = now_unix_nano // _HOUR_NANO, now_unix_nano // _DAY_NANO
        if hour != self.hour:
            self.hour, self.in_hour = hour, 0
        if day != self.day:
            self.day, self.in_day = day, 0
        if self.in_hour >= settings.max_per_hour or self.in_day >= settings.max_per_day:
            return False
        self.in_hour += 1
        self.in_day += 1
        return True
