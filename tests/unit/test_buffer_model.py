"""The buffer beside a model that keeps its records in a dict: any run of calls leaves both with the same account."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from outstation.buffer import Buffer
from outstation.errors import BufferFullError
from outstation.settings import BufferSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.types import DropReason, WhenFull

MAX_AGE = 100_000.0


def settings_for(policy: WhenFull, aged: bool) -> BufferSettings:
    return BufferSettings(
        group_interval=1e6,
        segment_bytes=4096,
        block_bytes=64 << 10,  # never full: a full block would be committed at once
        defaults=StreamSettings(when_full=policy, max_bytes=32 << 10, max_age=MAX_AGE if aged else None),
    )


class BufferMachine(RuleBasedStateMachine):
    """Commits happen when a rule asks for them, so that the model knows what is on the disk."""

    def __init__(self) -> None:
        super().__init__()
        self.place = Path(tempfile.mkdtemp())
        self.number = 0
        self.clock = FakeClock()
        self.payloads: dict[int, bytes] = {}  # every record that was committed
        self.pending: list[bytes] = []  # appended, not yet committed
        self.cursor = 0
        self.rejected = 0
        self.mark = self.safe_mark = 0

    @property
    def folder(self) -> Path:
        return self.place / str(self.number)

    @initialize(policy=st.sampled_from(list(WhenFull)), aged=st.booleans())
    def begin(self, policy, aged):
        self.policy = policy
        self.aged = aged
        self.open()

    def open(self) -> None:
        self.buffer = Buffer.open(self.folder, settings_for(self.policy, self.aged), clock=self.clock)
        self.stream = self.buffer.stream("events")

    def committed(self) -> None:
        first = len(self.payloads) + 1
        self.payloads.update(enumerate(self.pending, first))
        self.pending = []
        self.safe_mark = self.mark

    @rule(sizes=st.lists(st.sampled_from([0, 10, 200, 900]), min_size=1, max_size=8), marked=st.booleans())
    def append(self, sizes, marked):
        records = [os.urandom(size) for size in sizes]
        try:
            receipt = self.stream.append_many(records, mark=("app", self.mark + 1) if marked else None)
        except BufferFullError:
            assert self.policy is WhenFull.REJECT
            self.rejected += len(records)
            return
        assert receipt.first_sequence == len(self.payloads) + len(self.pending) + 1
        assert receipt.last_sequence == receipt.first_sequence + len(records) - 1
        self.pending += records
        self.mark += marked
        # A commit stays smaller than a segment, as the bounds are kept by segments. With a bound of age the buffer
        # looks, and commits, when it thinks right.
        if self.aged or sum(map(len, self.pending)) > 2500:
            self.flush()

    @rule()
    def flush(self):
        self.stream.flush()
        self.committed()

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share):
        through = round(share * len(self.payloads))
        self.stream.acknowledge(through)
        self.cursor = max(self.cursor, through)

    @rule(seconds=st.sampled_from([1.0, 60_000.0]))
    def time_passes(self, seconds):
        self.stream.flush()
        self.committed()
        self.clock.advance(seconds)
        self.stream.flush()

    @rule(years=st.sampled_from([-3, -1, 1, 3]))
    def the_clock_jumps(self, years):
        self.clock.set_time(max(0, self.clock.time_unix_nano() + years * 31_536_000 * 1_000_000_000))

    @rule()
    def close_and_open(self):
        self.buffer.close()
        self.committed()
        self.open()

    @rule()
    def crash(self):
        """What a kill leaves: the files as they are now, and nothing of what waits in memory."""
        self.stream.flush()
        self.committed()
        self.stream.append(b"lost with the process", mark=("app", self.mark + 1))
        shutil.copytree(self.folder, self.place / str(self.number + 1))
        self.buffer.close()
        self.number += 1
        self.open()
        self.rejected = self.stream.ledger().dropped[DropReason.REJECTED]

    @invariant()
    def the_account_is_right(self):
        if not hasattr(self, "stream"):
            return
        ledger = self.stream.ledger()
        assert ledger.balanced
        assert ledger.appended == len(self.payloads) + ledger.dropped[DropReason.REJECTED]
        assert ledger.dropped[DropReason.REJECTED] == self.rejected
        assert ledger.dropped[DropReason.CORRUPT] == 0
        assert self.stream.acknowledged == self.cursor
        assert self.stream.mark("app") == self.mark
        records = {record.sequence: record.payload for record in self.stream.read(self.cursor)}
        assert len(records) == ledger.pending
        assert all(self.payloads[sequence] == payload for sequence, payload in records.items())
        if self.policy is not WhenFull.THIN:
            assert list(records) == list(range(len(self.payloads) + 1 - len(records), len(self.payloads) + 1))
            assert ledger.dropped[DropReason.THINNED] == 0
        if self.policy is WhenFull.REJECT:
            assert ledger.dropped[DropReason.EVICTED] == 0
        assert self.stream.stored_bytes <= 32 << 10

    def teardown(self):
        if hasattr(self, "buffer"):
            self.buffer.close()
        shutil.rmtree(self.place)


QUICK = settings(max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def test_any_run_of_calls_leaves_the_account_that_a_model_has():
    run_state_machine_as_test(BufferMachine, settings=QUICK)


@pytest.mark.soak
def test_long_runs_of_calls_do_too():
    run_state_machine_as_test(BufferMachine, settings=settings(QUICK, max_examples=400, stateful_step_count=60))
