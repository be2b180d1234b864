"""The clock that ages records: it follows time as it passes and believes no jump."""

from __future__ import annotations

from outstation.clock import Clock

# A buffer that was closed for longer than this is taken for one whose clock is wrong: a dead battery gives any date.
BELIEVED_NANO = 31 * 24 * 3600 * 1_000_000_000


class SteadyClock:
    """Nanoseconds since 1970 that never go back and never leap while the buffer is open. Thread-safe.

    *last_unix_nano* is what it showed last, from the newest balance. Between closing and opening the wall clock is
    believed when it went forward by at most 31 days; otherwise time stood still. While open the monotonic clock
    counts. So a clock that says 1970 at boot, or next year, makes nothing expire that should not.
    """

    def __init__(self, clock: Clock, last_unix_nano: int) -> None:
        self._clock = clock
        wall = clock.time_unix_nano()
        believed = last_unix_nano == 0 or 0 <= wall - last_unix_nano <= BELIEVED_NANO
        self._start = wall if believed else last_unix_nano
        self._zero = clock.monotonic()

    def now(self) -> int:
        return self._start + round((self._clock.monotonic() - self._zero) * 1_000_000_000)
