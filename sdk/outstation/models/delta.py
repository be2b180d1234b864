"""Applying a delta: the file that is here and a small one that came make the file that is wanted. docs/delta.md.

This is the device's side: it needs zstd and nothing else, neither onnx nor numpy, which would cost a station that
computes elsewhere 20 MB of memory. Lanes are added up as one long whole number, a block of them at a time.

A delta is believed for nothing but the saving of bytes. Every size in it is compared with what it may be before it is
used, memory is bounded whatever it says, and the SHA-256 of the result decides.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO

from outstation import zstd
from outstation.errors import DeltaError, mapped, mapped_os_errors

MAGIC = b"OUTDELTA"
VERSION = 1
HEADER = struct.Struct("<8sHHQQ32s32s")
ENTRY = struct.Struct("<BBBxQ")

# The streams: what the result is made of, and the bytes for it.
PROGRAM, REST, RAW, DIFFERENCE, GAPS, VALUES = range(6)
# The steps of the program.
STEP_REST, STEP_COPY, STEP_RAW, STEP_DIFFERENCE, STEP_SPARSE = range(5)

LONG_GAP = 255  # so many unchanged lanes, and more to come: no changed one follows
WIDTHS = (1, 2, 4, 8)  # bytes of a lane, the part of a tensor that is subtracted as one number
BLOCK_LANES = 8192  # 8 to 64 KiB: what the arithmetic touches stays in a small processor's cache
MAX_STREAMS = 3 + 3 * sum(WIDTHS)
# A step takes some ten bytes a tensor of 256 bytes or more; a model with 100,000 tensors is a strange one.
MAX_PROGRAM_BYTES = 4 << 20
# What the old file's rest may be as a dictionary, which is held in memory; tensors are never part of it.
MAX_PREFIX_BYTES = 16 << 20
MAX_PREFIX_RANGES = 1 << 16
MIN_PREFIX_BYTES = 8
# Every stream of planes may be open at once, each with its window: 48 times 256 KiB at the worst. The rest's window
# has to reach over the dictionary.
PLANE_WINDOW_LOG = 18
REST_WINDOW_LOG = 25
_READ_BYTES = 64 << 10
_COPY_BYTES = 256 << 10

Key = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class DeltaHeader:
    """What a delta says of itself. ``streams``: kind, lane width, plane → offset and size in the delta's file."""

    base_size: int
    result_size: int
    base_sha256: str
    result_sha256: str
    streams: dict[Key, tuple[int, int]]


def read_header(file: IO[bytes], size: int) -> DeltaHeader:
    """The header of the delta in *file*, which has *size* bytes; DeltaError when it is none."""
    data = file.read(HEADER.size)
    if len(data) < HEADER.size or data[: len(MAGIC)] != MAGIC:
        raise DeltaError("This is no delta: it does not begin like one.")
    _, version, count, base_size, result_size, base, result = HEADER.unpack(data)
    if version != VERSION:
        raise DeltaError(f"The delta is of version {version}; this Outstation reads {VERSION}.")
    if count > MAX_STREAMS:
        raise DeltaError(f"The delta has {count} streams; {MAX_STREAMS} is the most.")
    table = file.read(count * ENTRY.size)
    if len(table) < count * ENTRY.size:
        raise DeltaError("The delta ends within its header.")
    offset = HEADER.size + len(table)
    streams: dict[Key, tuple[int, int]] = {}
    for kind, width, plane, packed in ENTRY.iter_unpack(table):
        if (kind, width, plane) in streams:
            raise DeltaError("The delta has a stream twice.")
        streams[kind, width, plane] = (offset, packed)
        offset += packed
    if offset != size:
        raise DeltaError(f"The delta has {size} bytes; its streams end at {offset}.")
    return DeltaHeader(base_size, result_size, base.hex(), result.hex(), streams)


def apply_delta(
    delta: Path,
    base: Path,
    target: Path,
    *,
    sha256: str,
    size_bytes: int,
    pulse: Callable[[], None] = lambda: None,
) -> None:
    """Make *target* out of *base* and *delta*; *sha256* and *size_bytes* are what was signed for it.

    *target* is replaced, and is not there afterwards if anything was raised; it is not synced. Reads *base* twice,
    *delta* once; memory does not grow with either. *pulse* is called between blocks and may raise to stop. Raises
    DeltaError when the base is another one, the delta is damaged or lies; DiskFullError, DiskError.
    """
    try:
        with (
            mapped_os_errors(doing="apply the delta", path=target),
            delta.open("rb") as packed,
            base.open("rb", buffering=0) as old,
            target.open("wb") as new,
        ):
            header = read_header(packed, os.fstat(packed.fileno()).st_size)
            if (header.result_sha256, header.result_size) != (sha256, size_bytes):
                raise DeltaError(f"The delta makes {header.result_sha256[:12]}…, {sha256[:12]}… is wanted.")
            _check_base(header, old)
            with mapped({zstd.ZstdError: DeltaError, EOFError: DeltaError}, doing="decompress the delta"):
                found = _Application(header, packed, old, new).run(pulse)
            if found != sha256:
                raise DeltaError(f"The delta gives a file with sha256 {found[:12]}…, {sha256[:12]}… was signed.")
    except BaseException:
        with suppress(OSError):
            target.unlink()
        raise


def _check_base(header: DeltaHeader, base: IO[bytes]) -> None:
    size = os.fstat(base.fileno()).st_size
    if size != header.base_size:
        raise DeltaError(f"The delta was made from a file of {header.base_size} bytes; this one has {size}.")
    digest = hashlib.sha256()
    while piece := base.read(_COPY_BYTES):
        digest.update(piece)
    if digest.hexdigest() != header.base_sha256:
        raise DeltaError(f"The delta was made from {header.base_sha256[:12]}…, this is {digest.hexdigest()[:12]}….")


class _Application:
    """One delta being applied: its streams as far as they were read, and what was written."""

    def __init__(self, header: DeltaHeader, delta: IO[bytes], base: IO[bytes], target: IO[bytes]) -> None:
        self._header = header
        self._delta = delta.fileno()
        self._base = base.fileno()
        self._target = target
        self._digest = hashlib.sha256()
        self._written = 0
        self._open: dict[Key, _Stream] = {}

    def run(self, pulse: Callable[[], None]) -> str:
        """Write the result; its SHA-256."""
        program = _Program(self._stream(PROGRAM).read_to_end(MAX_PROGRAM_BYTES))
        prefix = self._prefix(program)
        if (REST, 1, 0) in self._header.streams:
            self._open[REST, 1, 0] = self._opened((REST, 1, 0), REST_WINDOW_LOG, prefix)
        while not program.ended:
            for piece in self._step(program):
                self._write(piece)
                pulse()
        if self._written != self._header.result_size:
            raise DeltaError(f"The delta gives {self._written} bytes of {self._header.result_size}.")
        return self._digest.hexdigest()

    def _write(self, piece: bytes | bytearray) -> None:
        self._target.write(piece)
        self._digest.update(piece)
        self._written += len(piece)

    def _prefix(self, program: _Program) -> bytes:
        pieces = []
        room = MAX_PREFIX_BYTES
        count = program.number()
        if count > MAX_PREFIX_RANGES:
            raise DeltaError(f"The delta's dictionary has {count} parts; {MAX_PREFIX_RANGES} is the most.")
        for _ in range(count):
            offset, size = program.number(), program.number()
            room -= size
            if room < 0:
                raise DeltaError(f"The delta's dictionary is larger than {MAX_PREFIX_BYTES} bytes.")
            pieces.append(self._read_base(offset, size))
        if 0 < MAX_PREFIX_BYTES - room < MIN_PREFIX_BYTES:
            raise DeltaError("The delta's dictionary is smaller than zstd takes.")
        return b"".join(pieces)

    def _step(self, program: _Program) -> Iterator[bytes | bytearray]:
        """The bytes of the next step, a piece at a time."""
        step = program.number()
        if step in {STEP_REST, STEP_COPY}:
            offset = program.number() if step == STEP_COPY else 0
            return self._bytes(step, offset, self._room(program.number(), 1))
        if step not in {STEP_RAW, STEP_DIFFERENCE, STEP_SPARSE}:
            raise DeltaError(f"The delta has a step {step}, which is not known.")
        width = program.number()
        if width not in WIDTHS:
            raise DeltaError(f"The delta has lanes of {width} bytes.")
        offset = 0 if step == STEP_RAW else program.number()
        lanes = self._room(program.number(), width)
        entries = [program.number() for _ in range(-(-lanes // BLOCK_LANES))] if step == STEP_SPARSE else []
        return self._lanes(step, width, offset, lanes, entries)

    def _room(self, count: int, width: int) -> int:
        """*count*, if so many lanes of *width* bytes are still wanted."""
        if not 0 < count * width <= self._header.result_size - self._written:
            raise DeltaError("The delta gives more bytes than it says, or a step without any.")
        return count

    def _bytes(self, step: int, offset: int, size: int) -> Iterator[bytes]:
        for done in range(0, size, _COPY_BYTES):
            take = min(_COPY_BYTES, size - done)
            yield self._read_base(offset + done, take) if step == STEP_COPY else self._stream(REST).read(take)

    def _lanes(self, step: int, width: int, offset: int, lanes: int, entries: list[int]) -> Iterator[bytes | bytearray]:
        for number, done in enumerate(range(0, lanes, BLOCK_LANES)):
            count = min(BLOCK_LANES, lanes - done)
            if step == STEP_RAW:
                yield self._planes(RAW, width, count)
                continue
            old = self._read_base(offset + done * width, count * width)
            if step == STEP_DIFFERENCE:
                yield _added(old, self._planes(DIFFERENCE, width, count), width)
            elif entries[number]:
                yield self._changed(old, width, entries[number])
            else:
                yield old

    def _planes(self, kind: int, width: int, count: int) -> bytearray:
        """The next *count* lanes, whose first bytes, second bytes and so on are streams of their own."""
        lanes = bytearray(count * width)
        for plane in range(width):
            lanes[plane::width] = self._stream(kind, width, plane).read(count)
        return lanes

    def _changed(self, old: bytes, width: int, entries: int) -> bytearray:
        """*old* with the differences that come next added to some lanes, which are named by the gaps before them."""
        if entries > 2 * len(old) // width:
            raise DeltaError("The delta names more lanes than a block has.")
        places = _places(self._stream(GAPS).read(entries))
        if places and places[-1] >= len(old) // width:
            raise DeltaError("The delta names a lane beyond the end of its block.")
        lanes = bytearray(old)
        if places:
            found = bytearray(len(places) * width)
            for plane in range(width):
                column = old[plane::width]
                found[plane::width] = bytes([column[place] for place in places])
            total = _added(found, self._planes(VALUES, width, len(places)), width)
            for plane in range(width):
                changed = lanes[plane::width]
                for place, value in zip(places, total[plane::width], strict=True):
                    changed[place] = value
                lanes[plane::width] = changed
        return lanes

    def _read_base(self, offset: int, size: int) -> bytes:
        if offset + size > self._header.base_size:
            raise DeltaError("The delta refers to bytes beyond the end of its base.")
        data = os.pread(self._base, size, offset)
        if len(data) != size:  # a pread of a regular file is short only at its end: it was cut since it was checked
            raise DeltaError("The base became shorter while the delta was applied.")
        return data

    def _stream(self, kind: int, width: int = 1, plane: int = 0) -> _Stream:
        key = (kind, width, plane)
        stream = self._open.get(key)
        if stream is None:
            stream = self._open[key] = self._opened(key, PLANE_WINDOW_LOG)
        return stream

    def _opened(self, key: Key, window_log: int, prefix: bytes = b"") -> _Stream:
        if key not in self._header.streams:
            raise DeltaError(f"The delta has no stream {key}, but needs it.")
        return _Stream(self._delta, *self._header.streams[key], window_log, prefix)


class _Stream:
    """One zstd frame in the delta's file, read from its beginning to its end."""

    def __init__(self, fd: int, offset: int, size: int, window_log: int, prefix: bytes = b"") -> None:
        self._fd = fd
        self._offset = offset
        self._end = offset + size
        dictionary = zstd.ZstdDict(prefix, is_raw=True).as_prefix if prefix else None
        options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: window_log}
        self._frame = zstd.ZstdDecompressor(dictionary, options)

    def read(self, size: int) -> bytes:
        """Exactly *size* bytes; DeltaError when there are fewer."""
        piece = self._more(size)
        if len(piece) == size:
            return piece
        pieces = [piece]
        missing = size - len(piece)
        while missing:
            piece = self._more(missing)
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    def read_to_end(self, most: int) -> bytes:
        """All of it; DeltaError when that is more than *most* bytes."""
        pieces = []
        size = 0
        while not self._frame.eof:
            piece = self._more(most + 1 - size)
            size += len(piece)
            if size > most:
                raise DeltaError(f"A stream of the delta is larger than {most} bytes.")
            pieces.append(piece)
        return b"".join(pieces)

    def _more(self, most: int) -> bytes:
        """Up to *most* bytes; none only when more of the file has to be read."""
        data = b""
        if self._frame.needs_input:
            data = os.pread(self._fd, min(_READ_BYTES, self._end - self._offset), self._offset)
            self._offset += len(data)
            if not data:
                raise DeltaError("A stream of the delta ends too early.")
        piece: bytes = self._frame.decompress(data, most)
        return piece


class _Program:
    """Whole numbers without sign, seven bits a byte, the lowest first."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def ended(self) -> bool:
        return self._at >= len(self._data)

    def number(self) -> int:
        value = shift = 0
        while True:
            if self.ended or shift > 56:  # nine bytes: more than any file has
                raise DeltaError("The delta's program is cut or holds a number that is none.")
            byte = self._data[self._at]
            self._at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7


def _places(gaps: bytes) -> list[int]:
    """Which lanes of a block are changed, in order: after each gap comes one, but not after a long gap."""
    places: list[int] = []
    at = 0
    for run in gaps.split(bytes([LONG_GAP])):
        places += [index + skipped for index, skipped in enumerate(accumulate(run), at)]
        at = (places[-1] + 1 if run else at) + LONG_GAP
    return places


@lru_cache(maxsize=8)  # the full block of each width, and the last blocks of the tensors at hand
def _masks(width: int, lanes: int) -> tuple[int, int, int]:
    """The lowest bit of every lane, the highest, and all but the highest."""
    lowest = int.from_bytes((b"\x01" + bytes(width - 1)) * lanes, "little")
    highest = lowest << (8 * width - 1)
    return lowest, highest, highest - lowest


def _added(old: bytes | bytearray, differences: bytearray, width: int) -> bytes:
    """Lanes of *old* plus the signed *differences* (0, -1, 1, -2, ... as 0, 1, 2, 3, ...), each modulo its width.

    All lanes are added at once, as two long numbers: the highest bit of each lane is kept out of the sum, so that
    nothing carries over into the next lane, and put in again without a carry.
    """
    lowest, highest, others = _masks(width, len(old) // width)
    coded = int.from_bytes(differences, "little")
    base = int.from_bytes(old, "little")
    negative = coded & lowest
    signed = ((coded >> 1) & others) ^ ((negative << (8 * width)) - negative)
    total = ((base & others) + (signed & others)) ^ ((base ^ signed) & highest)
    return total.to_bytes(len(old), "little")
