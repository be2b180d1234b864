"""The models on this device: content-addressed files, whole bundles, and one small file that says which answer.

One process writes (the agent: :meth:`ModelStore.claim`), any number read. ``DIRECTORY``::

    state.json                  every version's phase; replacing it is what activates a version
    blobs/SHA256                each file once, however many versions use it
    bundles/NAME/VERSION-DIGEST/  manifest.json and the files under their names (hard links to the blobs)
    parts/                      downloads in progress
    orders/, incoming/          what someone at the box has left for the writer, see orders.py and carry.py
    trust/                      what is trusted of the repository, see trust.py
    lock                        held by the writer

A bundle's folder is made beside its place and renamed into it, so a folder that is there is whole.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from outstation.errors import ManifestError, StorageError, UntrustedError, mapped_os_errors
from outstation.models.manifest import MANIFEST, Manifest, parse_manifest
from outstation.models.rollout import ModelState
from outstation.models.versions import newest_first
from outstation.shapes import learn
from outstation.types import ModelReport

if TYPE_CHECKING:
    from outstation.models.writer import StoreWriter

FORMAT = 1
STATE = "state.json"
_HEAD = b'{"generation":'
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class InstalledModel:
    """A whole, verified version on this device. ``folder`` holds ``manifest.json`` and the files under their names."""

    name: str
    version: str
    folder: Path
    manifest: Manifest

    @property
    def model_path(self) -> Path:
        """The file for the runtime."""
        return self.folder / self.manifest.model


@dataclass(frozen=True, slots=True)
class Kept:
    """A version that is not deleted, why not, and its size; what it shares with another one counts for both."""

    name: str
    version: str
    why: str
    size_bytes: int


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of ``state.json``. ``generation`` comes first in the file, so that readers need not parse it all."""

    generation: int = 0
    format: int = FORMAT
    models: dict[str, ModelState] = {}


class ModelStore:
    """The reading side. Thread-safe; cheap to make; holds no file open. A folder that is not there is an empty store.

    A folder of an older version may be deleted while a reader opens it: look again at :meth:`answering` then.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._state_path = directory / STATE
        self._cached = StoreState()  # replaced as a whole, so that threads need no lock
        self._manifests: dict[Path, Manifest] = {}

    def generation(self) -> int:
        """A number that changes whenever an answer of this object may have changed. Costs one small read."""
        try:
            with self._state_path.open("rb", buffering=0) as file:
                head = file.read(len(_HEAD) + 24)
        except OSError:
            return 0
        digits = head.removeprefix(_HEAD).split(b",", 1)[0]
        return int(digits) if digits.isdigit() else 0

    def names(self) -> tuple[str, ...]:
        """The models of which something is known, sorted."""
        return tuple(sorted(self.state().models))

    def active(self, name: str) -> InstalledModel | None:
        """The proved version of *name*, or None."""
        return self.installed(name, self.model(name).active)

    def candidate(self, name: str) -> InstalledModel | None:
        """The version of *name* that is on trial, or None. It answers calls while the trial lasts."""
        return self.installed(name, self.model(name).candidate)

    def shadow(self, name: str) -> InstalledModel | None:
        """The version of *name* that is to compute in the shadow of the active one, or None."""
        return self.installed(name, self.model(name).shadowed)

    def answering(self, name: str) -> InstalledModel | None:
        """The version of *name* that answers: the candidate, else the active one, else None."""
        return self.installed(name, self.model(name).answering)

    def reports(self) -> tuple[ModelReport, ...]:
        """Every model and every version that was tried, for people and for the far end."""
        return tuple(model.report(name) for name, model in sorted(self.state().models.items()))

    def kept(self) -> tuple[Kept, ...]:
        """What is kept whatever room it takes: what answers, the last good and the pinned version, what comes in."""
        return tuple(
            Kept(name, version, why, found.manifest.size_bytes if found else 0)
            for name, model in sorted(self.state().models.items())
            for version in newest_first(model.versions)
            if (why := model.kept_because(version))
            for found in (self.installed(name, version),)
        )

    def used_bytes(self) -> int:
        """Of all files and downloads here; a file that several versions share counts once."""
        sizes = 0
        for folder in ("blobs", "parts"):
            with contextlib.suppress(FileNotFoundError):  # the folder, or a file that was just deleted
                sizes += sum(path.stat().st_size for path in (self.directory / folder).iterdir())
        return sizes

    def model(self, name: str) -> ModelState:
        """What is remembered of *name*; empty when nothing is."""
        return self.state().models.get(name) or ModelState()

    def state(self) -> StoreState:
        """All that is remembered. A damaged file counts as empty until the writer has put it aside."""
        if self._cached.generation != self.generation():
            with contextlib.suppress(OSError, msgspec.DecodeError):
                self._cached = decoded_state(self._state_path.read_bytes())
        return self._cached

    def folder(self, name: str, version: str, digest: str) -> Path:
        """Where the bundle with the manifest of SHA-256 *digest* lies, or would lie."""
        return self.directory / "bundles" / name / f"{version}-{digest[:16]}"

    def claim(self) -> StoreWriter:
        """Become the one writer: makes the folder, takes its lock. BufferLockedError names the process that has it."""
        from outstation.models.writer import StoreWriter  # noqa: PLC0415 - readers do not need it

        return StoreWriter(self.directory)

    def installed(self, name: str, version: str) -> InstalledModel | None:
        """The bundle of *version* on the disk, whatever its phase, or None."""
        known = self.model(name).versions.get(version)
        if known is None:
            return None
        folder = self.folder(name, version, known.digest)
        manifest = self._manifests.get(folder)
        if manifest is None:
            try:
                manifest = parse_manifest((folder / MANIFEST).read_bytes())
            except (OSError, ManifestError):
                return None  # deleted since, or damaged: the writer finds out at its start and repairs it
            self._manifests[folder] = manifest
        return InstalledModel(name, version, folder, manifest)


def decoded_state(data: bytes) -> StoreState:
    """The state in *data*. StorageError when a newer Outstation wrote it, msgspec.DecodeError when it is damaged."""
    state = msgspec.json.decode(data, type=StoreState)
    if state.format > FORMAT:
        raise StorageError(
            f"The model store was written by a newer Outstation (format {state.format}, this one reads {FORMAT}).",
            hint="Upgrade Outstation on this device.",
        )
    return state


def verify_installed(model: InstalledModel) -> None:
    """Read every file of *model* and compare it with its manifest; UntrustedError names the first that differs."""
    for file in model.manifest.files:
        path = model.folder / file.path
        try:
            found = file_sha256(path)
        except FileNotFoundError as exc:
            raise UntrustedError(f"{model.name} {model.version}: {file.path} is gone from the disk.") from exc
        if found != file.sha256:
            raise UntrustedError(
                f"{model.name} {model.version}: {file.path} on the disk has sha256 {found[:12]}…, "
                f"the manifest says {file.sha256[:12]}…."
            )


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. FileNotFoundError passes; other errors of the disk become DiskError."""
    digest = hashlib.sha256()
    try:
        file = path.open("rb", buffering=0)
    except FileNotFoundError:
        raise
    except OSError:
        with mapped_os_errors(doing="read the file", path=path):
            raise
    with file, mapped_os_errors(doing="read the file", path=path):
        buffer = bytearray(_READ_BYTES)
        view = memoryview(buffer)
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return digest.hexdigest()


learn(StoreState)
