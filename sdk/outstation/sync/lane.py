"""One stream on its way up: which of its records go next, cut to what the link bears."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from outstation.buffer import Stream
from outstation.provider import Message
from outstation.sync.pacing import Flow
from outstation.sync.slicing import fitting
from outstation.wire import parts


class Piece(NamedTuple):
    """What goes as one message: a whole block, or a part of one."""

    whole: Message
    message: Message  # as sent
    end: int = 0  # of a part: where it ends in the block

    @property
    def size_bytes(self) -> int:
        return len(self.message.block)

    @property
    def is_last(self) -> bool:
        return self.end in {0, len(self.whole.block)}


@dataclass(slots=True)
class UnderWay:
    """A block that was sent, or of which parts were."""

    message: Message  # whole
    after: int  # the last sequence number that was sent before it
    pieces: int = 0  # messages that it went in
    accepted: int = 0  # of these by the broker
    complete: bool = False  # the last one was sent
    held_bytes: int = 0  # the far end has in memory, of a block in parts
    refused: str = ""  # why the far end will never take it

    @property
    def is_with_broker(self) -> bool:
        return self.complete and self.accepted >= self.pieces


class Lane:
    """The state of one stream for as long as one connection lives. Used by the uplink's thread alone."""

    def __init__(self, stream: Stream, flow: Flow, max_message_bytes: int | None) -> None:
        self.stream = stream
        self.sent_through = stream.acknowledged
        self.retry_at = 0.0  # monotonic seconds; before then its disk is not asked again
        self.under_way: dict[int, UnderWay] = {}  # by last sequence number, ascending
        self._flow = flow
        self._max_message_bytes = max_message_bytes
        self._pending: Iterator[Piece] | None = None
        self._head: Piece | None = None

    @property
    def waits(self) -> bool:
        """Whether there is something to send, as far as counters tell."""
        return self._head is not None or self._pending is not None or self.stream.last_sequence > self.sent_through

    def head(self) -> Piece | None:
        """The next piece, kept until :meth:`sent`; None when there is none. Raises StorageError."""
        if self._head is None:
            if self._pending is None:
                self._pending = self._pieces()
            try:
                self._head = next(self._pending, None)
            finally:
                if self._head is None:
                    self._pending = None
        return self._head

    def sent(self, piece: Piece) -> Message:
        """*piece* is being handed over, as the message returned; its acknowledgement may come before that is done."""
        self._head = None
        last = piece.whole.last_sequence
        entry = self.under_way.get(last)
        if entry is None:
            entry = self.under_way[last] = UnderWay(piece.whole, self.sent_through)
        entry.pieces += 1
        entry.complete = piece.is_last
        self.sent_through = last
        return replace(piece.message, after=entry.after, settled=self.stream.acknowledged)

    def put_back(self, piece: Piece) -> None:
        """*piece* was not handed over after all, and is the next."""
        self._head = piece
        last = piece.whole.last_sequence
        entry = self.under_way[last]
        entry.pieces -= 1
        entry.complete = False
        if not entry.pieces:
            del self.under_way[last]
            self.sent_through = entry.after

    def forget(self, through: int) -> None:
        """Everything up to *through* is decided."""
        for last in [last for last in self.under_way if last <= through]:
            del self.under_way[last]

    def _pieces(self) -> Iterator[Piece]:
        stream = self.stream
        for block in stream.blocks(self.sent_through):
            header = block.header
            whole = Message(
                stream.name,
                header.epoch,
                header.first_sequence,
                header.last_sequence,
                block.data,
                stream.settings.priority,
            )
            for message in fitting(whole, after=self.sent_through, max_bytes=self._room()):
                if len(message.block) <= self._room():
                    yield Piece(message, message)
                else:
                    yield from self._parts(message)

    def _parts(self, whole: Message) -> Iterator[Piece]:
        """A record that is larger than a message, until the far end has it or refuses it."""
        cutting, end = parts.Cutting(whole.block), 0
        while end < len(whole.block) and self.stream.acknowledged < whole.last_sequence:
            entry = self.under_way.get(whole.last_sequence)
            if entry is not None:
                if entry.refused:
                    return
                end = max(end, entry.held_bytes)
            data, end = cutting.part(end, self._room())
            yield Piece(whole, replace(whole, block=data), end)

    def _room(self) -> int:
        limit = self._max_message_bytes
        return self._flow.message_bytes if limit is None else min(limit, self._flow.message_bytes)
