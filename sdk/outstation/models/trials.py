"""Versions on live traffic: first in the shadow of the active one, if that is set, then answering on probation.

Both count from when this process saw them begin: after a restart they begin anew.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from outstation.clock import Clock
from outstation.models.moves import Moves
from outstation.models.rollout import Comparison, Event, Verdict, judge, judge_shadow, needs_shadow
from outstation.settings import ModelsSettings

# Seconds between two words in the report on how a shadow run does; each is a write to the disk and a message.
NOTE_INTERVAL = 60.0
# Ends of the process, other than in order, that a version on trial survives. One that ends the process itself with
# the first call would else be tried for ever; a station that loses power as often in these seconds is rare.
MAX_INTERRUPTED = 5

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Shadow:
    """One shadow run: monotonic instants, and what was compared by the process that compared most."""

    started: float
    noted: float
    seen: Comparison = field(default_factory=Comparison)


class Trials:
    """Begins trials, hears how they go, and ends them. Thread-safe; *wake* is called when one has failed."""

    def __init__(self, moves: Moves, settings: ModelsSettings, clock: Clock, wake: Callable[[], None]) -> None:
        self._moves = moves
        self._settings = settings
        self._clock = clock
        self._wake = wake
        self._probations: dict[tuple[str, str], float] = {}  # monotonic start
        self._shadows: dict[tuple[str, str], _Shadow] = {}
        self._processes: dict[tuple[str, str], set[str]] = {}  # that have reported on a trial

    def take_up(self) -> None:
        """Take up what the process before this one left running. Call once, at the start."""
        with self._moves.lock:
            for name, version, event in self._running():
                ended = self._moves.count_interrupted(name, version, 1)
                if ended >= MAX_INTERRUPTED:
                    self._moves.move(name, version, event, f"The process ended {ended} times while it was on trial.")

    def put_down(self) -> None:
        """The process ends in order, and that is no fault of what is on trial."""
        with self._moves.lock:
            for name, version, _ in self._running():
                self._moves.count_interrupted(name, version, -1)

    def _running(self) -> list[tuple[str, str, Event]]:
        """Name and version of each trial, and the event that ends it badly."""
        models = self._moves.models().items()
        found = [(name, model.candidate, Event.FAULT) for name, model in models]
        found += [(name, model.shadowed, Event.FAIL) for name, model in models]
        return [trial for trial in found if trial[1]]

    def watch(self, name: str, version: str) -> bool:
        """Let the staged *version* run in the shadow; False if it need not. Whoever is there already is recalled."""
        with self._moves.lock:
            model = self._moves.model(name)
            if not needs_shadow(model, version, self._settings.shadow):
                return False
            if model.shadowed:
                self._moves.move(name, model.shadowed, Event.RECALL, f"{version} takes its place in the shadow.")
            now = self._clock.monotonic()
            self._shadows[name, version] = _Shadow(now, now)
            self._moves.move(name, version, Event.WATCH)
            return True

    def in_the_shadow(self, name: str, version: str) -> bool:
        """Whether *version* has to stay in the shadow for now."""
        with self._moves.lock:
            model = self._moves.model(name)
            if model.shadowed != version or not needs_shadow(model, version, self._settings.shadow):
                return False
            return not self._over(self._shadow(name, version))

    def admit(self, name: str, version: str) -> None:
        """Let *version* answer, on probation."""
        with self._moves.lock:
            run = self._shadows.pop((name, version), None)
            self._processes.pop((name, version), None)
            self._probations[name, version] = self._clock.monotonic()
            self._moves.move(name, version, Event.ADMIT, run.seen.in_words() if run else "")

    def report(self, name: str, version: str, seen: Comparison, process: str = "") -> None:
        """How *version* has done since it began in that process; see :meth:`Reconciler.report_health`."""
        with self._moves.lock:
            model = self._moves.model(name)
            if version not in {model.candidate, model.shadowed}:
                return
            if process and self._ends_processes(name, version, process):
                event = Event.FAULT if version == model.candidate else Event.FAIL
                reason = f"The process that computes it ended {MAX_INTERRUPTED} times while it was on trial."
                self._moves.move(name, version, event, reason)
                self._wake()
            elif version == model.candidate:
                self._report_probation(name, version, seen)
            else:
                self._report_shadow(name, version, seen)

    def judge(self) -> None:
        """End the trials whose time is up: proved, or out of the shadow with a verdict."""
        with self._moves.lock:
            now = self._clock.monotonic()
            models = self._moves.models().items()
            # A trial that this process did not begin, because it was killed, begins anew.
            self._probations = {
                trial: self._probations.get(trial, now) for trial in ((n, m.candidate) for n, m in models) if trial[1]
            }
            shadowed = [(name, model.shadowed) for name, model in models if model.shadowed]
            running = {*self._probations, *shadowed}
            self._processes = {trial: seen for trial, seen in self._processes.items() if trial in running}
            self._shadows = {trial: self._shadow(*trial) for trial in shadowed}
            for (name, version), started in list(self._probations.items()):
                if now - started >= self._settings.probation:
                    reason = self._moves.model(name).versions[version].reason
                    self._moves.move(name, version, Event.PROVE, reason)
                    del self._probations[name, version]
            for (name, version), run in list(self._shadows.items()):
                self._judge_shadow(name, version, run)

    def remaining(self) -> list[float]:
        """Seconds until each trial that is running ends."""
        with self._moves.lock:
            now = self._clock.monotonic()
            ends = [started + self._settings.probation for started in self._probations.values()]
            # A run that is over and still here waits for the gate, which is asked as often as for anything staged.
            ends += [run.started + self._settings.shadow for run in self._shadows.values() if not self._over(run)]
            return [max(0.0, end - now) for end in ends]

    def _ends_processes(self, name: str, version: str, process: str) -> bool:
        """Note *process*, with which the trial begins anew if it is not the first; whether it is one too many."""
        trial = name, version
        seen = self._processes.setdefault(trial, set())
        if process not in seen:
            seen.add(process)
            if len(seen) > MAX_INTERRUPTED:
                del self._processes[trial]
                return True
            now = self._clock.monotonic()
            if len(seen) > 1 and trial in self._probations:
                self._probations[trial] = now
            elif len(seen) > 1 and trial in self._shadows:
                self._shadows[trial] = _Shadow(now, now)
        return False

    def _report_probation(self, name: str, version: str, seen: Comparison) -> None:
        started = self._probations.get((name, version))
        if started is None:
            return
        elapsed = self._clock.monotonic() - started
        if judge(elapsed, self._settings.probation, seen.calls, seen.errors) is Verdict.FAULTY:
            self._moves.move(name, version, Event.FAULT, f"{seen.errors} of {seen.calls} calls failed on trial.")
            self._wake()

    def _report_shadow(self, name: str, version: str, seen: Comparison) -> None:
        run = self._shadow(name, version)
        first = seen.disagreements > 0 and run.seen.disagreements == 0
        if seen.calls + seen.errors >= run.seen.calls + run.seen.errors:
            run.seen = seen
        if seen.errors:
            self._judge_shadow(name, version, run)
            self._wake()
        elif first or self._clock.monotonic() >= run.noted + NOTE_INTERVAL:
            run.noted = self._clock.monotonic()
            self._moves.note(name, version, run.seen.in_words())
            logger.info("Models: %s %s: %s", name, version, run.seen.in_words())

    def _judge_shadow(self, name: str, version: str, run: _Shadow) -> None:
        elapsed = self._clock.monotonic() - run.started
        if judge_shadow(elapsed, self._settings.shadow, run.seen, self._settings.shadow_limit) is Verdict.FAULTY:
            limit = f" models.shadow_limit is {100 * self._settings.shadow_limit:g} %." if not run.seen.errors else ""
            self._moves.move(name, version, Event.FAIL, run.seen.in_words() + limit)
            self._shadows.pop((name, version), None)

    def _shadow(self, name: str, version: str) -> _Shadow:
        now = self._clock.monotonic()
        return self._shadows.setdefault((name, version), _Shadow(now, now))

    def _over(self, run: _Shadow) -> bool:
        return self._clock.monotonic() - run.started >= self._settings.shadow
