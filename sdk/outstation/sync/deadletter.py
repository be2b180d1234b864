"""Where records go that the far end will never take: a stream of their own, with the reason, which is never sent."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from outstation.buffer import Buffer, Stream
from outstation.errors import InvalidInputError
from outstation.provider import Message
from outstation.settings import BufferSettings
from outstation.types import Record, WhenFull
from outstation.wire.block import decode

DEAD_LETTER = "dead-letter"
MAX_REASON = 512  # characters; the far end's word, so it is bounded here


def set_aside(buffer: Buffer, message: Message, *, after: int, reason: str) -> int:
    """Keep the records of *message* beyond *after* in the dead-letter stream, on the disk; how many they were.

    Idempotent: the mark of the dead-letter stream remembers how far each stream has been set aside, so a crash
    between this and moving the cursor does not set the same records aside twice.
    """
    letters = buffer.stream(DEAD_LETTER)
    producer = f"{message.stream}/{message.epoch:016x}"
    done = max(after, letters.mark(producer))
    _, columns = decode(message.block)
    records = list(columns.after(done).records())
    for record in records:
        origin = {"outstation.stream": message.stream, "outstation.sequence": str(record.sequence)}
        note = {**origin, "outstation.refused": reason[:MAX_REASON]}
        mark = (producer, record.sequence)
        try:
            _keep(letters, record, {**record.attributes, **note}, mark)
        except InvalidInputError:
            _keep(letters, record, note, mark)  # its own attributes are so many that the reason does not fit beside
    letters.flush()
    return len(records)


def _keep(letters: Stream, record: Record, attributes: Mapping[str, str], mark: tuple[str, int]) -> None:
    letters.append(
        record.payload,
        time_unix_nano=record.time_unix_nano,
        content_type=record.content_type,
        attributes=attributes,
        mark=mark,
    )


def with_dead_letters(settings: BufferSettings) -> BufferSettings:
    """*settings* in which the dead-letter stream, unless it is configured, lets its oldest go when it is full.

    It is never sent and so never empties; a stream that rejected would hold up what is waiting behind a refusal.
    """
    if DEAD_LETTER in settings.streams:
        return settings
    own = msgspec.structs.replace(settings.defaults, when_full=WhenFull.DROP_OLDEST)
    return msgspec.structs.replace(settings, streams={**settings.streams, DEAD_LETTER: own})
