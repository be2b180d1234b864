"""The models of one process: loads what the store says answers, and lets new versions take over under load."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

from outstation.clock import Clock, SystemClock
from outstation.errors import ClosedError, ModelNotFoundError, ModelNotReadyError, OutstationError
from outstation.inference.captures import Captures
from outstation.inference.deadlines import Deadlines
from outstation.inference.loading import load_installed
from outstation.inference.model import Health, Model, Version
from outstation.inference.runtime import options_of
from outstation.inference.shadow import Shadow
from outstation.models.store import InstalledModel
from outstation.settings import InferenceSettings
from outstation.types import MODEL_NAME, checked_name

log = logging.getLogger("outstation.inference")

# How often the store is asked whether anything changed; one stat or small read each time.
POLL_INTERVAL = 0.2


class Store(Protocol):
    """What a host needs of :class:`outstation.models.store.ModelStore`."""

    def generation(self) -> object: ...
    def names(self) -> tuple[str, ...]: ...
    def answering(self, name: str) -> InstalledModel | None: ...
    def candidate(self, name: str) -> InstalledModel | None: ...
    def shadow(self, name: str) -> InstalledModel | None: ...


class Models(Protocol):
    """Models by name, wherever they are computed: a server asks this."""

    def names(self) -> tuple[str, ...]:
        """The models that answer now, sorted."""
        ...

    def get(self, name: str, timeout: float = 0.0) -> Model:
        """The model *name*; ModelNotReadyError or ModelNotFoundError when none answers within *timeout* seconds."""
        ...

    def healths(self) -> dict[str, Health]:
        """By model: how the version that should answer has done since it began to."""
        ...

    def shadows(self) -> dict[str, Health]:
        """By model: how the version in the shadow of that one has done since it began to."""
        ...

    def load(self, name: str, timeout: float) -> None:
        """Let *name* answer again, if it was unloaded or could not be loaded; until it does. Raises as :meth:`get`."""
        ...

    def unload(self, name: str, timeout: float) -> None:
        """Let *name* answer no more until it is loaded again, and free its memory. ModelNotFoundError."""
        ...

    @property
    def settled(self) -> bool:
        """Whether every model that should answer was loaded, or found to be impossible to load."""
        ...

    def close(self) -> None: ...


@dataclass(slots=True)
class _Entry:
    """One model that was asked for. Changed by the host's thread alone, but for two wishes; with the lock held."""

    model: Model
    shadow: Shadow
    folder: Path | None = None  # of the version that answers
    seen: bool = False  # the store was asked at least once
    asked: bool = False  # a wish: the store is to be asked again, and somebody waits for it
    unloaded: bool = False  # a wish: it is not to answer here, whatever the store says
    failed: Path | None = None  # of the version that could not be loaded; not tried again
    failed_version: str = ""
    error: OutstationError | None = None


class ModelHost:
    """Loads versions on a thread of its own, warms them up, then swaps them in. Thread-safe.

    Models are loaded when first asked for; with *preload*, all that answer are. A version that cannot be loaded
    leaves the one before in place, and its :meth:`health` says that its one call failed.
    """

    def __init__(
        self,
        store: Store,
        settings: InferenceSettings = InferenceSettings(),
        *,
        clock: Clock = SystemClock(),
        preload: bool = False,
        captures: Captures | None = None,
    ) -> None:
        """*captures* keeps calls for retraining; whoever made it closes it, after this."""
        self._store = store
        self._options = options_of(settings)
        self._tolerance = settings.shadow_tolerance
        self._clock = clock
        self._preload = preload
        self._captures = captures
        self._deadlines = Deadlines(clock)
        self._changed = threading.Condition()
        self._entries: dict[str, _Entry] = {}
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="outstation-models", daemon=True)
        self._thread.start()

    def get(self, name: str, timeout: float = 10.0) -> Model:
        """The handle on *name*, once a version answers. The same handle each time; it stays valid until :meth:`close`.

        Raises ModelNotReadyError after *timeout* seconds, or what keeps the version from being loaded
        (ModelLoadError) at once. With *preload*, ModelNotFoundError at once for a name that the store does not know.
        """
        checked_name(MODEL_NAME, name, "model")
        with self._changed:
            entry = self._entries.get(name)
            if entry is None or not entry.model.ready:
                entry = self._awaited(name, entry, timeout)
            return entry.model

    def _awaited(self, name: str, entry: _Entry | None, timeout: float) -> _Entry:
        if entry is None:
            if self._preload and name not in self._store.names():
                raise ModelNotFoundError(f"No model {name!r} is known on this device.")
            entry = self._entries[name] = self._entry(name)
            self._wake.set()
        self._changed.wait_for(lambda: entry.model.ready or entry.error is not None or self._closed, timeout)
        if self._closed:
            raise ClosedError("The models are closed.")
        if entry.model.ready:
            return entry
        if entry.error is not None:
            raise entry.error
        if entry.unloaded:
            raise ModelNotReadyError(f"{name!r} was unloaded here.", hint="Load it again.")
        known = ", ".join(self.names()) or "none"
        raise ModelNotReadyError(f"No version of {name!r} answers on this device (answering: {known}).")

    def names(self) -> tuple[str, ...]:
        """The models of the store for which a version may answer, loaded or not, sorted."""
        return tuple(name for name in self._store.names() if self._store.answering(name) is not None)

    def load(self, name: str, timeout: float) -> None:
        """See :meth:`Models.load`. Which version answers, the store decides."""
        entry = self._asked_again(name, timeout, unloaded=False)
        error = entry.error
        if error is not None:
            raise error  # also when the version before goes on answering
        self.get(name, 0.0)

    def unload(self, name: str, timeout: float) -> None:
        """See :meth:`Models.unload`. The store is not touched, and no call is counted as failed."""
        self._asked_again(name, timeout, unloaded=True)

    def _asked_again(self, name: str, timeout: float, *, unloaded: bool) -> _Entry:
        checked_name(MODEL_NAME, name, "model")
        if name not in self._store.names():
            raise ModelNotFoundError(f"No model {name!r} is known on this device.")
        with self._changed:
            entry = self._entries.setdefault(name, self._entry(name))
            entry.unloaded, entry.asked = unloaded, True
            self._wake.set()
            self._changed.wait_for(lambda: not entry.asked or self._closed, timeout)
            return entry

    def health(self, name: str) -> Health:
        """Calls and errors of the version that should answer, since it began to; ModelNotReadyError without one."""
        with self._changed:
            entry = self._entries.get(name)
            if entry is None:
                raise ModelNotFoundError(f"Nobody asked for {name!r} here.")
            if entry.failed is not None:
                return Health(entry.failed_version, calls=1, errors=1)
            return entry.model.health

    def healths(self) -> dict[str, Health]:
        """:meth:`health` of every model that answers here."""
        with self._changed:
            names = [name for name, entry in self._entries.items() if entry.model.ready or entry.failed is not None]
        return {name: self.health(name) for name in names}

    def shadows(self) -> dict[str, Health]:
        """Of every version that runs in the shadow here: how it does, compared with the one that answers."""
        with self._changed:
            found = {name: entry.shadow.health for name, entry in self._entries.items()}
        return {name: health for name, health in found.items() if health is not None}

    @property
    def settled(self) -> bool:
        """Whether every model that answers by the store was loaded, or found to be impossible to load."""
        return all(name in self._entries and self._entries[name].seen for name in self.names())

    def wait_settled(self, timeout: float) -> bool:
        """Until :attr:`settled`; True if that was within *timeout* seconds. Needs *preload*."""
        with self._changed:
            return self._changed.wait_for(lambda: self.settled, timeout)

    def close(self) -> None:
        """Answer no more; calls in progress end as usual. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wake.set()
        self._thread.join()
        for entry in self._entries.values():
            entry.shadow.close()
        self._deadlines.close()
        for entry in self._entries.values():
            entry.model.close()

    def _run(self) -> None:
        generation: object = None
        while not self._closed:
            asked = self._wake.is_set()
            if asked:
                self._wake.clear()
            now = self._store.generation()
            if asked or now != generation:
                generation = now
                self._follow()
            self._clock.wait(self._wake, POLL_INTERVAL)

    def _follow(self) -> None:
        if self._preload:
            for name in self.names():
                with self._changed:
                    if name not in self._entries:
                        self._entries[name] = self._entry(name)
        with self._changed:
            entries = list(self._entries.items())
        for name, entry in entries:
            if self._closed:
                return
            self._follow_one(name, entry)
            answers = entry.model.current if entry.model.ready else None
            if answers is not None:
                candidate = self._store.candidate(name)
                answers.on_trial = candidate is not None and candidate.folder == entry.folder
            entry.shadow.follow(self._store.shadow(name), answers)

    def _entry(self, name: str) -> _Entry:
        return _Entry(Model(name, None, self._deadlines), Shadow(self._options, self._tolerance, self._deadlines))

    def _follow_one(self, name: str, entry: _Entry) -> None:
        installed = None if entry.unloaded else self._store.answering(name)
        if installed is None:
            self._settle(entry, None, None)
        elif installed.folder == entry.folder:
            self._settle(entry, entry.folder, entry.model.current)
        elif installed.folder != entry.failed or entry.asked:
            self._load(entry, installed)

    def _load(self, entry: _Entry, installed: InstalledModel) -> None:
        replaces = entry.model.current if entry.model.ready else None
        try:
            version = load_installed(installed, self._options, replaces)
        except OutstationError as exc:
            if self._store.answering(installed.name) != installed:
                self._wake.set()  # deleted while it was read: another one answers now
                return
            log.warning("%s %s cannot be loaded: %s", installed.name, installed.version, exc)
            with self._changed:
                entry.seen = True
                entry.failed, entry.failed_version, entry.error = installed.folder, installed.version, exc
                entry.asked = False
                self._changed.notify_all()
            return
        if self._captures is not None:
            names = installed.name, installed.version
            version.sampler = self._captures.sampler(*names, version.signature.outputs, version.labels)
        log.info("%s %s answers, computed by %s", installed.name, installed.version, version.placement.accelerator)
        for fallback in version.placement.fallbacks:
            log.warning("%s %s: %s", installed.name, installed.version, fallback)
        self._settle(entry, installed.folder, version)

    def _settle(self, entry: _Entry, folder: Path | None, version: Version | None) -> None:
        with self._changed:
            entry.seen = True
            entry.folder, entry.failed, entry.failed_version, entry.error = folder, None, "", None
            # A version that came while it was being unloaded goes again with the next look at the store.
            entry.asked = entry.asked and entry.unloaded and version is not None
            entry.model.answer_with(version)
            self._changed.notify_all()

    def __enter__(self) -> ModelHost:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False


class FixedModels:
    """Models that are there from the start and have one version: what serves a bare file."""

    def __init__(self, models: tuple[Model, ...], read: Callable[[str], Version] | None = None) -> None:
        """*read* makes the version of a model by its name anew, for :meth:`load`; without it nothing is loaded."""
        self._models = {model.name: model for model in models}
        self._read = read

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._models))

    def get(self, name: str, timeout: float = 0.0) -> Model:
        model = self._models.get(name)
        if model is None:
            raise ModelNotFoundError(
                f"There is no model {name!r} here.", hint=f"There is: {', '.join(self.names()) or 'none'}."
            )
        return model

    def load(self, name: str, timeout: float) -> None:
        model = self.get(name)
        if not model.ready and self._read is not None:
            model.answer_with(self._read(name))
        model.current  # noqa: B018 - raises while none may answer

    def unload(self, name: str, timeout: float) -> None:
        self.get(name).answer_with(None)

    def health(self, name: str) -> Health:
        return self.get(name).health

    def healths(self) -> dict[str, Health]:
        return {name: model.health for name, model in self._models.items() if model.ready}

    def shadows(self) -> dict[str, Health]:
        return {}

    @property
    def settled(self) -> bool:
        return True

    def close(self) -> None:
        for model in self._models.values():
            model.close()
