"""Where records go that the far end will never take: a stream of their own, with the reason, which is never sent."""

from __future__ import annotations

from outstation.buffer import Buffer
from outstation.provider import Message
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
        letters.append(
            record.payload,
            time_unix_nano=record.time_unix_nano,
            content_type=record.content_type,
            attributes={**record.attributes, **origin, "outstation.refused": reason[:MAX_REASON]},
            mark=(producer, record.sequence),
        )
    letters.flush()
    return len(records)
