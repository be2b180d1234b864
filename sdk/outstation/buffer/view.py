"""Looking at a buffer that another process may own: reads only, takes no lock, changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from outstation.buffer.encryption import Keys, Vault
from outstation.buffer.reading import Place, StoredBlock, read_chunk
from outstation.buffer.recovery import Found, examine
from outstation.buffer.segment import Access, Opener
from outstation.durable import FILES
from outstation.errors import DiskError, InvalidInputError, mapped_os_errors
from outstation.types import STREAM_NAME, Ledger, Record

STREAMS = "streams"


@dataclass(slots=True)
class StreamView:
    """One stream as its files were when it was looked at."""

    name: str
    found: Found
    access: Access

    @property
    def stored_bytes(self) -> int:
        return sum(segment.file_bytes for segment in self.found.segments)

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
            if segment.last_sequence <= after:
                continue
            place, exhausted = Place(segment.serial, 0, 0), False
            while not exhausted:
                try:
                    with mapped_os_errors(doing="read the stream", path=segment.path):
                        chunk = read_chunk(self.access, segment, place, after)
                except DiskError as exc:
                    if isinstance(exc.__cause__, FileNotFoundError):
                        break
                    raise
                yield from chunk.blocks
                place, exhausted = chunk.next_place, chunk.exhausted

    def read(self, after: int = 0) -> Iterator[Record]:
        """The records with a number greater than *after*, in order."""
        for block in self.blocks(after):
            columns = block.columns()
            if block.header.first_sequence <= after:
                columns = columns.after(after)
            yield from columns.records()


def look(directory: Path, keys: Keys) -> list[StreamView]:
    """Every stream in the buffer's *directory*, by name. DiskError; InvalidInputError when there is no buffer."""
    folder = directory / STREAMS
    if not folder.is_dir():
        raise InvalidInputError(
            f"There is no buffer in {directory}.", hint="Name the station's data folder with --data."
        )
    with mapped_os_errors(doing="read the buffer", path=folder):
        names = sorted(entry.name for entry in folder.iterdir() if STREAM_NAME.fullmatch(entry.name))
        return [_look_at(folder / name, Vault(name, keys).open) for name in names]


def _look_at(folder: Path, opener: Opener) -> StreamView:
    tries = 3  # the owner may remove a segment between the listing and the reading; then the listing is old
    while True:
        try:
            found = examine(folder, FILES, opener)
        except FileNotFoundError:
            tries -= 1
            if tries == 0:
                raise
            continue
        return StreamView(folder.name, found, Access(FILES, found.epoch, opener))
