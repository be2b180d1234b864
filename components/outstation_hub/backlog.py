"""The log of one hub: the inbox on its own disk, and a drain for each sink."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack

from outstation.buffer import Buffer
from outstation.clock import Clock
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import WhenFull
from outstation_hub.accounts import Accounts
from outstation_hub.drain import Drain
from outstation_hub.inbox import INBOX, Inbox
from outstation_hub.room import DiskRoom
from outstation_hub.settings import HubSettings
from outstation_hub.sinks import Sink


class Backlog:
    """Owns the inbox, its drains and their *sinks*, which it closes even when it cannot be made."""

    def __init__(self, settings: HubSettings, sinks: Sequence[Sink], clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._freeing = threading.Lock()
        self.drains: tuple[Drain, ...] = ()
        with ExitStack() as undo:
            for sink in sinks:
                undo.callback(sink.close)
            self._buffer = Buffer.open(settings.data / INBOX, _buffer_settings(settings), clock=clock)
            undo.callback(self._buffer.close)
            room = DiskRoom(settings.data, settings.min_free_disk_bytes, clock)
            stream = self._buffer.stream(INBOX)
            self.accounts = Accounts(settings.data / "fleet" / "accounts.json", stream, clock, on_kept=self._free)
            self.inbox = Inbox(
                self._buffer,
                clock,
                max_block_bytes=settings.max_message_bytes,
                has_room=room.take,
                watcher=self.accounts,
            )
            self.accounts.catch_up(stream.last_sequence)
            self.drains = tuple(map(self._drain, sinks))
            undo.pop_all()

    def start(self) -> None:
        for drain in self.drains:
            drain.start()

    def close(self) -> None:
        """Write what has arrived to the sinks if they take it, and let go of the folder."""
        for drain in self.drains:
            drain.close()
        self.accounts.keep()
        self._buffer.close()

    def _drain(self, sink: Sink) -> Drain:
        return Drain(
            self.inbox.stream,
            sink,
            self._settings.data / "sinks",
            self._clock,
            interval=self._settings.drain_interval,
            batch_bytes=self._settings.batch_bytes,
            on_progress=self._progressed,
        )

    def _progressed(self) -> None:
        """A sink has more on the disk: the accounts too, if it is not too soon again, and then the inbox has room."""
        self.accounts.keep_if_due()
        self._free()

    def _free(self) -> None:
        """Free the inbox through what every sink has, and the accounts too; their cursors are on the disk already."""
        with self._freeing:
            through = min([self.accounts.saved_through, *(drain.cursor for drain in self.drains)])
            if through > self.inbox.stream.acknowledged:
                self.inbox.stream.acknowledge(through)


def _buffer_settings(settings: HubSettings) -> BufferSettings:
    # Blocks arrive compressed: the cheapest level finds that out and stores them as they are.
    inbox = StreamSettings(when_full=WhenFull.REJECT, max_bytes=settings.inbox_bytes)
    return BufferSettings(
        max_bytes=settings.inbox_bytes + (1 << 30),
        min_free_disk_bytes=settings.min_free_disk_bytes // 2,  # DiskRoom stops the stations before
        group_interval=settings.group_interval,
        block_bytes=1 << 20,
        # Only whole segments are freed, so there must be many of them; and a file each few seconds, not each moment.
        segment_bytes=max(1 << 20, min(64 << 20, settings.inbox_bytes // 64)),
        zstd_level=1,
        defaults=inbox,
    )
