"""A disk with bad places, run by nbdkit's Python plugin (the system's Python, whatever version): no test imports it.

``image`` is the file that holds the disk's bytes. Each line ``START END`` of the file ``bad`` is a range of bytes that
cannot be read; while the file ``flush-fails`` stands beside the image, flushes are refused.
"""

import errno
import os
from pathlib import Path

import nbdkit

API_VERSION = 2
_settings = {}


def config(key, value):
    _settings[key] = value


def open(readonly):  # noqa: A001  nbdkit calls it by this name
    return os.open(_settings["image"], os.O_RDWR)


def close(fd):
    os.close(fd)


def get_size(fd):
    return os.fstat(fd).st_size


def pread(fd, buffer, offset, flags):
    if any(start < offset + len(buffer) and end > offset for start, end in _bad()):
        _refuse("read")
    buffer[:] = os.pread(fd, len(buffer), offset)


def pwrite(fd, buffer, offset, flags):
    os.pwrite(fd, buffer, offset)


def flush(fd, flags):
    if Path(_settings["image"]).with_name("flush-fails").exists():
        _refuse("flush")


def _bad():
    try:
        fd = os.open(_settings["bad"], os.O_RDONLY)
    except FileNotFoundError:
        return []
    try:
        lines = os.read(fd, 1 << 16).decode().splitlines()
    finally:
        os.close(fd)
    return [tuple(map(int, line.split())) for line in lines]


def _refuse(what):
    nbdkit.set_error(errno.EIO)
    raise OSError(errno.EIO, "this disk refuses to " + what)
