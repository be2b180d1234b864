"""Files of a folder for whoever may be hostile: nothing outside it, and no symbolic link inside it."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from outstation.errors import InvalidInputError, ModelNotFoundError, SettingsError, from_os_error

# One message a piece: large enough that its overhead vanishes, small enough that a slow link shows progress.
CHUNK_BYTES = 256 << 10
MAX_PATH = 4096
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENAMETOOLONG, errno.EACCES}


class Repository:
    """A folder, read only. Thread-safe; holds no file open between calls."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise SettingsError(
                f"The repository {folder} is no folder.", hint="Make it with `outstation model publish`."
            )
        self._folder = folder

    def read(self, path: str, offset: int) -> Iterator[bytes]:
        """The bytes of *path* ("/" between parts) from *offset* on, in pieces of 256 KiB.

        InvalidInputError for a path that points outside or an offset beyond the end, ModelNotFoundError when there
        is no such file. The pieces are of one file even if it is replaced meanwhile.
        """
        fd = self._open(path)
        try:
            if offset > os.fstat(fd).st_size:
                raise InvalidInputError(f"{path} ends before byte {offset}.")
            while piece := os.pread(fd, CHUNK_BYTES, offset):
                yield piece
                offset += len(piece)
        except OSError as exc:
            raise from_os_error(exc, doing="read the repository", path=path) from exc
        finally:
            os.close(fd)

    def _open(self, path: str) -> int:
        parts = path.split("/")
        if len(path) > MAX_PATH or "\0" in path or any(part in ("", ".", "..") for part in parts):
            raise InvalidInputError(f"{path[:200]!r} is no path of a repository.")
        try:
            return _walk(self._folder, parts)
        except OSError as exc:
            if exc.errno in _ABSENT:
                raise ModelNotFoundError(f"The repository has no {path[:200]}.") from exc
            raise from_os_error(exc, doing="read the repository", path=path[:200]) from exc


def _walk(folder: Path, parts: list[str]) -> int:
    """Open part by part, following no link: what was checked is what is opened, whoever changes names meanwhile."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for place, part in enumerate(parts):
        kind = os.O_DIRECTORY if place < len(parts) - 1 else os.O_NONBLOCK
        try:
            deeper = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=fd)
        finally:
            os.close(fd)
        fd = deeper
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    return fd
