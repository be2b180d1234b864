"""The link's state, since when, and why."""

from __future__ import annotations

from outstation.sync.link import LinkMonitor
from outstation.sync.pacing import Backoff
from outstation.testing import FakeClock
from outstation.types import LinkState


def monitor() -> tuple[LinkMonitor, FakeClock]:
    clock = FakeClock()
    return LinkMonitor(clock, Backoff(1.0, 60.0)), clock


def test_while_it_stays_away_since_is_when_it_went_away() -> None:
    link, clock = monitor()
    link.trying()
    link.connected()
    clock.advance(10.0)
    link.failed("cut", 0.5)
    gone = link.link.since_unix_nano
    for _ in range(3):
        clock.advance(10.0)
        link.trying()
        assert link.link.state is LinkState.PROBING
        link.failed("nobody answers", 0.5)
    assert link.link.since_unix_nano == gone
    assert link.link.reason == "nobody answers"


def test_failures_are_forgotten_only_when_the_far_end_has_acknowledged() -> None:
    link, _ = monitor()
    for _ in range(3):
        link.trying()
        link.connected()
        link.failed("dropped at once", 0.5)
    assert link.failures == 3
    link.connected()
    link.acknowledged()
    assert link.failed("cut", 1.0) == 1.0


def test_online_has_no_reason_and_its_own_since() -> None:
    link, clock = monitor()
    clock.advance(5.0)
    link.connected()
    assert link.link.state is LinkState.ONLINE
    assert link.link.reason == ""
    assert link.link.since_unix_nano == clock.time_unix_nano()
