"""Keys on the command line of ``outstation model``: where they are, who signs instead of them, and their rotation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from outstation.cli.model_place import RepositoryPlace
from outstation.errors import InvalidInputError

if TYPE_CHECKING:
    from outstation.models.keyring import External

Keys = Annotated[Path, typer.Option("--keys", help="Folder of the signing keys; keep it away from the repository.")]
Passphrase = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="File whose first line encrypts the keys.", show_default=False),
]
Signers = Annotated[
    list[str] | None,
    typer.Option(
        "--signer",
        metavar="KEY=URI",
        help="A signer of securesystemslib instead of a file, as in targets=awskms:alias/models; repeat.",
        show_default=False,
    ),
]
PublicKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key", metavar="KEY=FILE.pem", help="The public key of a new signer; repeat.", show_default=False
    ),
]


def rotate_key(  # noqa: PLR0917 - typer reads a command's options from its parameters
    name: Annotated[
        str,
        typer.Argument(metavar="KEY", help="root1, root2, root3, targets, snapshot or timestamp.", show_default=False),
    ],
    repository: RepositoryPlace,
    keys: Keys,
    root_keys: Annotated[
        Path | None,
        typer.Option("--root-keys", help="Folder of the root's keys, of which two must sign.", show_default=False),
    ] = None,
    signer: Signers = None,
    public_key: PublicKeys = None,
    passphrase_file: Passphrase = None,
) -> None:
    """Replace a key by a new one, because it was stolen, lost, or is old. Stations follow by themselves.

    What is published at this moment is signed anew: look at `outstation model list` first if a key was stolen.
    Example: outstation model rotate-key timestamp ./repository --keys ./keys --root-keys /media/safe
    """
    from outstation.models.rotation import rotate_key as rotate  # noqa: PLC0415  tuf takes 200 ms to import

    chosen = signers(signer, public_key)
    if set(chosen) - {name}:
        raise InvalidInputError(f"--signer is for {name}, the key that is replaced.")
    done = rotate(
        name,
        repository,
        keys=keys,
        root_keys=root_keys,
        signer=chosen.get(name),
        passphrase=passphrase(passphrase_file),
    )
    if not done.old_keyid:
        print(f"{name} was {done.new_keyid[:12]} already: what an interruption had left open is done")
        return
    print(f"{name} is {done.new_keyid[:12]} now, {done.old_keyid[:12]} is worth nothing any more")
    print(f"root.json is version {done.root_version}, signed by {', '.join(done.signed_by)}")
    print("stations follow by themselves, those that were off as well")
    print(f"the old file is kept as {name}-N.old: destroy it when you are sure")


def signers(given: list[str] | None, public_keys: list[str] | None = None) -> dict[str, External]:
    """The options ``--signer`` and ``--public-key``; InvalidInputError when one is not what it must be."""
    from outstation.models.keyring import External  # noqa: PLC0415

    public = {name: _text(Path(path)) for name, path in _pairs("--public-key", public_keys or [])}
    uris = dict(_pairs("--signer", given or []))
    if lonely := sorted(public.keys() - uris.keys()):
        raise InvalidInputError(f"--public-key {lonely[0]}=... needs --signer {lonely[0]}=URI beside it.")
    return {name: External(uri, public.get(name, "")) for name, uri in uris.items()}


def passphrase(file: Path | None) -> bytes | None:
    """The first line of *file*; InvalidInputError when it cannot be read or is empty."""
    if file is None:
        return None
    try:
        line = file.read_bytes().split(b"\n", 1)[0].strip()
    except OSError as exc:
        raise InvalidInputError(f"The passphrase file {file} cannot be read: {exc.strerror}.") from exc
    if not line:
        raise InvalidInputError(f"The first line of {file} is empty: that is no passphrase.")
    return line


def _pairs(option: str, given: list[str]) -> list[tuple[str, str]]:
    pairs = [entry.partition("=") for entry in given]
    for entry, (name, _, value) in zip(given, pairs, strict=True):
        if not name or not value:
            raise InvalidInputError(f"{option}: {entry!r} is not KEY=..., as in targets=...")
    return [(name, value) for name, _, value in pairs]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidInputError(f"The public key {path} cannot be read: {exc}.") from exc
