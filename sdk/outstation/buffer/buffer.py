"""The buffer: a folder of streams, owned by one process, with one thread that brings everything to the disk."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from outstation.buffer import state as state_file
from outstation.buffer.batch import call
from outstation.buffer.commit import Committer
from outstation.buffer.encryption import Keys, Vault
from outstation.buffer.frames import Balance
from outstation.buffer.handles import LIMIT, Handles
from outstation.buffer.lock import Lock
from outstation.buffer.log import Log
from outstation.buffer.policy import segment_limit
from outstation.buffer.recovery import Found, examine, mend
from outstation.buffer.room import FolderRoom
from outstation.buffer.salvage import is_unreadable
from outstation.buffer.segment import Access
from outstation.buffer.steady import SteadyClock
from outstation.buffer.stream import Stream
from outstation.clock import Clock, SystemClock
from outstation.durable import FILES, Files, make_directories, write_atomically
from outstation.errors import ClosedError, DiskError, StorageError, mapped_os_errors
from outstation.settings import BufferSettings
from outstation.types import STREAM_NAME, Durability, StreamReport, checked_name

log = logging.getLogger("outstation.buffer")

STREAMS = "streams"
# Fewer than the file descriptors that may be open at once: see Handles.
STREAMS_A_PASS = LIMIT // 2
# Records of durability "memory", and a cursor that moves while nothing is appended, may wait this much longer.
LAZY_FACTOR = 4
# 16 MiB is a million records of no payload, which is what one block can count.
LARGEST_BLOCK_BYTES = 16 << 20
# What cannot be read at opening is looked at again after these many seconds, once for all streams together: the state
# and the newest numbers cannot wait for the commit thread as the rest can, and a station may be late by nine seconds.
LOOK_AGAIN = (0.1, 0.5, 1.0, 2.0, 5.0)
# With nothing to do the thread sleeps; a wake-up that was missed, which must not be, would cost this many seconds.
IDLE_INTERVAL = 3600.0


@dataclass(frozen=True, slots=True)
class BufferStat:
    """The whole folder at one instant."""

    directory: Path
    streams: tuple[StreamReport, ...]
    stored_bytes: int
    max_bytes: int


class Buffer:
    """Streams of records that survive kill and power cut. Thread-safe. Close it, or use it in a ``with``."""

    @classmethod
    def open(
        cls,
        directory: Path,
        settings: BufferSettings = BufferSettings(),
        *,
        clock: Clock = SystemClock(),
        files: Files = FILES,
    ) -> Buffer:
        """Open the folder, made when missing, and bring what a crash left in order.

        Reads headers only, and the bodies of what was written since the last checkpoint. Raises BufferLockedError
        (with the holder's pid), DiskError, DiskFullError, DecryptionError, UnsupportedVersionError. Damage never
        raises: it is counted in the ledger, and its bytes are kept in ``quarantine``; nor does a file that cannot be
        read, or one stream of which nothing can: that one is missing until :meth:`stream` can open it.
        """
        make_directories(directory / STREAMS, files=files)
        lock = Lock(directory)
        try:
            return cls(directory, settings, clock, files, lock)
        except BaseException:
            lock.release()
            raise

    def __init__(self, directory: Path, settings: BufferSettings, clock: Clock, files: Files, lock: Lock) -> None:
        """Use :meth:`open`."""
        self.directory = directory
        self.settings = settings
        self.clock = clock
        self.files = files
        self.block_bytes = min(settings.block_bytes, LARGEST_BLOCK_BYTES)
        self._folder_lock = lock
        self._handles = Handles(files)
        self._lock = threading.Lock()
        self._making = threading.Lock()
        self._wake = threading.Event()
        self._committers: dict[str, Committer] = {}
        self._due: dict[str, float] = {}
        self._next_look = float("inf")
        self._callbacks: list[Callable[[], None]] = []
        self._deferred: list[Callable[[], None]] = []
        self._passing = threading.Lock()  # held by whoever commits; files are touched only under it
        self._closing = False
        self._closed = False
        self._room = FolderRoom(directory, settings, clock, lambda: tuple(self._committers.values()))
        self._keys = Keys.of(settings)
        with mapped_os_errors(doing="read the checks of the keys", path=directory):
            self._keys.confirm(directory, files)
        self._patience = list(LOOK_AGAIN)
        self._missing: set[str] = set()  # streams that are there and could not be opened
        with mapped_os_errors(doing="open the buffer", path=directory):
            folders = sorted(path for path in (directory / STREAMS).iterdir() if STREAM_NAME.fullmatch(path.name))
        recovered = [found for folder in folders if (found := self._recover_or_miss(folder)) is not None]
        self._steady = SteadyClock(clock, max((found.balance.time_unix_nano for found in recovered), default=0))
        for found in recovered:
            self._adopt(found.folder.name, found)
        self._thread = threading.Thread(target=self._run, name="outstation-commit", daemon=True)
        self._thread.start()

    def stream(self, name: str) -> Stream:
        """The stream *name*, made when missing, which costs a few fsyncs.

        Raises InvalidNameError, DiskError (also when it is there and cannot be read), DiskFullError, ClosedError.
        """
        committer = self._committers.get(name)
        if committer is not None:
            return committer.stream
        checked_name(STREAM_NAME, name, "stream")
        with self._making:
            committer = self._committers.get(name)
            if committer is None:
                if self._closing:
                    raise ClosedError("The buffer was closed.")
                if name in self._missing:
                    found = self._recover(self.directory / STREAMS / name)
                    self._missing.discard(name)
                else:
                    found = self._make(name)
                committer = self._adopt(name, found)
            return committer.stream

    def streams(self) -> tuple[Stream, ...]:
        """All streams, by name."""
        with self._lock:
            return tuple(self._committers[name].stream for name in sorted(self._committers))

    def on_commit(self, callback: Callable[[], None]) -> None:
        """Call *callback* after each commit of records, on the commit thread. It only hands over and never raises."""
        with self._lock:
            self._callbacks.append(callback)

    def stat(self) -> BufferStat:
        """The account of every stream, and the bytes on the disk."""
        streams = self.streams()
        return BufferStat(
            self.directory,
            tuple(stream.report() for stream in streams),
            self._room.stored_bytes,
            self.settings.max_bytes,
        )

    def flush(self, timeout: float | None = None) -> None:
        """Return when everything appended before, and every cursor, is on the disk; errors as of Stream.flush."""
        deadline = None if timeout is None else self.clock.monotonic() + timeout
        for stream in self.streams():
            stream.flush(None if deadline is None else max(0.0, deadline - self.clock.monotonic()))

    def close(self) -> None:
        """Flush, write the state, end the thread, release the folder. Idempotent; what the disk refuses is logged."""
        with self._making:
            with self._lock:
                if self._closed:
                    return
                streams = [committer.stream for committer in self._committers.values()]
            for stream in streams:
                stream.close()
            with self._lock:
                self._closing = True  # after them: what came in behind the last pass would wait for ever
        self._wake.set()
        self._thread.join()
        self._handles.close()
        self._folder_lock.release()

    def __enter__(self) -> Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._committers)} streams"
        return f"<Buffer in {self.directory}, {state}>"

    # --- what streams ask of it --------------------------------------------------------------------------------

    def note(self, stream: Stream, delay: float) -> None:
        """Commit *stream* within *delay* seconds. Called with the stream's lock held; takes only its own."""
        due = self.clock.monotonic() + delay
        with self._lock:
            if due < self._due.get(stream.name, float("inf")):
                self._due[stream.name] = due
                if due < self._next_look:
                    self._wake.set()

    def is_full(self, stream: Stream, size: int) -> bool:
        """Whether the folder has no room for *size* more bytes, and nothing may go to make some for *stream*."""
        return self._room.is_full(stream, size)

    def resized(self, change_bytes: int) -> None:
        """A stream has grown or shrunk on the disk."""
        self._room.resized(change_bytes)

    def delay_of(self, durability: Durability) -> float:
        """Seconds that an append may wait for its commit."""
        interval = self.settings.group_interval
        return interval * LAZY_FACTOR if durability is Durability.MEMORY else interval

    # --- opening -----------------------------------------------------------------------------------------------

    def _recover_or_miss(self, folder: Path) -> Found | None:
        try:
            with mapped_os_errors(doing="open the stream", path=folder):
                if not folder.is_dir():
                    return None
            return self._recover(folder)
        except DiskError as exc:
            cause = exc.__cause__
            if not isinstance(cause, OSError) or not is_unreadable(cause):
                raise
            log.error("%s The other streams go on. %s", exc, exc.hint)
            self._missing.add(folder.name)
            return None

    def _examine(self, folder: Path) -> Found:
        """What is there; looks again, for a few seconds in all, while some of it cannot be read."""
        opener = Vault(folder.name, self._keys).open
        while True:
            try:
                found = examine(folder, self.files, opener)
                if not (found.holes and self._patience):
                    return found
            except OSError as exc:
                if not (is_unreadable(exc) and self._patience):
                    raise
            self.clock.wait(threading.Event(), self._patience.pop(0))

    def _recover(self, folder: Path) -> Found:
        with mapped_os_errors(doing="open the stream", path=folder):
            found = self._examine(folder)
            for path in found.holes:
                log.error("%s could not be read in all its places; what is in them is tried again.", path)
            if found.epoch == 0:
                found.epoch = _new_epoch()
                found.balance = found.balance._replace(epoch=found.epoch)
            mend(found, self.files)
        return found

    def _make(self, name: str) -> Found:
        folder = self.directory / STREAMS / name
        make_directories(folder, files=self.files)
        found = Found(folder, _new_epoch())
        found.balance = Balance(found.epoch, 0)
        data = state_file.encode(name, found.balance, 1, 0, {})
        write_atomically(folder / state_file.FILE_NAME, data, files=self.files)
        return found

    def _adopt(self, name: str, found: Found) -> Committer:
        settings = self.settings.streams.get(name, self.settings.defaults)
        for segment in found.segments:
            if not segment.sealed:
                segment.written_unix_nano = self._steady.now()  # nobody knows; later than it was keeps it longer
        vault = Vault(name, self._keys)
        access = Access(self.files, found.epoch, vault.open)
        stream = Stream(name, settings, self, found, access)
        limit = segment_limit(self.settings, settings)
        segments = Log(
            name, found.folder, self.files, self._handles, segment_limit=limit, newest_serial=found.newest_serial
        )
        if found.segments and not found.segments[-1].closed:
            segments.active = found.segments[-1]
        committer = Committer(
            stream,
            segments,
            access=access,
            protect=vault.protect,
            settings=self.settings,
            clock=self._steady,
            room=self._room,
        )
        with self._lock:
            self._committers[name] = committer
            if found.suspects or settings.max_age is not None:
                self._due[name] = self.clock.monotonic()
                self._wake.set()
        return committer

    # --- the commit thread -------------------------------------------------------------------------------------

    def help_out(self, stream: Stream) -> bool:
        """Commit *stream* on the caller's thread, who would only wait; False when a commit is under way.

        Two changes of thread cost as much as the fdatasync of a good disk. User callbacks stay on the commit thread.
        """
        if self._passing.locked():
            return False
        # Never by acquire(): Ctrl-C may come when it has returned and before any `try`, and the lock be held for ever.
        # Whoever was quicker since the question is waited for: one pass, and what it left is then done here.
        with self._passing:
            if self._closed:
                return False
            # What is due of it stays noted: the thread finds nothing then, and need not be woken for each commit.
            committed = self._pass([self._committers[stream.name]])
        if committed and self._callbacks:
            self.defer(list(self._callbacks))
        return True

    def defer(self, callbacks: list[Callable[[], None]]) -> None:
        """Have *callbacks* called on the commit thread, soon."""
        with self._lock:
            self._deferred += callbacks
            if threading.current_thread() is not self._thread:
                self._wake.set()

    def _run(self) -> None:
        while True:
            due, wait, closing = self._look()
            for start in range(0, len(due), STREAMS_A_PASS):
                with self._passing:
                    committed = self._pass(due[start : start + STREAMS_A_PASS])
                if committed:
                    self.defer(list(self._callbacks))
            with self._lock:
                callbacks, self._deferred = self._deferred, []
            for callback in callbacks:
                call(callback)
            if closing and not callbacks:
                break
            if not (due or callbacks):
                self.clock.wait(self._wake, wait)
        with self._passing:
            for committer in self._committers.values():
                committer.close()
            self._closed = True

    def _look(self) -> tuple[list[Committer], float, bool]:
        """Which streams are due, how long to wait for the next, and whether this is the last look."""
        with self._lock:
            self._wake.clear()
            now = self.clock.monotonic()
            closing = self._closing
            if closing:
                names = list(self._committers)
                self._due.clear()
            else:
                names = [name for name, due in self._due.items() if due <= now]
                for name in names:
                    del self._due[name]
            self._next_look = now if self._deferred else min(self._due.values(), default=now + IDLE_INTERVAL)
            return [self._committers[name] for name in names], max(0.0, self._next_look - now), closing

    def _pass(self, committers: list[Committer]) -> bool:
        """One group commit: first everything is written, then everything is synced. True when records were."""
        written = [committer for committer in committers if self._guarded(committer, committer.write)]
        committed = [committer for committer in written if self._guarded(committer, committer.sync)]
        return bool(committed)

    def _guarded(self, committer: Committer, step: Callable[[], bool]) -> bool:
        try:
            return step()
        except Exception as exc:
            # Whoever waits must hear of it, and every other stream goes on.
            log.exception("The commit of the stream %r failed.", committer.stream.name)
            error = exc if isinstance(exc, StorageError) else StorageError(f"The commit failed: {exc!r}.")
            committer.fail(error)
            return False


def _new_epoch() -> int:
    return secrets.randbits(64) or 1
