"""The writing side of the model store: one process, every change whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import threading
import time
from pathlib import Path

import msgspec

from outstation._version import __version__
from outstation.durable import FILES, TEMPORARY_SUFFIX, make_directories, move_atomically, write_atomically
from outstation.errors import BufferLockedError, DiskFullError, ManifestError, mapped_os_errors
from outstation.models.manifest import MANIFEST, Manifest, parse_manifest
from outstation.models.rollout import Event, ModelState, moved
from outstation.models.store import STATE, InstalledModel, ModelStore, StoreState, decoded_state, file_sha256
from outstation.types import ModelPhase

# Superseded versions that stay in the report; a shadow or twin holds 8 to 32 KB for everything.
MAX_SUPERSEDED = 8
_BUILDING = ".building"

logger = logging.getLogger(__name__)


class StoreWriter(ModelStore):
    """Made by :meth:`ModelStore.claim`. Thread-safe. Every change is on the disk when its method returns.

    Raises DiskFullError and DiskError; then nothing has changed.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        for folder in ("", "blobs", "bundles", "parts", "trust"):
            make_directories(directory / folder)
        self._lock_fd = _locked(directory / "lock")
        self._mutex = threading.RLock()
        self._now = self._load()
        self._sweep()

    def state(self) -> StoreState:
        return self._now

    def close(self) -> None:
        """Let another process write. Idempotent."""
        fd, self._lock_fd = self._lock_fd, -1
        if fd >= 0:
            os.close(fd)

    def move(
        self,
        name: str,
        version: str,
        event: Event,
        *,
        at_unix_nano: int,
        reason: str = "",
        digest: str | None = None,
        saved_bytes: int | None = None,
    ) -> ModelState:
        """Apply *event* by the rollout's table; MoveError when it has no such move."""
        with self._mutex:
            model = moved(
                self.model(name),
                version,
                event,
                at_unix_nano=at_unix_nano,
                reason=reason,
                digest=digest,
                saved_bytes=saved_bytes,
                software=__version__,
            )
            return self._put(name, _pruned(model))

    def note(self, name: str, version: str, reason: str) -> bool:
        """Say why a version waits, without moving it; whether that is news. A full disk does not silence it."""
        with self._mutex:
            model = self.model(name)
            old = model.versions.get(version)
            if old is None or old.reason == reason:
                return False
            versions = {**model.versions, version: msgspec.structs.replace(old, reason=reason)}
            model = msgspec.structs.replace(model, versions=versions)
            try:
                self._put(name, model)
            except DiskFullError:  # the reason is nothing that a restart would need
                self._now = msgspec.structs.replace(self._now, models={**self._now.models, name: model})
            return True

    def count_interrupted(self, name: str, version: str, by: int) -> int:
        """Add *by* to how often a trial of *version* was interrupted; how often that is now."""
        with self._mutex:
            model = self.model(name)
            known = model.versions[version]
            known = msgspec.structs.replace(known, interrupted=known.interrupted + by)
            self._put(name, msgspec.structs.replace(model, versions={**model.versions, version: known}))
            return known.interrupted

    def pin(self, name: str, version: str) -> None:
        """Hold *name* at *version* whatever the far end wishes; "" lets go."""
        with self._mutex:
            if self.model(name).pinned != version:
                self._put(name, msgspec.structs.replace(self.model(name), pinned=version))

    def wish(self, name: str, version: str) -> None:
        """Remember what the far end wants of *name*; "" is nothing."""
        with self._mutex:
            if self.model(name).wish != version:
                self._put(name, msgspec.structs.replace(self.model(name), wish=version))

    def part_path(self, sha256: str) -> Path:
        """Where the download of that file grows."""
        return self.directory / "parts" / sha256

    def making_path(self, sha256: str) -> Path:
        """Where that file is made from a delta; what a kill leaves there is deleted at the next start."""
        return self.directory / "parts" / (sha256 + TEMPORARY_SUFFIX)

    def blob_path(self, sha256: str) -> Path:
        """Where that file lies when it is whole."""
        return self.directory / "blobs" / sha256

    def has_blob(self, sha256: str) -> bool:
        """Whether that file is here and whole: it is read again, and deleted if it is damaged."""
        path = self.blob_path(sha256)
        try:
            if file_sha256(path) == sha256:
                return True
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return False

    def adopt(self, part: Path, sha256: str) -> None:
        """Take a part whose hash the caller has verified as the blob *sha256*."""
        move_atomically(part, self.blob_path(sha256))

    def keep_bytes(self, data: bytes, sha256: str) -> None:
        """Take *data*, whose hash the caller has verified, as the blob *sha256*."""
        write_atomically(self.blob_path(sha256), data)

    def assemble(self, manifest: Manifest, digest: str) -> InstalledModel:
        """Make the bundle's folder from blobs that are all here, the manifest (blob *digest*) included. Idempotent."""
        target = self.folder(manifest.name, manifest.version, digest)
        with mapped_os_errors(doing="assemble the bundle", path=target):
            shutil.rmtree(target, ignore_errors=True)
            make_directories(target.parent)
            building = target.with_name(target.name + _BUILDING)
            shutil.rmtree(building, ignore_errors=True)
            make_directories(building)
            for path, sha256 in ((MANIFEST, digest), *((file.path, file.sha256) for file in manifest.files)):
                make_directories((building / path).parent)
                _link(self.blob_path(sha256), building / path)
                FILES.sync_directory((building / path).parent)
        move_atomically(building, target)
        return InstalledModel(manifest.name, manifest.version, target, manifest)

    def discard(self, name: str, version: str) -> None:
        """Delete the bundle's folder, in which a file is damaged; its blobs are read again before they are used."""
        folder = self.folder(name, version, self.model(name).versions[version].digest)
        shutil.rmtree(folder, ignore_errors=True)
        self._manifests.pop(folder, None)

    def collect(self, *, parts: bool = True) -> int:
        """Delete what no version needs any more; returns the bytes of the blobs that went.

        Needed: versions that answer or are on their way, the pinned one and the last good one of each model. With
        *parts*, downloads that no version in the store asks for go, too.
        """
        with self._mutex:
            needed = [
                (name, version, state.digest)
                for name, model in self._now.models.items()
                for version, state in model.versions.items()
                if state.digest and model.kept_because(version)
            ]
            folders = {self.folder(*entry) for entry in needed}
            blobs = {sha256 for _, _, digest in needed for sha256 in self._blobs_of(digest)}
            for folder in (self.directory / "bundles").glob("*/*"):
                if folder not in folders:
                    shutil.rmtree(folder, ignore_errors=True)
                    self._manifests.pop(folder, None)
            freed = _delete_others(self.directory / "blobs", blobs)
            if parts:
                _delete_others(self.directory / "parts", blobs)
            return freed

    def _blobs_of(self, digest: str) -> set[str]:
        with contextlib.suppress(OSError, ManifestError):
            manifest = parse_manifest(self.blob_path(digest).read_bytes())
            return {digest, *(file.sha256 for file in manifest.files)}
        return {digest}

    def _put(self, name: str, model: ModelState) -> ModelState:
        state = StoreState(generation=self._now.generation + 1, models={**self._now.models, name: model})
        write_atomically(self._state_path, msgspec.json.encode(state))
        self._now = state
        return model

    def _load(self) -> StoreState:
        try:
            return decoded_state(self._state_path.read_bytes())
        except FileNotFoundError:
            return StoreState()
        except msgspec.DecodeError:
            # The bundles are still there; what the repository signed for them is asked again, and nothing is fetched
            # twice. Only the memory of what was turned down is lost.
            logger.error("%s is damaged; it is kept as %s.damaged", self._state_path, STATE)
            with mapped_os_errors(doing="put the damaged state aside", path=self._state_path):
                self._state_path.replace(self._state_path.with_name(STATE + ".damaged"))
            # Readers may remember any generation that was: go on beyond what a clock could have counted to.
            return StoreState(generation=time.time_ns() // 1000)

    def _sweep(self) -> None:
        """Delete what a kill left unfinished, except downloads: those go on."""
        for folder in (self.directory / "bundles").glob("*/*" + _BUILDING):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (*self.directory.glob("*/*" + TEMPORARY_SUFFIX), *self.directory.glob("*" + TEMPORARY_SUFFIX)):
            file.unlink(missing_ok=True)


def _locked(path: Path) -> int:
    with mapped_os_errors(doing="open the lock of the model store", path=path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        os.close(fd)
        pid = int(holder) if holder.isdigit() else None
        who = f"process {pid}" if pid else "another process"
        raise BufferLockedError(
            f"{who} writes to the model store {path.parent}.".capitalize(), pid=pid, hint="Stop that process first."
        ) from exc
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _link(blob: Path, name: Path) -> None:
    """Give *blob* another name; a copy where the file system knows no hard links."""
    try:
        os.link(blob, name)
    except OSError as exc:
        if exc.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}:
            raise
        shutil.copyfile(blob, name)
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _delete_others(folder: Path, keep: set[str]) -> int:
    freed = 0
    for path in folder.iterdir():
        if path.name not in keep:
            freed += path.stat().st_size
            path.unlink()
    return freed


def _pruned(model: ModelState) -> ModelState:
    old = [
        (state.since_unix_nano, version)
        for version, state in model.versions.items()
        if state.phase is ModelPhase.SUPERSEDED and version not in (model.last_good, model.pinned)
    ]
    doomed = {version for _, version in sorted(old, reverse=True)[MAX_SUPERSEDED:]}
    if not doomed:
        return model
    versions = {version: state for version, state in model.versions.items() if version not in doomed}
    return msgspec.structs.replace(model, versions=versions)
