"""How much the whole folder may take, and who gives when it is too much."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from outstation.buffer import policy
from outstation.buffer.stream import Stream
from outstation.clock import Clock
from outstation.errors import mapped_os_errors
from outstation.settings import BufferSettings
from outstation.types import WhenFull

# Asking the file system costs a system call; between two looks a disk loses at most what it can write in this time.
DISK_INTERVAL = 1.0


class Shedder(Protocol):
    """A stream's committer, as far as room is concerned."""

    stream: Stream

    def shed(self, surplus_bytes: int, *, all_of_it: bool) -> int: ...


class FolderRoom:
    """``max_bytes`` and ``min_free_disk_bytes`` of the folder. ``resized`` is thread-safe; the rest is the committer's.

    A stream that must give was not asked by its own appends, so it tells of it in a commit of its own, soon after.
    """

    def __init__(
        self, folder: Path, settings: BufferSettings, clock: Clock, shedders: Callable[[], Iterable[Shedder]]
    ) -> None:
        self._folder = folder
        self._settings = settings
        self._clock = clock
        self._shedders = shedders
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._free_bytes = 0
        # What is let go leaves the disk one commit later, so the bound is kept with a segment in hand.
        self._bound_bytes = settings.max_bytes - min(settings.segment_bytes, settings.max_bytes // 8)
        self.stored_bytes = 0

    def resized(self, change_bytes: int) -> None:
        with self._lock:
            self.stored_bytes += change_bytes

    def surplus_bytes(self, incoming_bytes: int) -> int:
        """How much must go before *incoming_bytes* fit; 0 or less when they do."""
        surplus = self.stored_bytes + incoming_bytes - self._bound_bytes
        if self._settings.min_free_disk_bytes:
            surplus = max(surplus, self._settings.min_free_disk_bytes + incoming_bytes - self._free())
        return surplus

    def may_give(self, stream: Stream) -> list[Stream]:
        """Who may let go for *stream*, in that order.

        Itself before others, except that ``drop_lowest_priority`` begins with the least important stream. Nobody
        gives for a less important one, and who rejects gives nothing.
        """
        own = stream.settings
        others = [
            shedder.stream
            for shedder in self._shedders()
            if shedder.stream is not stream
            and policy.drops(shedder.stream.settings)
            and shedder.stream.settings.priority >= own.priority
        ]
        others.sort(key=lambda other: (-other.settings.priority, -other.stored_bytes))
        if not policy.drops(own):
            return [other for other in others if other.settings.priority > own.priority]
        if own.when_full is WhenFull.DROP_LOWEST_PRIORITY:
            less = [other for other in others if other.settings.priority > own.priority]
            return [*less, stream, *(other for other in others if other not in less)]
        return [stream, *others]

    def make_room(self, stream: Stream, surplus_bytes: int) -> None:
        """Have those who may give let go of *surplus_bytes* together: closed segments first, then what is newer."""
        shedders = {shedder.stream.name: shedder for shedder in self._shedders()}
        givers = self.may_give(stream)
        for giver, all_of_it in [*((giver, False) for giver in givers), *((giver, True) for giver in givers)]:
            if surplus_bytes <= 0:
                break
            freed = shedders[giver.name].shed(surplus_bytes, all_of_it=all_of_it)
            if freed and giver is not stream:
                giver.look_again(0.0)
            surplus_bytes -= freed
            self._free_bytes += freed

    def is_full(self, stream: Stream, size: int) -> bool:
        """Whether *size* more bytes have no room, and nobody has anything to give.

        For a stream that gives nothing, whatever waits in memory has its room already.
        """
        if not policy.drops(stream.settings):
            size += sum(shedder.stream.uncommitted_bytes for shedder in self._shedders())
        if self.surplus_bytes(size) <= 0:
            return False
        return not any(giver.segments for giver in self.may_give(stream))

    def _free(self) -> int:
        now = self._clock.monotonic()
        if now - self._looked >= DISK_INTERVAL:
            with mapped_os_errors(doing="ask how much is free", path=self._folder):
                found = os.statvfs(self._folder)
            self._free_bytes = found.f_bavail * found.f_frsize
            self._looked = now
        return self._free_bytes
