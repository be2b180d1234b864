"""One block: many records in one checksummed, usually compressed, piece. The same bytes lie on disk and travel.

A block is a fixed header of 76 bytes and a body. Integers are little-endian. docs/format.md is the normative text.

The body is columnar, because columns compress far better than rows and cost Python one call a column, not one a
record::

    u16 metas   { u16+utf8 content type, u16 attributes { u16+utf8 key, u32+utf8 value } }
    u16 marks   { u16+utf8 producer, u64 number }
    u16[count]  which meta a record has          only if metas > 1
    u32[count]  sequence - first_sequence        only with FLAG_SPARSE
    i64[count]  time: the first as it is, then differences
    u32[count]  payload sizes
    payloads

A *mark* is the highest number taken from one producer, stored in the block that holds the records themselves, so
that both survive a crash or neither does: whoever may send again is recognised (see ``Stream.append``).
"""

from __future__ import annotations

import operator
import struct
import sys
import threading
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from outstation import zstd
from outstation.errors import CorruptBlockError, UnsupportedVersionError, WireError
from outstation.wire.columns import Columns, Meta, Payloads

MAGIC = b"OBLK"
VERSION = 1
CODEC_RAW, CODEC_ZSTD = 0, 1
FLAG_ENCRYPTED = 1
FLAG_SPARSE = 2  # records were thinned or trimmed away: sequence numbers have gaps
KNOWN_FLAGS = FLAG_ENCRYPTED | FLAG_SPARSE

_HEADER = struct.Struct("<4sBBHQQIIIIQqqIII")
HEADER_BYTES = _HEADER.size
# A body is held in memory whole, more than once. 64 MiB leaves a small machine standing, and bounds a bomb.
MAX_BODY_BYTES = 64 << 20
MAX_RECORDS = 1 << 20  # in one block: bounds what a header of 76 bytes can make a reader allocate
MAX_METAS = 0xFFFF
_SAMPLE_BYTES = 4 << 10  # costs 10 us and tells JPEG from text
_SMALLEST_COMPRESSED = 256  # below, zstd's own header takes most of what it saves
_of_thread = threading.local()
_SHORT = "A block's body ends before its columns do."
_LITTLE = sys.byteorder == "little"
_GUARD = (1 << 63).to_bytes(8, "little")


class BlockHeader(NamedTuple):  # a tuple: opening a backlog makes very many of them
    """The fixed part. ``span`` counts sequence numbers covered, ``count`` records present (fewer when sparse)."""

    codec: int
    flags: int
    epoch: int
    first_sequence: int
    span: int
    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody needs here
    body_bytes: int  # as stored
    raw_bytes: int  # decompressed
    payload_bytes: int
    earliest_unix_nano: int
    latest_unix_nano: int
    key_id: int
    body_crc: int

    @property
    def last_sequence(self) -> int:
        return self.first_sequence + self.span - 1

    @property
    def block_bytes(self) -> int:
        return HEADER_BYTES + self.body_bytes

    def pack(self) -> bytes:
        head = _HEADER.pack(
            MAGIC,
            VERSION,
            self.codec,
            self.flags,
            self.epoch,
            self.first_sequence,
            self.span,
            self.count,
            self.body_bytes,
            self.raw_bytes,
            self.payload_bytes,
            self.earliest_unix_nano,
            self.latest_unix_nano,
            self.key_id,
            self.body_crc,
            0,
        )[:-4]
        return head + zlib.crc32(head).to_bytes(4, "little")

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> BlockHeader:
        """The header at the start of *data*. CorruptBlockError, or UnsupportedVersionError for a newer format."""
        if len(data) < HEADER_BYTES:
            raise CorruptBlockError(f"A block header needs {HEADER_BYTES} bytes, {len(data)} are there.")
        values = _HEADER.unpack_from(data)
        if values[0] != MAGIC:
            raise CorruptBlockError("There is no block here: the magic bytes are missing.")
        if zlib.crc32(data[: HEADER_BYTES - 4]) != values[-1]:
            raise CorruptBlockError("A block header fails its checksum.")
        version, flags = values[1], values[3]
        if version > VERSION or flags & ~KNOWN_FLAGS or values[2] not in (CODEC_RAW, CODEC_ZSTD):
            raise UnsupportedVersionError(f"A block of format {version} with codec {values[2]} and flags {flags:#x}.")
        header = cls(values[2], flags, *values[4:-1])
        if not (0 < header.count <= header.span and header.count <= MAX_RECORDS and header.first_sequence > 0):
            raise CorruptBlockError("A block header counts what cannot be.")
        if max(header.body_bytes, header.raw_bytes) > MAX_BODY_BYTES or header.payload_bytes > header.raw_bytes:
            raise CorruptBlockError(f"A block header claims more than {MAX_BODY_BYTES} bytes.")
        return header


@dataclass(slots=True)
class Draft:
    """The records of one block before it is packed, by column, each column in the shape that costs least to pack."""

    first_sequence: int
    span: int
    times: array[int]  # "q", one a record
    sizes: array[int]  # "I", one a record
    payloads: Sequence[bytes | memoryview]  # in order; one piece may hold the payloads of many records
    metas: Sequence[bytes]  # of encode_meta
    index: array[int] | None = None  # "H", which of the metas a record has; None = all have the only one
    marks: Mapping[str, int] = field(default_factory=dict)
    offsets: array[int] | None = None  # "I", sequence - first_sequence; None = no number is missing

    def pack(self, *, epoch: int, level: int = 3, doubtful: bool = True) -> tuple[BlockHeader, bytes]:
        """Header and body as stored. Not *doubtful*: content of this kind is known to compress. Raises WireError."""
        count = len(self.times)
        earliest = min(self.times)
        raw = self._body(earliest)
        if len(raw) > MAX_BODY_BYTES or count > MAX_RECORDS:
            raise WireError(f"{count} records of {len(raw)} bytes do not fit one block.")
        body, codec = _compress(raw, level, doubtful)
        header = BlockHeader(
            codec,
            0 if self.offsets is None else FLAG_SPARSE,
            epoch,
            self.first_sequence,
            self.span,
            count,
            len(body),
            len(raw),
            sum(map(len, self.payloads)),
            earliest,
            max(self.times),
            0,
            zlib.crc32(body),
        )
        return header, body

    def _body(self, earliest: int) -> bytes:
        metas, marks = self.metas, self.marks
        parts: list[bytes | memoryview] = [len(metas).to_bytes(2, "little"), *metas, len(marks).to_bytes(2, "little")]
        for producer, number in marks.items():
            parts += [_text(producer, 2), number.to_bytes(8, "little")]
        if self.index is not None:
            parts.append(_column(self.index))
        if self.offsets is not None:
            parts.append(_column(self.offsets))
        parts += [_differences(self.times, earliest), _column(self.sizes), *self.payloads]
        return b"".join(parts)


def encode(
    columns: Columns, *, epoch: int, level: int = 3, span: int | None = None, first_sequence: int | None = None
) -> bytes:
    """*columns* as one block.

    *first_sequence* and *span* may reach before the first and past the last record, when what stood there was
    dropped. *level* is zstd's; 0 stores without compressing. Raises WireError when the records do not fit one block.
    """
    header, body = drafted(columns, span=span, first_sequence=first_sequence).pack(epoch=epoch, level=level)
    return header.pack() + body


def drafted(columns: Columns, *, span: int | None = None, first_sequence: int | None = None) -> Draft:
    """*columns* as a draft; *span* and *first_sequence* as of :func:`encode`. Raises WireError for what never fits."""
    sequences = columns.sequences
    first = sequences[0] if first_sequence is None else first_sequence
    span = sequences[-1] - first + 1 if span is None else span
    try:
        return Draft(
            first,
            span,
            array("q", columns.times),
            array("I", map(len, columns.payloads)),
            columns.payloads,
            list(map(encode_meta, columns.metas)),
            array("H", columns.meta_index or ()) if len(columns.metas) > 1 else None,
            columns.marks,
            None if span == len(columns) else array("I", [sequence - first for sequence in sequences]),
        )
    except OverflowError as exc:
        raise WireError("Times or sequence numbers do not fit a block.") from exc


def decode(data: bytes | memoryview) -> tuple[BlockHeader, Columns]:
    """One whole block. CorruptBlockError when anything is not as the header and its checksums say."""
    header = BlockHeader.unpack(data)
    body = memoryview(data)[HEADER_BYTES : header.block_bytes]
    return header, decode_body(header, body)


def decode_body(header: BlockHeader, body: bytes | memoryview) -> Columns:
    """The records in a stored, already decrypted, *body* of *header*."""
    if len(body) != header.body_bytes or zlib.crc32(body) != header.body_crc:
        raise CorruptBlockError(f"The block at sequence {header.first_sequence} fails its checksum.")
    return _decode_raw(header, _decompress(header, body))


def decode_marks(header: BlockHeader, body: bytes | memoryview) -> dict[str, int]:
    """Only the marks of a stored, already decrypted, *body*; much cheaper than its records."""
    return _read_head(_Reader(_decompress(header, body)))[1]


def _compress(raw: bytes, level: int, doubtful: bool) -> tuple[bytes, int]:
    if level == 0 or len(raw) < _SMALLEST_COMPRESSED or (doubtful and not _worth_compressing(raw)):
        return raw, CODEC_RAW
    packed = _compressor(level).compress(raw, zstd.ZstdCompressor.FLUSH_FRAME)
    return (packed, CODEC_ZSTD) if len(packed) < len(raw) else (raw, CODEC_RAW)


def _compressor(level: int) -> zstd.ZstdCompressor:
    """The compressor of this thread: making one costs more than compressing a small block."""
    made: dict[int, zstd.ZstdCompressor] | None = getattr(_of_thread, "compressors", None)
    if made is None:
        made = _of_thread.compressors = {}
    found = made.get(level)
    if found is None:
        found = made[level] = zstd.ZstdCompressor(level)
    return found


def _worth_compressing(raw: bytes) -> bool:
    """Whether a sample from the middle shrinks: pictures and archives are not compressed a second time in vain."""
    if len(raw) < 8 * _SAMPLE_BYTES:
        return True
    middle = len(raw) // 2
    return len(zstd.compress(raw[middle : middle + _SAMPLE_BYTES], 1)) < _SAMPLE_BYTES * 0.97


def _decompress(header: BlockHeader, body: bytes | memoryview) -> bytes:
    if header.codec == CODEC_RAW:
        raw = bytes(body)
    else:
        try:
            # One byte more than claimed is enough to see a lie, and bounds what a bomb can unpack to.
            raw = zstd.ZstdDecompressor().decompress(body, max_length=header.raw_bytes + 1)
        except zstd.ZstdError as exc:
            raise CorruptBlockError(f"The block at sequence {header.first_sequence} does not decompress.") from exc
    if len(raw) != header.raw_bytes:
        raise CorruptBlockError(f"The block at sequence {header.first_sequence} is not of the size it claims.")
    return raw


def _text(value: str, width: int) -> bytes:
    data = value.encode()
    return len(data).to_bytes(width, "little") + data


@lru_cache(maxsize=256)  # writers repeat a few
def encode_meta(meta: Meta) -> bytes:
    """Content type and attributes as a block holds them."""
    content_type, attributes = meta
    parts = [_text(content_type, 2), len(attributes).to_bytes(2, "little")]
    for key, value in attributes:
        parts += [_text(key, 2), _text(value, 4)]
    return b"".join(parts)


def _column(column: array[int]) -> bytes:
    if not _LITTLE:
        column = column[:]
        column.byteswap()
    return column.tobytes()


def _differences(times: array[int], earliest: int) -> bytes:
    """The column of times as stored: the first as it is, each other less the one before it."""
    if earliest < 0:  # never one of ours; a block of somebody else's that is cut
        try:
            return _column(array("q", [times[0], *map(operator.sub, times[1:], times)]))
        except OverflowError as exc:
            raise WireError("The times of a block lie too far apart.") from exc
    # All at once, as one long number: a bit that no value has keeps each lane's borrow from its neighbour. It takes a
    # third of the time of a subtraction a record.
    column = _column(times)
    if len(times) == 1:
        return column
    guard = int.from_bytes(_GUARD * len(times), "little")
    before = int.from_bytes(column[:-8], "little") << 64
    return (((int.from_bytes(column, "little") | guard) - before) ^ guard).to_bytes(len(column), "little")


class _Reader:
    """A cursor over a body that never reads past its end."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def integer(self, width: int) -> int:
        at = self._at
        self._at = end = at + width
        if end > len(self._raw):
            raise CorruptBlockError(_SHORT)
        return int.from_bytes(self._raw[at:end], "little")

    def text(self, width: int) -> str:
        raw, at = self._raw, self._at
        start = at + width
        self._at = end = start + int.from_bytes(raw[at:start], "little")
        if end > len(raw):
            raise CorruptBlockError(_SHORT)
        return raw[start:end].decode()

    def column(self, typecode: str, count: int) -> array[int]:
        column = array(typecode)
        at = self._at
        self._at = end = at + count * column.itemsize
        if end > len(self._raw):
            raise CorruptBlockError(_SHORT)
        column.frombytes(memoryview(self._raw)[at:end])
        if not _LITTLE:
            column.byteswap()
        return column

    def payloads(self, sizes: array[int]) -> Payloads:
        if self._at + sum(sizes) != len(self._raw):
            raise CorruptBlockError("A block's payloads do not fill its body.")
        return Payloads(self._raw, self._at, sizes)


def _read_head(reader: _Reader) -> tuple[list[Meta], dict[str, int]]:
    integer, text = reader.integer, reader.text
    try:
        metas: list[Meta] = []
        for _ in range(integer(2)):
            content_type = text(2)
            metas.append((content_type, tuple([(text(2), text(4)) for _ in range(integer(2))])))
        return metas, {text(2): integer(8) for _ in range(integer(2))}
    except UnicodeDecodeError as exc:
        raise CorruptBlockError("A block's attributes are not UTF-8.") from exc


def _decode_raw(header: BlockHeader, raw: bytes) -> Columns:
    reader = _Reader(raw)
    metas, marks = _read_head(reader)
    count = header.count
    index = reader.column("H", count) if len(metas) > 1 else None
    if not metas or (index is not None and max(index) >= len(metas)):
        raise CorruptBlockError("A block's records point at attributes that are not there.")
    sequences: Sequence[int] = range(header.first_sequence, header.first_sequence + count)
    if header.flags & FLAG_SPARSE:
        offsets = reader.column("I", count)
        if any(map(operator.ge, offsets, offsets[1:])) or offsets[-1] >= header.span:
            raise CorruptBlockError("A block's sequence numbers do not ascend within its span.")
        sequences = [header.first_sequence + offset for offset in offsets]
    elif header.span != count:
        raise CorruptBlockError("A dense block covers as many sequence numbers as it has records.")
    times = list(accumulate(reader.column("q", count)))
    return Columns(sequences, times, reader.payloads(reader.column("I", count)), index, metas, marks)
