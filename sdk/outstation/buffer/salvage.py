"""Reading on a disk with bad places: what cannot be read is taken for zeros, over which no checksum holds.

So an unreadable place comes out as damage, by the same way as rot, and all else of the file is read.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from outstation.durable import Files

# What Linux answers when the bytes are there and the disk does not give them, or gives what the file system refuses.
_ANSWERS = {errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA, errno.EREMOTEIO, errno.EILSEQ}
# Of a page of the kernel's cache, which is what it reads at least; sectors are not larger.
PIECE_BYTES = 4 << 10
# From this size on a hole grows by its own length with each further failure. A failed read may take the disk seconds:
# a file of 8 MiB of which nothing can be read costs 23 of them and not 2,048.
_LARGE_HOLE_BYTES = 16 * PIECE_BYTES
# What a file may have held that cannot even be opened.
UNKNOWN_BYTES = 8 << 20


class UnreadableError(OSError):
    """The disk does not give what stands in a file."""


def is_unreadable(exc: OSError) -> bool:
    """Whether *exc* may say that a place on the disk is bad."""
    return exc.errno in _ANSWERS


class Salvage(Files):
    """For reading only. Where *insistent*, a place that cannot be read is an UnreadableError after all.

    ``holes`` says what could not be read, as (start, end) by file. One thread at a time.
    """

    def __init__(self, files: Files, *, insistent: bool = False) -> None:
        self._files = files
        self._insistent = insistent
        self._paths: dict[int, Path] = {}
        self.holes: dict[Path, list[tuple[int, int]]] = {}

    def open(self, path: Path, flags: int, mode: int = 0o640) -> int:
        try:
            fd = self._files.open(path, flags, mode)
        except OSError as exc:
            self._judge(exc)
            self.holes[path] = [(0, UNKNOWN_BYTES)]
            fd = self._files.open(Path(os.devnull), flags, mode)  # nothing of it can be read, so nothing is there
        self._paths[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._paths.pop(fd, None)
        self._files.close(fd)

    def read(self, fd: int, size: int, offset: int) -> bytes:
        if self._paths[fd] in self.holes:
            return self._read_pieces(fd, size, offset)
        try:
            return self._files.read(fd, size, offset)
        except OSError as exc:
            self._judge(exc)
            with suppress(OSError):
                # The kernel reads ahead, and one bad sector fails all that it reads at once.
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            return self._read_pieces(fd, size, offset)

    def _judge(self, exc: OSError) -> None:
        if not is_unreadable(exc):
            raise exc
        if self._insistent:
            raise UnreadableError(exc.errno, exc.strerror) from exc

    def _read_pieces(self, fd: int, size: int, offset: int) -> bytes:
        path = self._paths[fd]
        holes = self.holes.get(path, [])
        end = min(offset + size, os.fstat(fd).st_size)
        data = bytearray()
        while offset < end:
            hole_end = next((stop for start, stop in holes if start <= offset < stop), offset)
            stop = min(hole_end if hole_end > offset else offset - offset % PIECE_BYTES + PIECE_BYTES, end)
            if hole_end > offset:
                piece = bytes(stop - offset)
            else:
                try:
                    piece = self._files.read(fd, stop - offset, offset)
                except OSError as exc:
                    self._judge(exc)
                    _widen(holes, offset - offset % PIECE_BYTES)
                    self.holes[path] = holes
                    continue
            data += piece
            if len(piece) < stop - offset:
                break
            offset = stop
        return bytes(data)


def _widen(holes: list[tuple[int, int]], offset: int) -> None:
    """Note that the piece at *offset* cannot be read: a new hole, or the next part of the one that ends there."""
    place = next((place for place, (_, stop) in enumerate(holes) if stop == offset), None)
    if place is None:
        holes.append((offset, offset + PIECE_BYTES))
        return
    start, stop = holes[place]
    length = stop - start
    holes[place] = (start, stop + (PIECE_BYTES if length < _LARGE_HOLE_BYTES else length))
