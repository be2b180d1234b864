"""From a file or a bundle to a version that is ready to answer."""

from __future__ import annotations

import logging
from pathlib import Path

from outstation.errors import ModelLoadError, OutstationError
from outstation.inference.golden import golden_cases
from outstation.inference.model import Version
from outstation.inference.processed import ProcessedSession
from outstation.inference.runtime import Runtime, RuntimeOptions, Session, runtime
from outstation.inference.signature import Signature
from outstation.models.manifest import RuntimeRequirement, TensorSpec
from outstation.models.pipeline import Pipeline
from outstation.models.store import InstalledModel
from outstation.wire.datatypes import described

log = logging.getLogger("outstation.inference")

# A longer file is no list of labels.
_MAX_LABELS_BYTES = 1 << 20


def load_file(path: Path, options: RuntimeOptions = RuntimeOptions(), version: str = "1") -> Version:
    """A bare ONNX file as a version, warmed up: no manifest, no store. ModelLoadError with the reason."""
    session = runtime(options.runtime or "onnx").load(path, options)
    loaded = Version(version, session, Signature(session.inputs, session.outputs), (), None)
    _warm_up(loaded, session)
    return loaded


def load_installed(installed: InstalledModel, options: RuntimeOptions, replaces: Version | None = None) -> Version:
    """A version of the store, warmed up, that is to answer after *replaces*.

    ModelLoadError when the runtime cannot load it, is too old for it, or finds other inputs or outputs in the file
    than the manifest promises.
    """
    manifest = installed.manifest
    chosen = runtime(options.runtime or manifest.runtime.name)
    _check_runtime(chosen, manifest.runtime)
    session: Session = chosen.load(installed.folder / manifest.model, options)
    for kind, promised, found in (
        ("input", manifest.inputs, session.inputs),
        ("output", manifest.outputs, session.outputs),
    ):
        _check_promise(kind, promised, found)
    labels = _labels(installed)
    if manifest.processing is None:
        signature = Signature(manifest.inputs, manifest.outputs)
    else:
        session = ProcessedSession(session, Signature(manifest.inputs, manifest.outputs), Pipeline(manifest, labels))
        signature = Signature(session.inputs, session.outputs, session.samples)
    loaded = Version(installed.version, session, signature, labels, replaces)
    _warm_up(loaded, session, installed)
    return loaded


def _warm_up(version: Version, session: Session, installed: InstalledModel | None = None) -> None:
    """Run once before anyone waits for it: the first call allocates and is slow. Not counted in the health."""
    cases = golden_cases(installed) if installed is not None else []
    feed = cases[0].inputs if cases else version.signature.zeros()
    try:
        session.run(version.signature.output_names, version.signature.feed(feed))
    except OutstationError as exc:
        if cases:
            raise ModelLoadError(f"Version {version.version} cannot compute its own golden inputs: {exc}") from exc
        # Zeros are nobody's real input; a model may well refuse them.
        log.debug("warming up %s with zeros: %s", version.version, exc)


def _check_runtime(chosen: Runtime, required: RuntimeRequirement) -> None:
    # A number says nothing of another runtime, which the settings may have chosen.
    if required.minimum_version is None or chosen.name != required.name:
        return
    found = chosen.version
    if _numbers(found) < _numbers(required.minimum_version):
        raise ModelLoadError(
            f"The model needs {required.name} {required.minimum_version}; {found} is installed.",
            hint="Upgrade the runtime on this device, or publish the model for the older one.",
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+", maxsplit=1)[0].split(".")[:3] if part.isdigit())


def _check_promise(kind: str, promised: tuple[TensorSpec, ...], found: tuple[TensorSpec, ...]) -> None:
    there = {spec.name: spec for spec in found}
    if kind == "input":
        for name in there.keys() - {spec.name for spec in promised}:
            raise ModelLoadError(f"The file takes the input {name!r}, of which the manifest says nothing.")
    for spec in promised:
        other = there.get(spec.name)
        if other is None:
            raise ModelLoadError(f"The manifest promises the {kind} {spec.name!r}, which the file has not.")
        if spec.datatype != other.datatype or (other.shape and len(spec.shape) != len(other.shape)):
            raise ModelLoadError(
                f"The manifest promises the {kind} {spec.name!r} as {described(spec.datatype, spec.shape)}; "
                f"the file has {described(other.datatype, other.shape)}."
            )


def _labels(installed: InstalledModel) -> tuple[str, ...]:
    if installed.manifest.labels is None:
        return ()
    path = installed.folder / installed.manifest.labels
    try:
        with path.open("rb") as file:
            return tuple(file.read(_MAX_LABELS_BYTES).decode().splitlines())
    except (OSError, UnicodeDecodeError) as exc:
        raise ModelLoadError(f"The labels in {path} cannot be read: {exc}.") from exc
