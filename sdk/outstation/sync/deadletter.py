"""Where records go that the far end will never take: a stream of their own, with the reason, which is never sent."""

from __future__ import annotations

from outstation.buffer import Buffer
from outstation.wire.block import decode

DEAD_LETTER = "dead-letter"


def set_aside(buffer: Buffer, stream: str, block: bytes, first_sequence: int, last_sequence: int, reason: str) -> int:
    """Keep the records of *block* within the given range in the dead-letter stream, on the disk; how many they were.

    Idempotent: the mark of the dead-letter stream remembers how far each stream has been set aside, so a crash
    between this and moving the cursor does not set the same records aside twice.
    """
    letters = buffer.stream(DEAD_LETTER)
    header, columns = decode(block)
    producer = f"{stream}/{header.epoch:016x}"
    done = letters.mark(producer)
    count = 0
    for record in columns.records():
        if max(first_sequence, done + 1) <= record.sequence <= last_sequence:
            origin = {"outstation.stream": stream, "outstation.sequence": str(record.sequence)}
            letters.append(
                record.payload,
                time_unix_nano=record.time_unix_nano,
                content_type=record.content_type,
                attributes={**record.attributes, **origin, "outstation.refused": reason[:512]},
                mark=(producer, record.sequence),
            )
            count += 1
    letters.flush()
    return count
