"""When the drain of a sink rests, and when it works through."""

from __future__ import annotations

from contextlib import contextmanager

from outstation.buffer import Buffer
from outstation.settings import BufferSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.testing.contract import message
from outstation_hub.drain import Drain
from outstation_hub.inbox import INBOX, STATION, STREAM
from support import wait_until

BATCH_SECONDS = 0.5


class SlowShelf:
    """A sink that takes half a second for a batch, in which stations may send more."""

    name = "shelf"

    def __init__(self, clock):
        self.clock = clock
        self.batches = 0
        self.meanwhile = lambda: None

    def write(self, arrivals):
        self.clock.advance(BATCH_SECONDS)
        self.meanwhile()
        self.batches += 1

    def close(self):
        pass


@contextmanager
def drained_by_blocks(tmp_path, *, blocks, inbox_bytes=64 << 20):
    """An inbox with *blocks*, a drain that takes one a batch, and its sink."""
    clock = FakeClock()
    settings = BufferSettings(min_free_disk_bytes=0, defaults=StreamSettings(max_bytes=inbox_bytes))
    with Buffer.open(tmp_path / "inbox", settings) as buffer:
        inbox = buffer.stream(INBOX)

        def arrive():
            block = message(1, 50).block
            inbox.append(block, attributes={STATION: "press-7", STREAM: "events"})
            inbox.flush()

        for _ in range(blocks):
            arrive()
        sink = SlowShelf(clock)
        drain = Drain(inbox, sink, tmp_path / "sinks", clock, interval=100.0, batch_bytes=1)
        try:
            yield clock, sink, drain, arrive
        finally:
            sink.meanwhile = lambda: None
            drain.close()


def test_a_sink_rests_between_batches_while_stations_send(tmp_path):
    with drained_by_blocks(tmp_path, blocks=2) as (clock, sink, drain, arrive):
        sink.meanwhile = arrive
        drain.start()
        clock.wait_for_waiters()
        assert (sink.batches, drain.lag) == (1, 2)
        clock.advance(4 * BATCH_SECONDS)
        wait_until(lambda: sink.batches == 2)


def test_a_sink_works_through_when_nobody_sends(tmp_path):
    with drained_by_blocks(tmp_path, blocks=5) as (clock, sink, drain, _):
        drain.start()
        clock.wait_for_waiters()  # for the interval, after everything
        assert (sink.batches, drain.lag) == (5, 0)


def test_a_sink_works_through_when_the_inbox_fills(tmp_path):
    with drained_by_blocks(tmp_path, blocks=20, inbox_bytes=20_000) as (_, sink, drain, arrive):
        sink.meanwhile = lambda: sink.batches < 5 and arrive()
        drain.start()
        wait_until(lambda: sink.batches >= 20)


def test_closing_ends_the_rest(tmp_path):
    with drained_by_blocks(tmp_path, blocks=2) as (clock, sink, drain, arrive):
        sink.meanwhile = arrive
        drain.start()
        clock.wait_for_waiters()
        sink.meanwhile = lambda: None
        drain.close()
        assert drain.lag == 0
