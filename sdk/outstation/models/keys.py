"""Signing keys as files: made by `outstation model init`, read at each publish. PEM, mode 0600, passphrase optional.

The one file that needs ``cryptography`` (the extra ``signing``); a device verifies without it.
"""

from __future__ import annotations

import os
from pathlib import Path

from outstation.errors import ConfigurationError, MissingExtraError, from_os_error, mapped_os_errors

try:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
        load_pem_public_key,
    )
except ImportError as exc:
    raise MissingExtraError("signing", "Signing models") from exc
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

ROOT_KEYS = ("root1", "root2", "root3")
ROOT_THRESHOLD = 2
ONLINE_ROLES = ("targets", "snapshot", "timestamp")


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


def make_key(path: Path, passphrase: bytes | None = None) -> CryptoSigner:
    """A new Ed25519 key in the file *path*, that only its owner can read. Never overwrites. StorageError."""
    key = Ed25519PrivateKey.generate()
    encryption = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    with mapped_os_errors(doing="write the key", path=path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    return CryptoSigner(key)


def read_public_key(text: str) -> Key:
    """The public key in the PEM *text*, of any kind that python-tuf can verify; ConfigurationError if it is none."""
    try:
        return SSlibKey.from_crypto(load_pem_public_key(text.encode()))
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ConfigurationError(
            f"That is no public key in PEM form: {exc}.", hint="As `openssl pkey -pubout` writes it."
        ) from exc
