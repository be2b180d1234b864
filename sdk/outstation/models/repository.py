"""A repository at the desk, wherever it lives: read, listed, verified.

The layout is TUF's, so any TUF client can read it as well.

::

    metadata/N.root.json  timestamp.json  N.snapshot.json  N.targets.json
    targets/NAME/VERSION/SHA256.FILE       consistent snapshots: a file never changes once it has its name
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Snapshot, Timestamp

from outstation.errors import (
    AccessDeniedError,
    ManifestError,
    ModelNotFoundError,
    OutstationError,
    RepositoryError,
    UntrustedError,
)
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
from outstation.models.fetch import READ_BYTES, Download, Expected, fetch_bytes
from outstation.models.manifest import MANIFEST, MAX_MANIFEST_BYTES, Manifest, parse_manifest
from outstation.models.place import TIMEOUT, Place, open_place
from outstation.models.versions import is_version, newest_first

TIMESTAMP = "metadata/timestamp.json"
FIRST_ROOT = "metadata/1.root.json"
# A root is signed anew every few years; a server that has ever another one is not believed for ever.
MAX_ROOTS = 1000


@dataclass(frozen=True, slots=True)
class Published:
    """One version in a repository; ``withdrawn`` is the publisher's reason, or ""."""

    name: str
    version: str
    manifest: Manifest
    withdrawn: str = ""


class Repository:
    """A repository in a folder, a bucket or elsewhere, its metadata verified from its own first root.

    ``mark`` is that of the timestamp that was read. RepositoryError if there is none, LinkError, SettingsError.
    """

    def __init__(self, where: Path | str | Place) -> None:
        self.place = open_place(where)
        self.metadata, self.mark = read_metadata(self.place)
        self.chain: Chain = verify_chain(self.metadata)

    def metadata_files(self) -> dict[str, bytes]:
        """What a reader asks for to believe the present state: path → bytes."""
        roots = {f"metadata/{number}.root.json": data for number, data in enumerate(self.metadata.roots, 1)}
        return {
            **roots,
            f"metadata/{self.chain.targets.version}.targets.json": self.metadata.targets,
            f"metadata/{self.chain.snapshot.version}.snapshot.json": self.metadata.snapshot,
            TIMESTAMP: self.metadata.timestamp,
        }

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
        manifest = parse_manifest(fetch_bytes(self.place, entry.source_path, expected, TIMEOUT))
        return Published(name, version, manifest, str(entry.custom.get(YANKED, "")))

    def file(self, manifest: Manifest, path: str, scratch: Path) -> Path:
        """The file *path* of a version on this disk: where it lies, else fetched into *scratch*, once.

        UntrustedError when it is missing or not what was signed.
        """
        target = f"{manifest.name}/{manifest.version}/{path}"
        entry = signed_file(self.chain, target)
        found = self.place.local(entry.source_path)
        if found is not None:
            self._check_target(target)
            return found
        fetched = scratch / entry.sha256
        if not fetched.exists():
            part = fetched.with_name(fetched.name + ".part")
            self.copy(target, part)
            part.rename(fetched)
        return fetched

    def copy(self, target: str, file: Path) -> None:
        """Fetch the file of *target* into *file*, checked. UntrustedError when it is missing or not what was signed."""
        entry = signed_file(self.chain, target)
        expected = Expected(entry.path, entry.sha256, entry.size_bytes)
        try:
            Download(self.place, entry.source_path, file, expected).run(TIMEOUT)
        except ModelNotFoundError as exc:
            raise _missing(entry) from exc

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
        digest, left = hashlib.sha256(), entry.size_bytes + 1  # one more shows a file that is too long
        try:
            with self.place.open(entry.source_path, 0, TIMEOUT) as stream:
                while left and (piece := stream.read(min(left, READ_BYTES))):
                    digest.update(piece)
                    left -= len(piece)
        except ModelNotFoundError as exc:
            raise _missing(entry) from exc
        found = digest.hexdigest()
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


def _missing(entry: SignedFile) -> UntrustedError:
    return UntrustedError(f"{entry.path} is signed but missing ({entry.source_path}).")


def read_metadata(place: Place) -> tuple[TrustedMetadata, str]:
    """The metadata as it lies there, not verified, and the mark of its timestamp. RepositoryError if there is none."""
    try:
        # In this order: where a key is replaced, the old and the new one sign together before the new root is there.
        roots = tuple(_roots(place))
        found = place.read(TIMESTAMP)
    except ModelNotFoundError as exc:
        raise RepositoryError(
            f"{place} holds no repository.",
            hint=f"Make one there with `outstation model init {place} --keys FOLDER`.",
        ) from exc
    with judged("timestamp.json"):
        number = signed(Timestamp, found.data).snapshot_meta.version
    try:
        snapshot = place.read(f"metadata/{number}.snapshot.json").data
        with judged("snapshot.json"):
            meta = signed(Snapshot, snapshot).meta["targets.json"]
        targets = place.read(f"metadata/{meta.version}.targets.json").data
    except ModelNotFoundError as exc:
        raise RepositoryError(f"The repository {place} is not whole: {exc}") from exc
    return TrustedMetadata(roots=roots, timestamp=found.data, snapshot=snapshot, targets=targets), found.mark


def _roots(place: Place) -> Iterator[bytes]:
    yield place.read(FIRST_ROOT).data
    # A bucket that may not be listed refuses what is not there.
    with suppress(ModelNotFoundError, AccessDeniedError):
        for number in range(2, MAX_ROOTS):
            yield place.read(f"metadata/{number}.root.json").data
