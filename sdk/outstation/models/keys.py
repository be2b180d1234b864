"""Signing keys as files: made by `outstation model init`, read at each publish. PEM, mode 0600, passphrase optional.

The one file that needs ``cryptography`` (the extra ``signing``); a device verifies without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from outstation.errors import ConfigurationError, MissingExtraError, RepositoryError, from_os_error

try:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )
except ImportError as exc:
    raise MissingExtraError("signing", "Signing models") from exc
from securesystemslib.signer import CryptoSigner

ROOT_KEYS = ("root1", "root2", "root3")
ROOT_THRESHOLD = 2
ONLINE_ROLES = ("targets", "snapshot", "timestamp")


def make_keys(folder: Path, passphrase: bytes | None = None) -> dict[str, CryptoSigner]:
    """New Ed25519 keys for every role, each in a file ``NAME.pem`` of *folder* that only its owner can read.

    Never overwrites: RepositoryError if one is there. DiskError when it cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = (*ROOT_KEYS, *ONLINE_ROLES)
        for name in names:
            if (folder / f"{name}.pem").exists():
                raise RepositoryError(
                    f"{folder / f'{name}.pem'} is there already.",
                    hint="Choose another folder; keys are never overwritten.",
                )
        return {name: _make_key(folder / f"{name}.pem", passphrase) for name in names}
    except OSError as exc:
        raise from_os_error(exc, doing="write the keys", path=folder) from exc


def read_key(folder: Path, name: str, passphrase: bytes | None = None) -> CryptoSigner:
    """The signer of ``NAME.pem``. ConfigurationError when it is missing, no key, or the passphrase is wrong."""
    path = folder / f"{name}.pem"
    try:
        key = load_pem_private_key(path.read_bytes(), passphrase)
    except FileNotFoundError as exc:
        raise ConfigurationError(
            f"The key {path} is missing.", hint="Give the folder that `outstation model init` wrote with --keys."
        ) from exc
    except OSError as exc:
        raise from_os_error(exc, doing="read the key", path=path) from exc
    except TypeError as exc:  # encrypted and no passphrase, or the other way round
        raise ConfigurationError(
            f"The key {path} is {'not encrypted' if passphrase else 'encrypted'}.",
            hint="Leave out --passphrase-file." if passphrase else "Give its passphrase with --passphrase-file.",
        ) from exc
    except ValueError as exc:
        raise ConfigurationError(f"{path} cannot be read: wrong passphrase, or no key in PEM form.") from exc
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(f"{path} is no Ed25519 key.")
    return CryptoSigner(key)


def _make_key(path: Path, passphrase: bytes | None) -> CryptoSigner:
    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return CryptoSigner(key)
