"""``outstation model``: the publisher's desk."""

from __future__ import annotations

import datetime
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outstation.cli import model_device, model_diff, model_like
from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.cli.tables import draw
from outstation.errors import InvalidInputError, mapped_os_errors

if TYPE_CHECKING:
    from outstation.models.manifest import Budgets, Manifest, Requires, RuntimeRequirement
    from outstation.models.processing import Processing
    from outstation.models.repository import Published

app = typer.Typer(
    help="At the desk: make a signed repository, publish, list, verify, export. At the box: import, ls, pin and so on.",
    no_args_is_help=True,
)

Keys = Annotated[Path, typer.Option("--keys", help="Folder of the signing keys; keep it away from the repository.")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line encrypts the keys.", show_default=False),
]
RepositoryFolder = Annotated[Path, typer.Argument(metavar="REPO", help="The repository's folder.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]i?B?|B|)", re.IGNORECASE)
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|us|)")
_RUNTIME = re.compile(r"(?P<name>onnx|openvino)(?:>=(?P<version>[0-9]+(?:\.[0-9]+){0,2}))?")
_UNITS = {"": 1, "K": 1000, "M": 1000**2, "G": 1000**3, "KI": 1 << 10, "MI": 1 << 20, "GI": 1 << 30}
_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}


@app.command("init")
def init(repository: RepositoryFolder, keys: Keys, passphrase_file: Passphrase = None) -> None:
    """Make an empty repository and its keys.

    The root has three keys and needs two; targets, snapshot and timestamp have one each. Take root1, root2 and root3
    offline afterwards: publishing does not need them. Example: outstation model init ./repository --keys ./keys
    """
    from outstation.models.publish import init_repository  # noqa: PLC0415  tuf takes 200 ms to import
    from outstation.models.trust import root_fingerprint  # noqa: PLC0415

    root = init_repository(repository, keys, passphrase=_passphrase(passphrase_file))
    print(f"made the repository {repository}")
    print(f"first root for your devices: {root} (sha256 {root_fingerprint(root.read_bytes())})")
    print(f"keys: {keys} (take root1.pem, root2.pem and root3.pem offline)")


@app.command("publish")
def publish(  # noqa: PLR0917 - typer reads a command's options from its parameters
    source: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="An .onnx file, or a folder with one.", show_default=False)
    ],
    repository: Annotated[Path, typer.Option("--repository", help="The repository's folder.")],
    keys: Keys,
    name: Annotated[str, typer.Option("--name", help="The model's name.")],
    version: Annotated[str, typer.Option("--version", help="MAJOR.MINOR.PATCH.")],
    golden: Annotated[
        Path | None,
        typer.Option("--golden", help=".npz with input/NAME arrays, and output/NAME if known.", show_default=False),
    ] = None,
    labels: Annotated[Path | None, typer.Option("--labels", help="One label a line.", show_default=False)] = None,
    processing: Annotated[
        Path | None,
        typer.Option("--processing", help="JSON: what is done before and after the model.", show_default=False),
    ] = None,
    runtime: Annotated[str, typer.Option("--runtime", help='As in "openvino>=2025.0" or "onnx>=1.18".')] = "",
    budget: Annotated[str, typer.Option("--budget", help="As in p95=20ms,memory=200MB.")] = "",
    metric: Annotated[list[str] | None, typer.Option("--metric", help="As in accuracy=0.97; repeat.")] = None,
    requires: Annotated[str, typer.Option("--requires", help="As in memory=512MB,instructions=avx2+fma.")] = "",
    no_check: Annotated[bool, typer.Option("--no-check", help="Take golden outputs as given, unseen.")] = False,
    deltas: Annotated[int, typer.Option("--deltas", help="From so many versions before; 0 makes none.")] = 3,
    like: model_like.Like = "",
    data: model_like.Data = None,
    passphrase_file: Passphrase = None,
) -> None:
    """Sign a model as a new version.

    The golden inputs' expected outputs are computed, or compared with those given. A version never changes once it
    is published.
    Example: outstation model publish m.onnx --repository ./repository --keys ./keys --name meter --version 1.0.0
    """
    from outstation.models.bundle import Draft  # noqa: PLC0415
    from outstation.models.publish import publish as sign_and_publish  # noqa: PLC0415

    secret = _passphrase(passphrase_file)
    with model_like.quantised(source, like, data, repository, name) as (chosen, provenance):
        draft = Draft(
            name=name,
            version=version,
            golden=golden,
            labels=labels,
            processing=_processing(processing),
            runtime=_runtime(runtime),
            budgets=_budgets(budget),
            requires=_requires(requires),
            metrics=_metrics(metric or []),
            provenance=provenance,
        )
        manifest = sign_and_publish(
            chosen,
            repository=repository,
            keys=keys,
            draft=draft,
            check=not no_check,
            deltas=deltas,
            passphrase=secret,
        )
    print(f"published {manifest.name} {manifest.version}: {len(manifest.files)} files, {manifest.size_bytes} bytes")
    for line in _deltas(repository, manifest):
        print(line)
    print(f"a device will check: {', '.join(_checks(manifest))}")


@app.command("refresh")
def refresh(repository: RepositoryFolder, keys: Keys, passphrase_file: Passphrase = None) -> None:
    """Sign the timestamp anew, so that stations go on calling the repository fresh; needs timestamp.pem only.

    Example: outstation model refresh ./repository --keys ./keys
    """
    from outstation.models.publish import LIFETIMES  # noqa: PLC0415
    from outstation.models.publish import refresh as sign_again  # noqa: PLC0415

    sign_again(repository, keys=keys, passphrase=_passphrase(passphrase_file))
    print(f"{repository} is fresh for {LIFETIMES['timestamp'] / 86400:g} days more")


@app.command("yank")
def yank(  # noqa: PLR0917 - as above
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    version: Annotated[str, typer.Argument(metavar="VERSION", show_default=False)],
    repository: Annotated[Path, typer.Option("--repository", help="The repository's folder.")],
    keys: Keys,
    reason: Annotated[str, typer.Option("--reason", help="Why; it is signed and shown.")],
    passphrase_file: Passphrase = None,
) -> None:
    """Withdraw a version: stations that take the latest go back to the one before.

    Example: outstation model yank meter 2.0.0 --reason "wrong scaler" --repository ./repository --keys ./keys
    """
    from outstation.models.publish import yank as withdraw  # noqa: PLC0415

    withdraw(name, version, reason, repository=repository, keys=keys, passphrase=_passphrase(passphrase_file))
    print(f"withdrew {name} {version}: {reason}")


@app.command("list")
def list_(repository: RepositoryFolder, as_json: AsJson = False) -> None:
    """Show what a repository holds. Example: outstation model list ./repository"""
    from outstation.models.repository import Repository  # noqa: PLC0415

    desk = Repository(repository)
    rows = [desk.published(name, version) for name, version in desk.versions()]
    if as_json:
        print(json.dumps([_row(row) for row in rows], indent=2))
    elif not sys.stdout.isatty():
        for row in rows:
            print(" ".join(_cells(row)).rstrip())
    else:
        draw(("model", "version", "bytes", "files", "metrics", "withdrawn"), map(_cells, rows))


@app.command("verify")
def verify(repository: RepositoryFolder, as_json: AsJson = False) -> None:
    """Check every signature, hash, date and manifest of a repository; exit 1 when something is wrong.

    Example: outstation model verify ./repository
    """
    from outstation.models.repository import Repository  # noqa: PLC0415

    desk = Repository(repository)
    problems = list(desk.problems(datetime.datetime.now(datetime.timezone.utc)))
    targets = len(desk.chain.targets.targets)
    if as_json:
        print(json.dumps({"repository": str(repository), "targets": targets, "problems": problems}, indent=2))
    elif problems:
        for problem in problems:
            print(problem, file=sys.stderr)
        print(f"error: {len(problems)} of the checks on {repository} failed.", file=sys.stderr)
    else:
        print(f"{repository}: {targets} files of {len(desk.versions())} versions are what was signed")
    if problems:
        raise typer.Exit(1)


@app.command("export")
def export(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False)],
    version: Annotated[str, typer.Argument(metavar="VERSION", show_default=False)],
    repository: Annotated[Path, typer.Option("--repository", help="The repository's folder.")],
    to: Annotated[Path, typer.Option("--to", help="A new folder, on a stick perhaps.")],
) -> None:
    """Copy one version and all metadata into a folder, for a station without a link.

    Example: outstation model export meter 1.0.0 --repository ./repository --to /media/stick/meter
    """
    from outstation.models.carry import export_version  # noqa: PLC0415

    size = export_version(repository, name, version, to)
    print(f"exported {name} {version} to {to}: {size} bytes")


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `export` wrote.", show_default=False)],
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Hand an exported version in at the box; the agent checks it like any other and takes it if it is wanted.

    Example: outstation model import /media/stick/meter --data /var/lib/outstation
    """
    from outstation.models.carry import hand_in  # noqa: PLC0415

    hand_in(folder, load_settings(settings, data).data_dir / "models")
    print(f"handed in {folder}; `outstation status` shows what became of it")


model_device.add_to(app)
app.command("diff")(model_diff.diff)


def _deltas(repository: Path, manifest: Manifest) -> Iterator[str]:
    from outstation.models.deltas import FROM_VERSION, delta_file  # noqa: PLC0415
    from outstation.models.repository import Repository  # noqa: PLC0415

    for delta in Repository(repository).deltas(manifest.name, manifest.version):
        path, size = delta_file(delta.path), delta.size_bytes
        whole = manifest.file(path).size_bytes
        yield f"delta of {path} from {delta.custom[FROM_VERSION]}: {size} bytes, {100 * size / whole:.1f} % of {whole}"


def _checks(manifest: Manifest) -> list[str]:
    checks = ["signatures and hashes", "that it loads"]
    if manifest.golden is not None:
        checks.append(f"its golden inputs (±{manifest.golden.absolute:g} ±{manifest.golden.relative:g}·|expected|)")
    if manifest.budgets.p95_latency is not None:
        checks.append(f"p95 latency at most {manifest.budgets.p95_latency * 1000:g} ms")
    if manifest.budgets.peak_memory_bytes is not None:
        checks.append(f"peak memory at most {manifest.budgets.peak_memory_bytes} bytes")
    return checks


def _cells(row: Published) -> list[str]:
    metrics = ", ".join(f"{key}={value:g}" for key, value in sorted(row.manifest.metrics.items()))
    manifest = row.manifest
    return [row.name, row.version, str(manifest.size_bytes), str(len(manifest.files)), metrics, row.withdrawn]


def _row(row: Published) -> dict[str, object]:
    return {
        "name": row.name,
        "version": row.version,
        "size_bytes": row.manifest.size_bytes,
        "files": [file.path for file in row.manifest.files],
        "metrics": row.manifest.metrics,
        "withdrawn": row.withdrawn,
    }


def _pairs(text: str, option: str, known: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, value = part.partition("=")
        if not equals or not value or (known and key not in known):
            what = f"KEY=VALUE with {' or '.join(known)}" if known else "NAME=NUMBER"
            raise InvalidInputError(f"{option}: {part!r} is not {what}.")
        pairs[key] = value
    return pairs


def _processing(path: Path | None) -> Processing | None:
    from outstation.models.manifest import MAX_MANIFEST_BYTES, parse_processing  # noqa: PLC0415

    if path is None:
        return None
    with mapped_os_errors(doing="read the processing", path=path), path.open("rb") as file:
        return parse_processing(file.read(MAX_MANIFEST_BYTES))


def _runtime(text: str) -> RuntimeRequirement:
    from outstation.models.manifest import RuntimeRequirement  # noqa: PLC0415

    found = _RUNTIME.fullmatch(text)
    if text and found is None:
        raise InvalidInputError(f"{text!r} is no runtime.", hint='Write "openvino" or "onnx>=1.18".')
    return RuntimeRequirement(found["name"], found["version"]) if found else RuntimeRequirement()


def _budgets(text: str) -> Budgets:
    from outstation.models.manifest import Budgets  # noqa: PLC0415

    pairs = _pairs(text, "--budget", ("p95", "memory"))
    latency = _duration(pairs["p95"]) if "p95" in pairs else None
    return Budgets(latency, _size("--budget", pairs["memory"]) if "memory" in pairs else None)


def _requires(text: str) -> Requires:
    from outstation.models.manifest import Requires  # noqa: PLC0415

    pairs = _pairs(text, "--requires", ("memory", "instructions"))
    memory = _size("--requires", pairs["memory"]) if "memory" in pairs else 0
    return Requires(memory, tuple(filter(None, pairs.get("instructions", "").split("+"))))


def _metrics(entries: list[str]) -> dict[str, float]:
    given = (pair for entry in entries for pair in _pairs(entry, "--metric", ()).items())
    return {key: _number(value) for key, value in given}


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InvalidInputError(f"--metric: {text!r} is no number.") from None


def _duration(text: str) -> float:
    found = _DURATION.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise InvalidInputError(f"--budget: {text!r} is no duration such as 0.02, 20ms or 0.5s.")
    return float(found[1]) * _SECONDS[found[2]]


def _size(option: str, text: str) -> int:
    found = _SIZE.fullmatch(text)
    if found is None or float(found[1]) <= 0:
        raise InvalidInputError(f"{option}: {text!r} is no size such as 200MB, 64MiB or 1000000.")
    return int(float(found[1]) * _UNITS[found[2].upper().removesuffix("B")])


def _passphrase(file: Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        line = file.read_bytes().split(b"\n", 1)[0].strip()
    except OSError as exc:
        raise InvalidInputError(f"The passphrase file {file} cannot be read: {exc.strerror}.") from exc
    if not line:
        raise InvalidInputError(f"The first line of {file} is empty: that is no passphrase.")
    return line
