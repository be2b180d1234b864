"""Compose models, service and sockets into a process."""

from __future__ import annotations

import logging
import threading
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from outstation.clock import Clock, SystemClock, wait_for_signal
from outstation.errors import ConfigurationError, DeadlineError
from outstation.inference import capturing
from outstation.inference.captures import Captures
from outstation.inference.health import HealthReporter
from outstation.inference.host import FixedModels, ModelHost, Models
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.runtime import options_of
from outstation.models.store import ModelStore
from outstation.settings import InferenceSettings, Settings
from outstation.telemetry.events import Telemetry
from outstation.wire.address import claim_socket, is_loopback, release_socket, share_socket
from outstation_inference.chores import Chores
from outstation_inference.frames import PREFACE
from outstation_inference.front import Connection, Front, Speaker, Speakers
from outstation_inference.grpc_speaker import GrpcSpeaker, questions
from outstation_inference.metrics import observe
from outstation_inference.regions import Regions
from outstation_inference.rest_speaker import RestSpeaker
from outstation_inference.scheduler import Scheduler
from outstation_inference.service import InferenceService

if TYPE_CHECKING:
    from outstation.agent import AgentClient

log = logging.getLogger("outstation.inference")

# Calls that were accepted get this long to be answered when the process is asked to stop.
GRACE = 10.0
# A process is called ready when its models are loaded; a very large one may come later.
LOAD_TIMEOUT = 60.0
# Calls at once on one connection; a client that opens more is told to wait.
MAX_STREAMS = 256
# An agent on the same device answers in milliseconds; one that does not is told again a second later.
REPORT_TIMEOUT = 1.0


class InferenceProcess:
    """The inference component. :meth:`from_store` or :meth:`of_file` makes it; ``run`` blocks until ``stop``."""

    def __init__(
        self, models: Models, settings: InferenceSettings, sockets: tuple[str, ...], owned: ExitStack | None = None
    ) -> None:
        """Listen on *sockets*: "host:port", "unix:/path". Owns *models* from now on, and *owned*, which ends later.

        ConfigurationError when there is no socket or one is taken.
        """
        self._stop = threading.Event()
        self._closing = ExitStack()
        with ExitStack() as made:
            if owned is not None:
                made.callback(owned.close)
            chores = Chores()
            made.callback(chores.close)  # after the models, whose end is also that of a wait for one
            made.callback(models.close)
            if not sockets:
                raise ConfigurationError("The inference server has no address.", hint="Set `listen` or `socket`.")
            # Its callers' shared memory is of use on this device only, and no business of other machines.
            local = all(address.startswith("unix:") or is_loopback(address) for address in sockets)
            regions = Regions(settings.max_shared_regions if local else 0, settings.max_message_bytes)
            made.callback(regions.close)
            service = InferenceService(models, regions)
            scheduler = Scheduler(service, settings)
            made.callback(scheduler.close)
            front = Front(
                _speakers(service, chores, settings),
                lambda: scheduler.idle,
                max_connections=settings.max_connections,
                max_message_bytes=settings.max_message_bytes,
            )
            made.callback(front.close, GRACE)
            self.addresses = tuple(_listen(front, address, made) for address in sockets)
            observe(service)
            front.start()
            scheduler.lead(front.turn)
            self._closing = made.pop_all()

    @classmethod
    def from_store(cls, settings: Settings, clock: Clock = SystemClock()) -> InferenceProcess:
        """Serve every model of the station's store that answers, and tell the agent how each does."""
        from outstation.agent import AgentClient  # noqa: PLC0415 - gRPC's client: a bare file needs none of it

        store = ModelStore(settings.data_dir / "models")
        owned = ExitStack()
        agent = AgentClient(settings.agent_socket)
        owned.callback(_end, agent)
        captures = Captures(
            agent,
            settings.inference.capture,
            state=settings.data_dir / capturing.STATE,
            report=Telemetry(agent, clock).health,
            clock=clock,
        )
        owned.callback(captures.close)
        host = ModelHost(store, settings.inference, clock=clock, preload=True, captures=captures)
        sockets = (settings.inference.listen, f"unix:{settings.inference_socket.absolute()}")
        process = cls(host, settings.inference, tuple(filter(None, sockets)), owned)
        report, place = (
            partial(tell, timeout=REPORT_TIMEOUT) for tell in (agent.report_health, agent.report_placement)
        )
        reporter = HealthReporter(host, report, clock, place=place)
        process._closing.callback(reporter.close)
        if not host.wait_settled(LOAD_TIMEOUT):
            log.warning("Not every model is loaded after %g s; serving those that are.", LOAD_TIMEOUT)
        return process

    @classmethod
    def of_file(cls, path: Path, name: str, settings: InferenceSettings) -> InferenceProcess:
        """Serve the one ONNX file *path* as the model *name*: no store, no agent. ModelLoadError."""
        options = options_of(settings)
        models = FixedModels((Model(name, load_file(path, options)),), lambda _: load_file(path, options))
        sockets = (settings.listen, f"unix:{Path(settings.socket).absolute()}" if settings.socket else "")
        return cls(models, settings, tuple(filter(None, sockets)))

    def run(self) -> None:
        """Serve until :meth:`stop`, then answer what was accepted and end every thread."""
        wait_for_signal(self._stop)
        self.close()

    def stop(self) -> None:
        """Ask :meth:`run` to return. Safe in a signal handler."""
        self._stop.set()

    def close(self) -> None:
        """Refuse new calls, answer those accepted within the grace time, end. Idempotent."""
        self._stop.set()
        self._closing.close()


def _end(agent: AgentClient) -> None:
    try:
        agent.close()
    except DeadlineError as exc:  # captures, for an agent that is away: that is no failure of what was served
        log.warning("%s", exc)


def _speakers(service: InferenceService, chores: Chores, settings: InferenceSettings) -> Speakers:
    """What a new connection is spoken to in: HTTP/2 begins with "PRI", and no method of HTTP/1.1 does."""
    asked = questions(service, chores)
    limit = settings.max_message_bytes

    def speaker(connection: Connection, first: bytes) -> Speaker:
        if PREFACE.startswith(first[:3]):
            return GrpcSpeaker(connection, asked, max_message_bytes=limit, max_streams=MAX_STREAMS)
        return RestSpeaker(connection, service, chores, max_message_bytes=limit)

    return speaker


def _listen(front: Front, address: str, made: ExitStack) -> str:
    if not address.startswith("unix:"):
        if not is_loopback(address):
            log.warning("%s can be reached from the network, without a password or encryption.", address)
        return front.listen(address)
    path = Path(address.removeprefix("unix:"))
    claim_socket(path, whose="the inference server")
    listening = front.listen(address)
    made.callback(release_socket, path)
    share_socket(path)
    return listening
