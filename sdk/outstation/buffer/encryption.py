"""Between a plain block and the bytes that are stored."""

from __future__ import annotations

from outstation.errors import DecryptionError
from outstation.wire.block import FLAG_ENCRYPTED, BlockHeader


def plain_opener(header: BlockHeader, body: bytes, _serial: int) -> tuple[BlockHeader, bytes]:
    """Of a buffer without a key. DecryptionError for an encrypted block."""
    if header.flags & FLAG_ENCRYPTED:
        raise DecryptionError(
            f"The block at record {header.first_sequence} is encrypted with key {header.key_id}, which is not given.",
            hint="Give the key that the buffer was written with in the settings.",
        )
    return header, body


def plain_protector(header: BlockHeader, body: bytes, _serial: int) -> bytes:
    """Of a buffer without a key."""
    return header.pack() + body
