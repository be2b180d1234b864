"""A station: the parts composed, their threads owned, closed in order.

:func:`open` holds the whole station in this process; :func:`connect` talks to the agent on this device. Both give a
:class:`Station` with the same three rooms: ``models``, ``telemetry``, ``buffer``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from outstation import settings as settings_room
from outstation._version import __version__
from outstation.bandwidth import Bandwidth
from outstation.buffer import Buffer
from outstation.clock import Clock, SystemClock
from outstation.errors import DiskError, ModelNotReadyError, OutstationError, mapped_os_errors
from outstation.inference import capturing
from outstation.provider import Provider, load_provider
from outstation.settings import Settings
from outstation.sync.deadletter import with_dead_letters
from outstation.sync.reporting import Reporter
from outstation.sync.uplink import UplinkThread
from outstation.telemetry.events import RecordBuffer, Telemetry, with_event_streams
from outstation.types import LATEST, Desired, DesiredModel, Link, ModelReport, Placement, Reported, StationStatus

if TYPE_CHECKING:
    from outstation.models.manifest import TensorSpec

SOFTWARE = f"outstation {__version__}"


class ModelHandle(Protocol):
    """A model that answers: the version swaps underneath without a gap."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    def run(self, inputs: Mapping[str, Any], *, timeout: float | None = None) -> Any:
        """Arrays in by input name, arrays out by output name; see ``outstation.inference.model.Model.run``."""
        ...

    def run_many(self, calls: Sequence[Mapping[str, Any]], *, timeout: float | None = None) -> Sequence[Any]:
        """:meth:`run` for each of *calls*, all by one version."""
        ...

    def capture(self, inputs: Mapping[str, Any], note: str = "", *, timeout: float | None = None) -> Any:
        """:meth:`run`, and keep the call for retraining."""
        ...


class Models(Protocol):
    """The models of a station."""

    def get(self, name: str, timeout: float = 30.0) -> ModelHandle:
        """The handle of *name*, once a version answers; ModelNotReadyError after *timeout* seconds without one."""
        ...


class Station:
    """One device's installation. A context manager; thread-safe; ``close`` is idempotent."""

    def __init__(
        self,
        *,
        models: Models,
        telemetry: Telemetry,
        buffer: RecordBuffer,
        status: Callable[[], StationStatus],
        set_metered: Callable[[bool], None],
        resources: ExitStack,
    ) -> None:
        self.models = models
        self.telemetry = telemetry
        self.buffer = buffer
        self._status = status
        self._set_metered = set_metered
        self._resources = resources

    def status(self) -> StationStatus:
        """What the station is doing: link, backlog, versions."""
        return self._status()

    def set_metered(self, metered: bool) -> None:
        """Say that every byte over the link costs, or no longer: then only urgent streams are sent.

        For whoever knows the modem. It begins at once, and lasts until it is said otherwise or the station restarts,
        which goes by ``uplink.metered``. LinkDownError when the station is an agent's and none answers.
        """
        self._set_metered(metered)

    def close(self) -> None:
        """End every thread and connection, in the reverse order of their making; what is buffered stays on disk."""
        self._resources.close()

    def __enter__(self) -> Station:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open(  # noqa: A001  the SDK's front door: outstation.open()
    settings: Settings | None = None,
    *,
    path: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    gate: Callable[[str, str], bool] | None = None,
) -> Station:
    """The whole station in this process: buffer, uplink, models, inference.

    *settings* as they are, else loaded from *path*, the environment and *overrides* (see
    :mod:`outstation.settings`). Raises SettingsError, BufferLockedError when another process owns the data folder,
    DiskError, MissingExtraError. A far end that does not answer is no error: the station works on.

    *gate* (model, version) says whether a new version may begin to answer now ("not while the press is closing"). It
    is asked on the models' thread, every few seconds while one waits, and must return at once.
    """
    chosen = settings or settings_room.load(path, environ=os.environ, overrides=overrides)
    parts = StationParts(chosen, clock or SystemClock(), gate=gate)
    try:
        models = parts.local_models()
    except BaseException:
        parts.close()
        raise
    return Station(
        models=models,
        telemetry=parts.telemetry,
        buffer=parts.buffer,
        status=parts.status,
        set_metered=parts.set_metered,
        resources=parts.resources,
    )


def connect(
    socket: Path | str | None = None,
    *,
    inference: str | None = None,
    path: Path | str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Station:
    """The station of the agent on this device, over its unix socket.

    *socket* is the agent's, *inference* the address of the inference component ("unix:/path" or "host:port"); where
    not given they come from the settings. Neither need be up: records wait in this process, bounded, until the
    agent has them on its disk. Raises SettingsError, MissingExtraError.
    """
    from outstation.agent import AgentClient  # noqa: PLC0415  grpc, which an open() station may live without

    loaded = settings_room.load(path, environ=os.environ, overrides=overrides)
    agent_socket = Path(socket) if socket is not None else loaded.agent_socket
    with ExitStack() as made:
        client = AgentClient(agent_socket)
        made.callback(client.close)
        models = _RemoteModels(inference or f"unix:{loaded.inference_socket.absolute()}", made)
        resources = made.pop_all()
    return Station(
        models=models,
        telemetry=Telemetry(client, SystemClock()),
        buffer=client,
        status=lambda: client.status(timeout=5.0),
        set_metered=lambda metered: client.set_metered(metered, timeout=5.0),
        resources=resources,
    )


class StationParts:
    """The parts that :func:`open` and the agent compose alike: buffer, provider, uplink, reconciler, reporter.

    Made in the order in which they depend on each other; ``resources`` ends them in the reverse order.
    """

    def __init__(self, settings: Settings, clock: Clock, *, gate: Callable[[str, str], bool] | None = None) -> None:
        self.settings = settings
        self._gate = gate
        self.clock = clock
        self.started_unix_nano = clock.time_unix_nano()
        self.revision = 0
        self.reconciler: Any = None
        self._placements: dict[str, tuple[str, Placement]] = {}
        self.reporter: Reporter | None = None
        self.uplink: UplinkThread | None = None
        self.bandwidth = Bandwidth(settings.uplink.max_bits_per_second, settings.models.max_bits_per_second, clock)
        with ExitStack() as made:
            _make_folder(settings.data_dir)
            buffer_settings = with_dead_letters(capturing.with_captures(with_event_streams(settings.buffer)))
            self.buffer = Buffer.open(settings.data_dir / "buffer", buffer_settings, clock=clock)
            made.callback(self.buffer.close)
            self.provider = self._load_provider()
            made.callback(self.provider.close)
            self.telemetry = Telemetry(self.buffer, clock)
            self._start_models(made)
            self._start_reporter(made)
            self._start_uplink(made)
            self.resources = made.pop_all()

    def close(self) -> None:
        self.resources.close()

    def status(self) -> StationStatus:
        """What the station is doing now, at the cost of reading a few counters."""
        return StationStatus(
            self.settings.identity.station, self.provider.name, os.getpid(), self.started_unix_nano, self.reported()
        )

    def reported(self) -> Reported:
        models = self.reconciler.reports() if self.reconciler is not None else ()
        return Reported(
            models=tuple(map(self._with_placement, models)),
            streams=tuple(stream.report() for stream in self.buffer.streams()),
            link=self.uplink.link if self.uplink is not None else None,
            revision=self.revision,
            time_unix_nano=self.clock.time_unix_nano(),
            software=SOFTWARE,
            labels=self.settings.identity.labels,
        )

    def report_placement(self, model: str, version: str, placement: Placement) -> None:
        """A process has loaded *version* and computes it there. Told as an event when it is news."""
        if self._placements.get(model) == (version, placement):
            return
        self._placements[model] = version, placement  # as many as there are models
        with suppress(OutstationError):
            body: dict[str, Any] = {"model": model, "version": version, "runtime": placement.runtime}
            body |= {"accelerator": placement.accelerator, "fallbacks": placement.fallbacks}
            self.telemetry.health("model", body)
        if self.reporter is not None:
            self.reporter.changed()

    def _with_placement(self, report: ModelReport) -> ModelReport:
        version, placement = self._placements.get(report.name, ("", None))
        return replace(report, placement=placement) if version and version == report.active else report

    def set_metered(self, metered: bool) -> None:
        """As :meth:`Station.set_metered`."""
        if self.uplink is not None:
            self.uplink.metered = metered

    def local_models(self) -> Models:
        """The models of this very process; an in-process host where there is a store, else none."""
        if self.reconciler is None:
            return _NoModels()
        from outstation.inference.captures import Captures  # noqa: PLC0415  numpy and onnxruntime, an extra
        from outstation.inference.health import HealthReporter  # noqa: PLC0415
        from outstation.inference.host import ModelHost  # noqa: PLC0415

        captures = Captures(
            self.buffer,
            self.settings.inference.capture,
            state=self.settings.data_dir / capturing.STATE,
            report=self.telemetry.health,
            clock=self.clock,
        )
        self.resources.callback(captures.close)
        host = ModelHost(self.model_store, self.settings.inference, clock=self.clock, captures=captures)
        self.resources.callback(host.close)
        reporter = HealthReporter(host, self.reconciler.report_health, self.clock, place=self.report_placement)
        self.resources.callback(reporter.close)
        return host

    def _load_provider(self) -> Provider:
        state_dir = self.settings.data_dir / "provider"
        _make_folder(state_dir)
        factory = load_provider(self.settings.provider)
        return factory(
            identity=self.settings.identity,
            options=self.settings.provider_options,
            state_dir=state_dir,
            clock=self.clock,
        )

    def _start_models(self, made: ExitStack) -> None:
        models = self.settings.models
        if not models.repositories:
            return
        # tuf takes 200 ms to import, and a station without models need not pay for it.
        from outstation.inference.check import SubprocessChecker  # noqa: PLC0415
        from outstation.inference.runtime import options_of  # noqa: PLC0415
        from outstation.models.reconciler import Reconciler  # noqa: PLC0415
        from outstation.models.sources import open_sources  # noqa: PLC0415
        from outstation.models.store import ModelStore  # noqa: PLC0415

        self.model_store = ModelStore(self.settings.data_dir / "models")
        source = open_sources(models, self.provider.artifacts, self.clock)
        checker = SubprocessChecker(options_of(self.settings.inference))
        self.reconciler = Reconciler(
            self.model_store, source, checker, models, self.clock, gate=self._gate, meter=self.bandwidth
        )
        made.callback(self.reconciler.close)
        made.callback(checker.close)  # first: the reconciler's thread may be waiting for a check
        self._on_desired(Desired())
        self.reconciler.start()
        if self.provider.desired is not None:
            made.callback(self.provider.desired.watch(self._on_desired))

    def _on_desired(self, desired: Desired) -> None:
        # On the provider's thread: merge and hand over.
        self.revision = desired.revision
        wished = {model.name for model in desired.models}
        own = (DesiredModel(name, LATEST) for name in self.settings.models.names if name not in wished)
        self.reconciler.set_desired(Desired((*desired.models, *own), desired.revision))

    def _start_reporter(self, made: ExitStack) -> None:
        if self.provider.desired is None:
            return
        self.reporter = Reporter(self.provider.desired, self.reported, self.clock, self._stretched)
        made.callback(self.reporter.close)
        if self.reconciler is not None:
            self.reconciler.on_change(self.reporter.changed)
        self.reporter.start()

    def _stretched(self, interval: float) -> float:
        return interval if self.uplink is None else self.uplink.stretched(interval)

    def _on_link(self, link: Link) -> None:
        # On the uplink's thread. A full buffer or disk has other ways to be heard of, and must not end the link.
        with suppress(OutstationError):
            self.telemetry.health("link", {"state": link.state.value, "reason": link.reason})

    def _start_uplink(self, made: ExitStack) -> None:
        if not self.settings.uplink.enabled:
            return
        self.uplink = UplinkThread(
            self.buffer,
            self.provider,
            self.settings.uplink,
            self.clock,
            on_link=self._on_link,
            bandwidth=self.bandwidth,
        )
        made.callback(self.uplink.close)
        self.uplink.start()


class _NoModels:
    """A station without a repository."""

    def get(self, name: str, timeout: float = 30.0) -> ModelHandle:
        raise ModelNotReadyError(
            f"This station has no models, so no {name!r}.", hint="Set models.repository in the settings."
        )


class _RemoteModels:
    """Models behind the inference component; connects when first asked, and only then needs its packages."""

    def __init__(self, target: str, made: ExitStack) -> None:
        self._target = target
        self._made = made
        self._remote: Any = None

    def get(self, name: str, timeout: float = 30.0) -> ModelHandle:
        if self._remote is None:
            from outstation.inference.remote import RemoteModels  # noqa: PLC0415  numpy and grpc, an extra

            self._remote = RemoteModels(self._target)
            self._made.callback(self._remote.close)
        handle: ModelHandle = self._remote.get(name, timeout=timeout)
        return handle


def _make_folder(folder: Path) -> None:
    with mapped_os_errors(doing="make the data folder", path=folder):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise DiskError(
            f"No permission to write in {folder}.",
            hint="Give the user that runs Outstation the right to write there, or set station.data_dir.",
        )
