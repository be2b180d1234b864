"""A real block device that fails on demand: nbdkit serves it, nbdfuse and a loop device attach it, ext4 lies on it."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from support import wait_until

TOOLS = ("nbdkit", "nbdfuse", "fusermount3", "losetup", "mkfs.ext4")
PLUGIN = Path(__file__).with_name("nbdkit_disk.py")
SIZE_BYTES = 32 << 20
BLOCK_BYTES = 4096
FIBMAP = 1
BLKFLSBUF = 0x1261


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


class Device:
    """The disk and the switches of its faults."""

    def __init__(self, place: Path, *, mount_options: str, made_with: tuple[str, ...], delay_write: str) -> None:
        self._place = place
        self._mount_options = mount_options
        self._delay_write = delay_write
        self._image, self._socket, self._node = place / "image", place / "socket", place / "node"
        self.mount_point = place / "disk"
        self.loop = ""
        for file in (self._image, self._node):
            file.touch()
        os.truncate(self._image, SIZE_BYTES)
        self.mount_point.mkdir()
        run("mkfs.ext4", "-q", "-b", str(BLOCK_BYTES), *made_with, str(self._image))

    def attach(self, undo: ExitStack) -> None:
        """Serve the image and mount it; *undo* takes everything down again, whatever happened."""
        self._start(
            undo,
            *("nbdkit", "-f", "-U", str(self._socket), "--filter=error", "--filter=delay", "python", str(PLUGIN)),
            *(f"image={self._image}", f"bad={self._place / 'bad'}", f"delay-write={self._delay_write}"),
            *(f"error-{kind}={value}" for kind in ("pread", "pwrite") for value in ("EIO",)),
            *(f"error-{kind}-rate=100%" for kind in ("pread", "pwrite")),
            *(f"error-{kind}-file={self._place / f'{kind}-fails'}" for kind in ("pread", "pwrite")),
        )
        wait_until(self._socket.exists)
        self._start(undo, "nbdfuse", str(self._node), "--unix", str(self._socket))
        undo.callback(lambda: subprocess.run(["fusermount3", "-uz", str(self._node)], check=False, capture_output=True))
        wait_until(lambda: self._node.stat().st_size == SIZE_BYTES)
        self.loop = run("losetup", "--find", "--show", "--direct-io=on", str(self._node))
        undo.callback(lambda: subprocess.run(["losetup", "-d", self.loop], check=False, capture_output=True))
        undo.callback(self._unmount_lazily)
        undo.callback(self.heal)
        self.mount()

    def mount(self) -> None:
        run("mount", "-o", self._mount_options, self.loop, str(self.mount_point))

    def unmount(self) -> None:
        run("umount", str(self.mount_point))

    def check(self) -> None:
        """What an operator, or the boot, does to a disk that failed."""
        run_quietly = subprocess.run(["fsck.ext4", "-fy", self.loop], check=False, capture_output=True)
        assert run_quietly.returncode in {0, 1}, run_quietly.stdout  # 1: errors were corrected

    def fail(self, *operations: str) -> None:
        """From now on every one of these fails: pread, pwrite, flush."""
        for operation in operations:
            (self._place / f"{operation}-fails").touch()

    def spoil(self, path: Path, start: int, end: int) -> None:
        """The sectors under these bytes of *path* cannot be read any more, and no cache remembers them."""
        lines = []
        with path.open("rb") as file:
            os.fsync(file.fileno())
            for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES)):
                number = struct.unpack("I", fcntl.ioctl(file, FIBMAP, struct.pack("I", block)))[0]
                assert number, "that part of the file lies nowhere on the disk"
                lines.append(f"{number * BLOCK_BYTES} {(number + 1) * BLOCK_BYTES}")
        staged = self._place / "bad.staged"
        with suppress(FileNotFoundError):
            shutil.copy(self._place / "bad", staged)
        with staged.open("a") as bad:
            bad.write("".join(f"{line}\n" for line in lines))
        staged.rename(self._place / "bad")
        self.forget(path)

    def forget(self, path: Path) -> None:
        """Have the next read of *path* go to the disk."""
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

    def heal(self) -> None:
        for name in ("pread-fails", "pwrite-fails", "flush-fails", "bad"):
            (self._place / name).unlink(missing_ok=True)

    def _start(self, undo: ExitStack, *command: str) -> None:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        undo.callback(process.wait)
        undo.callback(process.terminate)

    def _unmount_lazily(self) -> None:
        subprocess.run(["umount", "-l", str(self.mount_point)], check=False, capture_output=True)


@contextmanager
def block_device(
    place: Path,
    *,
    mount_options: str = "errors=remount-ro",
    made_with: tuple[str, ...] = (),
    delay_write: str = "0",
) -> Iterator[Device]:
    """A mounted :class:`Device` in *place*. Skips the test where that is not allowed; with CI set it fails."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing and not os.environ.get("CI"):
        pytest.skip(f"not installed: {', '.join(missing)}")
    with ExitStack() as undo:
        try:
            device = Device(place, mount_options=mount_options, made_with=made_with, delay_write=delay_write)
            device.attach(undo)
        except (OSError, subprocess.CalledProcessError, AssertionError):
            if os.environ.get("CI"):
                raise
            pytest.skip("a block device of one's own cannot be attached here")
        yield device
