"""A version on its way to a device: verified beside bare sha256, fetched beside urllib and python-tuf, and all of it.

The model is a net of MobileNetV2's shape, 14 MB of fp32, from an HTTP server in a process of its own on loopback.
"""

from __future__ import annotations

import hashlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import report
from report import Row
from tuf.ngclient import Updater

from outstation.clock import SystemClock
from outstation.models.bundle import Draft
from outstation.models.publish import init_repository, publish
from outstation.models.repository import Repository
from outstation.models.store import InstalledModel, ModelStore, verify_installed
from outstation.settings import Settings, decoded
from outstation.station import StationParts
from outstation.types import Desired, DesiredModel, ModelPhase

PEERS = Path(__file__).resolve().parent / "peers"
sys.path.insert(0, str(PEERS))
import inference_peers  # noqa: E402  it lies in the folder that was just named

ROUNDS = 5
PHASES = (ModelPhase.DOWNLOADING, ModelPhase.VERIFIED, ModelPhase.ACTIVE)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of *folder* on a server of its own."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _until(lambda: _answers(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def deliver(url: str, root: Path, folder: Path) -> tuple[dict[ModelPhase, float], InstalledModel]:
    """One delivery to a station that is up and idle: seconds from "desired" to each phase, and what was installed."""
    tree = {
        "station": {"data_dir": str(folder / "station")},
        "options": {"local": {"folder": str(folder / "cloud")}},
        "uplink": {"enabled": False},
        "models": {"repository": url, "root": str(root), "probation": 0.0, "poll_interval": 3600.0},
    }
    parts = StationParts(decoded(tree, Settings, where="the benchmark"), SystemClock())
    reached: dict[ModelPhase, float] = {}
    store = ModelStore(folder / "station" / "models")

    def note() -> None:
        phase = store.model("net").phase("1.0.0")  # on the thread that moves it, before the next move
        reached.setdefault(phase, time.perf_counter())

    try:
        _until(lambda: parts.reconciler.standing().trust.value == "fresh")
        parts.reconciler.on_change(note)
        begin = time.perf_counter()
        parts.reconciler.set_desired(Desired((DesiredModel("net", "1.0.0"),), 1))
        _until(lambda: ModelPhase.ACTIVE in reached)
        active = store.active("net")
    finally:
        parts.close()
    assert active is not None
    return {phase: reached[phase] - begin for phase in PHASES}, active


def by_urllib(url: str, path: str, folder: Path) -> None:
    """The file onto the disk, hashed on its way."""
    digest = hashlib.sha256()
    with urlopen(f"{url}/{path}") as answer, (folder / "by-urllib").open("wb") as file:
        while piece := answer.read(1 << 20):
            digest.update(piece)
            file.write(piece)


def by_tuf(url: str, root: Path, folder: Path) -> float:
    """Seconds of python-tuf's own download of the file, after its refresh."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        targets = Path(place) / "targets"
        targets.mkdir()
        updater = Updater(place, f"{url}/metadata/", str(targets), f"{url}/targets/", bootstrap=root.read_bytes())
        updater.refresh()
        info = updater.get_targetinfo("net/1.0.0/model.onnx")
        assert info is not None
        return _seconds(lambda: updater.download_target(info))


def run(scale: float) -> list[Row]:
    rounds = max(1, round(ROUNDS * scale))
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        net = folder / "net.onnx"
        inference_peers.write_mobilenet(net)
        repository = folder / "repository"
        root = init_repository(repository, folder / "keys")
        np.savez(folder / "golden.npz", **golden_case(net))
        draft = Draft(name="net", version="1.0.0", golden=folder / "golden.npz")
        manifest = publish(net, repository=repository, keys=folder / "keys", draft=draft)
        model = manifest.file(manifest.model)
        path = Repository(repository).file(manifest, manifest.model).relative_to(repository).as_posix()
        with served(repository) as url:
            deliveries = [deliver(url, root, folder / str(number)) for number in range(rounds)]
            plain = min(_seconds(lambda: by_urllib(url, path, folder)) for _ in range(rounds))
            theirs = min(by_tuf(url, root, folder) for _ in range(rounds))
        installed = deliveries[0][1]
        files = [installed.folder / file.path for file in manifest.files]
        data = b"".join(file.read_bytes() for file in files)
        # By turns, so that both meet the same moments of a busy machine.
        turns = [
            (
                _seconds(lambda: verify_installed(installed)),
                _seconds(lambda: [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]),
                _seconds(lambda: hashlib.sha256(data).hexdigest()),
            )
            for _ in range(5 * rounds)
        ]
        rates = [len(data) / 1e6 / min(times) for times in zip(*turns, strict=True)]
    size = model.size_bytes / 1e6
    best = {phase: min(times[phase] for times, _ in deliveries) for phase in PHASES}
    fetched = min(times[ModelPhase.VERIFIED] - times[ModelPhase.DOWNLOADING] for times, _ in deliveries)
    checked = min(times[ModelPhase.ACTIVE] - times[ModelPhase.VERIFIED] for times, _ in deliveries)
    return [
        Row("verify what is installed", rates[0], "read and hashlib.sha256", rates[1], 0.9, unit="MB/s"),
        Row("verify what is installed", rates[0], "sha256 of bytes in memory", rates[2], unit="MB/s"),
        Row(f"fetch and store {size:.1f} MB, verified", fetched, "urllib + sha256", plain, smaller=True, unit="s"),
        Row(f"fetch and store {size:.1f} MB, verified", fetched, "python-tuf", theirs, smaller=True, unit="s"),
        Row("load, golden, 40 timed runs, in a child", checked, smaller=True, unit="s"),
        Row(f'from "desired" to "active", {size:.1f} MB', best[ModelPhase.ACTIVE], smaller=True, unit="s"),
    ]


def golden_case(net: Path) -> dict[str, np.ndarray]:
    """One case for the net in the file *net*: noise in the shape that it takes."""
    import onnxruntime  # noqa: PLC0415 - only here

    session = onnxruntime.InferenceSession(str(net), providers=["CPUExecutionProvider"])
    dice = np.random.default_rng(1)
    shapes = {node.name: [size if isinstance(size, int) else 1 for size in node.shape] for node in session.get_inputs()}
    return {f"input/{name}": dice.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60.0
    while not condition():
        if time.monotonic() > until:
            raise SystemExit("It did not come to its end within a minute.")
        time.sleep(0.001)


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    report.main("models", run)
