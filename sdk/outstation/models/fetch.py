"""Getting bytes: sources, and a download that resumes, checks while it writes, and never shows half a file.

What may be believed is not decided here: :class:`Expected` comes from signed metadata (``trust.py``).
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from outstation.errors import (
    DiskFullError,
    FileChangedError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    UntrustedError,
    mapped_os_errors,
)
from outstation.provider import ByteStream

READ_BYTES = 256 << 10
# A power cut costs no more than so much again; a disk syncs that in a fraction of the time that a link takes for it.
SYNC_BYTES = 8 << 20


class Source(Protocol):
    """A repository's files, wherever they are. Thread-safe."""

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        """The bytes of *path* (relative to the repository, "/" between parts) from *offset* on.

        ModelNotFoundError if there is no such file, LinkError if it cannot be asked for now; FileChangedError if it is
        seen that the file is not the one whose first bytes were given before.
        """
        ...


class FolderSource:
    """A folder: on this disk, a mounted share, a USB stick."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __repr__(self) -> str:
        return f"<FolderSource {self.root}>"

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        try:
            file = (self.root / path).open("rb")
        except (FileNotFoundError, NotADirectoryError):
            if not self.root.is_dir():
                raise LinkDownError(
                    f"The repository folder {self.root} is not there.", hint="Mount or insert it; it is tried again."
                ) from None
            raise ModelNotFoundError(f"The repository {self.root} has no file {path}.") from None
        except OSError as exc:
            raise LinkDownError(f"Could not read {self.root / path}: {exc.strerror}.") from exc
        with file:
            file.seek(offset)
            yield _MappedFile(file.read, self.root / path)


@dataclass(frozen=True, slots=True)
class _MappedFile:
    """A file of a share that may vanish: its errors are those of a link."""

    reader: Callable[[int], bytes]
    path: Path

    def read(self, size: int) -> bytes:
        try:
            return self.reader(size)
        except OSError as exc:
            raise LinkDownError(f"Could not read {self.path}: {exc.strerror}.") from exc


class Meter(Protocol):
    """What a download may take of the link: see :class:`outstation.bandwidth.Bandwidth`. Thread-safe."""

    def piece_bytes(self, most: int) -> int:
        """How much to read at once, at most *most*."""
        ...

    def hold(self) -> bool:
        """Wait a little if it is too early for the next piece; whether it was."""
        ...

    def spend_on_model(self, size_bytes: int) -> None:
        """So much has come."""
        ...


class Unmetered:
    """As much as the link carries."""

    def piece_bytes(self, most: int) -> int:
        return most

    def hold(self) -> bool:
        return False

    def spend_on_model(self, size_bytes: int) -> None:
        pass


UNMETERED = Unmetered()


@dataclass(frozen=True, slots=True)
class Expected:
    """What signed metadata says of a file. ``name`` is for messages; ``chunks`` are hashes of ``chunk_bytes`` each."""

    name: str
    sha256: str
    size_bytes: int
    chunk_bytes: int = 0
    chunks: tuple[str, ...] = ()


def fetch_bytes(source: Source, path: str, expected: Expected, timeout: float) -> bytes:
    """A small file, whole and checked. UntrustedError if it is not what was signed; LinkError, ModelNotFoundError."""
    pieces: list[bytes] = []
    size = 0
    with source.open(path, 0, timeout) as stream:
        while piece := stream.read(READ_BYTES):
            size += len(piece)
            if size > expected.size_bytes:
                raise _too_long(expected)
            pieces.append(piece)
    data = b"".join(pieces)
    _check_hash(expected, hashlib.sha256(data).hexdigest(), expected.sha256)
    return data


class Download:
    """One file on its way into *part*. Use from one thread; ``run`` again after a LinkError goes on where it stopped.

    What is in *part* from before (another process, a power cut) is read again. Where chunks have signed hashes it is
    believed as far as those go; else the hash of the whole file decides at the end. *reserve_bytes* of the disk are
    left to others, at the beginning and all the way.
    """

    def __init__(
        self,
        source: Source,
        path: str,
        part: Path,
        expected: Expected,
        *,
        meter: Meter = UNMETERED,
        reserve_bytes: int = 0,
    ) -> None:
        self._source = source
        self._path = path
        self._part = part
        self._expected = expected
        self._meter = meter
        self._reserve_bytes = reserve_bytes
        self._progress: _Progress | None = None  # of the attempt before: a large stump is not read again each time
        self.received_bytes = 0  # over the link, for the account

    def run(self, timeout: float, pulse: Callable[[], None] = lambda: None) -> None:
        """Fetch what is missing. Afterwards *part* is whole, has the signed hash and is on the disk.

        *pulse* is called between reads and may raise to stop. Raises UntrustedError when a second try, from the last
        piece that was right, also gave wrong bytes; LinkError, ModelNotFoundError, DiskFullError, DiskError.
        """
        try:
            self._attempt(timeout, pulse)
        except (UntrustedError, FileChangedError):
            # A stump from before a power cut, or a link without checksums, is no fault of the publisher.
            self._attempt(timeout, pulse)

    def _attempt(self, timeout: float, pulse: Callable[[], None]) -> None:
        expected = self._expected
        with mapped_os_errors(doing="write the download", path=self._part), self._part.open("a+b") as file:
            progress, self._progress = self._progress or _Progress(expected), None
            try:
                if file.tell() != progress.size or progress.size == 0:
                    progress = _Progress(expected)
                    self._take_up(file, progress)
                self._check_room(expected.size_bytes - progress.size)
                if progress.size < expected.size_bytes:
                    self._receive(file, progress, timeout, pulse)
                if progress.size < expected.size_bytes:
                    raise LinkDownError(
                        f"{expected.name}: the source ended after {progress.size} of {expected.size_bytes} bytes."
                    )
                _check_hash(expected, progress.sha256, expected.sha256)
            except (UntrustedError, FileChangedError):
                self._progress = None
                file.truncate(progress.proven)
                raise
            except LinkError:
                _sync(file)  # it may be long until the link comes back
                raise
            _sync(file)

    def _take_up(self, file: IO[bytes], progress: _Progress) -> None:
        """Go on from what is in *file*: as far as its chunks are right."""
        file.seek(0)
        try:
            while piece := file.read(min(READ_BYTES, self._expected.size_bytes - progress.size)):
                progress.add(piece)
        except UntrustedError:
            progress.back_to_proven()
        file.truncate(progress.size)

    def _check_room(self, missing: int) -> None:
        free = shutil.disk_usage(self._part.parent).free
        if missing > free - self._reserve_bytes:
            raise no_room(self._expected.name, missing, free, self._reserve_bytes)

    def _receive(self, file: IO[bytes], progress: _Progress, timeout: float, pulse: Callable[[], None]) -> None:
        piece_bytes = self._meter.piece_bytes(READ_BYTES)
        with self._source.open(self._path, progress.size, timeout) as stream:
            while True:
                self._progress = progress  # valid whenever what comes next breaks off without a wrong byte
                pulse()
                while self._meter.hold():
                    pulse()
                missing = self._expected.size_bytes - progress.size
                if missing:
                    self._check_room(min(piece_bytes, missing))  # others fill the disk, too
                # One byte more than is signed shows a file that is too long without reading an endless one.
                piece = stream.read(min(piece_bytes, missing + 1))
                if not piece:
                    return
                self.received_bytes += len(piece)
                self._meter.spend_on_model(len(piece))
                if progress.size + len(piece) > self._expected.size_bytes:
                    progress.proven = 0
                    raise _too_long(self._expected)
                file.write(piece)
                if (progress.size + len(piece)) // SYNC_BYTES > progress.size // SYNC_BYTES:
                    _sync(file)
                progress.add(piece)


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def no_room(what: str, missing: int, free: int, reserve_bytes: int) -> DiskFullError:
    """The error that says by how much *what* does not fit."""
    kept = f", of which {reserve_bytes} are kept free (models.min_free_disk_bytes)" if reserve_bytes else ""
    return DiskFullError(f"{what} needs {missing} bytes more; the disk of the store has {free}{kept}.")


class _Progress:
    """Hashes of what has come so far: of the file, and of the chunk that is being filled."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._whole = hashlib.sha256()
        self._whole_at_proven = self._whole.copy()
        self._chunk = hashlib.sha256()
        self.size = 0
        self.proven = 0  # bytes from the beginning whose chunks have the signed hashes

    @property
    def sha256(self) -> str:
        return self._whole.hexdigest()

    def add(self, piece: bytes) -> None:
        """Count *piece*; UntrustedError when it fills a chunk whose hash is not the signed one."""
        rest = memoryview(piece)
        while rest:
            take = len(rest)
            if self._expected.chunks:
                end = min(self.proven + self._expected.chunk_bytes, self._expected.size_bytes)
                take = min(take, end - self.size)
                self._chunk.update(rest[:take])
            self._whole.update(rest[:take])
            self.size += take
            rest = rest[take:]
            if self._expected.chunks and self.size == end:
                self._close_chunk()

    def back_to_proven(self) -> None:
        self._whole = self._whole_at_proven.copy()
        self._chunk = hashlib.sha256()
        self.size = self.proven

    def _close_chunk(self) -> None:
        index = self.proven // self._expected.chunk_bytes
        _check_hash(
            self._expected,
            self._chunk.hexdigest(),
            self._expected.chunks[index],
            where=f", bytes {self.proven} to {self.size},",
        )
        self.proven = self.size
        self._whole_at_proven = self._whole.copy()
        self._chunk = hashlib.sha256()


def _check_hash(expected: Expected, found: str, signed: str, where: str = "") -> None:
    if found != signed:
        raise UntrustedError(f"{expected.name}{where} has sha256 {found[:12]}…, the publisher signed {signed[:12]}….")


def _too_long(expected: Expected) -> UntrustedError:
    return UntrustedError(f"{expected.name} is longer than the {expected.size_bytes} bytes that the publisher signed.")
