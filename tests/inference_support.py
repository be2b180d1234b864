"""Bundles and a stand-in store, for tests of inference that need no rollout."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np

import tiny_models
from outstation.models.manifest import MANIFEST, Budgets, Golden, Manifest, ManifestFile, TensorSpec, encode_manifest
from outstation.models.rollout import Event
from outstation.models.store import InstalledModel

X = (TensorSpec("x", "FP32", (-1, 4)),)
Y = (TensorSpec("y", "FP32", (-1, 4)),)


def install(
    folder: Path,
    version: str,
    model: bytes,
    *,
    name: str = "tiny",
    inputs=X,
    outputs=Y,
    golden: dict[str, np.ndarray] | None = None,
    budgets: Budgets | None = None,
    labels: str | None = None,
    **rest,
) -> InstalledModel:
    """A bundle in *folder*, as the store would hold it."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model)
    if golden is not None:
        np.savez(folder / "golden.npz", **golden)
    if labels is not None:
        (folder / "labels.txt").write_text(labels)
    manifest = Manifest(
        name=name,
        version=version,
        model="model.onnx",
        files=tuple(
            ManifestFile(path.name, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
            for path in sorted(folder.iterdir())
        ),
        inputs=inputs,
        outputs=outputs,
        golden=None if golden is None else Golden(),
        labels=None if labels is None else "labels.txt",
        budgets=budgets or Budgets(),
        **rest,
    )
    (folder / "manifest.json").write_bytes(encode_manifest(manifest))
    return InstalledModel(name, version, folder, manifest)


def scaling(folder: Path, factor: float, **rest) -> InstalledModel:
    """A version FACTOR.0.0 that answers ``y = factor * x``."""
    return install(folder, f"{factor:g}.0.0", tiny_models.scale(factor), **rest)


def put(writer, model, *, prove=True):
    """Bring *model* into the store and let it answer, as the reconciler would."""
    files = {path.name: path.read_bytes() for path in model.folder.iterdir()}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in files.items():
        writer.keep_bytes(data, hashes[name])
    writer.assemble(model.manifest, hashes[MANIFEST])
    events = [Event.OFFER, Event.BEGIN, Event.COMPLETE, Event.PASS, Event.ADMIT, *([Event.PROVE] if prove else [])]
    for event in events:
        writer.move(model.name, model.version, event, at_unix_nano=1, digest=hashes[MANIFEST])


class HandStore:
    """A store whose answers the test sets by hand."""

    def __init__(self, *models: InstalledModel) -> None:
        self._lock = threading.Lock()
        self._generation = 0
        self._answering: dict[str, InstalledModel | None] = {}
        for model in models:
            self.answer(model)

    def answer(self, model: InstalledModel) -> None:
        self._set(model.name, model)

    def withdraw(self, name: str) -> None:
        self._set(name, None)

    def generation(self) -> int:
        return self._generation

    def names(self) -> tuple[str, ...]:
        with self._lock:
            return tuple(sorted(self._answering))

    def answering(self, name: str) -> InstalledModel | None:
        return self._answering.get(name)

    def _set(self, name: str, model: InstalledModel | None) -> None:
        with self._lock:
            self._answering[name] = model
            self._generation += 1
