"""Many streams and many writers: no deadlock, no handles without bound, no memory that grows with the backlog."""

from __future__ import annotations

import os
import threading
import tracemalloc

from outstation.buffer import Buffer
from outstation.buffer.handles import LIMIT
from outstation.settings import BufferSettings

OPTIONS = BufferSettings(group_interval=0.02, max_bytes=1 << 30)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def test_a_thousand_streams_need_few_handles(tmp_path):
    before = open_files()
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        streams = [buffer.stream(f"stream-{number}") for number in range(1000)]
        for number, stream in enumerate(streams):
            stream.append(b"%d" % number)
        buffer.flush(60)
        assert open_files() - before <= LIMIT + 8
        readers = [stream.read() for stream in streams]
        assert all(next(reader).payload == b"%d" % number for number, reader in enumerate(readers))
        assert open_files() - before <= LIMIT + 8
    assert open_files() == before
    with Buffer.open(tmp_path, OPTIONS) as buffer:
        assert [stream.last_sequence for stream in buffer.streams()] == [1] * 1000
        assert open_files() - before <= LIMIT + 8


def test_many_writers_over_many_streams_wait_for_each_other_and_end(tmp_path):
    with Buffer.open(tmp_path, OPTIONS) as buffer:

        def write(own: int) -> None:  # pytest makes a failure of what a thread raises
            for number in range(60):
                stream = buffer.stream(f"stream-{(own * 7 + number) % 10}")
                receipt = stream.append(b"%d:%d" % (own, number))
                if number % 3 == 0:
                    receipt.wait(60)
                elif number % 7 == 0:
                    stream.acknowledge(stream.last_sequence)
                elif number % 11 == 0:
                    stream.flush(60)
                    list(stream.read(stream.acknowledged))
                    stream.report()

        writers = [threading.Thread(target=write, args=(own,)) for own in range(32)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        assert not any(writer.is_alive() for writer in writers)
        buffer.flush(60)
        assert sum(stream.ledger().appended for stream in buffer.streams()) == 32 * 60
        assert all(stream.ledger().balanced for stream in buffer.streams())


def test_memory_stays_flat_while_the_backlog_grows(tmp_path):
    with Buffer.open(tmp_path, BufferSettings(group_interval=0.02, segment_bytes=1 << 20)) as buffer:
        stream = buffer.stream("events")
        block = [os.urandom(50) for _ in range(500)]

        def grow(times: int) -> int:
            for _ in range(times):
                stream.append_many(block).wait(60)
            stream.flush(60)
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            first = grow(60)
            second = grow(300)
        finally:
            tracemalloc.stop()
        assert second - first < 200_000, "150,000 records more, 9 MB, in a handful of segments"
