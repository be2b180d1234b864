"""Where a repository lives, as the desk sees it: a folder, a bucket, a container, or an address that is only read.

Publishing is safe when it is interrupted, and when two do it at once, because of three operations: files get names that
nothing refers to yet (``put``), metadata gets a number that nobody has taken (``create``), and ``timestamp.json``, with
which every reader begins, changes only if it still is the one that the publisher began with (``exchange``).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from outstation.durable import make_directories, move_atomically, write_atomically
from outstation.errors import InvalidInputError, ModelNotFoundError, RepositoryError, mapped_os_errors
from outstation.models.fetch import FolderSource, Source
from outstation.provider import ByteStream

# Seconds of silence from a far place before the desk gives it up.
TIMEOUT = 60.0
# No client of TUF reads larger metadata (python-tuf: 5 MB); a file that is larger is some other file.
MAX_METADATA_BYTES = 5_000_000


@dataclass(frozen=True, slots=True)
class Content:
    """A small file as it is now. ``mark`` is given back to :meth:`Place.exchange`; "" = there is no such file."""

    data: bytes
    mark: str


class Place(Source, Protocol):
    """A repository's files, to read as any source and to write. Its ``str`` is what a person calls it.

    Paths are relative, "/" between parts. Raises LinkError or StorageError when it cannot be read or written, and
    InvalidInputError when it can only be read.
    """

    def publishing(self) -> AbstractContextManager[None]:
        """Held by whoever publishes. RepositoryError where another publisher is seen: ``exchange`` sees the rest."""
        ...

    def local(self, path: str) -> Path | None:
        """Where *path* lies on this disk, if it does."""
        ...

    def read(self, path: str) -> Content:
        """All of a small file. ModelNotFoundError if there is none, RepositoryError if it is too large for metadata."""
        ...

    def put(self, file: Path, path: str) -> None:
        """Copy *file* there, whole or not at all. *path* names its content: what lies there is the same."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write *data* there, whole or not at all, if nothing is there yet; False if something is."""
        ...

    def exchange(self, path: str, data: bytes, mark: str) -> bool:
        """Write *data* there, whole or not at all, if what is there has that *mark*; False if it has another."""
        ...

    def delete(self, path: str) -> None:
        """Delete *path*. Idempotent."""
        ...


def open_place(where: Path | str | Place) -> Place:
    """The place that *where* names: a folder's path, s3://BUCKET/PREFIX, az://CONTAINER/PREFIX, or https://….

    SettingsError for a wrong or incomplete address, MissingExtraError.
    """
    if not isinstance(where, str | Path):
        return where
    scheme, separator, _ = str(where).partition("://")
    if isinstance(where, Path) or not separator:
        return FolderPlace(Path(where))
    if scheme == "s3":
        from outstation.models.s3_place import S3Place  # noqa: PLC0415 - boto3 is an extra

        return S3Place(where)
    if scheme == "az":
        from outstation.models.azure_place import AzurePlace  # noqa: PLC0415 - an extra, too

        return AzurePlace(where)
    from outstation.models.sources import open_source  # noqa: PLC0415 - a folder needs none of it

    source = open_source(where, None)
    return FolderPlace(source.root) if isinstance(source, FolderSource) else ReadOnlyPlace(source, where)


class FolderPlace(FolderSource):
    """A folder. Durable when a method returns."""

    def __str__(self) -> str:
        return str(self.root)

    @contextmanager
    def publishing(self) -> Iterator[None]:
        """One publisher at a time; the lock goes with its process."""
        if not self.root.is_dir():
            yield  # reading it says what is wrong
            return
        with mapped_os_errors(doing="lock the repository", path=self.root):
            fd = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise RepositoryError(
                    f"Somebody else is publishing to {self.root}.", hint="Try again in a moment."
                ) from exc
            yield
        finally:
            os.close(fd)

    def local(self, path: str) -> Path | None:
        return self.root / path

    def read(self, path: str) -> Content:
        if not self.root.is_dir():
            raise ModelNotFoundError(f"{self.root} is no folder.")
        with self.open(path, 0, TIMEOUT) as stream:
            data = read_small(stream, path)
        return Content(data, hashlib.sha256(data).hexdigest())

    def put(self, file: Path, path: str) -> None:
        final = self.root / path
        make_directories(final.parent)
        building = final.with_name(f".{final.name}.new")
        with mapped_os_errors(doing="copy into the repository", path=final):
            shutil.copyfile(file, building)
        move_atomically(building, final)

    def create(self, path: str, data: bytes) -> bool:
        if (self.root / path).exists():
            return False
        make_directories((self.root / path).parent)
        write_atomically(self.root / path, data)
        return True

    def exchange(self, path: str, data: bytes, mark: str) -> bool:
        try:
            found = self.read(path).mark
        except ModelNotFoundError:
            found = ""
        if found != mark:
            return False
        write_atomically(self.root / path, data)
        return True

    def delete(self, path: str) -> None:
        with mapped_os_errors(doing="delete from the repository", path=self.root / path):
            (self.root / path).unlink(missing_ok=True)


class ReadOnlyPlace:
    """A source behind which nothing can be written: a web server."""

    def __init__(self, source: Source, name: str) -> None:
        self._source = source
        self._name = name.partition("?")[0]  # what is behind it may be a secret

    def __str__(self) -> str:
        return self._name

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        return self._source.open(path, offset, timeout)

    def publishing(self) -> AbstractContextManager[None]:
        raise self._no()

    def local(self, path: str) -> Path | None:
        return None

    def read(self, path: str) -> Content:
        with self.open(path, 0, TIMEOUT) as stream:
            return Content(read_small(stream, path), "read only")

    def put(self, file: Path, path: str) -> None:
        raise self._no()

    def create(self, path: str, data: bytes) -> bool:
        raise self._no()

    def exchange(self, path: str, data: bytes, mark: str) -> bool:
        raise self._no()

    def delete(self, path: str) -> None:
        raise self._no()

    def _no(self) -> InvalidInputError:
        return InvalidInputError(
            f"{self} can only be read.", hint="Give the folder, s3:// or az:// address that lies behind it."
        )


def read_small(stream: ByteStream, path: str) -> bytes:
    """All of *stream*; RepositoryError once it is larger than any metadata."""
    data = b""
    while piece := stream.read(MAX_METADATA_BYTES + 1 - len(data)):
        data += piece
        if len(data) > MAX_METADATA_BYTES:
            raise RepositoryError(f"{path} is larger than the {MAX_METADATA_BYTES} bytes that metadata may have.")
    return data
