"""What a station may put on its link: records first, models with what is left, and never starved."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_parts import Device, SimulatedRepository
from outstation.bandwidth import Allowance, Bandwidth
from outstation.testing import FakeClock
from support import wait_until


@given(st.floats(1, 1e6), st.lists(st.floats(0.1, 1e6), min_size=1, max_size=50))
def test_no_more_leaves_than_is_allowed(per_second: float, sizes: list[float]) -> None:
    allowance, now, taken = Allowance(per_second), 0.0, 0.0
    for size in sizes:
        now += allowance.wait(now) + 1e-9
        assert allowance.wait(now) <= 1e-6
        assert taken <= per_second * (now + 1) * (1 + 1e-6) + 1e-3
        allowance.take(size)
        taken += size


def test_without_a_bound_nothing_waits() -> None:
    allowance = Allowance(None)
    allowance.take(1e12)
    assert allowance.wait(0.0) == 0.0


RATE = 80_000.0  # bits a second: 10,000 bytes


class Traffic:
    """Records and models that both want all there is, on a clock of steps of 10 ms."""

    def __init__(self, bandwidth: Bandwidth, clock: FakeClock) -> None:
        self.bandwidth, self.clock = bandwidth, clock
        self.records = self.models = 0
        self.longest_wait = 0.0

    def run(self, seconds: float, *, record_bytes: int = 0, models: bool = True) -> None:
        until = self.clock.monotonic() + seconds
        piece = self.bandwidth.piece_bytes(256 << 10)
        while self.clock.monotonic() < until:
            if record_bytes:
                while self.bandwidth.wait() == 0:
                    self.bandwidth.spend(record_bytes)
                    self.records += record_bytes
            if models and not self.bandwidth.hold():
                self.bandwidth.spend_on_model(piece)
                self.models += piece
            self.clock.advance(0.01)


class StillClock(FakeClock):
    """A clock that only the test moves."""

    def wait(self, event: threading.Event, timeout: float) -> bool:
        return event.is_set()


@pytest.fixture
def clock() -> FakeClock:
    return StillClock()


def test_models_take_all_there_is_while_no_record_goes_up(clock: FakeClock) -> None:
    traffic = Traffic(Bandwidth(RATE, None, clock), clock)
    traffic.run(100)
    assert 0.95 * 1e6 < traffic.models <= 1.05 * 1e6


@pytest.mark.parametrize("record_bytes", [100, 5_000, 80_000])
def test_while_records_go_up_models_get_a_quarter(clock: FakeClock, record_bytes: int) -> None:
    traffic = Traffic(Bandwidth(RATE, None, clock), clock)
    traffic.run(400, record_bytes=record_bytes)
    assert traffic.records + traffic.models <= 4.05e6 + record_bytes
    assert 0.2 * 4e6 < traffic.models < 0.3 * 4e6
    assert traffic.records > 0.68 * 4e6


def test_an_alarm_waits_for_no_more_than_one_piece_of_a_model(clock: FakeClock) -> None:
    bandwidth = Bandwidth(RATE, None, clock)
    Traffic(bandwidth, clock).run(100)
    assert bandwidth.wait() <= Bandwidth.PIECE


def test_models_may_have_a_bound_of_their_own(clock: FakeClock) -> None:
    for all_bits in (RATE, None):
        traffic = Traffic(Bandwidth(all_bits, RATE / 10, clock), clock)
        traffic.run(100)
        assert 0.9e5 < traffic.models <= 1.1e5
        assert traffic.bandwidth.wait() == 0


def test_without_any_bound_nothing_is_held_and_pieces_are_large(clock: FakeClock) -> None:
    bandwidth = Bandwidth(None, None, clock)
    assert bandwidth.piece_bytes(256 << 10) == 256 << 10
    bandwidth.spend_on_model(1 << 40)
    bandwidth.spend(1 << 40)
    assert not bandwidth.hold()
    assert bandwidth.wait() == 0


class Counting(Bandwidth):
    """Remembers what models took."""

    taken = 0

    def spend_on_model(self, size_bytes: int) -> None:
        self.taken += size_bytes
        super().spend_on_model(size_bytes)


def test_a_model_is_fetched_no_faster_than_the_station_may(tmp_path: Path, clock: FakeClock) -> None:
    """On a clock that stands still the first second's worth comes, and no more."""
    far = SimulatedRepository()
    far.add("1.0.0", bytes(100_000))
    far.publish()
    bandwidth = Counting(8 * 20_000, None, clock)
    device = Device(tmp_path / "device", far, far.first_root)
    device.start(meter=bandwidth)
    try:
        wait_until(lambda: bandwidth.taken > 20_000)
        assert bandwidth.taken <= 20_000 * (1 + Bandwidth.PIECE)
        clock.advance(1)
        wait_until(lambda: bandwidth.taken > 30_000)
        assert bandwidth.taken <= 20_000 * (2 + Bandwidth.PIECE)
        for _ in range(5):
            clock.advance(1)
            wait_until(lambda: bandwidth.hold() or device.active())
        wait_until(lambda: device.active() == "1.0.0")
    finally:
        device.stop()
