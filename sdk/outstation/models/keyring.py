"""The keys of one repository at the desk: files in a folder, or signers elsewhere, by URI.

A URI is one of securesystemslib's (``awskms:``, ``azurekms:``, ``gcpkms:``, ``hsm:``, ...), so that the private key
never leaves its KMS or HSM. The folder remembers it beside the public key in ``signers.json``, which is no secret.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec
from securesystemslib.signer import Key, Signer

from outstation.durable import FILES, make_directories, write_atomically
from outstation.errors import ConfigurationError, InvalidInputError, RepositoryError, mapped_os_errors
from outstation.models.keys import ONLINE_ROLES, ROOT_KEYS, make_key, read_key, read_public_key
from outstation.shapes import learn

NAMES = (*ROOT_KEYS, *ONLINE_ROLES)
_REMEMBERED = "signers.json"
_NEXT = ".next"  # made, but perhaps not trusted yet: a rotation that was interrupted goes on with it
_URI = re.compile(r"[a-z][a-z0-9+.-]*:.+", re.IGNORECASE)


class External(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A signer that is no file: its URI, and its public key as PEM ("" where the repository's root has it)."""

    uri: str
    public_key: str = ""

    def key(self) -> Key:
        """The public key; ConfigurationError when there is none."""
        if not self.public_key:
            raise ConfigurationError(f"{self.uri} needs its public key beside it.", hint="Give it with --public-key.")
        return read_public_key(self.public_key)


Externals = Mapping[str, External]  # by the key's name


def checked_key_name(name: str) -> str:
    """*name* if a repository has such a key; else InvalidInputError."""
    if name not in NAMES:
        raise InvalidInputError(f"{name!r} is no key's name.", hint=f"There are {', '.join(NAMES)}.")
    return name


class Keyring:
    """The keys in *folder*; *given* signers count before those that it remembers.

    *passphrase* opens the files; a signer that asks for a PIN is told it as well.
    """

    def __init__(self, folder: Path, passphrase: bytes | None = None, given: Externals | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._given = dict(given or {})
        for name, external in self._given.items():
            checked_key_name(name)
            if _URI.fullmatch(external.uri) is None:
                raise InvalidInputError(f"{external.uri!r} is no URI of a signer, such as hsm:2?label=desk.")
        self._remembered = _read_remembered(folder / _REMEMBERED)

    def make(self) -> dict[str, Signer]:
        """Every key of a new repository: new files, except where a signer was given. Never overwrites one."""
        files = [name for name in NAMES if name not in self._given]
        for name in files:
            if (path := self._file(name)).exists():
                raise RepositoryError(
                    f"{path} is there already.", hint="Choose another folder; keys are never overwritten."
                )
        signers = {name: self._opened(external, external.key()) for name, external in self._given.items()}
        for name in files:
            signers[name] = make_key(self._file(name), self._passphrase)
        if self._given:
            self._remember(self._given)
        return signers

    def signer(self, name: str, trusted: Mapping[str, Key]) -> Signer:
        """What signs as *name*, with one of the keys *trusted* for it. ConfigurationError, RepositoryError."""
        found = list(self._all(name, trusted))
        for signer in found:
            if signer.public_key.keyid in trusted:
                return signer
        if found:
            raise RepositoryError(
                f"{self._file(name)} is not a key that the repository trusts for its {name}.",
                hint="Give the keys that were made together with this repository.",
            )
        return read_key(self.folder, name, self._passphrase)  # which says what is wrong with it

    def available(self, names: Collection[str], trusted: Mapping[str, Key]) -> dict[str, Signer]:
        """Those of *names* that are here and trusted."""
        found: dict[str, Signer] = {}
        for name in names:
            with suppress(ConfigurationError, RepositoryError):
                found[name] = self.signer(name, trusted)
        return found

    def next_signer(self, name: str, external: External | None) -> Signer:
        """The key that is to follow *name*: *external*, or a new file; an interrupted rotation's is used again."""
        if external is not None:
            return self._opened(external, external.key())
        path = self._file(name + _NEXT)
        if path.exists():
            return read_key(self.folder, name + _NEXT, self._passphrase)
        return make_key(path, self._passphrase)

    def promote(self, name: str, external: External | None) -> None:
        """Put what :meth:`next_signer` gave in the place of *name*; its old file is kept as ``NAME-N.old``."""
        others = {key: value for key, value in self._remembered.items() if key != name}
        following = self._file(name + _NEXT)
        with mapped_os_errors(doing="put the new key in its place", path=following):
            if self._file(name).exists() and (external is not None or following.exists()):
                number = len(list(self.folder.glob(f"{name}-*.old"))) + 1
                FILES.rename(self._file(name), self.folder / f"{name}-{number}.old")
            if external is None and following.exists():
                FILES.rename(following, self._file(name))
            FILES.sync_directory(self.folder)
        kept = others if external is None else {**others, name: external}
        if kept != self._remembered:
            self._remember(kept)

    def _all(self, name: str, trusted: Mapping[str, Key]) -> Iterator[Signer]:
        external = self._given.get(name) or self._remembered.get(name)
        if external is not None:
            yield self._opened(external, self._public(external, trusted))
        for file in (name, name + _NEXT):
            if self._file(file).exists():
                yield read_key(self.folder, file, self._passphrase)

    def _public(self, external: External, trusted: Mapping[str, Key]) -> Key:
        if external.public_key or len(trusted) != 1:
            return external.key()
        return next(iter(trusted.values()))

    def _opened(self, external: External, key: Key) -> Signer:
        try:
            return Signer.from_priv_key_uri(external.uri, key, self._secret)
        except ConfigurationError:
            raise
        except Exception as exc:  # of any signer's library: they say themselves that it may be anything
            raise ConfigurationError(
                f"The signer {external.uri} cannot be used: {exc}",
                hint="Install what securesystemslib needs for it, and check the URI and the public key.",
            ) from exc

    def _secret(self, asked: str) -> str:
        if self._passphrase is None:
            raise ConfigurationError(f"The signer asks for {asked}.", hint="Give it with --passphrase-file.")
        return self._passphrase.decode()

    def _remember(self, externals: Mapping[str, External]) -> None:
        make_directories(self.folder)
        write_atomically(self.folder / _REMEMBERED, msgspec.json.format(msgspec.json.encode(externals)) + b"\n")
        self._remembered = dict(externals)

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.pem"


def _read_remembered(path: Path) -> dict[str, External]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, External])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as exc:
        raise ConfigurationError(
            f"{path} cannot be read: {exc}.", hint="It is a table of NAME → uri, public_key."
        ) from exc


learn(dict[str, External])
