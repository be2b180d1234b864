"""A process that appends to a buffer until it is killed; run by the fault tests.

Every line on stdout is the confirmation of one call, written after its receipt was done: ``WRITER FIRST LAST TIME``.
Records say who wrote them: ``WRITER:NUMBER``. One thread acknowledges now and then, and says so: ``ack THROUGH TIME``.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from pathlib import Path

from outstation.buffer import Buffer
from outstation.settings import BufferSettings, StreamSettings
from outstation.types import Durability

STREAM = "events"
OPTIONS = BufferSettings(
    group_interval=0.005,
    segment_bytes=32 << 10,
    block_bytes=4 << 10,
    defaults=StreamSettings(max_bytes=1 << 30),
    streams={"record": StreamSettings(durability=Durability.RECORD, max_bytes=1 << 30)},
)


def say(line: str) -> None:
    # One write a line: a kill leaves whole lines. The time tells what was said before a power cut.
    os.write(1, b"%s %d\n" % (line.encode(), time.monotonic_ns()))


def write(buffer: Buffer, writer: int, number: int, seed: int) -> None:
    dice = random.Random(seed * 100 + writer)
    stream = buffer.stream(STREAM)
    while True:
        count = dice.choice([1, 1, 1, 3, 50])
        lines = [b"%d:%d:" % (writer, number + n) + dice.randbytes(dice.randrange(200)) for n in range(count)]
        receipt = stream.append_many(lines, mark=(f"writer-{writer}", number + count - 1))
        if dice.random() < 0.5:
            receipt.wait()
            say(f"{writer} {number} {number + count - 1}")
        else:
            last = number + count - 1
            receipt.add_done_callback(
                lambda done, first=number, last=last: say(f"{writer} {first} {last}") if done.error is None else None
            )
        number += count


def acknowledge(buffer: Buffer, seed: int) -> None:
    dice = random.Random(seed)
    stream = buffer.stream(STREAM)
    pause = threading.Event()
    while True:
        pause.wait(dice.random() * 0.02)
        through = stream.last_sequence - dice.randrange(2000)
        if through > stream.acknowledged:
            stream.acknowledge(through)
            if dice.random() < 0.3:
                stream.flush()
                say(f"ack {through}")


def main(folder: str, writers: int, seed: int) -> None:
    buffer = Buffer.open(Path(folder), OPTIONS)
    stream = buffer.stream(STREAM)
    say("ready")
    for writer in range(writers):
        number = stream.mark(f"writer-{writer}") + 1
        threading.Thread(target=write, args=(buffer, writer, number, seed), daemon=True).start()
    acknowledge(buffer, seed)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
