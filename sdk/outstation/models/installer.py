"""One version's way onto the disk: signed manifest, signed files, a whole bundle. Decides nothing about activation."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from outstation.errors import CheckFailedError, ManifestError, UntrustedError, mapped_os_errors
from outstation.models.chain import SignedFile
from outstation.models.device import Device, unmet
from outstation.models.fetch import Download, Expected, Source, fetch_bytes
from outstation.models.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, ManifestFile, parse_manifest
from outstation.models.repository import check_agreement
from outstation.models.store import InstalledModel, file_sha256, verify_installed
from outstation.models.trust import TrustedRepository
from outstation.models.writer import StoreWriter


@dataclass(frozen=True, slots=True)
class Installer:
    """The parts that an installation needs. Use from one thread."""

    writer: StoreWriter
    repository: TrustedRepository
    source: Source
    device: Device
    max_bytes: int
    timeout: float
    downloads: dict[str, Download] = field(default_factory=dict)  # broken off, to go on with

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
        return manifest

    def fetch(self, manifest: Manifest, digest: str, pulse: Callable[[], None]) -> InstalledModel:
        """Every file of *manifest*, then the bundle's folder. What is on the disk already is not fetched again.

        Errors as in :meth:`manifest`; *pulse* is called often and may raise to stop.
        """
        for file in manifest.files:
            path = f"{manifest.name}/{manifest.version}/{file.path}"
            signed = self.repository.file(path)
            if (signed.sha256, signed.size_bytes) != (file.sha256, file.size_bytes):
                raise UntrustedError(
                    f"{path} is signed with sha256 {signed.sha256[:12]}…, its manifest says {file.sha256[:12]}…."
                )
            pulse()
            if not self.writer.has_blob(file.sha256):
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

    def _download(self, path: str, source_path: str, file: ManifestFile, pulse: Callable[[], None]) -> None:
        part = self.writer.part_path(file.sha256)
        expected = Expected(path, file.sha256, file.size_bytes, file.chunk_bytes, file.chunks)
        if path not in self.downloads:
            self.downloads.clear()  # one at a time is under way
            self.downloads[path] = Download(self.source, source_path, part, expected)
        try:
            self.downloads[path].run(self.timeout, pulse)
        except UntrustedError:
            del self.downloads[path]
            with suppress(OSError):
                part.unlink()
            raise
        del self.downloads[path]
        self.writer.adopt(part, file.sha256)

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
