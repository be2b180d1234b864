"""The manifest of a bundle: what the files are, what the model takes and gives, and what a device must check.

``manifest.json`` lies beside its files in the bundle's folder. It is strict: a field that is not known, a value of
another type, a path that leaves the folder or a format of the future is a :class:`ManifestError` that names the
field. ``docs/models.md`` shows one; its signature is that of the repository (``trust.py``), not part of the file.
"""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

import msgspec

from outstation.errors import ManifestError
from outstation.models.histograms import Baseline, histogram_problem
from outstation.models.processing import (
    InputStep,
    Kind,
    OutputStep,
    PreparedInput,
    Processing,
    StepError,
    fits,
    taken_kind,
)
from outstation.models.versions import is_version
from outstation.shapes import learn
from outstation.types import MODEL_NAME

FORMAT = 1
MANIFEST = "manifest.json"
# A manifest holds some hundred bytes a file and 67 bytes a chunk of 256 KiB or more, at most 4096 chunks a file.
MAX_MANIFEST_BYTES = 4 << 20
MAX_FILES = 256
MAX_PATH_LENGTH = 200
# The data types of the Open Inference Protocol.
_NUMBERS = {f"{kind}{bits}" for kind in ("INT", "UINT") for bits in (8, 16, 32, 64)}
DATATYPES = frozenset({"BOOL", "BYTES", "BF16", "FP16", "FP32", "FP64"} | _NUMBERS)
ANY = -1  # a dimension of any length

_PATH_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_PLACE = re.compile(r"(?P<what>.*) - at `\$\.?(?P<place>.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<field>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<field>.*)`", re.DOTALL)

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Tolerance = Annotated[float, msgspec.Meta(ge=0)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One object of the manifest; unknown fields are errors."""


class ManifestFile(Part, frozen=True, omit_defaults=True):
    """One file: its path below the bundle's folder, its SHA-256 in hexadecimal, its size.

    ``chunks`` are the SHA-256 of each piece of ``chunk_bytes`` (the last may be shorter), so that a download finds
    out early which piece is wrong; both are left out for a file of one piece.
    """

    path: str
    sha256: Sha256
    size_bytes: Size
    chunk_bytes: Size = 0
    chunks: tuple[Sha256, ...] = ()


class TensorSpec(Part, frozen=True):
    """One input or output. ``datatype`` is a name of the Open Inference Protocol; -1 in ``shape`` is any length."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
    datatype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=ANY)], ...]


class RuntimeRequirement(Part, frozen=True):
    """What must compute it: the name of a runtime ("onnx"), and the oldest version of it that can."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=64)] = "onnx"
    minimum_version: Annotated[str, msgspec.Meta(pattern=r"^[0-9]+(\.[0-9]+){0,2}$")] | None = None


class Golden(Part, frozen=True):
    """Known answers. ``file`` is an .npz with arrays ``input/NAME`` and ``output/NAME``; the first axis counts cases.

    An answer passes when ``|answer - expected| <= absolute + relative * |expected|`` for every element.
    """

    file: str = "golden.npz"
    absolute: Tolerance = 1e-4
    relative: Tolerance = 1e-4


class Budgets(Part, frozen=True):
    """What the model may cost on the device: seconds of one call at the 95th percentile, and memory at its peak."""

    p95_latency: Positive | None = None
    peak_memory_bytes: Annotated[int, msgspec.Meta(gt=0)] | None = None


class Requires(Part, frozen=True):
    """What the device must have: memory in all, and instruction sets as in the flags of /proc/cpuinfo."""

    memory_bytes: Size = 0
    instruction_sets: tuple[str, ...] = ()


class Manifest(Part, frozen=True, kw_only=True):
    """One version of one model. Made by :func:`parse_manifest`, which checks everything."""

    format: int = FORMAT
    name: str
    version: str
    model: str
    files: tuple[ManifestFile, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: RuntimeRequirement = RuntimeRequirement()
    labels: str | None = None  # path of a text file, one label a line
    processing: Processing | None = None  # what stands between a caller and the model's own inputs and outputs
    golden: Golden | None = None
    budgets: Budgets = Budgets()
    requires: Requires = Requires()
    baseline: Baseline | None = None
    metrics: dict[str, float] = {}  # measured by the publisher, as in {"accuracy": 0.97}
    provenance: dict[str, str] = {}  # where it comes from, as in {"commit": "1f2e3d"}

    @property
    def size_bytes(self) -> int:
        """Of all files together."""
        return sum(file.size_bytes for file in self.files)

    @property
    def call_inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs as a caller gives them: those of the model, but for what is made by :attr:`processing`."""
        prepared = {} if self.processing is None else {made.name: made for made in self.processing.inputs}
        return tuple(_taken(prepared[spec.name], spec) if spec.name in prepared else spec for spec in self.inputs)

    @property
    def call_outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs as a caller gets them."""
        if self.processing is None or not self.processing.outputs:
            return self.outputs
        kinds = {spec.name: Kind(spec.datatype, spec.shape) for spec in self.outputs}
        made = []
        for output in self.processing.outputs:
            kind = kinds[output.source]
            for step in output.steps:
                kind = step.after(kind)
            made.append(TensorSpec(output.name, *kind))
        return tuple(made)

    def file(self, path: str) -> ManifestFile:
        """The entry of *path*; KeyError if there is none."""
        for file in self.files:
            if file.path == path:
                return file
        raise KeyError(path)


def parse_manifest(data: bytes) -> Manifest:
    """The manifest in *data*, checked through and through; ManifestError names the field that is wrong."""
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestError(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.")
    tree = _decoded(data)
    _check_format(tree)
    try:
        manifest = msgspec.convert(tree, Manifest)
    except msgspec.ValidationError as exc:
        raise _with_place(str(exc)) from exc
    check_manifest(manifest)
    return manifest


def encode_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``: the same manifest gives the same bytes."""
    check_manifest(manifest)
    return msgspec.json.format(msgspec.json.encode(manifest, order="sorted"), indent=2) + b"\n"


def check_manifest(manifest: Manifest) -> None:
    """What types cannot say: names, paths, hashes of chunks, and that every file named is there."""
    if MODEL_NAME.fullmatch(manifest.name) is None:
        raise _error("name", f"{manifest.name!r} does not match {MODEL_NAME.pattern}")
    if not is_version(manifest.version):
        raise _error("version", f"{manifest.version!r} is no semantic version such as 1.2.0")
    _check_files(manifest.files)
    paths = {file.path for file in manifest.files}
    named = [("model", manifest.model), ("labels", manifest.labels)]
    named.append(("golden.file", manifest.golden.file if manifest.golden else None))
    for field, path in named:
        if path is not None and path not in paths:
            raise _error(field, f"{path!r} is not among the files")
    for field, specs in (("inputs", manifest.inputs), ("outputs", manifest.outputs)):
        _check_tensors(field, specs)
    if manifest.baseline is not None:
        _check_baseline(manifest, manifest.baseline)
    if manifest.processing is not None:
        _check_processing(manifest, manifest.processing)
    for metric, value in manifest.metrics.items():
        if not math.isfinite(value):
            raise _error(f"metrics.{metric}", "is not a finite number")


def parse_processing(data: bytes) -> Processing:
    """The file that a publisher gives with ``--processing``; ManifestError names the field that is wrong."""
    try:
        return msgspec.convert(_decoded(data), Processing)
    except msgspec.ValidationError as exc:
        raise _with_place(str(exc), "processing") from exc


def path_problem(path: str) -> str | None:
    """Why *path* may not be the path of a file in a bundle, or None. The rules hold on every file system."""
    if path.startswith("/"):
        return f"{path!r} is absolute"
    if len(path) > MAX_PATH_LENGTH:
        return f"the path is longer than {MAX_PATH_LENGTH} characters"
    parts = path.split("/")
    if ".." in parts:
        return f"{path!r} leaves the folder"
    if any(_PATH_PART.fullmatch(part) is None for part in parts):
        return f"{path!r} has characters or parts other than letters, digits, '.', '_' and '-'"
    if path.casefold() == MANIFEST:
        return f"{path!r} is the manifest itself"
    return None


def _check_files(files: tuple[ManifestFile, ...]) -> None:
    if not 0 < len(files) <= MAX_FILES:
        raise _error("files", f"must hold 1 to {MAX_FILES} files, not {len(files)}")
    seen: dict[str, str] = {}
    for index, file in enumerate(files):
        field = f"files[{index}]"
        problem = path_problem(file.path)
        if problem is not None:
            raise _error(f"{field}.path", problem)
        folded = file.path.casefold()  # two names that differ in case are one file on a USB stick
        if folded in seen:
            raise _error(f"{field}.path", f"{file.path!r} is there twice")
        seen[folded] = file.path
        expected = -(-file.size_bytes // file.chunk_bytes) if file.chunk_bytes else 0
        if len(file.chunks) != expected:
            raise _error(f"{field}.chunks", f"must hold {expected} hashes, not {len(file.chunks)}")
    for path in seen:
        parents = path.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/".join(parents[:depth])
            if parent in seen:
                raise _error("files", f"{seen[parent]!r} is a file and a folder at once")


def _check_tensors(field: str, specs: tuple[TensorSpec, ...]) -> None:
    if not specs:
        raise _error(field, "is empty")
    names: set[str] = set()
    for index, spec in enumerate(specs):
        if spec.datatype not in DATATYPES:
            raise _error(f"{field}[{index}].datatype", f"{spec.datatype!r} is none of {', '.join(sorted(DATATYPES))}")
        if spec.name in names:
            raise _error(f"{field}[{index}].name", f"{spec.name!r} is there twice")
        names.add(spec.name)


def _check_baseline(manifest: Manifest, baseline: Baseline) -> None:
    for field, histograms, specs in (
        ("inputs", baseline.inputs, manifest.inputs),
        ("outputs", baseline.outputs, manifest.outputs),
    ):
        problem = histogram_problem(histograms, {spec.name for spec in specs})
        if problem is not None:
            raise _error(f"baseline.{field}{problem[0]}", problem[1])


def _check_processing(manifest: Manifest, processing: Processing) -> None:
    """That every step can follow the one before it, and that the model takes what the last one gives."""
    inputs = {spec.name: spec for spec in manifest.inputs}
    outputs = {spec.name: spec for spec in manifest.outputs}
    if processing.needs_labels and manifest.labels is None:
        raise _error("processing", "it names labels, and the bundle has none")
    for kind, names in (
        ("inputs", [i.name for i in processing.inputs]),
        ("outputs", [o.name for o in processing.outputs]),
    ):
        for index, name in enumerate(names):
            if name in names[:index]:
                raise _error(f"processing.{kind}[{index}].name", f"{name!r} is there twice")
    for index, prepared in enumerate(processing.inputs):
        field = f"processing.inputs[{index}]"
        if prepared.name not in inputs:
            raise _error(f"{field}.name", f"the model has no input {prepared.name!r}")
        spec = inputs[prepared.name]
        _check_tensors(f"{field}.takes", (_taken(prepared, spec),))
        made = _after(field, prepared.steps, taken_kind(prepared, Kind(spec.datatype, spec.shape)))
        if not fits(made, Kind(spec.datatype, spec.shape)):
            raise _error(f"{field}.steps", f"they give {made}, the model takes {Kind(spec.datatype, spec.shape)}")
    for index, output in enumerate(processing.outputs):
        field = f"processing.outputs[{index}]"
        if output.source not in outputs:
            raise _error(f"{field}.of", f"the model has no output {output.source!r}")
        spec = outputs[output.source]
        _after(field, output.steps, Kind(spec.datatype, spec.shape))


def _after(field: str, steps: tuple[InputStep | OutputStep, ...], kind: Kind) -> Kind:
    index = 0
    try:
        for index, step in enumerate(steps):  # noqa: B007  read where it went wrong
            kind = step.after(kind)
    except StepError as exc:
        raise _error(f"{field}.steps[{index}]", str(exc)) from exc
    return kind


def _taken(prepared: PreparedInput, spec: TensorSpec) -> TensorSpec:
    return TensorSpec(spec.name, *taken_kind(prepared, Kind(spec.datatype, spec.shape)))


def _decoded(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:  # ValueError covers bad UTF-8 and bad JSON
        raise ManifestError(f"The manifest is not valid JSON: {exc}.") from exc


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        keys = [key for key, _ in pairs]
        double = next(key for key in keys if keys.count(key) > 1)
        raise ManifestError(f"The manifest is wrong at {double}: the field is there twice.")
    return table


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number of JSON")


def _check_format(tree: Any) -> None:
    if not isinstance(tree, dict):
        raise ManifestError("The manifest is no JSON object.")
    declared = tree.get("format")
    if type(declared) is not int or declared < 1:
        raise _error("format", f"expected {FORMAT}, got {declared!r}")
    if declared > FORMAT:
        raise ManifestError(
            f"The manifest is wrong at format: {declared} is of the future; this Outstation reads up to {FORMAT}.",
            hint="Upgrade Outstation on this device, or publish with an older one.",
        )


def _with_place(message: str, within: str = "") -> ManifestError:
    """Our error for msgspec's "Expected `int`, got `str` - at `$.files[0].size_bytes`", the field first."""
    found = _PLACE.fullmatch(message)
    what, place = (found["what"], found["place"]) if found else (message, "")
    place = f"{within}.{place}".strip(".")
    for pattern, verdict in ((_UNKNOWN, "is no field that is known"), (_MISSING, "is missing")):
        named = pattern.fullmatch(what)
        if named:
            return _error(f"{place}.{named['field']}".lstrip("."), verdict)
    return _error(place or "the top", what[:1].lower() + what[1:])


def _error(field: str, what: str) -> ManifestError:
    return ManifestError(f"The manifest is wrong at {field}: {what}.")


learn(Manifest, Processing)
