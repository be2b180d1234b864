"""A file layer that remembers every operation, and rebuilds what a disk may hold after a power cut at any of them.

The disk it plays is crueller than ext4: of what was not synced, any subset of the writes may be there, in any order,
each whole or torn at a sector; a file's length may be the old or the new one; of names made, changed or removed since
the directory was synced, any subset may be.
"""

from __future__ import annotations

import os
import random
import threading
from dataclasses import dataclass, field
from pathlib import Path

from outstation.durable import Files

SECTOR = 512


@dataclass
class Operation:
    kind: str
    path: Path | None = None
    target: Path | None = None
    inode: int = 0
    data: bytes = b""
    offset: int = 0
    note: object = None


class RecordingFiles(Files):
    """Does what it is told on the real disk, and writes it down. ``notes`` of the test stand in the same list."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.operations: list[Operation] = []
        self._lock = threading.Lock()
        self._inodes: dict[Path, int] = {}
        self._of_fd: dict[int, int] = {}
        self._newest = 0
        self.initial: dict[Path, bytes | None] = {}
        for path in sorted(root.rglob("*")):
            self.initial[path] = path.read_bytes() if path.is_file() else None
            if path.is_file():
                self._inodes[path] = self._new_inode()
        self.initial_inodes = dict(self._inodes)

    def note(self, note: object) -> None:
        self._add(Operation("note", note=note))

    def _new_inode(self) -> int:
        self._newest += 1
        return self._newest

    def _add(self, operation: Operation) -> None:
        with self._lock:
            self.operations.append(operation)

    def open(self, path, flags, mode=0o640):
        fd = super().open(path, flags, mode)
        with self._lock:
            if path not in self._inodes:
                self._inodes[path] = self._new_inode()
                self.operations.append(Operation("create", path=path, inode=self._inodes[path]))
            elif flags & os.O_TRUNC:
                self.operations.append(Operation("truncate", inode=self._inodes[path], offset=0))
            self._of_fd[fd] = self._inodes[path]
        return fd

    def close(self, fd):
        with self._lock:
            self._of_fd.pop(fd, None)
        super().close(fd)

    def write(self, fd, data, offset):
        super().write(fd, data, offset)
        self._add(Operation("write", inode=self._of_fd[fd], data=bytes(data), offset=offset))

    def allocate(self, fd, offset, size):
        super().allocate(fd, offset, size)
        self._add(Operation("allocate", inode=self._of_fd[fd], offset=offset + size))

    def truncate(self, fd, length):
        super().truncate(fd, length)
        self._add(Operation("truncate", inode=self._of_fd[fd], offset=length))

    def sync_data(self, fd):
        super().sync_data(fd)
        self._add(Operation("sync", inode=self._of_fd[fd]))

    def sync(self, fd):
        super().sync(fd)
        self._add(Operation("sync", inode=self._of_fd[fd]))

    def sync_directory(self, path):
        super().sync_directory(path)
        self._add(Operation("sync_directory", path=path))

    def rename(self, source, target):
        super().rename(source, target)
        with self._lock:
            self._inodes[target] = self._inodes.pop(source)
            self.operations.append(Operation("rename", path=source, target=target, inode=self._inodes[target]))

    def unlink(self, path):
        super().unlink(path)
        with self._lock:
            self.operations.append(Operation("unlink", path=path, inode=self._inodes.pop(path)))

    def make_directory(self, path):
        super().make_directory(path)
        self._add(Operation("mkdir", path=path))


@dataclass
class _Inode:
    durable: bytes = b""
    loose: list[Operation] = field(default_factory=list)


class Disk:
    """What the operations up to a cut have made certain, and what they have left open."""

    def __init__(self, files: RecordingFiles) -> None:
        self._inodes: dict[int, _Inode] = {}
        self._names: dict[Path, int | None] = {}  # None: a directory
        self._loose_names: list[Operation] = []
        for path, data in files.initial.items():
            self._names[path] = None if data is None else files.initial_inodes[path]
            if data is not None:
                self._inodes[files.initial_inodes[path]] = _Inode(data)

    def apply(self, operation: Operation) -> None:
        kind = operation.kind
        if kind in {"create", "rename", "unlink", "mkdir"}:
            self._loose_names.append(operation)
            if kind == "create":
                self._inodes[operation.inode] = _Inode()
        elif kind in {"write", "allocate", "truncate"}:
            self._inodes[operation.inode].loose.append(operation)
        elif kind == "sync":
            inode = self._inodes[operation.inode]
            for loose in inode.loose:
                inode.durable = _applied(inode.durable, loose)
            inode.loose = []
        elif kind == "sync_directory":
            rest = []
            for loose in self._loose_names:
                places = {path.parent for path in (loose.path, loose.target) if path is not None}
                if operation.path in places:
                    _rename(self._names, loose)
                else:
                    rest.append(loose)
            self._loose_names = rest

    def cut(self, root: Path, target: Path, dice: random.Random) -> None:
        """Write into *target* what a reader may find for *root* after the power comes back."""
        names = dict(self._names)
        mood = dice.choice(["nothing", "everything", "some", "some"])
        for operation in self._loose_names:
            if mood == "everything" or (mood == "some" and dice.random() < 0.5):
                _rename(names, operation)
        for path in sorted(path for path, inode in names.items() if inode is None):
            (target / path.relative_to(root)).mkdir(parents=True, exist_ok=True)
        for path, number in names.items():
            place = target / path.relative_to(root)
            if number is not None and place.parent.is_dir():
                place.write_bytes(self._content(self._inodes[number], mood, dice))

    def _content(self, inode: _Inode, mood: str, dice: random.Random) -> bytes:
        data = inode.durable
        for operation in inode.loose:
            if mood == "nothing" or (mood == "some" and dice.random() < 0.4):
                continue
            if operation.kind == "write" and mood == "some" and dice.random() < 0.4:
                data = _torn(data, operation, dice)
            else:
                data = _applied(data, operation)
        return data


def _applied(data: bytes, operation: Operation) -> bytes:
    if operation.kind == "truncate":
        return data[: operation.offset].ljust(operation.offset, b"\0")
    if operation.kind == "allocate":
        return data.ljust(operation.offset, b"\0")
    end = operation.offset + len(operation.data)
    return data[: operation.offset].ljust(operation.offset, b"\0") + operation.data + data[end:]


def _torn(data: bytes, operation: Operation, dice: random.Random) -> bytes:
    """Some sectors of a write; the others hold what they held, or zeros in a file that has grown."""
    end = operation.offset + len(operation.data)
    result = bytearray(data.ljust(end, b"\0"))
    sector = operation.offset - operation.offset % SECTOR
    while sector < end:
        if dice.random() < 0.5:
            start, stop = max(sector, operation.offset), min(sector + SECTOR, end)
            result[start:stop] = operation.data[start - operation.offset : stop - operation.offset]
        sector += SECTOR
    return bytes(result)


def _rename(names: dict[Path, int | None], operation: Operation) -> None:
    if operation.kind == "mkdir":
        names[operation.path] = None
    elif operation.kind == "create":
        names[operation.path] = operation.inode
    elif operation.kind == "unlink":
        names.pop(operation.path, None)
    else:
        names.pop(operation.path, None)
        names[operation.target] = operation.inode
