"""One model's way to the version that is wanted: what is worth trying, fetched, checked, let in. On one thread.

What may happen next is decided in ``rollout.py``; here it is done, one version nearer at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from outstation._version import __version__
from outstation.errors import (
    CheckFailedError,
    LinkError,
    ManifestError,
    ModelLoadError,
    ModelNotFoundError,
    OutstationError,
    UntrustedError,
)
from outstation.models.checking import Checker
from outstation.models.installer import Installer
from outstation.models.manifest import MANIFEST
from outstation.models.moves import Moves
from outstation.models.rollout import ON_ITS_WAY, TURNED_DOWN, Event, candidates, deserves_another_try
from outstation.models.trials import Trials
from outstation.types import LATEST, ModelPhase

# Seconds that one check of a version may take: loading and some hundred calls on a slow device.
CHECK_TIMEOUT = 120.0
# Phases whose bundle must be whole on the disk.
_ON_DISK = frozenset(
    {ModelPhase.VERIFIED, ModelPhase.STAGED, ModelPhase.SHADOW, ModelPhase.PROBATION, ModelPhase.ACTIVE}
)
# Waiting for the link, the disk or the gate; a shadow run only waits for time.
_UNSETTLED = ON_ITS_WAY - {ModelPhase.SHADOW}

Gate = Callable[[str, str], bool]

logger = logging.getLogger(__name__)


class Interrupted(Exception):  # noqa: N818 - no error
    """The reconciler is being closed, or something else is wanted."""


class Delivery:
    """Takes versions from the repository to where they answer. Use from one thread.

    *stopping* says whether a check or download that ends now was ended by us; *pulse* is called often meanwhile and
    may raise :class:`Interrupted`, which then passes through every method here.
    """

    def __init__(
        self,
        moves: Moves,
        trials: Trials,
        installer: Installer,
        *,
        checker: Checker,
        gate: Gate | None,
        stopping: Callable[[], bool],
        pulse: Callable[[], None],
    ) -> None:
        self._moves = moves
        self._trials = trials
        self._installer = installer
        self._trusted = installer.repository
        self._checker = checker
        self._gate = gate
        self._stopping = stopping
        self._pulse = pulse

    def check_disk(self) -> None:
        """Verify again, offline, everything that answers or is about to; what is damaged goes back to the start."""
        for name, model in self._moves.models().items():
            for version, known in model.versions.items():
                if known.phase in _ON_DISK:
                    self._check_version(name, version, known.digest)

    def settled(self, name: str, wish: str) -> bool:
        """Bring *name* one version nearer to *wish*; True when there is nothing left to do but wait for time."""
        try:
            return self._settle(name, wish)
        except OutstationError as exc:  # of this model only: the others go on
            logger.info("Models: %s waits: %s", name, exc)
            return False

    def _check_version(self, name: str, version: str, digest: str) -> None:
        try:
            self._installer.verify(name, version, digest)
        except (UntrustedError, ManifestError) as exc:
            logger.error("Models: %s It is fetched again.", exc)
            last_good = self._moves.model(name).last_good
            self._moves.move(name, version, Event.DAMAGE, str(exc))
            self._installer.writer.discard(name, version)
            if not self._moves.model(name).active and last_good not in ("", version):
                self._return_to(name, last_good)

    def _return_to(self, name: str, version: str) -> None:
        try:
            self._installer.verify(name, version, self._moves.model(name).versions[version].digest)
        except (UntrustedError, ManifestError, KeyError) as exc:
            logger.error("Models: the last good version is no help either: %s", exc)
            return
        self._moves.move(name, version, Event.PROVE)

    def _settle(self, name: str, wish: str) -> bool:
        offered = self._trusted.versions(name)
        self._mark_changed(name, offered)
        model = self._moves.model(name)
        if model.candidate:
            if wish in (LATEST, model.candidate):
                return True  # its trial decides
            self._moves.move(name, model.candidate, Event.RECALL, f"{wish} is wanted instead.")
            model = self._moves.model(name)
        if wish not in (LATEST, *offered) and model.phase(wish) is None:
            self._moves.move(name, wish, Event.OFFER, "The repository does not list it.")
        worth = candidates(model, wish, offered)
        if offered:
            self._recall_others(name, worth, wish)
        for version in worth:
            if version == model.active:
                break
            phase = self._advance(name, version)
            if phase not in TURNED_DOWN | {ModelPhase.OFFERED, ModelPhase.DOWNLOADING}:
                break  # it answers, or waits for the gate or its time: nothing older is wanted
        return not any(self._moves.model(name).phase(version) in _UNSETTLED for version in worth)

    def _advance(self, name: str, version: str) -> ModelPhase | None:
        """Take *version* as far as it goes and return its phase. What stops it is written beside it."""
        try:
            self._install(name, version)
        except (UntrustedError, ManifestError) as exc:
            self._moves.move(name, version, Event.DISTRUST, str(exc))
        except (CheckFailedError, ModelLoadError) as exc:
            if self._stopping():
                raise Interrupted from exc  # whoever stops us may have stopped the check as well
            self._moves.move(name, version, Event.FAIL, str(exc))
        except OutstationError as exc:
            self._moves.note(name, version, str(exc))
            if isinstance(exc, LinkError) and not self._installer.waiting():
                raise  # an older version would not come either
        return self._moves.model(name).phase(version)

    def _install(self, name: str, version: str) -> None:
        phase = self._moves.model(name).phase(version)
        if phase in (None, ModelPhase.SUPERSEDED):
            self._moves.move(name, version, Event.OFFER)
        if self._moves.model(name).phase(version) in (ModelPhase.OFFERED, ModelPhase.DOWNLOADING):
            self._fetch(name, version)
        if self._moves.model(name).phase(version) is ModelPhase.VERIFIED:
            self._check(name, version)
        if self._moves.model(name).phase(version) is ModelPhase.STAGED and self._trials.watch(name, version):
            return
        if self._trials.in_the_shadow(name, version):
            return
        if self._gate is not None and not self._gate(name, version):
            self._moves.note(name, version, "The application's gate is closed.")
            return
        self._trials.admit(name, version)
        self._trials.judge()

    def _fetch(self, name: str, version: str) -> None:
        signed = self._trusted.file(f"{name}/{version}/{MANIFEST}")
        self._moves.move(name, version, Event.BEGIN, digest=signed.sha256)
        manifest = self._installer.manifest(name, version, signed)
        self._installer.fetch(manifest, signed.sha256, self._pulse)
        saved = self._installer.savings.pop(signed.sha256, 0)
        self._moves.move(name, version, Event.COMPLETE, saved_bytes=saved)

    def _check(self, name: str, version: str) -> None:
        installed = self._installer.writer.installed(name, version)
        if installed is None:
            raise ModelNotFoundError(f"The bundle of {name} {version} is gone from the disk.")
        result = self._checker.check(installed, CHECK_TIMEOUT)
        logger.info("Models: %s %s met %d golden cases.", name, version, result.cases)
        self._moves.move(name, version, Event.PASS)

    def _mark_changed(self, name: str, offered: tuple[str, ...]) -> None:
        for version, known in self._moves.model(name).versions.items():
            if version in offered:
                signed = self._trusted.file(f"{name}/{version}/{MANIFEST}")
                if deserves_another_try(known, signed.sha256, __version__):
                    self._moves.move(name, version, Event.FORGIVE, digest="")
            elif known.phase not in TURNED_DOWN and (why := self._trusted.withdrawn(name, version)):
                self._moves.note(name, version, f"The publisher withdrew it: {why}")

    def _recall_others(self, name: str, worth: tuple[str, ...], wish: str) -> None:
        for version, known in self._moves.model(name).versions.items():
            if known.phase in ON_ITS_WAY and version not in (*worth, wish):
                self._moves.move(name, version, Event.RECALL)
