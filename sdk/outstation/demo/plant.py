"""The parts of the demo in one folder: hub, link, agent, inference, reader, and the operator's desk."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import TracebackType

from outstation.agent import AgentClient
from outstation.demo.processes import DemoError, DemoInterruptedError, Process, outstation_command, run_to_end
from outstation.demo.screen import Screen
from outstation.errors import OutstationError
from outstation.testing.link import FlakyLink
from outstation.types import StationStatus

MODEL = "meter-digits"
STATION = "press-7"


def assets() -> Path:
    """The meter-reading example: inside the wheel, or beside the SDK in a checkout."""
    shipped = Path(str(files("outstation.demo"))) / "assets"
    checkout = Path(__file__).parents[3] / "examples" / "meter-reading"
    for folder in (shipped, checkout):
        if (folder / "digits.npz").is_file():
            return folder
    raise DemoError("The meter-reading example is not installed.")


class Plant:
    """Everything that runs, in one folder. A context manager that leaves no process behind."""

    def __init__(self, folder: Path, rate: float, screen: Screen, interrupted: threading.Event) -> None:
        self.folder = folder
        self.parquet = folder / "parquet"
        self.repository = folder / "repository"
        self.keys = folder / "keys"
        self.readings_log = folder / "readings.jsonl"
        self.kills = 0
        self.link_is_up = True
        self._rate = rate
        self._screen = screen
        self._interrupted = interrupted
        self._processes: list[Process] = []
        self._link: FlakyLink | None = None
        self._client: AgentClient | None = None
        self._agent: Process | None = None
        self.hub_address = ""

    # -- the far end ---------------------------------------------------------------------------------------------

    def start_hub(self) -> None:
        command = ["hub", "--listen", "127.0.0.1:0", "--data", "hub", "--parquet", str(self.parquet)]
        hub = self._start("hub", *command, "--repository", str(self.repository))
        self.hub_address = hub.wait_ready(self.check).rpartition(" ")[2]
        self._link = FlakyLink(self.hub_address)

    def cut(self) -> None:
        """The link goes down: connections are reset, new ones refused."""
        assert self._link is not None
        self._link.down()
        self.link_is_up = False

    def heal(self) -> None:
        assert self._link is not None
        self._link.up()
        self.link_is_up = True

    # -- the operator's desk -------------------------------------------------------------------------------------

    def desk(self, *arguments: str) -> None:
        """Run a command of the operator's, and show it."""
        self.check()
        shown = " ".join(argument.replace(f"{self.folder}/", "") for argument in arguments)
        self._screen.command(f"outstation {shown.replace(str(assets()), 'examples/meter-reading')}")
        run_to_end(outstation_command(*arguments), folder=self.folder)

    def publish(self, version: str, model: str, *extra: str) -> None:
        """Publish ``models/MODEL.onnx`` of the example with its golden file as *version*."""
        source = assets() / "models"
        self.desk(
            *("model", "publish", str(source / f"{model}.onnx")),
            *("--repository", str(self.repository), "--keys", str(self.keys)),
            *("--name", MODEL, "--version", version, "--golden", str(source / f"{model}.golden.npz")),
            *extra,
        )

    def tamper(self, version: str) -> Path:
        """Flip a byte in the middle of the published model file of *version*, as an attacker at the repository may.

        And of the deltas that make it: by a good one a station comes to the file that was signed, and rightly takes it.
        """
        folder = self.repository / "targets" / MODEL / version
        found = sorted(folder.glob("*.onnx"))
        if len(found) != 1:
            raise DemoError(f"The repository holds {len(found)} model files of version {version}, not one.")
        for path in (*found, *folder.glob("~deltas/*/*.onnx")):
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)
        return found[0]

    # -- the device ----------------------------------------------------------------------------------------------

    def start_agent(self) -> None:
        self._agent = self._start("agent", "agent", "--verbose")

    def start_device(self) -> None:
        """Agent and inference; returns when both are ready."""
        self._write_settings()
        self.start_agent()
        inference = self._start("inference", "inference")
        self.wait_agent(self.check)
        self._client = AgentClient(self.folder / "station" / "agent.sock")
        inference.wait_ready(self.check)

    def start_reader(self) -> Process:
        script = [str(assets() / "reader.py"), "--rate", str(self._rate), "--log", str(self.readings_log)]
        reader = Process("reader", [outstation_command()[0], *script], folder=self.folder, environ=self._environ)
        self._processes.append(reader)
        reader.wait_ready(self.check, timeout=60.0)
        return reader

    def kill_agent(self) -> None:
        assert self._agent is not None
        self._processes.remove(self._agent)  # first: from here on it may be gone
        self._agent.kill()
        self.kills += 1

    def wait_agent(self, meanwhile: Callable[[], object]) -> None:
        assert self._agent is not None
        self._agent.wait_ready(meanwhile)

    def status(self) -> StationStatus | None:
        """What the agent says of itself; None while nobody answers."""
        if self._client is None:
            return None
        with suppress(OutstationError):
            return self._client.status(timeout=2.0)
        return None

    def check(self) -> None:
        """DemoError if a part has ended that should run; DemoInterruptedError if somebody wants the demo to end.

        Ctrl-C takes effect here alone: raised anywhere, it could fall between the start of a process and its note.
        """
        if self._interrupted.is_set():
            raise DemoInterruptedError("Interrupted; every part is ended.")
        for process in list(self._processes):
            process.check()

    def end(self, process: Process) -> int:
        self._processes.remove(process)
        return process.stop()

    def _start(self, name: str, *arguments: str) -> Process:
        process = Process(name, outstation_command(*arguments), folder=self.folder, environ=self._environ)
        self._processes.append(process)
        return process

    @property
    def _environ(self) -> dict[str, str]:
        return {"OUTSTATION_SETTINGS": str(self.folder / "outstation.toml"), "PYTHONUNBUFFERED": "1"}

    def _write_settings(self) -> None:
        assert self._link is not None
        (self.folder / "outstation.toml").write_text(
            f'provider = "hub"\n\n'
            f'[station]\nname = "{STATION}"\ndata_dir = "{self.folder}/station"\n\n'
            f'[options.hub]\naddress = "{self._link.address}"\n\n'
            f'[models]\nrepository = "hub:"\nroot = "{self.repository}/metadata/1.root.json"\n'
            f"poll_interval = 2.0\nretry_interval = 0.5\nprobation = 1.0\n\n"
            f"[uplink]\nbackoff_first = 0.2\nbackoff_ceiling = 1.0\n\n"
            f'[inference]\nlisten = ""\n'
        )

    def __enter__(self) -> Plant:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close(timeout=0.1)
        for process in reversed(self._processes):
            process.stop()
        if self._link is not None:
            self._link.close()


def kill_moments(seed: int | None, outage: float) -> tuple[float, float]:
    """When in an outage of *outage* seconds the agent is killed, and how long it stays away; at random by *seed*."""
    dice = random.Random(seed)  # noqa: S311  a story, not a secret
    return outage * dice.uniform(0.05, 0.6), min(1.0, outage * 0.15) * dice.uniform(0.2, 1.0)
