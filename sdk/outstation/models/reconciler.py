"""The thread that brings the device's models to what is wanted: fetch, check, try on live traffic, take back.

It hears wishes and orders, looks at the repository, and lets ``delivery.py`` and ``trials.py`` do what follows. What
is true is in the store, written before it is acted upon, so that a kill at any instant leaves a version that answers
and a next start that goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from outstation.clock import Clock, SystemClock
from outstation.errors import ClosedError, InvalidInputError, OutstationError
from outstation.models.carry import MAX_INCOMING, Incoming
from outstation.models.checking import Checker
from outstation.models.delivery import Delivery, Gate, Interrupted
from outstation.models.device import this_device
from outstation.models.fetch import UNMETERED, FolderSource, Meter, Source
from outstation.models.installer import Installer
from outstation.models.moves import Moves
from outstation.models.orders import OrderKind, read_order, waiting_orders
from outstation.models.rollout import TURNED_DOWN, Comparison, Event, is_sane
from outstation.models.sources import each_source
from outstation.models.store import ModelStore
from outstation.models.trials import Trials
from outstation.models.trust import Standing, Trust, TrustedRepository, read_first_root
from outstation.models.versions import checked_version
from outstation.models.writer import StoreWriter
from outstation.settings import ModelsSettings
from outstation.types import LATEST, MODEL_NAME, Desired, ModelReport, checked_name

# Seconds of silence from the source before a request is given up and tried again later.
SOURCE_TIMEOUT = 30.0

# Seconds between looks at what someone at the box may have left: orders, and models on a stick.
POST_INTERVAL = 1.0

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

        self._wakeup = threading.Event()
        self._closing = threading.Event()
        self._desired: Desired | None = None  # replaced as a whole; what is taken over is taken under the lock
        self._desired_lock = threading.Lock()
        self._callbacks: list[Callable[[], None]] = []
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
        self._trusted = trusted
        self._moves = Moves(writer, self._clock, self._changed)
        self._trials = Trials(self._moves, self._settings, self._clock, self._wakeup.set)
        self._guarded(self._trials.take_up)
        installer = Installer(
            writer,
            trusted,
            self._incoming,
            this_device(),
            self._settings.max_bytes,
            self._settings.max_store_bytes,
            SOURCE_TIMEOUT,
            self._incoming.holds,
            self._incoming.folders,
            meter=self._meter,
            reserve_bytes=self._settings.min_free_disk_bytes,
        )
        self._delivery = Delivery(
            self._moves,
            self._trials,
            installer,
            checker=self._checker,
            gate=self._gate,
            stopping=self._closing.is_set,
            pulse=self._pulse,
        )
        self._thread.start()

    def close(self) -> None:
        """End the thread and give the store free. Idempotent. Waits for a check that is running."""
        already = self._closing.is_set()
        self._closing.set()
        self._wakeup.set()
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join()
        if self._writer is not None and not already:
            self._guarded(self._trials.put_down)
            self._writer.close()

    def wake(self) -> None:
        """Look at the repository now instead of after the interval."""
        self._wakeup.set()

    def set_desired(self, desired: Desired) -> None:
        """Take over what is wanted; only hands over. A model that is not named in it stays as it is."""
        with self._desired_lock:
            self._desired = desired
        self._wakeup.set()

    def forgive(self, name: str, version: str) -> None:
        """Try *version* again although it was turned down. InvalidInputError if it was not."""
        self._writer_()
        if not self._forgiven(name, version):
            raise InvalidInputError(f"{name} {version} was not turned down on this device.")
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

    def report_health(
        self,
        model: str,
        version: str,
        calls: int,
        errors: int,
        *,
        disagreements: int = 0,
        dropped: int = 0,
        process: str = "",
    ) -> None:
        """*version* has computed *calls* calls, *errors* of them failed, since it began to in that process.

        A version on trial with a failed call is taken back before this returns. One in the shadow says also in how
        many calls it disagreed with the active version, and how many it could not keep up with. Others only lend
        their numbers. *process* names the run of the process that computes it: with another one a trial begins anew,
        and one that goes through several is taken back, as it may be what ends them.
        """
        if self._writer is not None:
            self._trials.report(model, version, Comparison(calls, errors, disagreements, dropped), process)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._guarded(self._delivery.check_disk)
            self._changed()
            while not self._closing.is_set():
                self._wakeup.clear()
                settled = self._guarded(self._look)
                interval = self._settings.poll_interval if settled else self._settings.retry_interval
                self._pause(min([interval, *self._trials.remaining()]))
        except Interrupted:
            pass

    def _pause(self, interval: float) -> None:
        """Wait, but for nothing that someone at the box has left for us."""
        until = self._clock.monotonic() + interval
        while (left := until - self._clock.monotonic()) > 0:
            if self._clock.wait(self._wakeup, min(left, POST_INTERVAL)):
                return
            if waiting_orders(self._store.directory) or set(self._incoming.folders()) - self._seen:
                return

    def _guarded(self, step: Callable[[], bool | None]) -> bool:
        """Run *step*; False when it has to be repeated. Our thread ends for no error: nobody would start it again."""
        try:
            return step() is not False
        except Interrupted:
            return False
        except OutstationError as exc:
            logger.warning("Models: %s", exc)
        except Exception:
            logger.exception("Models: an unexpected error; it is tried again.")
        return False

    def _look(self) -> bool:
        """One round: what is wanted, what there is, and one step further for each model. True when all is settled."""
        self._take_wishes()
        self._take_orders()
        self._trials.judge()
        incoming = self._incoming.folders()
        self._seen = set(incoming)
        for folder in incoming:
            self._refresh(FolderSource(folder))
        reached = any(self._refresh(source) for source in each_source(self._source))
        settled = True
        for name, model in sorted(self._moves.models().items()):
            wish = model.pinned or model.wish
            if wish:
                settled &= self._delivery.settled(name, wish)
        # What was handed in and is wanted is taken now; what waits may be among it, but not for ever.
        self._incoming.clear(incoming if settled else incoming[:-MAX_INCOMING])
        if settled and reached:
            self._writer_().collect()
        return settled and reached

    def _pulse(self) -> None:
        """Between two reads of a long download: other models' trials end in time, and a new wish is heard."""
        self._trials.judge()
        if self._closing.is_set() or self._desired is not None:
            raise Interrupted

    def _take_wishes(self) -> None:
        with self._desired_lock:
            desired, self._desired = self._desired, None
        if desired is not None:
            desired = Desired(tuple(wanted for wanted in desired.models if is_sane(wanted)), desired.revision)
        wishes = {name: LATEST for name in self._settings.names if not self._moves.model(name).wish}
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
            if order is not None and order.kind is OrderKind.PIN:
                self._writer_().pin(order.name, order.version)
            elif order is not None and order.kind is OrderKind.COLLECT:
                freed = self._writer_().collect(parts=False)
                logger.info("Models: %d bytes that nobody needed are deleted.", freed)
            elif order is not None:
                self._forgiven(order.name, order.version)
            path.unlink(missing_ok=True)

    def _forgiven(self, name: str, version: str) -> bool:
        with self._moves.lock:
            turned_down = self._moves.model(name).phase(version) in TURNED_DOWN
            if turned_down:
                self._moves.move(name, version, Event.FORGIVE, digest="")
            return turned_down

    def _refresh(self, source: Source) -> bool:
        try:
            self._set_standing(self._trusted.refresh(source, SOURCE_TIMEOUT))
        except OutstationError as exc:
            # What is trusted already goes on being worked with: files may be half here, or on their way by a stick.
            known = self._trusted.standing
            self._set_standing(Standing(Trust.STALE, str(exc), known.since_unix_nano))
            return False
        return self._standing.trust is Trust.FRESH

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
