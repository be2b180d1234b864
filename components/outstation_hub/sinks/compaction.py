"""Joining the small Parquet files of a day that is over, so that a query opens few files instead of thousands.

A day's folder is replaced as a whole: its successor is built in ``.compacting`` with the same files, the small ones
joined, and the two folders change places in one step of the kernel (``renameat2`` with ``RENAME_EXCHANGE``). Whoever
lists the folder sees the old files or the new ones, never some of both; a kill at any instant leaves one of the two,
and what lies in ``.compacting`` is thrown away at the next start. See docs/adr/0049.

The names keep their form: a joined file is named by its first record, as the smallest of its parts was.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from outstation.clock import Clock
from outstation.durable import FILES, make_directories
from outstation.errors import DiskError, from_os_error, mapped_os_errors

log = logging.getLogger("outstation.hub")

SCRATCH = ".compacting"
LOCK = ".lock"
# A file of this size is left as it is: joining it with others would write much to spare little.
_SMALL_BYTES = 64 << 20
# A joined file ends at about this size: what one task of a query engine likes to read.
_TARGET_BYTES = 256 << 20
# Rows that are in memory while files are joined, and bytes of them: a row group of the joined file.
_GROUP_ROWS = 128 << 10
_GROUP_BYTES = 32 << 20
# Seconds between looks for a day to compact; a look lists every day's folder.
_LOOK_INTERVAL = 60.0
# Of names in the lock file that are looked at; two are as good as any number.
_MAX_OWNERS_BYTES = 64 << 10
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


class Compaction:
    """Housekeeping of one Parquet folder. Used by the one thread that writes there.

    Another hub may write to the same folder. Each holds a shared lock, since a file that comes into a folder while
    it is replaced would be lost; and each leaves its name in the lock file, since a hub that was killed may write its
    last batch again, and must find the files of it as they were. As soon as there are two names, nothing is compacted.
    """

    def __init__(
        self,
        root: Path,
        clock: Clock,
        after: float,
        *,
        owner: str = "-",
        reached: Callable[[str], None] = lambda point: None,
    ) -> None:
        """*after*: seconds after a day's end, and since the folder last changed.

        *owner*: one word, the same from start to start, that names who feeds the sink. *reached* is told each step.
        """
        self._root = root
        self._owner = owner
        self._clock = clock
        self._after = after
        self._reached = reached
        self._lock: int | None = None
        self._look_at = 0.0
        self._days: deque[Path] = deque()
        self._work: Iterator[None] | None = None
        self._able = True
        self._unreadable: set[Path] = set()
        # A name of this process's own: two that build at once must not take each other's work for theirs.
        self._scratch = root / SCRATCH / secrets.token_hex(8)

    def open(self) -> None:
        """Throw away what a kill has left behind, and say that this hub writes here. Idempotent; StorageError."""
        if self._lock is not None:
            return
        make_directories(self._root)
        with mapped_os_errors(doing="lock the folder of Parquet files", path=self._root):
            self._lock = os.open(self._root / LOCK, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            if self._owner not in self._owners():
                os.write(self._lock, f"{self._owner}\n".encode())
                os.fsync(self._lock)
                FILES.sync_directory(self._root)
            if len(self._owners()) > 1:
                log.warning("several hubs have written to %s: its small files stay as they are", self._root)
            if self._locked():
                shutil.rmtree(self._root / SCRATCH, ignore_errors=True)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def close(self) -> None:
        self._stop()
        lock, self._lock = self._lock, None
        if lock is not None:
            os.close(lock)

    def step(self) -> bool:
        """Join the files of one station, or put a finished day into place; False: there is nothing to do now.

        Raises StorageError, and then nothing has changed.
        """
        if self._work is None:
            day = self._next_day()
            if day is None:
                return False
            self._work = self._compact(day)
        try:
            next(self._work)
        except StopIteration:
            self._work = None
        except BaseException:
            self._stop()
            raise
        return True

    def _stop(self) -> None:
        work, self._work = self._work, None
        if work is not None:
            work.close()  # type: ignore[attr-defined]  # it is a generator

    # -- which day -----------------------------------------------------------------------------------------------

    def _next_day(self) -> Path | None:
        now = self._clock.monotonic()
        if self._able and not self._days and now >= self._look_at and len(self._owners()) == 1:
            self._look_at = now + _LOOK_INTERVAL
            self._days.extend(day for day in sorted(self._root.glob("stream=*/day=*")) if self._is_due(day))
        return self._days.popleft() if self._days else None

    def _is_due(self, day: Path) -> bool:
        wall = self._clock.time_unix_nano() / 1e9
        try:
            date = datetime.strptime(day.name, "day=%Y-%m-%d").replace(tzinfo=timezone.utc)
            over = (date + timedelta(days=1)).timestamp()
            rested = wall - day.stat().st_mtime
        except (ValueError, OverflowError, OSError):
            return False  # no folder of ours
        if wall < over + self._after or rested < self._after or day in self._unreadable:
            return False
        return any(True for _ in _runs(_listing(day)))

    # -- one day -------------------------------------------------------------------------------------------------

    def _compact(self, day: Path) -> Iterator[None]:
        """Build the successor of *day*, a station at a time, and put it into place."""
        scratch = self._scratch / day.parent.name / day.name
        make_directories(scratch)
        before = _listing(day)
        joined: set[Path] = set()
        written: set[Path] = set()
        try:
            for run in _runs(before):
                try:
                    with mapped_os_errors(doing="join Parquet files", path=scratch):
                        _join(run, scratch)
                except (pa.ArrowException, DiskError) as exc:
                    self._unreadable.add(day)
                    log.warning("%s is not compacted: %s", day, exc)
                    return
                joined.update(run[1:])  # the first gives its name to them all
                written.add(run[0])
                self._reached("joined")
                yield
            self._replace(day, scratch, before, (written, joined))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _replace(
        self, day: Path, scratch: Path, before: dict[Path, tuple[int, int]], changed: tuple[set[Path], set[Path]]
    ) -> None:
        written, joined = changed
        if _listing(day) != before:
            return  # late records have come meanwhile: another time
        if len(self._owners()) > 1 or not self._locked():
            log.info("%s is not compacted: another hub writes there", day)
            return
        with mapped_os_errors(doing="compact a day", path=day):
            try:
                for path in before.keys() - joined - written:
                    os.link(path, scratch / path.name)
                shutil.copymode(day, scratch)
                FILES.sync_directory(scratch)
                if {path.name for path in scratch.iterdir()} != {path.name for path in before.keys() - joined}:
                    raise DiskError(f"{scratch} was changed by somebody else.")
                self._reached("built")
                self._exchange(scratch, day)
                self._reached("exchanged")
            finally:
                assert self._lock is not None
                fcntl.flock(self._lock, fcntl.LOCK_SH)
        log.info("compacted %s: %d files are now %d", day, len(before), len(_listing(day)))

    def _exchange(self, scratch: Path, day: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        rename = getattr(libc, "renameat2", None)
        failed = rename is None or rename(
            _AT_FDCWD, os.fsencode(scratch), _AT_FDCWD, os.fsencode(day), _RENAME_EXCHANGE
        )
        if failed:
            code = errno.ENOSYS if rename is None else ctypes.get_errno()
            if code in {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EXDEV}:
                self._able = False
                log.warning("%s: this file system cannot exchange folders; small files stay", self._root)
                return
            raise from_os_error(OSError(code, os.strerror(code)), doing="compact a day", path=day)
        FILES.sync_directory(day.parent)
        FILES.sync_directory(scratch.parent)

    def _owners(self) -> set[str]:
        """Who has ever written here."""
        assert self._lock is not None
        return set(os.pread(self._lock, _MAX_OWNERS_BYTES, 0).decode("utf-8", "replace").split())

    def _locked(self) -> bool:
        """Whether no other hub is open here; then the lock is exclusive until it is made shared again."""
        assert self._lock is not None
        with suppress(BlockingIOError):
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        return False


def _listing(day: Path) -> dict[Path, tuple[int, int]]:
    """Every file of ours in *day*, in the order of its name, with inode and size: a file that was replaced differs."""
    found = {}
    with mapped_os_errors(doing="list a day", path=day):
        for path in sorted(day.glob("*.parquet")):
            stat = path.stat()
            found[path] = (stat.st_ino, stat.st_size)
    return found


def _runs(files: dict[Path, tuple[int, int]]) -> Iterator[list[Path]]:
    """Neighbours that are to be one file: small ones of one (station, epoch), at least two, up to the target."""
    for _, group in groupby(files, lambda path: path.name.rsplit(".", 2)[0]):
        run: list[Path] = []
        size = 0
        for path in group:
            own = files[path][1]
            if run and (own > _SMALL_BYTES or size + own > _TARGET_BYTES):
                if len(run) > 1:
                    yield run
                run, size = [], 0
            if own <= _SMALL_BYTES:
                run.append(path)
                size += own
        if len(run) > 1:
            yield run


def _join(run: Sequence[Path], folder: Path) -> None:
    """One durable file in *folder* of the rows of *run*, in order, named as the first. Memory: a row group."""
    target = folder / run[0].name
    schema = pq.read_schema(run[0])
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        waiting: list[Any] = []
        for path in run:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_GROUP_ROWS // 8):
                    waiting.append(pa.Table.from_batches([batch]).cast(schema))
                    if sum(map(len, waiting)) >= _GROUP_ROWS or sum(t.nbytes for t in waiting) >= _GROUP_BYTES:
                        writer.write_table(pa.concat_tables(waiting).combine_chunks())
                        waiting.clear()
        if waiting:
            writer.write_table(pa.concat_tables(waiting).combine_chunks())
    shutil.copymode(run[0], target)
    rows = sum(pq.read_metadata(path).num_rows for path in run)
    if pq.read_metadata(target).num_rows != rows:
        raise DiskError(f"{target} has not the {rows} rows that it was made of.")
    fd = FILES.open(target, os.O_RDONLY)
    try:
        FILES.sync(fd)
    finally:
        FILES.close(fd)
