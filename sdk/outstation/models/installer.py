"""One version's way onto the disk: signed manifest, signed files, a whole bundle. Decides nothing about activation."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from outstation.errors import (
    AccessDeniedError,
    CheckFailedError,
    DeltaError,
    LinkError,
    ManifestError,
    ModelNotFoundError,
    StorageError,
    UntrustedError,
    mapped_os_errors,
)
from outstation.models.chain import SignedFile
from outstation.models.delta import apply_delta
from outstation.models.deltas import expected_delta, offered
from outstation.models.device import Device, unmet
from outstation.models.fetch import UNMETERED, Download, Expected, Meter, Source, fetch_bytes, no_room
from outstation.models.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ManifestFile, parse_manifest
from outstation.models.repository import check_agreement
from outstation.models.store import InstalledModel, Kept, file_sha256, verify_installed
from outstation.models.trust import TrustedRepository
from outstation.models.writer import StoreWriter

# A link that is down for everything comes back; one address that gives nothing for so many looks may never do.
MAX_UNAVAILABLE = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Installer:
    """The parts that an installation needs. Use from one thread.

    *nearby* says of a path of the source whether it lies at the box already: then the whole file costs no link.
    *waiting* is what was handed in at the box.
    """

    writer: StoreWriter
    repository: TrustedRepository
    source: Source
    device: Device
    max_bytes: int
    max_store_bytes: int
    timeout: float
    nearby: Callable[[str], bool] = lambda path: False
    waiting: Callable[[], Sequence[Path]] = lambda: ()
    meter: Meter = UNMETERED
    reserve_bytes: int = 0  # of the disk, left to others

    downloads: dict[str, Download] = field(default_factory=dict)  # broken off, to go on with
    spoiled: set[str] = field(default_factory=set)  # deltas that failed here: the whole file is fetched
    unavailable: dict[str, int] = field(default_factory=dict)  # tries in a row without a byte, by delta
    savings: dict[str, int] = field(default_factory=dict)  # bytes that deltas spared, by the SHA-256 of the manifest

    def manifest(self, name: str, version: str, signed: SignedFile) -> Manifest:
        """The manifest that is signed for this version, from the disk or the source.

        UntrustedError or ManifestError: it must not be used. CheckFailedError: not on this device. LinkError,
        ModelNotFoundError, StorageError: not now.
        """
        if signed.size_bytes > MAX_MANIFEST_BYTES:
            raise ManifestError(f"The manifest has {signed.size_bytes} bytes; {MAX_MANIFEST_BYTES} is the most.")
        manifest = parse_manifest(self._manifest_bytes(signed))
        check_agreement(manifest, name, version)
        self._check_fit(manifest)
        self._check_bound(manifest)
        return manifest

    def fetch(self, manifest: Manifest, digest: str, pulse: Callable[[], None]) -> InstalledModel:
        """Every file of *manifest*, then the bundle's folder. What is on the disk already is not fetched again.

        Errors as in :meth:`manifest`; *pulse* is called often and may raise to stop.
        """
        self._check_disk(manifest)
        for file in manifest.files:
            path = f"{manifest.name}/{manifest.version}/{file.path}"
            signed = self.repository.file(path)
            if (signed.sha256, signed.size_bytes) != (file.sha256, file.size_bytes):
                raise UntrustedError(
                    f"{path} is signed with sha256 {signed.sha256[:12]}…, its manifest says {file.sha256[:12]}…."
                )
            pulse()
            if not self.writer.has_blob(file.sha256):
                with mapped_os_errors(doing="take the delta", path=self.writer.directory):
                    saved = self._patch(signed, file, pulse)
                self.savings[digest] = self.savings.get(digest, 0) + saved
                if not saved:
                    self._download(path, signed.source_path, file, pulse)
        return self.writer.assemble(manifest, digest)

    def verify(self, name: str, version: str, digest: str) -> None:
        """Read the installed bundle again; UntrustedError when it is not what was signed, or not there."""
        folder = self.writer.folder(name, version, digest)
        try:
            found = file_sha256(folder / MANIFEST)
        except FileNotFoundError:
            raise UntrustedError(f"{name} {version}: the bundle is gone from the disk.") from None
        if found != digest:
            raise UntrustedError(f"{name} {version}: manifest.json on the disk has sha256 {found[:12]}….")
        with mapped_os_errors(doing="read the manifest", path=folder):
            manifest = parse_manifest((folder / MANIFEST).read_bytes())
        verify_installed(InstalledModel(name, version, folder, manifest))

    def _check_disk(self, manifest: Manifest) -> None:
        """See before the first byte that the version fits, once what nobody needs has made way."""
        files = ((file.sha256, file.size_bytes) for file in manifest.files)
        blobs = {sha256: size for sha256, size in files if not self.writer.blob_path(sha256).is_file()}
        if sum(blobs.values()) <= self._room():
            return  # without a look at what is here in part
        self.writer.collect()
        missing = sum(size - _size(self.writer.part_path(sha256)) for sha256, size in blobs.items())
        if missing > self._room():
            free = self._room() + self.reserve_bytes
            raise no_room(f"{manifest.name} {manifest.version}", missing, free, self.reserve_bytes)

    def _room(self) -> int:
        return shutil.disk_usage(self.writer.directory).free - self.reserve_bytes

    def _download(self, path: str, source_path: str, file: ManifestFile, pulse: Callable[[], None]) -> None:
        expected = Expected(path, file.sha256, file.size_bytes, file.chunk_bytes, file.chunks)
        part = self.writer.part_path(file.sha256)
        before = _size(part)
        try:
            self.writer.adopt(self._received(source_path, expected, pulse), file.sha256)
        except LinkError:
            if _size(part) <= before:
                self.unavailable.clear()  # it is not the deltas: they are asked for first again
            raise

    def _delta_came(self, delta: SignedFile, packed: Path, pulse: Callable[[], None]) -> bool:
        """Fetch *delta*; False when its address has given nothing for too long. Raises as :meth:`_received`."""
        before = _size(packed)
        try:
            self._received(delta.source_path, expected_delta(delta), pulse)
        except LinkError as exc:
            if isinstance(exc, AccessDeniedError) or _size(packed) > before:
                self.unavailable.pop(delta.sha256, None)
                raise
            tries = self.unavailable[delta.sha256] = self.unavailable.get(delta.sha256, 0) + 1
            if tries < MAX_UNAVAILABLE:
                raise
            logger.warning("Models: %s did not come in %d tries, the whole file is fetched: %s", delta.path, tries, exc)
            return False
        return True

    def _received(self, source_path: str, expected: Expected, pulse: Callable[[], None]) -> Path:
        """The part with all the bytes that are *expected*; what came before a lost link is gone on with."""
        part = self.writer.part_path(expected.sha256)
        path = expected.name
        if path not in self.downloads:
            self.downloads.clear()  # one at a time is under way
            self.downloads[path] = Download(
                self.source, source_path, part, expected, meter=self.meter, reserve_bytes=self.reserve_bytes
            )
        try:
            self.downloads[path].run(self.timeout, pulse)
        except UntrustedError:
            del self.downloads[path]
            with suppress(OSError):
                part.unlink()
            raise
        del self.downloads[path]
        return part

    def _patch(self, signed: SignedFile, file: ManifestFile, pulse: Callable[[], None]) -> int:
        """Make *file* from one that is here and a delta, if that is possible; returns the bytes that this saved.

        0: it has to be fetched whole, because no delta fits, or what was signed as one does not keep its word. Raises
        LinkError, StorageError: not now.
        """
        part = self.writer.part_path(file.sha256)
        missing = file.size_bytes - _size(part)
        for base, delta in self._deltas(signed, missing):
            if self.unavailable.get(delta.sha256, 0) >= MAX_UNAVAILABLE:
                continue
            packed, making = self.writer.part_path(delta.sha256), self.writer.making_path(file.sha256)
            if delta.size_bytes + file.size_bytes > self._room() + _size(packed):
                packed.unlink(missing_ok=True)  # the whole file may still have the room that it takes
                logger.info("Models: no room for both %s and what it makes.", delta.path)
                continue
            try:
                if not self._delta_came(delta, packed, pulse):
                    continue
                apply_delta(packed, base, making, sha256=file.sha256, size_bytes=file.size_bytes, pulse=pulse)
            except (DeltaError, UntrustedError, ModelNotFoundError, AccessDeniedError) as exc:
                logger.warning("Models: %s is of no use, the whole file is fetched: %s", delta.path, exc)
                self.spoiled.add(delta.sha256)
                packed.unlink(missing_ok=True)
                continue
            self.writer.adopt(making, file.sha256)
            for left_over in (packed, part):
                left_over.unlink(missing_ok=True)
            saved = file.size_bytes - delta.size_bytes
            logger.info("Models: %s came as a delta, which saved %d of %d bytes.", signed.path, saved, file.size_bytes)
            return saved
        return 0

    def _deltas(self, signed: SignedFile, missing: int) -> Iterator[tuple[Path, SignedFile]]:
        """Bases that are here and their deltas, the smallest first, if they are smaller than what is *missing*."""
        if self.nearby(signed.source_path):
            return
        found = []
        for base, path in offered(signed.custom).items():
            with suppress(ModelNotFoundError, UntrustedError):
                delta = self.repository.file(path)
                if delta.size_bytes < missing and delta.sha256 not in self.spoiled:
                    found.append((delta.size_bytes, self.writer.blob_path(base), delta))
        for _, blob, delta in sorted(found, key=lambda entry: entry[0]):
            if blob.is_file():  # its hash is compared when the delta is applied
                yield blob, delta

    def _manifest_bytes(self, signed: SignedFile) -> bytes:
        if self.writer.has_blob(signed.sha256):
            path = self.writer.blob_path(signed.sha256)
            with mapped_os_errors(doing="read the manifest", path=path):
                return path.read_bytes()
        expected = Expected(signed.path, signed.sha256, signed.size_bytes)
        data = fetch_bytes(self.source, signed.source_path, expected, self.timeout)
        self.writer.keep_bytes(data, signed.sha256)
        return data

    def _check_fit(self, manifest: Manifest) -> None:
        lacking = unmet(manifest.requires, self.device)
        if lacking:
            raise CheckFailedError(lacking)
        for file in manifest.files:
            if file.size_bytes > self.max_bytes:
                raise CheckFailedError(
                    f"{file.path} has {file.size_bytes} bytes; models.max_bytes is {self.max_bytes} here."
                )

    def _check_bound(self, manifest: Manifest) -> None:
        """That the store may hold this version beside what it keeps; what nobody needs is deleted for it."""
        missing = {file.sha256: file.size_bytes for file in manifest.files}
        missing = {sha256: size for sha256, size in missing.items() if not self.writer.blob_path(sha256).is_file()}
        more = sum(missing.values()) - sum(_size(self.writer.part_path(sha256)) for sha256 in missing)
        if self.writer.used_bytes() + more > self.max_store_bytes:
            self.writer.collect(parts=False)
        used = self.writer.used_bytes()
        if used + more > self.max_store_bytes:
            others = [
                kept for kept in self.writer.kept() if (kept.name, kept.version) != (manifest.name, manifest.version)
            ]
            raise StorageError(
                f"It needs {more} bytes more, and {used} of the {self.max_store_bytes} bytes of models.max_store_bytes "
                f"are in use ({in_words(others)}).",
                hint="Raise models.max_store_bytes, let go of a pinned version, or want fewer models.",
            )


def in_words(kept: Iterable[Kept]) -> str:
    """What is kept and why, for a message."""
    return ", ".join(f"{entry.name} {entry.version}: {entry.why}" for entry in kept) or "nothing is kept"


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0
