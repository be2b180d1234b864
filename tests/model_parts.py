"""What the tests of model delivery share: a desk that publishes, a repository that attacks, a checker that is told."""

from __future__ import annotations

import datetime
import hashlib
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater
from typer.testing import CliRunner, Result

import tiny_models
from outstation.cli.model import app
from outstation.errors import CheckFailedError, LinkDownError, ModelNotFoundError, OutstationError
from outstation.models.bundle import Draft
from outstation.models.checking import CheckResult
from outstation.models.manifest import Manifest, ManifestFile, TensorSpec, encode_manifest
from outstation.models.publish import init_repository, publish
from outstation.models.reconciler import Reconciler
from outstation.models.store import InstalledModel, ModelStore
from outstation.settings import ModelsSettings
from outstation.types import ModelPhase

UTC = datetime.timezone.utc
X = TensorSpec("x", "FP32", (-1, 4))
Y = TensorSpec("y", "FP32", (-1, 4))


class Desk:
    """A real repository and its keys, published to as an operator does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = folder / "repository"
        self.keys = folder / "keys"
        self.root = init_repository(self.repository, self.keys)

    def publish(self, version: str, *, factor: float | None = None, name: str = "pump", **draft: object) -> Manifest:
        """A model that multiplies by *factor* (else by the major version), with golden inputs."""
        source = self.folder / "source.onnx"
        source.write_bytes(tiny_models.scale(float(version.split(".", maxsplit=1)[0]) if factor is None else factor))
        golden = self.folder / "golden.npz"
        np.savez(golden, **{"input/x": np.arange(8, dtype=np.float32).reshape(2, 4)})
        return publish(
            source,
            repository=self.repository,
            keys=self.keys,
            draft=Draft(**{"name": name, "version": version, "golden": golden, **draft}),
        )

    def file(self, version: str, ending: str = ".model.onnx", name: str = "pump") -> Path:
        (found,) = (self.repository / "targets" / name / version).glob("*" + ending)
        return found


class FolderFetcher(FetcherInterface):
    """A folder for python-tuf's own client."""

    def __init__(self, folder):
        self.folder = folder

    def _fetch(self, url):
        try:
            yield (self.folder / url.removeprefix("x://")).read_bytes()
        except FileNotFoundError as exc:
            raise DownloadHTTPError(url, 404) from exc


def foreign_client(desk: Desk, folder: Path) -> Updater:
    """python-tuf's own client on *desk*'s repository; it begins with the first root."""
    for name in ("client", "downloads"):
        (folder / name).mkdir(exist_ok=True)
    return Updater(
        str(folder / "client"),
        "x://metadata/",
        str(folder / "downloads"),
        "x://targets/",
        fetcher=FolderFetcher(desk.repository),
        bootstrap=desk.root.read_bytes(),
    )


def flip(path: Path, at: int | None = None) -> None:
    """Change one byte of a file, in its middle or at *at*."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 0xFF
    path.write_bytes(data)


class ToldChecker:
    """Passes every version but those in :attr:`verdicts`. Remembers what it was asked."""

    def __init__(self, **verdicts: Exception) -> None:
        self.verdicts: dict[str, Exception] = {}
        self.asked: list[str] = []

    def check(self, model: InstalledModel, timeout: float) -> CheckResult:
        assert timeout > 0
        assert (model.folder / "manifest.json").is_file()
        self.asked.append(model.version)
        if model.version in self.verdicts:
            raise self.verdicts[model.version]
        return CheckResult(2, 0.001, 1 << 20)


def rejection(reason: str = "golden case 0, output 'y': 3 is off") -> CheckFailedError:
    return CheckFailedError(reason)


class SimulatedRepository:
    """A repository in memory, made with python-tuf's own API, that can be made to attack. It is a Source, too."""

    def __init__(self, *, consistent: bool = True, now: datetime.datetime | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.endless: set[str] = set()
        self.down = False
        self.opened: list[tuple[str, int]] = []
        self.now = now or datetime.datetime.now(UTC).replace(microsecond=0)
        self.signers = {role: CryptoSigner.generate_ed25519() for role in ("root", "targets", "snapshot", "timestamp")}
        self.second_root = CryptoSigner.generate_ed25519()
        self.root = Root(version=1, expires=self.later(3650), consistent_snapshot=consistent)
        for signer in (self.signers["root"], self.second_root):
            self.root.add_key(signer.public_key, "root")
        self.root.roles["root"].threshold = 2
        for role in ("targets", "snapshot", "timestamp"):
            self.root.add_key(self.signers[role].public_key, role)
        self.targets = Targets(version=1, expires=self.later())
        self.snapshot = Snapshot(version=1, expires=self.later())
        self.timestamp = Timestamp(version=1, expires=self.later())
        self.write_root()
        self.write()

    # -- the Source ----------------------------------------------------------------------------------------------

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[io.BytesIO]:
        assert timeout > 0
        self.opened.append((path, offset))
        if self.down:
            raise LinkDownError("the link is down")
        if path in self.endless:
            yield Endless()
            return
        if path not in self.files:
            raise ModelNotFoundError(f"no {path}")
        yield io.BytesIO(self.files[path][offset:])

    # -- the honest publisher ------------------------------------------------------------------------------------

    @property
    def first_root(self) -> bytes:
        return self.files["metadata/1.root.json"]

    def later(self, days: float = 30) -> datetime.datetime:
        return self.now + datetime.timedelta(days=days)

    def add(self, version: str, payload: bytes = b"weights", name: str = "pump", **fields: object) -> Manifest:
        """Offer a version whose model file is *payload*."""
        sha256 = hashlib.sha256(payload).hexdigest()
        files = (ManifestFile("model.onnx", sha256, len(payload)),)
        entries = {"files": files, "model": "model.onnx", "inputs": (X,), "outputs": (Y,), **fields}
        manifest = Manifest(name=name, version=version, **entries)
        self.add_target(f"{name}/{version}/model.onnx", payload)
        self.add_target(f"{name}/{version}/manifest.json", encode_manifest(manifest))
        return manifest

    def add_target(self, path: str, data: bytes) -> str:
        """Sign *data* as the target *path*; returns where it lies."""
        target = TargetFile.from_data(path, data, ["sha256"])
        self.targets.targets[path] = target
        folder, _, name = path.rpartition("/")
        prefix = f"{target.hashes['sha256']}." if self.root.consistent_snapshot else ""
        place = f"targets/{folder}/{prefix}{name}"
        self.files[place] = data
        return place

    def write_root(self, *signers: CryptoSigner) -> None:
        metadata = Metadata(self.root)
        for signer in signers or (self.signers["root"], self.second_root):
            metadata.sign(signer, append=True)
        self.files[f"metadata/{self.root.version}.root.json"] = metadata.to_bytes()

    def write(self) -> None:
        """Sign targets, snapshot and timestamp as they are."""
        data = self.put("targets", self.targets)
        self.snapshot.meta["targets.json"] = MetaFile.from_data(self.targets.version, data, ["sha256"])
        data = self.put("snapshot", self.snapshot)
        self.timestamp.snapshot_meta = MetaFile.from_data(self.snapshot.version, data, ["sha256"])
        self.put("timestamp", self.timestamp)

    def publish(self) -> None:
        """Make what was added visible under the next version numbers."""
        for part in (self.targets, self.snapshot, self.timestamp):
            part.version += 1
        self.write()

    def put(self, role: str, part: Signed, signer: CryptoSigner | None = None) -> bytes:
        metadata: Metadata = Metadata(part)
        metadata.sign(signer or self.signers[role])
        data = metadata.to_bytes()
        versioned = role != "timestamp" and self.root.consistent_snapshot
        self.files[f"metadata/{f'{part.version}.' if versioned else ''}{role}.json"] = data
        return data

    # -- for attacks ---------------------------------------------------------------------------------------------

    def place(self, path: str) -> str:
        target = self.targets.targets[path]
        folder, _, name = path.rpartition("/")
        prefix = f"{target.hashes['sha256']}." if self.root.consistent_snapshot else ""
        return f"targets/{folder}/{prefix}{name}"

    def metadata_place(self, role: str) -> str:
        part = getattr(self, role)
        return f"metadata/{role}.json" if role == "timestamp" else f"metadata/{part.version}.{role}.json"

    def change(self, place: str, change: Callable[[bytes], bytes]) -> None:
        self.files[place] = change(self.files[place])

    def change_json(self, place: str, change: Callable[[dict], None]) -> None:
        tree = json.loads(self.files[place])
        change(tree)
        self.files[place] = json.dumps(tree).encode()


def repository_with(payload: bytes) -> SimulatedRepository:
    """One that offers 1.0.0 of the model "pump"."""
    far = SimulatedRepository()
    far.add("1.0.0", payload)
    far.publish()
    return far


class Endless:
    """Bytes without end; the test fails if somebody reads far more than any bound."""

    def __init__(self) -> None:
        self.given = 0

    def read(self, size: int) -> bytes:
        self.given += size
        assert self.given < 64 << 20, "nobody stopped reading"
        return b"\x20" * size


class Device:
    """A store and a reconciler over a source, with short intervals."""

    def __init__(self, folder: Path, source: object, root: bytes, **settings: object) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.root = folder / "root.json"
        self.root.write_bytes(root)
        self.store = ModelStore(folder / "models")
        self.checker = ToldChecker()
        chosen = {"poll_interval": 0.05, "retry_interval": 0.05, "probation": 0.0, "names": ("pump",)}
        chosen |= {"min_free_disk_bytes": 0, **settings}
        self.settings = ModelsSettings(repository="given", root=str(self.root), **chosen)
        self.source = source
        self.reconciler: Reconciler | None = None

    def start(self, **options: object) -> Reconciler:
        self.reconciler = Reconciler(self.store, self.source, self.checker, self.settings, **options)
        self.reconciler.start()
        return self.reconciler

    def stop(self) -> None:
        if self.reconciler is not None:
            self.reconciler.close()

    def __enter__(self) -> Device:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def active(self, name: str = "pump") -> str:
        return self.store.model(name).active

    def phase(self, version: str, name: str = "pump") -> ModelPhase | None:
        return self.store.model(name).phase(version)

    def reason(self, version: str, name: str = "pump") -> str:
        known = self.store.model(name).versions.get(version)
        return known.reason if known else ""


def error_of(call: Callable[[], object]) -> OutstationError:
    """The error of ours that *call* raises; AssertionError if it raises none."""
    try:
        call()
    except OutstationError as exc:
        return exc
    raise AssertionError("nothing was raised")


def run(*arguments: str) -> Result:
    """Call `outstation model` with *arguments*; an error of ours is raised."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, OutstationError):
        raise result.exception
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
