"""What write_atomically and make_directories promise."""

from __future__ import annotations

import errno
import os

import pytest

from outstation.durable import Files, make_directories, write_atomically
from outstation.errors import DiskError, DiskFullError


class FailingFiles(Files):
    """Fails at one operation."""

    def __init__(self, operation: str, number: int) -> None:
        self._operation, self._number = operation, number

    def _check(self, operation: str) -> None:
        if operation == self._operation:
            raise OSError(self._number, os.strerror(self._number))

    def write(self, fd: int, data: bytes, offset: int) -> None:
        self._check("write")
        super().write(fd, data, offset)

    def sync(self, fd: int) -> None:
        self._check("sync")
        super().sync(fd)

    def rename(self, source, target) -> None:
        self._check("rename")
        super().rename(source, target)


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("operation", ["write", "sync", "rename"])
def test_a_failure_leaves_the_old_file_and_no_stump(tmp_path, operation):
    path = tmp_path / "state"
    write_atomically(path, b"old")
    with pytest.raises(DiskError):
        write_atomically(path, b"new", files=FailingFiles(operation, errno.EIO))
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


def test_a_full_disk_is_said_as_such(tmp_path):
    with pytest.raises(DiskFullError) as caught:
        write_atomically(tmp_path / "state", b"new", files=FailingFiles("write", errno.ENOSPC))
    assert caught.value.retryable
    assert "Free space" in caught.value.hint


def test_folders_are_made_with_their_parents_and_twice(tmp_path):
    make_directories(tmp_path / "a" / "b")
    make_directories(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError):
        make_directories(tmp_path / "file" / "below")
