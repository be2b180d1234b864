"""A repository at the desk: read, listed, verified. The layout is TUF's, so any TUF client can read it as well.

::

    metadata/N.root.json  timestamp.json  N.snapshot.json  N.targets.json
    targets/NAME/VERSION/SHA256.FILE       consistent snapshots: a file never changes once it has its name
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Snapshot, Timestamp

from outstation.errors import ManifestError, OutstationError, RepositoryError, UntrustedError
from outstation.models.chain import (
    YANKED,
    Chain,
    SignedFile,
    TrustedMetadata,
    judged,
    signed,
    signed_file,
    verify_chain,
)
from outstation.models.deltas import is_delta
from outstation.models.fetch import Expected, FolderSource, fetch_bytes
from outstation.models.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from outstation.models.store import file_sha256
from outstation.models.versions import is_version, newest_first

# Reading a file of the desk's own disk does not wait for anybody.
_NO_WAIT = 60.0


@dataclass(frozen=True, slots=True)
class Published:
    """One version in a repository; ``withdrawn`` is the publisher's reason, or ""."""

    name: str
    version: str
    manifest: Manifest
    withdrawn: str = ""


class Repository:
    """A repository in a folder, its metadata verified from its own first root. RepositoryError if there is none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.metadata = read_metadata(folder)
        self.chain: Chain = verify_chain(self.metadata)
        self._source = FolderSource(folder)

    @property
    def root_path(self) -> Path:
        """The first root: what a device must be given at enrolment."""
        return self.folder / "metadata" / "1.root.json"

    def versions(self) -> list[tuple[str, str]]:
        """Name and version of all that is published: names in order, versions from the newest down."""
        found: dict[str, list[str]] = {}
        for path in self.chain.targets.targets:
            parts = path.split("/")
            if len(parts) == 3 and parts[2] == MANIFEST and is_version(parts[1]):
                found.setdefault(parts[0], []).append(parts[1])
        return [(name, version) for name in sorted(found) for version in newest_first(found[name])]

    def published(self, name: str, version: str) -> Published:
        """One version with its manifest. UntrustedError or ManifestError when that is not what was signed."""
        entry = signed_file(self.chain, f"{name}/{version}/{MANIFEST}")
        if entry.size_bytes > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{entry.path} is larger than any manifest.")
        expected = Expected(entry.path, entry.sha256, entry.size_bytes)
        manifest = parse_manifest(fetch_bytes(self._source, entry.source_path, expected, _NO_WAIT))
        return Published(name, version, manifest, str(entry.custom.get(YANKED, "")))

    def file(self, manifest: Manifest, path: str) -> Path:
        """Where the file *path* of a version lies. UntrustedError when it is missing or not what was signed."""
        target = f"{manifest.name}/{manifest.version}/{path}"
        self._check_target(target)
        return self.folder / signed_file(self.chain, target).source_path

    def deltas(self, name: str, version: str) -> list[SignedFile]:
        """The deltas that make files of one version, by path."""
        prefix = f"{name}/{version}/"
        paths = (path for path in sorted(self.chain.targets.targets) if path.startswith(prefix) and is_delta(path))
        return [signed_file(self.chain, path) for path in paths]

    def problems(self, now: datetime.datetime) -> Iterator[str]:
        """Everything that is wrong, one sentence each: dates, hashes, manifests, and their agreement."""
        late = self.chain.expired(now)
        if late:
            yield f"{late}: devices call the repository stale."
        for path in sorted(self.chain.targets.targets):
            yield from self.target_problems(path)
        for name, version in self.versions():
            yield from _said(f"{name} {version}: ", self._check_version, name, version)

    def target_problems(self, path: str) -> Iterator[str]:
        """What is wrong with the file of one target: a sentence, or nothing."""
        return _said("", self._check_target, path)

    def _check_target(self, path: str) -> None:
        entry = signed_file(self.chain, path)
        place = self.folder / entry.source_path
        try:
            found = file_sha256(place)
        except FileNotFoundError:
            raise UntrustedError(f"{path} is signed but missing ({entry.source_path}).") from None
        if found != entry.sha256:
            raise UntrustedError(f"{path} has sha256 {found[:12]}…, the publisher signed {entry.sha256[:12]}….")

    def _check_version(self, name: str, version: str) -> None:
        try:
            manifest = self.published(name, version).manifest
        except UntrustedError:
            return  # named among the targets already
        check_agreement(manifest, name, version)
        for file in manifest.files:
            entry = signed_file(self.chain, f"{name}/{version}/{file.path}")
            if (entry.sha256, entry.size_bytes) != (file.sha256, file.size_bytes):
                raise UntrustedError(f"{file.path} is signed with another hash than the manifest gives it.")


def check_agreement(manifest: Manifest, name: str, version: str) -> None:
    """That *manifest* is the one of *name* *version*; UntrustedError if it was signed for another one."""
    if (manifest.name, manifest.version) != (name, version):
        raise UntrustedError(f"The manifest of {name} {version} is that of {manifest.name} {manifest.version}.")


def _said(prefix: str, check: Callable[..., None], *arguments: str) -> Iterator[str]:
    try:
        check(*arguments)
    except OutstationError as exc:
        yield f"{prefix}{exc}"


def read_metadata(folder: Path) -> TrustedMetadata:
    """The metadata as it lies in *folder*, not verified. RepositoryError when it is no repository."""
    metadata = folder / "metadata"
    if not (metadata / "timestamp.json").is_file():
        what = "is empty" if folder.is_dir() and not any(folder.iterdir()) else "holds no repository"
        raise RepositoryError(
            f"{folder} {what if folder.is_dir() else 'is no folder'}.",
            hint=f"Make a repository there with `outstation model init {folder} --keys FOLDER`.",
        )
    try:
        roots = [(metadata / "1.root.json").read_bytes()]
        while (following := metadata / f"{len(roots) + 1}.root.json").is_file():
            roots.append(following.read_bytes())
        timestamp = (metadata / "timestamp.json").read_bytes()
        with judged("timestamp.json"):
            number = signed(Timestamp, timestamp).snapshot_meta.version
        snapshot = (metadata / f"{number}.snapshot.json").read_bytes()
        with judged("snapshot.json"):
            meta = signed(Snapshot, snapshot).meta["targets.json"]
        targets = (metadata / f"{meta.version}.targets.json").read_bytes()
    except OSError as exc:
        raise RepositoryError(f"The repository {folder} cannot be read: {exc.strerror}: {exc.filename}.") from exc
    return TrustedMetadata(roots=tuple(roots), timestamp=timestamp, snapshot=snapshot, targets=targets)
