"""The thread that brings the device's models to what is wanted: fetch, check, try on live traffic, take back.

What may happen next is decided in ``rollout.py``; what is true is in the store, written before it is acted upon, so
that a kill at any instant leaves a version that answers and a next start that goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from outstation._version import __version__
from outstation.clock import Clock, SystemClock
from outstation.errors import (
    CheckFailedError,
    ClosedError,
    InvalidInputError,
    LinkError,
    ManifestError,
    ModelLoadError,
    ModelNotFoundError,
    OutstationError,
    UntrustedError,
)
from outstation.models.carry import MAX_INCOMING, Incoming
from outstation.models.checking import Checker
from outstation.models.device import this_device
from outstation.models.fetch import UNMETERED, FolderSource, Meter, Source
from outstation.models.installer import Installer
from outstation.models.manifest import MANIFEST
from outstation.models.orders import OrderKind, read_order, waiting_orders
from outstation.models.rollout import (
    ON_ITS_WAY,
    TURNED_DOWN,
    Event,
    ModelState,
    Verdict,
    candidates,
    deserves_another_try,
    is_sane,
    judge,
)
from outstation.models.sources import each_source
from outstation.models.store import InstalledModel, ModelStore
from outstation.models.trust import Standing, Trust, TrustedRepository, read_first_root
from outstation.models.versions import checked_version
from outstation.models.writer import StoreWriter
from outstation.settings import ModelsSettings
from outstation.types import LATEST, MODEL_NAME, Desired, ModelPhase, ModelReport, checked_name

# Seconds that one check of a version may take: loading and some hundred calls on a slow device.
CHECK_TIMEOUT = 120.0
# Seconds of silence from the source before a request is given up and tried again later.
SOURCE_TIMEOUT = 30.0

# Seconds between looks at what someone at the box may have left: orders, and models on a stick.
POST_INTERVAL = 1.0
# Phases whose bundle must be whole on the disk.
_ON_DISK = frozenset({ModelPhase.VERIFIED, ModelPhase.STAGED, ModelPhase.PROBATION, ModelPhase.ACTIVE})

Gate = Callable[[str, str], bool]

logger = logging.getLogger(__name__)


class Reconciler:
    """Owns the writing side of *store* and one thread, ``outstation-models``. Thread-safe; ``close`` joins it.

    *gate* (name, version) is asked before a version begins to answer; while it says False the version waits.
    """

    def __init__(
        self,
        store: ModelStore,
        source: Source,
        checker: Checker,
        settings: ModelsSettings,
        clock: Clock = SystemClock(),
        *,
        gate: Gate | None = None,
        meter: Meter = UNMETERED,
    ) -> None:
        self._store = store
        self._source = source
        self._incoming = Incoming(store.directory, source)
        self._seen: set[Path] = set()
        self._checker = checker
        self._settings = settings
        self._clock = clock
        self._gate = gate
        self._meter = meter
        self._mutex = threading.RLock()  # of the store's moves, which both our thread and reports of health make
        self._wakeup = threading.Event()
        self._closing = threading.Event()
        self._desired: Desired | None = None
        self._callbacks: list[Callable[[], None]] = []
        self._trials: dict[tuple[str, str], float] = {}  # monotonic start of each trial in this process
        self._thread = threading.Thread(target=self._run, name="outstation-models")
        self._writer: StoreWriter | None = None
        self._standing = Standing(Trust.STALE, "The repository was not reached yet.", clock.time_unix_nano())

    def __repr__(self) -> str:
        return f"<Reconciler of {self._store.directory} from {self._source!r}: {self._standing.trust.value}>"

    def start(self) -> None:
        """Take the store, check offline what is trusted, and begin.

        Raises SettingsError for the first trusted root, UntrustedError when that is no root, BufferLockedError.
        """
        root = read_first_root(self._settings.root)
        writer = self._store.claim()
        try:
            trusted = TrustedRepository(self._store.directory / "trust", root, self._clock)
            self._standing = trusted.load()
        except BaseException:
            writer.close()
            raise
        self._writer = writer
        self._installer = Installer(
            writer,
            trusted,
            self._incoming,
            this_device(),
            self._settings.max_bytes,
            SOURCE_TIMEOUT,
            self._incoming.holds,
            meter=self._meter,
            reserve_bytes=self._settings.min_free_disk_bytes,
        )
        self._trusted = trusted
        self._thread.start()

    def close(self) -> None:
        """End the thread and give the store free. Idempotent. Waits for a check that is running."""
        self._closing.set()
        self._wakeup.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._writer is not None:
            self._writer.close()

    def wake(self) -> None:
        """Look at the repository now instead of after the interval."""
        self._wakeup.set()

    def set_desired(self, desired: Desired) -> None:
        """Take over what is wanted; only hands over. A model that is not named in it stays as it is."""
        with self._mutex:
            self._desired = desired
        self._wakeup.set()

    def forgive(self, name: str, version: str) -> None:
        """Try *version* again although it was turned down. InvalidInputError if it was not."""
        with self._mutex:
            if self._model(name).phase(version) not in TURNED_DOWN:
                raise InvalidInputError(f"{name} {version} was not turned down on this device.")
            self._move(name, version, Event.FORGIVE, digest="")
        self._wakeup.set()

    def pin(self, name: str, version: str) -> None:
        """Hold *name* at *version*, whatever the far end wants; "" lets go."""
        checked_name(MODEL_NAME, name, "model")
        self._writer_().pin(name, checked_version(version) if version else "")
        self._wakeup.set()

    def reports(self) -> tuple[ModelReport, ...]:
        """Every model and version that was tried."""
        return (self._writer or self._store).reports()

    def standing(self) -> Standing:
        """How far the repository is believed, and why not further."""
        return self._standing

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each change of :meth:`reports`, on any thread of ours: it must only hand over."""
        self._callbacks.append(callback)

    def report_health(self, model: str, version: str, calls: int, errors: int) -> None:
        """*version* has answered *calls* calls, *errors* of them failed, since it began to answer in that process.

        A version on trial with a failed call is taken back before this returns. Others only lend their numbers.
        """
        with self._mutex:
            started = self._trials.get((model, version))
            if started is None or self._model(model).candidate != version:
                return
            elapsed = self._clock.monotonic() - started
            if judge(elapsed, self._settings.probation, calls, errors) is Verdict.FAULTY:
                self._move(model, version, Event.FAULT, f"{errors} of {calls} calls failed on trial.")
                self._wakeup.set()

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._guarded(self._check_disk)
            self._changed()
            while not self._closing.is_set():
                self._wakeup.clear()
                settled = self._guarded(self._look)
                interval = self._settings.poll_interval if settled else self._settings.retry_interval
                self._pause(min([interval, *self._remaining()]))
        except _Stopped:
            pass

    def _pause(self, interval: float) -> None:
        """Wait, but for nothing that someone at the box has left for us."""
        until = self._clock.monotonic() + interval
        while (left := until - self._clock.monotonic()) > 0:
            if self._clock.wait(self._wakeup, min(left, POST_INTERVAL)):
                return
            if waiting_orders(self._store.directory) or set(self._incoming.folders()) - self._seen:
                return

    def _guarded(self, step: Callable[[], bool]) -> bool:
        """Run *step*; False when it has to be repeated. Our thread ends for no error: nobody would start it again."""
        try:
            return step()
        except _Stopped:
            return False
        except OutstationError as exc:
            logger.warning("Models: %s", exc)
        except Exception:
            logger.exception("Models: an unexpected error; it is tried again.")
        return False

    def _check_disk(self) -> bool:
        """Verify again, offline, everything that answers or is about to; what is damaged goes back to the start."""
        for name in self._writer_().names():
            model = self._model(name)
            for version, known in model.versions.items():
                if known.phase in _ON_DISK:
                    self._check_version(name, version, known.digest)
        return True

    def _check_version(self, name: str, version: str, digest: str) -> None:
        try:
            self._installer.verify(name, version, digest)
        except (UntrustedError, ManifestError) as exc:
            logger.error("Models: %s It is fetched again.", exc)
            last_good = self._model(name).last_good
            self._move(name, version, Event.DAMAGE, str(exc))
            self._writer_().discard(name, version)
            if not self._model(name).active and last_good not in ("", version):
                self._return_to(name, last_good)

    def _return_to(self, name: str, version: str) -> None:
        try:
            self._installer.verify(name, version, self._model(name).versions[version].digest)
        except (UntrustedError, ManifestError, KeyError) as exc:
            logger.error("Models: the last good version is no help either: %s", exc)
            return
        self._move(name, version, Event.PROVE)

    def _look(self) -> bool:
        """One round: what is wanted, what there is, and one step further for each model. True when all is settled."""
        self._take_wishes()
        self._take_orders()
        self._judge_trials()
        incoming = self._incoming.folders()
        self._seen = set(incoming)
        for folder in incoming:
            self._refresh(FolderSource(folder))
        reached = any(self._refresh(source) for source in each_source(self._source))
        settled = True
        for name, model in sorted(self._writer_().state().models.items()):
            wish = model.pinned or model.wish
            if wish:
                settled &= self._settled(name, wish)
        # What was handed in and is wanted is taken now; what waits may be among it, but not for ever.
        self._incoming.clear(incoming if settled else incoming[:-MAX_INCOMING])
        if settled and reached:
            self._writer_().collect()
        return settled and reached

    def _take_wishes(self) -> None:
        with self._mutex:
            desired, self._desired = self._desired, None
        if desired is not None:
            desired = Desired(tuple(wanted for wanted in desired.models if is_sane(wanted)), desired.revision)
        wishes = {name: LATEST for name in self._settings.names if not self._model(name).wish}
        if desired is not None:
            wishes |= {wanted.name: wanted.version for wanted in desired.models}
            if desired.revision > 0:  # 0 = nobody was asked yet
                gone = set(self._writer_().names()) - set(wishes) - set(self._settings.names)
                wishes |= dict.fromkeys(gone, "")
        for name, wish in wishes.items():
            self._writer_().wish(name, wish)

    def _take_orders(self) -> None:
        for path in waiting_orders(self._store.directory):
            order = read_order(path)
            with self._mutex:
                if order is not None and order.kind is OrderKind.PIN:
                    self._writer_().pin(order.name, order.version)
                elif order is not None and self._model(order.name).phase(order.version) in TURNED_DOWN:
                    self._move(order.name, order.version, Event.FORGIVE, digest="")
            path.unlink(missing_ok=True)

    def _refresh(self, source: Source) -> bool:
        try:
            self._set_standing(self._trusted.refresh(source, SOURCE_TIMEOUT))
        except OutstationError as exc:
            # What is trusted already goes on being worked with: files may be half here, or on their way by a stick.
            known = self._trusted.standing
            self._set_standing(Standing(Trust.STALE, str(exc), known.since_unix_nano))
            return False
        return self._standing.trust is Trust.FRESH

    def _settled(self, name: str, wish: str) -> bool:
        try:
            return self._settle(name, wish)
        except OutstationError as exc:  # of this model only: the others go on
            logger.info("Models: %s waits: %s", name, exc)
            return False

    def _settle(self, name: str, wish: str) -> bool:
        """Bring *name* one version nearer to *wish*; True when there is nothing left to do but wait for time."""
        offered = self._trusted.versions(name)
        self._mark_changed(name, offered)
        model = self._model(name)
        if model.candidate:
            if wish in (LATEST, model.candidate):
                return True  # its trial decides
            self._move(name, model.candidate, Event.RECALL, f"{wish} is wanted instead.")
            model = self._model(name)
        if wish not in (LATEST, *offered) and model.phase(wish) is None:
            self._move(name, wish, Event.OFFER, "The repository does not list it.")
        worth = candidates(model, wish, offered)
        if offered:
            self._recall_others(name, worth, wish)
        for version in worth:
            if version == model.active:
                break
            phase = self._advance(name, version)
            if phase not in TURNED_DOWN | {ModelPhase.OFFERED, ModelPhase.DOWNLOADING}:
                break  # it answers, or waits for the gate: nothing older is wanted
        return not any(self._model(name).phase(version) in ON_ITS_WAY for version in worth)

    def _advance(self, name: str, version: str) -> ModelPhase | None:
        """Take *version* as far as it goes and return its phase. What stops it is written beside it."""
        try:
            self._install(name, version)
        except (UntrustedError, ManifestError) as exc:
            self._move(name, version, Event.DISTRUST, str(exc))
        except (CheckFailedError, ModelLoadError) as exc:
            if self._closing.is_set():
                raise _Stopped from exc  # whoever stops us may have stopped the check as well
            self._move(name, version, Event.FAIL, str(exc))
        except OutstationError as exc:
            self._note(name, version, str(exc))
            if isinstance(exc, LinkError) and not self._incoming.folders():
                raise  # an older version would not come either
        return self._model(name).phase(version)

    def _install(self, name: str, version: str) -> None:
        phase = self._model(name).phase(version)
        if phase in (None, ModelPhase.SUPERSEDED):
            self._move(name, version, Event.OFFER)
        if self._model(name).phase(version) in (ModelPhase.OFFERED, ModelPhase.DOWNLOADING):
            self._fetch(name, version)
        if self._model(name).phase(version) is ModelPhase.VERIFIED:
            installed = self._installed(name, version)
            result = self._checker.check(installed, CHECK_TIMEOUT)
            logger.info("Models: %s %s met %d golden cases.", name, version, result.cases)
            self._move(name, version, Event.PASS)
        if self._gate is not None and not self._gate(name, version):
            self._note(name, version, "The application's gate is closed.")
            return
        with self._mutex:
            self._trials[name, version] = self._clock.monotonic()
            self._move(name, version, Event.ADMIT)
        self._judge_trials()

    def _fetch(self, name: str, version: str) -> None:
        signed = self._trusted.file(f"{name}/{version}/{MANIFEST}")
        self._move(name, version, Event.BEGIN, digest=signed.sha256)
        manifest = self._installer.manifest(name, version, signed)
        self._installer.fetch(manifest, signed.sha256, self._pulse)
        saved = self._installer.savings.pop(signed.sha256, 0)
        self._move(name, version, Event.COMPLETE, saved_bytes=saved)

    def _pulse(self) -> None:
        """Between two reads of a long download: other models' trials end in time, and a new wish is heard."""
        self._judge_trials()
        if self._closing.is_set() or self._desired is not None:
            raise _Stopped

    # -- trials --------------------------------------------------------------------------------------------------

    def _judge_trials(self) -> None:
        with self._mutex:
            now = self._clock.monotonic()
            running = {(name, model.candidate) for name, model in self._writer_().state().models.items()}
            running = {(name, version) for name, version in running if version}
            # A trial that this process did not begin, because it was killed, begins anew.
            self._trials = {trial: self._trials.get(trial, now) for trial in running}
            for name, version in running:
                if now - self._trials[name, version] >= self._settings.probation:
                    self._move(name, version, Event.PROVE)
                    del self._trials[name, version]

    def _remaining(self) -> list[float]:
        """Seconds until each trial that is running ends."""
        with self._mutex:
            now = self._clock.monotonic()
            return [max(0.0, started + self._settings.probation - now) for started in self._trials.values()]

    # -- the store -----------------------------------------------------------------------------------------------

    def _mark_changed(self, name: str, offered: tuple[str, ...]) -> None:
        for version, known in self._model(name).versions.items():
            if version in offered:
                signed = self._trusted.file(f"{name}/{version}/{MANIFEST}")
                if deserves_another_try(known, signed.sha256, __version__):
                    self._move(name, version, Event.FORGIVE, digest="")
            elif known.phase not in TURNED_DOWN and (why := self._trusted.withdrawn(name, version)):
                self._note(name, version, f"The publisher withdrew it: {why}")

    def _recall_others(self, name: str, worth: tuple[str, ...], wish: str) -> None:
        for version, known in self._model(name).versions.items():
            if known.phase in ON_ITS_WAY and version not in (*worth, wish):
                self._move(name, version, Event.RECALL)

    def _installed(self, name: str, version: str) -> InstalledModel:
        found = self._writer_().installed(name, version)
        if found is None:
            raise ModelNotFoundError(f"The bundle of {name} {version} is gone from the disk.")
        return found

    def _move(
        self,
        name: str,
        version: str,
        event: Event,
        reason: str = "",
        *,
        digest: str | None = None,
        saved_bytes: int | None = None,
    ) -> None:
        with self._mutex:
            at = self._clock.time_unix_nano()
            model = self._writer_().move(
                name, version, event, at_unix_nano=at, reason=reason, digest=digest, saved_bytes=saved_bytes
            )
        logger.info("Models: %s %s is %s. %s", name, version, model.versions[version].phase.value, reason)
        self._changed()

    def _note(self, name: str, version: str, reason: str) -> None:
        if self._writer_().note(name, version, reason):
            self._changed()

    def _model(self, name: str) -> ModelState:
        return self._writer_().model(name)

    def _writer_(self) -> StoreWriter:
        if self._writer is None:
            raise ClosedError("The reconciler was not started.")
        return self._writer

    def _set_standing(self, standing: Standing) -> None:
        if standing != self._standing:
            self._standing = standing
            logger.info("Models: the repository is %s. %s", standing.trust.value, standing.reason)

    def _changed(self) -> None:
        for callback in list(self._callbacks):
            callback()


class _Stopped(Exception):  # noqa: N818 - no error
    """We are being closed, or something else is wanted."""
