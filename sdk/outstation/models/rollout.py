"""Where a version of a model stands on a device, and what moves it: a table, and pure functions over it. No I/O.

::

    (unknown) ──OFFER──▶ offered ──BEGIN──▶ downloading ──COMPLETE──▶ verified ──PASS──▶ staged ──ADMIT──▶ probation
                            ▲                                                 WATCH │       ▲ ADMIT          │ PROVE
    refused, rejected,      │                                                       ▼       │                ▼
    rolled_back ──FORGIVE───┘        superseded ──OFFER──▶ offered                  shadow ─┘              active
                                                                                     superseded ◀──REPLACE──┘

DISTRUST ends in refused (a check of trust), FAIL in rejected (load, goldens, budgets, in the shadow of the active
version), FAULT in rolled_back (live traffic), RECALL takes a version back because another one is wanted, DAMAGE sends
one whose files on the disk are no longer whole back to the start. What is refused, rejected or rolled back stays so
until FORGIVE.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from outstation.models.versions import is_prerelease, is_version, newest_first
from outstation.types import LATEST, MODEL_NAME, DesiredModel, ModelPhase, ModelReport, ModelVersionReport

logger = logging.getLogger(__name__)


class Event(str, Enum):
    """What can happen to a version."""

    OFFER = "offer"  # it is in the repository and wanted
    BEGIN = "begin"  # its files are being fetched
    COMPLETE = "complete"  # every file is here and has the signed hash
    PASS = "pass"  # noqa: S105 - not a password: it loads, and met its goldens and budgets
    WATCH = "watch"  # it computes beside the active version, whose answers count
    ADMIT = "admit"  # it answers, on trial
    PROVE = "prove"  # the trial is over
    REPLACE = "replace"  # another version was proved
    DISTRUST = "distrust"  # a signature, hash or manifest is wrong
    FAIL = "fail"  # it does not load, or missed a golden answer, a budget or a requirement
    FAULT = "fault"  # it failed on live traffic
    RECALL = "recall"  # another version is wanted before this one was proved
    DAMAGE = "damage"  # its files on the disk are no longer whole
    FORGIVE = "forgive"  # the operator wants it tried again


P, E = ModelPhase, Event
TABLE: Mapping[tuple[ModelPhase | None, Event], ModelPhase] = {
    (None, E.OFFER): P.OFFERED,
    (P.OFFERED, E.BEGIN): P.DOWNLOADING,
    (P.OFFERED, E.DISTRUST): P.REFUSED,
    (P.OFFERED, E.FAIL): P.REJECTED,
    (P.OFFERED, E.RECALL): P.SUPERSEDED,
    (P.DOWNLOADING, E.BEGIN): P.DOWNLOADING,  # after a restart or a lost link
    (P.DOWNLOADING, E.COMPLETE): P.VERIFIED,
    (P.DOWNLOADING, E.DISTRUST): P.REFUSED,
    (P.DOWNLOADING, E.FAIL): P.REJECTED,
    (P.DOWNLOADING, E.RECALL): P.SUPERSEDED,
    (P.VERIFIED, E.PASS): P.STAGED,
    (P.VERIFIED, E.FAIL): P.REJECTED,
    (P.VERIFIED, E.RECALL): P.SUPERSEDED,
    (P.VERIFIED, E.DAMAGE): P.OFFERED,
    (P.STAGED, E.WATCH): P.SHADOW,
    (P.STAGED, E.ADMIT): P.PROBATION,
    (P.STAGED, E.RECALL): P.SUPERSEDED,
    (P.STAGED, E.DAMAGE): P.OFFERED,
    (P.SHADOW, E.ADMIT): P.PROBATION,
    (P.SHADOW, E.FAIL): P.REJECTED,
    (P.SHADOW, E.RECALL): P.SUPERSEDED,
    (P.SHADOW, E.DAMAGE): P.OFFERED,
    (P.PROBATION, E.PROVE): P.ACTIVE,
    (P.PROBATION, E.FAULT): P.ROLLED_BACK,
    (P.PROBATION, E.RECALL): P.SUPERSEDED,
    (P.PROBATION, E.DAMAGE): P.OFFERED,
    (P.ACTIVE, E.REPLACE): P.SUPERSEDED,
    (P.ACTIVE, E.DAMAGE): P.OFFERED,
    (P.SUPERSEDED, E.OFFER): P.OFFERED,
    (P.SUPERSEDED, E.PROVE): P.ACTIVE,  # the last good version, when the active one was damaged on the disk
    (P.REFUSED, E.FORGIVE): P.OFFERED,
    (P.REJECTED, E.FORGIVE): P.OFFERED,
    (P.ROLLED_BACK, E.FORGIVE): P.OFFERED,
}
TURNED_DOWN = frozenset({P.REFUSED, P.REJECTED, P.ROLLED_BACK})
ON_ITS_WAY = frozenset({P.OFFERED, P.DOWNLOADING, P.VERIFIED, P.STAGED, P.SHADOW})


class MoveError(RuntimeError):
    """The table has no such move: a mistake in the caller."""


def next_phase(phase: ModelPhase | None, event: Event) -> ModelPhase:
    """The phase after *event*; MoveError when the table has no such move."""
    try:
        return TABLE[phase, event]
    except KeyError:
        raise MoveError(f"A version that is {phase.value if phase else 'unknown'} cannot {event.value}.") from None


class VersionState(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one version. ``digest`` is the SHA-256 of its manifest, "" before that is known."""

    phase: ModelPhase
    since_unix_nano: int
    reason: str = ""
    digest: str = ""
    saved_bytes: int = 0  # that did not come over the link, because a delta did
    interrupted: int = 0  # times that the process ended while it was on trial; -1 for an end in order
    software: str = ""  # that turned it down; a newer one may understand a manifest that this one does not


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of one model. ``last_good`` is the version that answered before the active one, or ""."""

    last_good: str = ""
    wish: str = ""  # of the far end, remembered for a start without a link
    pinned: str = ""  # by someone at the device; wins over the far end's wish
    versions: dict[str, VersionState] = {}

    @property
    def active(self) -> str:
        """The version that is proved, or ""."""
        return self._only(P.ACTIVE)

    @property
    def candidate(self) -> str:
        """The version on trial, or ""."""
        return self._only(P.PROBATION)

    @property
    def shadowed(self) -> str:
        """The version that runs in the shadow of the active one, or ""."""
        return self._only(P.SHADOW)

    @property
    def answering(self) -> str:
        """The version that answers, or ""."""
        return self.candidate or self.active

    def phase(self, version: str) -> ModelPhase | None:
        """Where *version* stands; None when nothing is known of it."""
        known = self.versions.get(version)
        return known.phase if known else None

    def kept_because(self, version: str) -> str:
        """Why the files of *version* are not deleted, in a word or two; "" when they may be."""
        if version == self.answering:
            return "answers"
        if version == self.active:
            return "active"
        if version == self.last_good:
            return "last good"
        if version == self.pinned:
            return "pinned"
        return "on its way" if self.phase(version) in ON_ITS_WAY else ""

    def report(self, name: str) -> ModelReport:
        """For the far end: newest first."""
        rows = (
            ModelVersionReport(version, state.phase, state.since_unix_nano, state.reason, state.saved_bytes)
            for version, state in ((version, self.versions[version]) for version in newest_first(self.versions))
        )
        return ModelReport(name, self.answering, tuple(rows))

    def _only(self, phase: ModelPhase) -> str:
        return next((version for version, state in self.versions.items() if state.phase is phase), "")


def moved(
    model: ModelState,
    version: str,
    event: Event,
    *,
    at_unix_nano: int,
    reason: str = "",
    digest: str | None = None,
    saved_bytes: int | None = None,
    software: str = "",
) -> ModelState:
    """*model* after *event* happened to *version*: at most one active, one in the shadow and one on trial."""
    old = model.versions.get(version)
    phase = next_phase(old.phase if old else None, event)
    versions = dict(model.versions)
    last_good = model.last_good
    if event is Event.PROVE:
        former = model.active
        if former:
            versions[former] = msgspec.structs.replace(
                versions[former], phase=next_phase(P.ACTIVE, E.REPLACE), since_unix_nano=at_unix_nano, reason=""
            )
            last_good = former
        elif last_good == version:
            last_good = ""
    if event is Event.ADMIT and model.candidate:
        raise MoveError(f"{model.candidate} is on trial already; {version} must wait.")
    if event is Event.WATCH and model.shadowed:
        raise MoveError(f"{model.shadowed} is in the shadow already; {version} must wait.")
    if event is Event.DAMAGE and last_good == version:
        last_good = ""
    since = old.since_unix_nano if old and old.phase is phase else at_unix_nano
    kept = digest if digest is not None else (old.digest if old else "")
    saved = saved_bytes if saved_bytes is not None else (old.saved_bytes if old else 0)
    versions[version] = VersionState(
        phase=phase, since_unix_nano=since, reason=reason, digest=kept, saved_bytes=saved, software=software
    )
    return msgspec.structs.replace(model, versions=versions, last_good=last_good)


def candidates(model: ModelState, wish: str, available: Iterable[str]) -> tuple[str, ...]:
    """The versions worth trying for *wish*, best first; it ends with the active version if nothing better is left.

    A version that was turned down is left out. "latest" takes no pre-release unless there is nothing else, and goes
    from the newest down; what is older than an acceptable newer one is a fallback. An explicit version stands alone.
    """
    if wish != LATEST:
        known = wish in set(available) or model.active == wish
        return (wish,) if known and model.phase(wish) not in TURNED_DOWN else ()
    offered = set(available)
    releases = {version for version in offered if not is_prerelease(version)}
    acceptable = [v for v in newest_first(releases or offered) if model.phase(v) not in TURNED_DOWN]
    active = model.active
    if active in acceptable:
        return tuple(acceptable[: acceptable.index(active) + 1])
    return tuple(acceptable)


def deserves_another_try(known: VersionState, digest: str, software: str) -> bool:
    """Whether a version that was turned down is not the same any more, or is looked at by other eyes.

    True when its manifest is another one now, and when what refused it was this software's knowledge (no digest
    differs, but the software does) of a manifest, which a newer one may understand.
    """
    if known.phase not in TURNED_DOWN:
        return False
    return known.digest not in ("", digest) or (known.phase is P.REFUSED and known.software != software)


class Verdict(str, Enum):
    """Of a trial."""

    WAIT = "wait"
    PROVED = "proved"
    FAULTY = "faulty"


def judge(elapsed: float, period: float, calls: int, errors: int) -> Verdict:
    """The verdict on a version that has answered *calls* calls, *errors* of them failed, *elapsed* seconds into its
    trial of *period* seconds. One failed call is enough: its predecessor is there and was good.
    """
    if errors > 0:
        return Verdict.FAULTY
    return Verdict.PROVED if elapsed >= period else Verdict.WAIT


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a version does on live calls, as totals of one process: *calls* that it computed, *errors* among them.

    In the shadow also the calls in which it disagreed with the active version, and those that it was spared because
    it could not keep up.
    """

    calls: int = 0
    errors: int = 0
    disagreements: int = 0
    dropped: int = 0

    def in_words(self) -> str:
        """One sentence on a shadow run, for the report."""
        if self.errors:
            return f"In the shadow {self.errors} of {self.calls} calls failed."
        if not self.calls:
            return "In the shadow no call came that could have been compared."
        share = 100 * self.disagreements / self.calls
        passed = f"; {self.dropped} were passed over" if self.dropped else ""
        return f"In the shadow {self.disagreements} of {self.calls} calls disagreed ({share:.3g} %){passed}."


def needs_shadow(model: ModelState, version: str, period: float) -> bool:
    """Whether *version* runs in the shadow for *period* seconds before it answers.

    Not beside nothing, not on the way back to an older version (what answers is doubted then), and not when someone
    at the device has decided for it.
    """
    active = model.active
    newer = bool(active) and newest_first((version, active))[0] == version != active
    return period > 0 and newer and model.pinned != version


def judge_shadow(elapsed: float, period: float, seen: Comparison, limit: float) -> Verdict:
    """The verdict on a version *elapsed* seconds into its shadow run of *period* seconds.

    One failed call is enough, at any time. How often it disagreed is judged at the end, when there is something to
    divide by: a share of more than *limit* is too much. Without any call there is nothing against it.
    """
    if seen.errors > 0:
        return Verdict.FAULTY
    if elapsed < period:
        return Verdict.WAIT
    return Verdict.FAULTY if seen.disagreements > limit * seen.calls else Verdict.PROVED


def is_sane(wanted: DesiredModel) -> bool:
    """Whether name and version are such. Names become folders: what the far end wants is looked at like any input."""
    sane = MODEL_NAME.fullmatch(wanted.name) is not None and (wanted.version == LATEST or is_version(wanted.version))
    if not sane:
        logger.warning("Models: %r %r is wanted, which is no name or no version.", wanted.name, wanted.version)
    return sane
