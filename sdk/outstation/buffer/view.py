"""Looking at a buffer that another process may own: reads only, takes no lock, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from outstation.buffer.encryption import Keys, Vault
from outstation.buffer.reading import ChangedError, Chunk, Place, StoredBlock, period_of, read_chunk, records_of
from outstation.buffer.recovery import Found, examine
from outstation.buffer.salvage import Salvage
from outstation.buffer.segment import Access, Damage, Opener, Segment, body_of, open_for_reading, walk
from outstation.durable import FILES, Files
from outstation.errors import CorruptBlockError, DecryptionError, InvalidInputError, WireError, mapped_os_errors
from outstation.types import STREAM_NAME, Ledger, Record, checked_name
from outstation.wire.block import BlockHeader, decode_body

STREAMS = "streams"


class Fault(NamedTuple):
    """Something in a stream's folder that is not as it should be."""

    path: Path
    serial: int  # of the segment; 0 for another file
    offset: int
    size: int
    what: str


@dataclass(slots=True)
class StreamView:
    """One stream as its files were when it was looked at."""

    name: str
    found: Found
    access: Access

    @property
    def stored_bytes(self) -> int:
        return sum(segment.file_bytes for segment in self.found.segments)

    @property
    def oldest_unix_nano(self) -> int:
        """The time stamp of the oldest block that is pending; 0 when none is."""
        block = next(self.blocks(self.found.balance.start), None)
        return block.header.earliest_unix_nano if block else 0

    def ledger(self) -> Ledger:
        balance = self.found.balance
        return Ledger(
            balance.last_sequence + balance.rejected,
            balance.acknowledged,
            balance.accounted_pending,
            balance.dropped(),
        )

    def blocks(self, after: int = 0) -> Iterator[StoredBlock]:
        """As :meth:`Stream.blocks`; what the owner removes meanwhile is passed over."""
        for segment in self.found.segments:
            place, exhausted = Place(segment.serial, 0, 0), segment.last_sequence <= after
            while not exhausted:
                try:
                    with mapped_os_errors(doing="read the stream", path=segment.path):
                        chunk = _chunk_of(self.access, segment, place, after)
                except _GoneError:
                    break
                yield from chunk.blocks
                place, exhausted = chunk.next_place, chunk.exhausted

    def read(
        self, after: int = 0, *, since_unix_nano: int | None = None, until_unix_nano: int | None = None
    ) -> Iterator[Record]:
        """As :meth:`Stream.read`."""
        return records_of(self.blocks(after), after, period_of(since_unix_nano, until_unix_nano))

    def faults(self) -> Iterator[Fault]:
        """Read every byte, check every checksum, decode every block. Of a running owner, without its torn tail."""
        found = self.found
        if found.state_damaged:
            yield Fault(found.folder / "state", 0, 0, 0, "the state file is damaged")
        if found.missing:
            yield Fault(found.folder, 0, 0, 0, f"{found.missing} records that the account has are in no file")
        for path in found.foreign:
            yield Fault(path, 0, 0, path.stat().st_size, "does not belong to this stream or place")
        for segment in found.segments:
            salvage = Salvage(self.access.files)
            with suppress(FileNotFoundError):  # the owner removed it meanwhile
                yield from self._faults_in(segment, salvage)
            for start, end in salvage.holes.get(segment.path, ()):
                yield Fault(segment.path, segment.serial, start, end - start, "cannot be read from the disk")

    def _faults_in(self, segment: Segment, files: Files) -> Iterator[Fault]:
        fd, size = open_for_reading(files, segment.path)
        end = min(size, segment.length) if not segment.sealed else size
        try:
            for piece in walk(files, fd, 0, end, self.access.epoch):
                if isinstance(piece, Damage):
                    what = "no whole frame"
                    yield Fault(segment.path, segment.serial, piece.offset, piece.end - piece.offset, what)
                elif isinstance(piece.head, BlockHeader):
                    body = body_of(files, fd, piece)
                    reason = "the body fails its checksum" if body is None else self._reason(piece.head, body, segment)
                    if reason:
                        yield Fault(segment.path, segment.serial, piece.offset, piece.size, reason)
        finally:
            files.close(fd)

    def _reason(self, header: BlockHeader, body: bytes, segment: Segment) -> str:
        try:
            decode_body(*self.access.opener(header, body, segment.serial))
        except (CorruptBlockError, DecryptionError, WireError) as exc:
            return str(exc)
        return ""


class _GoneError(Exception):
    """The owner removed or rewrote a segment since it was looked at."""


def _chunk_of(access: Access, segment: Segment, place: Place, after: int) -> Chunk:
    try:
        return read_chunk(access, segment, place, after)
    except (FileNotFoundError, ChangedError) as exc:
        raise _GoneError from exc


def look(directory: Path, keys: Keys, only: str | None = None) -> list[StreamView]:
    """Every stream in the buffer's *directory* (or *only* one), by name.

    DiskError; InvalidInputError when there is no buffer or no such stream.
    """
    folder = directory / STREAMS
    if not folder.is_dir():
        raise InvalidInputError(
            f"There is no buffer in {directory}.", hint="Name the station's data folder with --data."
        )
    with mapped_os_errors(doing="read the buffer", path=folder):
        names = sorted(entry.name for entry in folder.iterdir() if STREAM_NAME.fullmatch(entry.name))
        if only is not None and checked_name(STREAM_NAME, only, "stream") not in names:
            raise InvalidInputError(
                f"There is no stream {only!r} in {directory}.", hint=f"There are: {', '.join(names) or 'none'}."
            )
        chosen = names if only is None else [only]
        return [_look_at(folder / name, Vault(name, keys).open) for name in chosen]


def _look_at(folder: Path, opener: Opener) -> StreamView:
    tries = 5  # the owner may remove or rewrite a segment between the listing and the reading; then the listing is old
    while True:
        try:
            found = examine(folder, FILES, opener)
        except FileNotFoundError:
            tries -= 1
            if tries == 0:
                raise
            continue
        if found.missing and tries > 1:  # what is gone stays gone
            tries -= 1
            continue
        return StreamView(folder.name, found, Access(FILES, found.epoch, opener))
