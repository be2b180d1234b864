"""What operators want: wishes kept in one file, and every station that listens told when its own changes.

Which wish decides is in :mod:`outstation_hub.selection`; this adds the file, the watchers, and what stations report.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from outstation.clock import Clock
from outstation.errors import InvalidInputError, OutstationError, ProviderUnavailableError
from outstation.models.versions import is_version
from outstation.types import (
    LATEST,
    MODEL_NAME,
    STATION_NAME,
    Desired,
    DesiredModel,
    ModelPhase,
    Reported,
    checked_labels,
    checked_name,
)
from outstation.wire.messages import Applied, ModelWish, Steering, Target, WishEntry, WishName
from outstation_hub import desired, standing
from outstation_hub.desired import DesiredFile
from outstation_hub.selection import TURNED_DOWN, Rule, Stages, deciding, is_chosen, judged, matches, resumed
from outstation_hub.stations import Stations

log = logging.getLogger("outstation.hub")

EVERY_STATION = ""
MAX_MODELS = 1000  # in one wish of many models
MAX_VERSION = 100  # characters
# Wishes for labels are looked through for each station; those for one station are found by its name.
MAX_FOR_LABELS = 1000
MAX_FOR_STATIONS = 100_000
# Watches of one station. A link that flaps leaves some behind until its keepalive ends them, so the newest stay.
MAX_WATCHES = 4
# Seconds that the first answer to a new station waits for its first report, which brings its labels: two intervals.
LABELS_TIMEOUT = 10.0


class _Watcher:
    """One call that watches."""

    def __init__(self) -> None:
        self.look = threading.Event()
        self.replaced = False


class Wishes:
    """Desired state, kept in one file. Thread-safe; what changes it returns when the change is on the disk."""

    def __init__(self, path: Path, stations: Stations, clock: Clock) -> None:
        self._path = path
        self._stations = stations
        self._clock = clock
        self._lock = threading.Lock()  # of changes, and of the watchers
        self._watchers: dict[str, list[_Watcher]] = {}
        self._closed = False
        self._unsaved = False
        self._set(desired.read(path))
        stations.on_told(self._told)

    def _set(self, state: DesiredFile) -> None:
        common, own = [], dict[str, list[Rule]]()
        for rule in state.rules:
            if rule.station:
                own.setdefault(rule.station, []).append(rule)
            else:
                common.append(rule)
        self._state, self._common, self._own = state, tuple(common), own

    @property
    def revision(self) -> int:
        """Grows with each change, of whatever wish; 0 = nobody has wished anything."""
        return self._state.revision

    # -- looking -------------------------------------------------------------------------------------------------

    def get(self, station: str) -> Desired:
        """What is wanted of *station* now; "" = of every station. The revision is that of the last change of all."""
        revision = self._state.revision
        found = self.deciding(station)
        return Desired(tuple(DesiredModel(name, found[name].version) for name in sorted(found)), revision)

    def applied(self, station: str) -> tuple[Applied, ...]:
        """The wish that decides for each model of *station*, by the model's name."""
        return tuple(
            Applied(name, rule.version, rule.target, rule.revision, rule.stages.percent if rule.stages else 0.0)
            for name, rule in sorted(self.deciding(station).items())
        )

    def deciding(self, station: str) -> dict[str, Rule]:
        """The rule that decides for each model of *station*."""
        reported = self._stations.reported(station)
        rules = (*self._common, *self._own.get(station, ()))
        return deciding(rules, station, reported.labels, phases(reported))

    def entries(self) -> tuple[WishEntry, ...]:
        """Every wish, with how far it is, by model; the one that decides first."""
        rules = sorted(self._state.rules, key=lambda rule: (rule.model, *(-part for part in rule.rank)))
        return standing.entries(rules, self._stations.list(), self.deciding)

    def watch(self, station: str, stop: threading.Event) -> Iterator[Desired]:
        """The present wish, then each change, until *stop* is set (call :meth:`wake` then) or this is closed."""
        mine = self._enter(station)
        try:
            if self._hangs_on_labels(station):
                self._clock.wait(mine.look, LABELS_TIMEOUT)
            last: Desired | None = None
            while True:
                mine.look.clear()
                if stop.is_set():
                    return
                if self._closed:
                    raise ProviderUnavailableError("The hub is closing.")
                if mine.replaced:
                    raise ProviderUnavailableError(f"Station {station!r} watches with newer calls.")
                now = self.get(station)
                if last is None or now.models != last.models:
                    last = now
                    yield now
                mine.look.wait()  # whatever ends the watch sets it
        finally:
            self._leave(station, mine)

    def _hangs_on_labels(self, station: str) -> bool:
        return any(rule.where for rule in self._common) and not self._stations.has_reported(station)

    def _enter(self, station: str) -> _Watcher:
        mine = _Watcher()
        with self._lock:
            watchers = self._watchers.setdefault(station, [])
            watchers.append(mine)
            for older in watchers[:-MAX_WATCHES]:
                older.replaced = True
                older.look.set()
            del watchers[:-MAX_WATCHES]
        return mine

    def _leave(self, station: str, mine: _Watcher) -> None:
        with self._lock:
            watchers = self._watchers.get(station, [])
            if mine in watchers:
                watchers.remove(mine)
            if not watchers:
                self._watchers.pop(station, None)

    # -- changing ------------------------------------------------------------------------------------------------

    def put(self, station: str, models: tuple[DesiredModel, ...]) -> Desired:
        """Want *models*, and no others, of *station* ("" = of every one). InvalidInputError, DiskError."""
        target = Target(checked_name(STATION_NAME, station, "station") if station else EVERY_STATION)
        if len(models) > MAX_MODELS or len({model.name for model in models}) != len(models):
            raise InvalidInputError(f"A wish names each model once, and at most {MAX_MODELS}.")
        for model in models:
            _check_version(model.name, model.version)
        named = {model.name for model in models}

        def change(rules: list[Rule], revision: int) -> list[Rule]:
            kept = [r for r in rules if r.target != target or (r.stages is not None and r.model not in named)]
            return kept + [self._rule(model.name, target, model.version, revision) for model in models]

        revision = self._change(change)
        return Desired(models, revision)

    def put_model(self, wish: ModelWish) -> WishEntry:
        """Want a version of one model, at once or in stages; the other wishes stay. InvalidInputError, DiskError.

        At once, it ends a rollout of the model to the same target. In stages, it stands before the wish for the same
        target and leaves it; another version takes the place of a rollout, the same one changes how far it goes.
        """
        target = _checked_target(wish.name.target)
        _check_version(wish.name.model, wish.version)
        stages = None if wish.stages is None else _checked_stages(wish)

        def change(rules: list[Rule], revision: int) -> list[Rule]:
            same = [r for r in rules if r.model == wish.name.model and r.target == target]
            rollout = next((rule for rule in same if rule.stages), None)
            gone = same if stages is None else [rollout]
            final = stages
            if stages and rollout and rollout.stages and rollout.version == wish.version:
                if rollout.stages.stopped:
                    raise InvalidInputError(
                        f"The rollout of {wish.name.model} {wish.version} was stopped: {rollout.stages.stopped}.",
                        hint="`outstation fleet resume-rollout` lets it go on, `end-rollout` takes it back.",
                    )
                final = msgspec.structs.replace(stages, excused=rollout.stages.excused)
            rest = [rule for rule in rules if rule not in gone]
            return [*rest, self._rule(wish.name.model, target, wish.version, revision, final)]

        revision = self._change(change)
        return self._entry(wish.name, revision)

    def unset_model(self, name: WishName) -> WishEntry:
        """Take a wish back; the next one decides where it did. The entry as it was. InvalidInputError, DiskError."""
        return self._take_back(name, in_stages=False)

    def steer(self, steering: Steering) -> WishEntry:
        """Let a rollout that was stopped go on ("resume"), or take it back ("end"). InvalidInputError, DiskError."""
        if steering.action == "end":
            return self._take_back(steering.name, in_stages=True)
        if steering.action != "resume":
            raise InvalidInputError(f"A rollout can resume or end, not {steering.action[:40]!r}.")

        def change(rules: list[Rule], revision: int) -> list[Rule]:
            rule = _found(rules, steering.name, in_stages=True)
            stages = rule.stages
            if stages is None or not stages.stopped:
                raise InvalidInputError(f"The rollout of {rule.model} {rule.version} was not stopped.")
            again = msgspec.structs.replace(rule, revision=revision, stages=resumed(stages, self._chosen(rule)))
            return [again if other is rule else other for other in rules]

        return self._entry(steering.name, self._change(change))

    def _take_back(self, name: WishName, *, in_stages: bool) -> WishEntry:
        gone = standing.entries([_found(self._state.rules, name, in_stages)], self._stations.list(), self.deciding)[0]

        def change(rules: list[Rule], revision: int) -> list[Rule]:
            rule = _found(rules, name, in_stages)
            return [other for other in rules if other is not rule]

        self._change(change)
        return gone

    def _rule(self, model: str, target: Target, version: str, revision: int, stages: Stages | None = None) -> Rule:
        return Rule(
            model=model,
            version=version,
            station=target.station,
            where=dict(target.where),
            revision=revision,
            since_unix_nano=self._clock.time_unix_nano(),
            stages=stages,
        )

    def _change(self, change: Callable[[list[Rule], int], list[Rule]]) -> int:
        """Write what *change* makes of the rules, then let everybody look. The new revision."""
        with self._lock:
            revision = self._state.revision + 1
            rules = tuple(map(self._judged, change(list(self._state.rules), revision)))
            own = sum(bool(rule.station) for rule in rules)
            if own > MAX_FOR_STATIONS or len(rules) - own > MAX_FOR_LABELS:
                raise InvalidInputError(
                    f"A hub keeps at most {MAX_FOR_LABELS} wishes for labels, {MAX_FOR_STATIONS} for stations.",
                    hint="Take some back with `outstation fleet unset-model`.",
                )
            state = DesiredFile(revision=revision, rules=rules)
            desired.write(self._path, state)
            self._unsaved = False
            self._set(state)
        self.wake()
        return revision

    def _entry(self, name: WishName, revision: int) -> WishEntry:
        rules = [rule for rule in self._state.rules if rule.revision == revision and rule.model == name.model]
        return standing.entries(rules, self._stations.list(), self.deciding)[0]

    # -- what stations tell --------------------------------------------------------------------------------------

    def _told(self, station: str, before: Reported | None, now: Reported) -> None:
        """A station has told how it is: look whether its labels are others now, and whether a rollout must stop."""
        first = before is None or not before.time_unix_nano
        if first or before is None or before.labels != now.labels:
            self.wake(station)
        known = phases(now)
        failed = [rule for rule in self._common if rule.stages and not rule.stages.stopped]
        failed = [rule for rule in failed if known.get((rule.model, rule.version)) in TURNED_DOWN]
        if self._unsaved or any(is_chosen(rule, station) for rule in failed):
            self._stop_where_due()

    def _stop_where_due(self) -> None:
        with self._lock:
            rules = tuple(map(self._judged, self._state.rules))
            if rules == self._state.rules and not self._unsaved:
                return
            state = DesiredFile(revision=self._state.revision + 1, rules=rules)
            # Even if the disk does not take it: the rollout is stopped as long as this process lives, and the next
            # report tries again.
            self._set(state)
            self._unsaved = True
            try:
                desired.write(self._path, state)
                self._unsaved = False
            except OutstationError as exc:
                log.error("a rollout was stopped, and the disk does not know yet: %s", exc)
        self.wake()

    def _judged(self, rule: Rule) -> Rule:
        if rule.stages is None or rule.stages.stopped:
            return rule
        stages = judged(rule.stages, self._chosen(rule))
        if stages.stopped:
            log.warning("rollout of %s %s to %s stopped: %s", rule.model, rule.version, rule.target, stages.stopped)
        return rule if stages is rule.stages else msgspec.structs.replace(rule, stages=stages)

    def _chosen(self, rule: Rule) -> dict[str, ModelPhase | None]:
        """The stations known that *rule* has come to, with where its version stands there."""
        return {
            entry.station: phases(entry.reported).get((rule.model, rule.version))
            for entry in self._stations.list()
            if matches(rule, entry.station, entry.reported.labels) and is_chosen(rule, entry.station)
        }

    def wake(self, station: str | None = None) -> None:
        """Let the watchers of *station*, or of all, look whether anything changed, or whether they are to stop."""
        with self._lock:
            known = self._watchers.values() if station is None else [self._watchers.get(station, [])]
            for watchers in known:
                for watcher in watchers:
                    watcher.look.set()

    def close(self) -> None:
        """End every watch."""
        self._closed = True
        self.wake()


def phases(reported: Reported) -> Mapping[tuple[str, str], ModelPhase]:
    """Where each (model, version) stands, as a station told."""
    return {(model.name, known.version): known.phase for model in reported.models for known in model.versions}


def _check_version(model: str, version: str) -> None:
    checked_name(MODEL_NAME, model, "model")
    if version != LATEST and (len(version) > MAX_VERSION or not is_version(version)):
        raise InvalidInputError(f"{version[:MAX_VERSION]!r} is no version of {model!r}.", hint="As 1.2.3, or latest.")


def _checked_target(target: Target) -> Target:
    if target.station and target.where:
        raise InvalidInputError("A wish is for one station or for labels, not for both.")
    if target.station:
        return Target(checked_name(STATION_NAME, target.station, "station"))
    return Target("", checked_labels(target.where, "A wish"))


def _checked_stages(wish: ModelWish) -> Stages:
    stages = wish.stages
    assert stages is not None
    if wish.version == LATEST:
        raise InvalidInputError("A rollout names its version: 'latest' would be another one tomorrow.")
    if wish.name.target.station:
        raise InvalidInputError("One station cannot be had in stages.", hint="Leave out --percent, or use --where.")
    if not 0.0 < stages.percent <= 100.0:
        raise InvalidInputError(f"{stages.percent:g} is no percentage of a fleet.", hint="Above 0, up to 100.")
    if stages.stop_after < 0 or not 0.0 <= stages.stop_after_percent <= 100.0:
        raise InvalidInputError("A rollout stops after a number of stations above 0, or a share up to 100 %.")
    count = stages.stop_after if stages.stop_after or stages.stop_after_percent else 1
    return Stages(percent=stages.percent, stop_after=count, stop_after_percent=stages.stop_after_percent)


def _found(rules: tuple[Rule, ...] | list[Rule], name: WishName, in_stages: bool) -> Rule:
    for rule in rules:
        if rule.model == name.model and rule.target == name.target and (rule.stages is not None) == in_stages:
            return rule
    what = "rollout" if in_stages else "wish"
    raise InvalidInputError(
        f"There is no {what} of {name.model!r} for {name.target}.", hint="`outstation fleet wishes` lists them."
    )
