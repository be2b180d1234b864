"""What durability rests on: the few file operations, and the one way to replace a file.

Everything durable that is not an append-only segment is written by :func:`write_atomically`. :class:`Files` names
each operation of the disk that matters for a power cut, so that a test can record them and replay every cut.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from outstation.errors import mapped_os_errors

TEMPORARY_SUFFIX = ".tmp"


class Files:
    """The operations, straight to the kernel. Stateless and thread-safe; raises OSError as it comes."""

    def open(self, path: Path, flags: int, mode: int = 0o640) -> int:
        return os.open(path, flags | os.O_CLOEXEC, mode)

    def close(self, fd: int) -> None:
        os.close(fd)

    def write(self, fd: int, data: bytes, offset: int) -> None:
        """All of *data* at *offset*; a short write goes on where it stopped."""
        written = os.pwrite(fd, data, offset)
        while written < len(data):
            written += os.pwrite(fd, memoryview(data)[written:], offset + written)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        """Up to *size* bytes from *offset*; fewer only at the end of the file."""
        data = os.pread(fd, size, offset)
        while len(data) < size:
            more = os.pread(fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def allocate(self, fd: int, offset: int, size: int) -> None:
        """Make the file reach to offset + size, with zeros that cost no writing where the file system can do that."""
        os.posix_fallocate(fd, offset, size)

    def truncate(self, fd: int, length: int) -> None:
        os.ftruncate(fd, length)

    def sync_data(self, fd: int) -> None:
        os.fdatasync(fd)

    def sync(self, fd: int) -> None:
        os.fsync(fd)

    def sync_directory(self, path: Path) -> None:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def rename(self, source: Path, target: Path) -> None:
        source.rename(target)

    def link(self, source: Path, target: Path) -> None:
        target.hardlink_to(source)

    def unlink(self, path: Path) -> None:
        path.unlink()

    def make_directory(self, path: Path) -> None:
        path.mkdir(mode=0o750)


FILES = Files()


def write_atomically(path: Path, data: bytes, *, files: Files = FILES) -> None:
    """Replace *path* with *data*: afterwards, and after any crash, it holds the old bytes or the new ones, whole.

    Temporary file, fsync, rename, fsync of the directory; the new bytes are on the disk when this returns. Costs two
    fsyncs. Callers that write the same path at once must agree among themselves. Raises DiskFullError or DiskError,
    and then the old file is untouched.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with mapped_os_errors(doing="write the file", path=path):
        try:
            fd = files.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                files.write(fd, data, 0)
                files.sync(fd)
            finally:
                files.close(fd)
            files.rename(temporary, path)
        except OSError:
            _discard(temporary, files)
            raise
        files.sync_directory(path.parent)


def move_atomically(source: Path, target: Path, *, files: Files = FILES) -> None:
    """Give a finished file or folder its final name: fsync, rename, fsync of the directory.

    For what is too large to pass through :func:`write_atomically`; both are on one file system. The files inside a
    folder must have been synced by the caller. Raises DiskFullError or DiskError, and then *target* is untouched.
    """
    with mapped_os_errors(doing="move the file into place", path=target):
        if source.is_dir():
            files.sync_directory(source)
        else:
            fd = files.open(source, os.O_RDONLY)
            try:
                files.sync(fd)
            finally:
                files.close(fd)
        files.rename(source, target)
        files.sync_directory(target.parent)


def make_directories(path: Path, *, files: Files = FILES) -> None:
    """Make *path* and its missing parents, each entry durable. Idempotent. Raises DiskFullError or DiskError."""
    with mapped_os_errors(doing="make the folder", path=path):
        missing = []
        folder = path
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for folder in reversed(missing):
            try:
                files.make_directory(folder)
            except FileExistsError:
                continue
            files.sync_directory(folder.parent)


def _discard(path: Path, files: Files) -> None:
    with suppress(OSError):  # the caller's error is the one that counts; a stump of a temporary file harms nobody
        files.unlink(path)
