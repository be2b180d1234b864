"""Between a plain block and the bytes that are stored: nothing, or AES-256-GCM.

An encrypted block keeps its header in the clear; its body is a nonce of 12 bytes, the ciphertext of the plain stored
body, and a tag of 16. The associated data is the header (with both checksums zero), the stream's name and the serial
of the segment: a block that was moved to another stream, segment or place does not open. docs/format.md says it all.
"""

from __future__ import annotations

import hmac
import os
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from outstation.durable import Files, write_atomically
from outstation.errors import DecryptionError, MissingExtraError, SettingsError
from outstation.settings import BufferSettings
from outstation.wire.block import FLAG_ENCRYPTED, BlockHeader

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

NONCE_BYTES, TAG_BYTES, KEY_BYTES = 12, 16, 32
OVERHEAD_BYTES = NONCE_BYTES + TAG_BYTES
FILE_NAME = "keys"  # of the folder: by number, what tells a key from another without telling the key
_CHECK = b"outstation buffer key check 1"
# With random nonces a key serves for 2**32 blocks; at one block a second that is 136 years.
_MAX_KEY_FILE_BYTES = 1024


@dataclass(frozen=True)
class Keys:
    """The keys that a buffer may be read with, by number, and the one it is written with (0 = none)."""

    current: int = 0
    ciphers: Mapping[int, AESGCM] = field(default_factory=dict)
    checks: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: BufferSettings, environ: Mapping[str, str] | None = None) -> Keys:
        """The keys that *settings* name. SettingsError for one that cannot be had; MissingExtraError."""
        if not settings.keys:
            return cls()
        sources = {_key_id(name): source for name, source in settings.keys.items()}
        if settings.key_id not in sources:
            raise SettingsError(
                f"buffer.key_id is {settings.key_id}, and buffer.keys has no such key.",
                hint=f"Known keys: {', '.join(map(str, sorted(sources)))}.",
            )
        aead = _aead()
        known = os.environ if environ is None else environ
        keys = {number: _read_key(source, known) for number, source in sources.items()}
        return cls(
            settings.key_id,
            {number: aead(key) for number, key in keys.items()},
            {number: hmac.digest(key, _CHECK, "sha256")[:8].hex() for number, key in keys.items()},
        )

    def confirm(self, folder: Path, files: Files) -> None:
        """Refuse a key that is not the one *folder* knows by its number; remember those it meets first.

        Otherwise a wrong key would be noticed only when the blocks written with it are read. DecryptionError,
        DiskError.
        """
        if not self.ciphers:
            return
        path = folder / FILE_NAME
        try:
            known = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            known = {}
        for number, check in self.checks.items():
            if known.get(str(number), check) != check:
                raise DecryptionError(
                    f"Key {number} is not the one that the buffer in {folder} was written with.",
                    hint="Give the right key, or give the new one a new number and set buffer.key_id to it.",
                )
        both = {**known, **{str(number): check for number, check in self.checks.items()}}
        if both != known:
            write_atomically(path, msgspec.json.encode(both) + b"\n", files=files)


class Vault:
    """Opens and protects the blocks of one stream. Thread-safe."""

    def __init__(self, stream: str, keys: Keys) -> None:
        self._stream = stream.encode()
        self._keys = keys

    def protect(self, header: BlockHeader, body: bytes, serial: int) -> bytes:
        """The bytes that are stored for a plain block in the segment *serial*."""
        current = self._keys.current
        if current == 0:
            return header.pack() + body
        sealed = header._replace(
            flags=header.flags | FLAG_ENCRYPTED, key_id=current, body_bytes=len(body) + OVERHEAD_BYTES
        )
        nonce = secrets.token_bytes(NONCE_BYTES)
        stored = nonce + self._keys.ciphers[current].encrypt(nonce, body, self._bound(sealed, serial))
        return sealed._replace(body_crc=zlib.crc32(stored)).pack() + stored

    def open(self, header: BlockHeader, body: bytes, serial: int) -> tuple[BlockHeader, bytes]:
        """The plain block of a stored one. DecryptionError: no such key, a wrong one, or the block was moved."""
        if not header.flags & FLAG_ENCRYPTED:
            return header, body  # there is no key, or there was none when it was written
        cipher = self._keys.ciphers.get(header.key_id)
        if cipher is None:
            raise DecryptionError(
                f"The block at record {header.first_sequence} of the stream {self._stream.decode()!r} is encrypted "
                f"with key {header.key_id}, which is not given.",
                hint=f"Add the key to buffer.keys as {header.key_id}; old keys stay there until their blocks are gone.",
            )
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  there, or there would be no cipher

        nonce, sealed = body[:NONCE_BYTES], body[NONCE_BYTES:]
        try:
            plain = cipher.decrypt(nonce, sealed, self._bound(header, serial))
        except InvalidTag as exc:
            raise DecryptionError(
                f"The block at record {header.first_sequence} of the stream {self._stream.decode()!r} does not open: "
                f"key {header.key_id} is not the one it was written with, or the block was moved or forged.",
                hint="Compare the key with the one of the device; `outstation buffer verify` lists the blocks.",
            ) from exc
        opened = header._replace(
            flags=header.flags & ~FLAG_ENCRYPTED, key_id=0, body_bytes=len(plain), body_crc=zlib.crc32(plain)
        )
        return opened, plain

    def _bound(self, header: BlockHeader, serial: int) -> bytes:
        return header._replace(body_crc=0).pack()[:-4] + serial.to_bytes(8, "little") + self._stream


def _aead() -> type[AESGCM]:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  an extra
    except ImportError as exc:
        raise MissingExtraError("signing", "Encryption of the buffer") from exc
    return AESGCM


def _key_id(name: str) -> int:
    if not name.isdigit() or not 0 < int(name) < 1 << 32:
        raise SettingsError(f"{name!r} in buffer.keys is no number of a key.", hint="Keys are numbered from 1.")
    return int(name)


def _read_key(source: str, environ: Mapping[str, str]) -> bytes:
    kind, _, where = source.partition(":")
    if kind == "env":
        text = environ.get(where, "")
        if not text:
            raise SettingsError(f"The environment has no {where}, which buffer.keys names.")
    elif kind == "file":
        try:
            text = Path(where).read_text(encoding="ascii")[:_MAX_KEY_FILE_BYTES]
        except (OSError, UnicodeDecodeError) as exc:
            raise SettingsError(f"The key file {where} cannot be read: {exc}.") from exc
    else:
        raise SettingsError(f"{source!r} names no key.", hint="Write file:PATH or env:NAME.")
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise SettingsError(
            f"The key in {source} is not {KEY_BYTES} bytes in hexadecimal.", hint="Make one with: openssl rand -hex 32"
        )
    return key
