"""Making a bundle at the publisher's desk: files in, a folder with a manifest out."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from outstation._version import __version__
from outstation.errors import InvalidInputError, ManifestError, mapped_os_errors
from outstation.models.manifest import (
    Budgets,
    Golden,
    Manifest,
    ManifestFile,
    Requires,
    RuntimeRequirement,
    check_manifest,
    path_problem,
)
from outstation.models.processing import Processing
from outstation.models.versions import checked_version
from outstation.types import MODEL_NAME, checked_name

MODEL, GOLDEN, LABELS = "model.onnx", "golden.npz", "labels.txt"
# A piece is what a broken download may have to fetch again; 4096 pieces bound what a manifest grows to.
MIN_CHUNK_BYTES = 256 << 10
MAX_CHUNKS = 4096


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What the publisher says of a version. ``golden`` and ``labels`` are paths of files to take along."""

    name: str
    version: str
    golden: Path | None = None
    labels: Path | None = None
    processing: Processing | None = None
    runtime: RuntimeRequirement = field(default_factory=RuntimeRequirement)
    tolerance: Golden = field(default_factory=Golden)
    budgets: Budgets = field(default_factory=Budgets)
    requires: Requires = field(default_factory=Requires)
    metrics: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)


def make_bundle(source: Path, target: Path, draft: Draft, *, check: bool = True) -> Manifest:
    """Fill the empty folder *target* with the files of a version and return its manifest (not yet written there).

    *source* is a model file, taken as ``model.onnx``, or a folder with one ``.onnx`` file and what belongs to it
    (external data, ``golden.npz``, ``labels.txt``). The model is opened; the golden answers are computed or checked.
    Raises InvalidInputError, ModelLoadError, ManifestError, MissingExtraError.
    """
    checked_name(MODEL_NAME, draft.name, "model")
    checked_version(draft.version)
    from outstation.models.probe import ModelProbe, golden_file, processed  # noqa: PLC0415 - numpy, onnxruntime: extras

    with mapped_os_errors(doing="make the bundle", path=target):
        model = _copy(source, target)
        probe = ModelProbe(target / model)
        labels = _labels(draft, target)
        golden = draft.golden or _beside(target, GOLDEN)
        manifest = Manifest(
            name=draft.name,
            version=draft.version,
            model=model,
            files=_described(target),
            inputs=probe.inputs,
            outputs=probe.outputs,
            runtime=draft.runtime,
            labels=LABELS if labels else None,
            processing=draft.processing,
            budgets=draft.budgets,
            requires=draft.requires,
            metrics=draft.metrics,
            provenance={"outstation": __version__, "source": source.name, **draft.provenance},
        )
        check_manifest(manifest)  # before the golden answers are computed through its processing
        if golden is not None:
            made = target / (GOLDEN + ".new")
            golden_file(processed(probe, manifest, labels), golden, made, draft.tolerance, check=check)
            made.replace(target / GOLDEN)
            manifest = msgspec.structs.replace(manifest, files=_described(target), golden=draft.tolerance)
    check_manifest(manifest)
    return manifest


def describe_file(
    folder: Path, path: str, chunk_bytes: int = MIN_CHUNK_BYTES, max_chunks: int = MAX_CHUNKS
) -> ManifestFile:
    """The manifest's entry for the file *path* of *folder*: hashes of the whole and of its chunks.

    Chunks have *chunk_bytes*, or twice, four times... as many, so that there are at most *max_chunks*.
    """
    size = (folder / path).stat().st_size
    while size > chunk_bytes * max_chunks:
        chunk_bytes *= 2
    whole = hashlib.sha256()
    chunks = []
    with (folder / path).open("rb") as file:
        while piece := file.read(chunk_bytes):
            whole.update(piece)
            chunks.append(hashlib.sha256(piece).hexdigest())
    if len(chunks) <= 1:
        return ManifestFile(path, whole.hexdigest(), size)
    return ManifestFile(path, whole.hexdigest(), size, chunk_bytes, tuple(chunks))


def _copy(source: Path, target: Path) -> str:
    """Copy the files of *source*; returns the path of the model among them."""
    if source.is_file():
        _copy_file(source, target / MODEL)
        return MODEL
    if not source.is_dir():
        raise InvalidInputError(f"There is no file or folder {source}.")
    for path in sorted(source.rglob("*")):
        relative = path.relative_to(source).as_posix()
        if path.is_symlink():
            raise InvalidInputError(f"{path} is a symbolic link; a bundle holds plain files.")
        if path.is_dir():
            continue
        problem = path_problem(relative)
        if problem is not None:
            raise ManifestError(f"A bundle cannot hold {path}: {problem}.")
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        _copy_file(path, target / relative)
    models = [path.relative_to(target).as_posix() for path in sorted(target.rglob("*.onnx"))]
    if MODEL in models:
        return MODEL
    if len(models) != 1:
        raise InvalidInputError(
            f"{source} holds {len(models)} .onnx files.", hint=f"Name the one to run {MODEL}, or keep only that one."
        )
    return models[0]


def _copy_file(source: Path, target: Path) -> None:
    if not source.is_file():
        raise InvalidInputError(f"There is no file {source}.")
    shutil.copyfile(source, target)


def _beside(folder: Path, name: str) -> Path | None:
    return folder / name if (folder / name).is_file() else None


def _labels(draft: Draft, folder: Path) -> tuple[str, ...]:
    """The labels, which lie in *folder* afterwards; () when there are none."""
    if draft.labels is not None:
        _copy_file(draft.labels, folder / LABELS)
    return _checked_labels(folder / LABELS) if (folder / LABELS).is_file() else ()


def _checked_labels(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as exc:
        raise InvalidInputError(f"{path.name} is not UTF-8 text.") from exc
    if not lines or any(not line.strip() for line in lines):
        raise InvalidInputError(f"{path.name} must hold one label a line, no line empty.")
    return tuple(lines)


def _described(folder: Path) -> tuple[ManifestFile, ...]:
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return tuple(describe_file(folder, path) for path in paths)
