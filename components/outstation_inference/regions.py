"""System shared memory, as Triton's clients use it: tensors that lie in ``/dev/shm`` instead of in a message.

A region is read and written as the file that it is, and never mapped. Its owner may change, shrink or delete it at any
moment: a mapping that was cut short would end this process with SIGBUS, and a tensor that changes while a model reads
it could lead a kernel astray. So a call computes with a copy (docs/adr/0036-shared-memory-is-copied.md).
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from outstation.errors import (
    ClosedError,
    InvalidInputError,
    ProviderUnavailableError,
    RegionExistsError,
    RegionNotFoundError,
)
from outstation.wire.datatypes import Array, from_raw, to_raw
from outstation.wire.shared import MAX_BYTES, Region, SharedTensor, Window

# Where POSIX shared memory lives on Linux. A key names a file right here and nowhere else.
_FOLDER = "/dev/shm"  # noqa: S108 - not a place for temporary files of ours
# Named semaphores of other programs lie beside the memory; they are nobody's tensors.
_SEMAPHORES = "sem."
# The longest name of a file; what a region is called here is bounded alike.
_MAX_NAME = 255


class _File:
    """An open file, closed with the last reference: a region may be unregistered while a call uses it."""

    __slots__ = ("descriptor",)

    def __init__(self, path: str) -> None:
        # A symbolic link would lead out of the folder, and opening a pipe would wait for its other end.
        self.descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "descriptor"):  # it has none when it could not be opened
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class _Open:
    region: Region
    file: _File
    identity: tuple[int, int]  # device and inode: two names may lead to the same memory


class Regions:
    """The regions that clients have registered, *limit* at most (0 = none may). Thread-safe.

    What one call reads from all of them is bounded by *max_bytes*, as if it had come in its message.
    """

    def __init__(self, limit: int, max_bytes: int) -> None:
        self._limit = limit
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        self._closed = False

    def register(self, region: Region) -> None:
        """Take *region* under its name. A name whose memory was deleted since may be taken again.

        InvalidInputError when it is not memory of that size that this process may use, RegionExistsError,
        ProviderUnavailableError when there are too many.
        """
        if self._limit == 0:
            raise ProviderUnavailableError(
                "No shared memory is taken here.",
                hint="Set inference.max_shared_regions, and listen only where this device alone can reach.",
            )
        if not region.name or len(region.name) > _MAX_NAME:
            raise InvalidInputError(f"A region's name has 1 to {_MAX_NAME} characters.")
        opened = _opened(region)
        with self._lock:
            self._make_room(region.name)
            self._open[region.name] = opened

    def status(self, name: str) -> tuple[Region, ...]:
        """The region *name*, or all of them when it is ""; RegionNotFoundError."""
        with self._lock:
            found = [opened.region for key, opened in self._open.items() if not name or key == name]
        if name and not found:
            raise _unknown(name)
        return tuple(found)

    def unregister(self, name: str) -> None:
        """Let go of the region *name*, or of all when it is "". Nothing happens when there is none."""
        with self._lock:
            if name:
                self._open.pop(name, None)
            else:
                self._open.clear()

    def check(self, into: Mapping[str, Window]) -> None:
        """Whether outputs can be put *into* these windows as far as can be told now; InvalidInputError."""
        with self._lock:
            places = sorted(self._place(name, window) for name, window in into.items())
        for (file, _, end, one), (other_file, begin, _, other) in pairwise(places):
            if file == other_file and begin < end:
                raise InvalidInputError(f"The outputs {one!r} and {other!r} share bytes of the same memory.")

    def read(self, tensors: Mapping[str, SharedTensor]) -> dict[str, Array]:
        """A copy of each of *tensors*; InvalidInputError when its region is not there or smaller than claimed."""
        total = sum(tensor.window.size_bytes for tensor in tensors.values())
        if total > self._max_bytes:
            raise InvalidInputError(
                f"The inputs in shared memory have {total} bytes; {self._max_bytes} is the most.",
                hint="Set inference.max_message_bytes: it bounds what a call brings, whichever way.",
            )
        return {name: self._read(f"Input {name!r}", tensor) for name, tensor in tensors.items()}

    def write(self, into: Mapping[str, Window], outputs: Mapping[str, Array]) -> dict[str, Window]:
        """Put *outputs* into windows that were checked; where each lies now.

        None is written when one does not fit (InvalidInputError).
        """
        parts = {name: _in_one_piece(outputs[name]) for name in into}
        for name, window in into.items():
            if (size := parts[name].nbytes) > window.size_bytes:
                raise InvalidInputError(f"Output {name!r} has {size} bytes; {window.size_bytes} were given for it.")
        return {name: self._write(f"Output {name!r}", window, parts[name]) for name, window in into.items()}

    def close(self) -> None:
        """Let go of every region. Idempotent."""
        with self._lock:
            self._closed = True
            self._open.clear()

    def _make_room(self, name: str) -> None:
        if self._closed:
            raise ClosedError("The inference server has stopped.")
        if name in self._open:
            if not _deleted(self._open[name]):
                raise RegionExistsError(f"A region {name!r} is registered already.", hint="Unregister it first.")
            del self._open[name]
        if len(self._open) >= self._limit:
            # Left behind by clients that ended without a word; nobody new can find that memory.
            self._open = {key: opened for key, opened in self._open.items() if not _deleted(opened)}
        if len(self._open) >= self._limit:
            raise ProviderUnavailableError(
                f"{self._limit} regions are registered already.", hint="Unregister those that are not in use."
            )

    def _place(self, name: str, window: Window) -> tuple[tuple[int, int], int, int, str]:
        """Which file the output *name* is for, its first byte and its end there. The lock is held."""
        opened, begin = self._found(f"Output {name!r}", window)
        return opened.identity, begin, begin + window.size_bytes, name

    def _found(self, where: str, window: Window) -> tuple[_Open, int]:
        """The region of *window*, and where the window begins in its file. Needs no lock: it looks once."""
        opened = self._open.get(window.region)
        if opened is None:
            raise _unknown(window.region)
        region = opened.region
        if window.offset + window.size_bytes > region.size_bytes:
            raise InvalidInputError(
                f"{where} is {window.size_bytes} bytes from {window.offset} on; "
                f"the region {region.name!r} has {region.size_bytes}."
            )
        return opened, region.offset + window.offset

    def _read(self, where: str, tensor: SharedTensor) -> Array:
        opened, begin = self._found(where, tensor.window)
        size = tensor.window.size_bytes
        try:
            data = os.pread(opened.file.descriptor, size, begin)
        except OSError as exc:
            raise _failed(where, opened, exc) from exc
        if len(data) < size:
            raise _shrunk(where, opened)
        return from_raw(where, tensor.datatype, tensor.shape, data)

    def _write(self, where: str, window: Window, data: memoryview) -> Window:
        opened, begin = self._found(where, window)
        size = data.nbytes
        try:
            if os.lseek(opened.file.descriptor, 0, os.SEEK_END) < begin + size:
                raise _shrunk(where, opened)  # writing would make it larger again
            written = os.pwrite(opened.file.descriptor, data, begin)
        except OSError as exc:
            raise _failed(where, opened, exc) from exc
        if written < size:
            raise InvalidInputError(f"{where}: {_FOLDER} is full; {written} of {size} bytes found room.")
        return Window(window.region, window.offset, size)


class NoRegions:
    """A GPU's memory, as clients ask for it that know it: none is ever registered, and letting go of all is easy."""

    def register(self, name: str) -> None:
        """InvalidInputError."""
        raise InvalidInputError(
            f"The region {name[:_MAX_NAME]!r} cannot be: the memory of a GPU is not taken here.",
            hint="Use system shared memory.",
        )

    def status(self, name: str) -> tuple[Region, ...]:
        """Nothing for "", which is all; RegionNotFoundError for any other."""
        if name:
            raise _unknown(name)
        return ()

    def unregister(self, name: str) -> None:
        """As with all memory, nothing happens when there is none."""


def _opened(region: Region) -> _Open:
    name = region.key.removeprefix("/")
    if not name or name in (".", "..") or "/" in name or "\0" in name or len(name.encode()) > _MAX_NAME:
        raise InvalidInputError(
            f"{region.key[:_MAX_NAME]!r} is no key of shared memory.", hint="It is a name as shm_open takes it: /NAME."
        )
    if name.startswith(_SEMAPHORES):
        raise InvalidInputError(f"{region.key!r} is a semaphore.")
    if not 0 < region.size_bytes <= MAX_BYTES or region.offset > MAX_BYTES:
        raise InvalidInputError(f"A region of {region.size_bytes} bytes from {region.offset} on cannot be.")
    try:
        file = _File(f"{_FOLDER}/{name}")
    except OSError as exc:
        raise InvalidInputError(
            f"The shared memory {region.key!r} cannot be opened: {exc.strerror}.",
            hint="It must be there before it is registered, and this server's user must be allowed to write to it.",
        ) from exc
    found = os.fstat(file.descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size < region.offset + region.size_bytes:
        raise InvalidInputError(
            f"The shared memory {region.key!r} has {found.st_size} bytes; "
            f"the region is {region.size_bytes} from {region.offset} on."
        )
    return _Open(region, file, (found.st_dev, found.st_ino))


def _deleted(opened: _Open) -> bool:
    return os.fstat(opened.file.descriptor).st_nlink == 0


def _in_one_piece(array: Array) -> memoryview:
    if array.dtype.kind in "OSU":
        return memoryview(to_raw(array))
    return (array if array.flags.c_contiguous else array.copy()).data


def _shrunk(where: str, opened: _Open) -> InvalidInputError:
    size = os.fstat(opened.file.descriptor).st_size
    return InvalidInputError(
        f"{where} is beyond the memory of the region {opened.region.name!r}, which has {size} now."
    )


def _failed(where: str, opened: _Open, error: OSError) -> InvalidInputError:
    return InvalidInputError(f"{where}: the memory of the region {opened.region.name!r} fails: {error.strerror}.")


def _unknown(name: str) -> RegionNotFoundError:
    return RegionNotFoundError(f"No region {name[:_MAX_NAME]!r} is registered.", hint="Register it first.")
