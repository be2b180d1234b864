"""Deltas at the desk: made for a version that is being published, from those before it; old ones forgotten."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tuf.api.metadata import TargetFile

from outstation.errors import OutstationError
from outstation.models.bundle import describe_file
from outstation.models.chain import custom, signed_file
from outstation.models.delta import apply_delta
from outstation.models.delta_encoder import encode_delta, tensors_of
from outstation.models.deltas import (
    DEFAULT_BASES,
    DELTAS,
    FROM_VERSION,
    MAX_CHUNKS,
    MIN_CHUNK_BYTES,
    MIN_FILE_BYTES,
    WORTHWHILE,
    delta_path,
    is_delta,
    offered,
)
from outstation.models.manifest import Manifest, ManifestFile
from outstation.models.repository import Repository
from outstation.models.versions import newest_first, precedence

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeDelta:
    """A delta in *file*, to become the target *path* that makes *result* from the file with *base_sha256*."""

    path: str
    file: Path
    result: str
    base_sha256: str
    custom: dict[str, Any]


def make_deltas(desk: Repository, manifest: Manifest, bundle: Path, folder: Path, count: int) -> Iterator[MadeDelta]:
    """Deltas of the files in *bundle* from those of the *count* newest versions before, where that saves a tenth.

    Each is made in *folder*, and applied once to see that it gives the file. A version in the repository that cannot
    be read is passed over with a warning: it does not keep a new one from being published.
    """
    work = _Work(desk, manifest, bundle, folder)
    versions = (version for name, version in desk.versions() if name == manifest.name)
    older = (version for version in versions if precedence(version) < precedence(manifest.version))
    for version in newest_first(older)[:count]:
        yield from work.deltas(version)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is being published, and a folder to work in."""

    desk: Repository
    manifest: Manifest
    bundle: Path
    folder: Path
    done: set[tuple[str, str]] = field(default_factory=set)  # base and path: versions may share files

    def deltas(self, version: str) -> Iterator[MadeDelta]:
        """The deltas from the files of *version*."""
        try:
            old = self.desk.published(self.manifest.name, version).manifest
            for base, result in _changed(old, self.manifest):
                if (base.sha256, result.path) not in self.done:
                    self.done.add((base.sha256, result.path))
                    yield from self.delta(old, base, result)
        except OutstationError as exc:
            logger.warning("No delta from %s %s: %s", self.manifest.name, version, exc)

    def delta(self, old: Manifest, base: ManifestFile, result: ManifestFile) -> Iterator[MadeDelta]:
        """The delta that makes *result* out of *base*, a file of *old*; nothing when it would not save enough."""
        before, after = self.desk.file(old, base.path, self.folder), self.bundle / result.path
        file = self.folder / "delta"
        models = self.desk.file(old, old.model, self.folder), self.bundle / self.manifest.model
        encode_delta(
            before,
            after,
            file,
            base_tensors=tensors_of(before, *_described_by(models[0], old.model, base.path)),
            result_tensors=tensors_of(after, *_described_by(models[1], self.manifest.model, result.path)),
        )
        if file.stat().st_size > WORTHWHILE * result.size_bytes:
            return
        trial = self.folder / "trial"
        apply_delta(file, before, trial, sha256=result.sha256, size_bytes=result.size_bytes)
        trial.unlink()
        path = delta_path(self.manifest.name, self.manifest.version, base.sha256, result.path)
        yield MadeDelta(path, file, result.path, base.sha256, {FROM_VERSION: old.version, **_chunks(file)})


def _chunks(file: Path) -> dict[str, Any]:
    described = describe_file(file.parent, file.name, MIN_CHUNK_BYTES, MAX_CHUNKS)
    return {"chunk_bytes": described.chunk_bytes, "chunks": list(described.chunks)} if described.chunks else {}


def _changed(old: Manifest, new: Manifest) -> Iterator[tuple[ManifestFile, ManifestFile]]:
    """Files of the same path with other bytes, large enough to be worth it."""
    known = {file.path: file for file in old.files}
    held = {file.sha256 for file in old.files}
    for file in new.files:
        base = known.get(file.path)
        if base is not None and file.sha256 not in held and file.size_bytes >= MIN_FILE_BYTES and base.size_bytes:
            yield base, file


def _described_by(model: Path, model_path: str, path: str) -> tuple[Path | None, str]:
    """The model that knows where the tensors of *path* are, and how it calls that file; None for the file itself."""
    folder = PurePosixPath(model_path).parent
    if path.endswith(".onnx") or not PurePosixPath(path).is_relative_to(folder):
        return None, ""
    return model, PurePosixPath(path).relative_to(folder).as_posix()


def forget_deltas(desk: Repository, targets: dict[str, TargetFile], name: str, versions: Iterable[str]) -> list[str]:
    """Take out of *targets* the deltas of *name* to all but the newest of *versions*; returns where their files lie.

    A station that still goes to such a version fetches it whole.
    """
    kept = set(newest_first(versions)[:DEFAULT_BASES])
    deltas = (path for path in targets if is_delta(path) and path.startswith(f"{name}/"))
    gone = [path for path in deltas if path.split("/")[1] not in kept]
    places = [signed_file(desk.chain, path).source_path for path in gone]
    for path in gone:
        del targets[path]
    for target in targets.values():
        said = custom(target)
        listed = offered(said)
        left = {base: path for base, path in listed.items() if path in targets}
        if left != listed:
            target.unrecognized_fields["custom"] = {**said, DELTAS: left}
    return places
