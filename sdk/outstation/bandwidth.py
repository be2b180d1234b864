"""What the station may put on its link a second: one budget, which records going up and models coming down share."""

from __future__ import annotations

import threading

from outstation.clock import Clock


class Allowance:
    """So much a second, with a second's worth in hand; None = as much as wanted. A token bucket that may go into debt.

    Debt, so that what is larger than a second's worth passes too, and pays by the wait after it.
    """

    def __init__(self, per_second: float | None) -> None:
        self._per_second = per_second
        self._left = per_second or 0.0
        self._at: float | None = None

    def wait(self, now: float) -> float:
        """Seconds until something may be taken; 0 = now."""
        if self._per_second is None:
            return 0.0
        if self._at is not None:
            self._left = min(self._per_second, self._left + (now - self._at) * self._per_second)
        self._at = now
        return max(0.0, -self._left / self._per_second)

    def take(self, amount: float) -> None:
        if self._per_second is not None:
            self._left -= amount


class Bandwidth:
    """The budget of one station, in bits a second; None = as much as the link carries. Thread-safe.

    Records go first: while they go up, models take no more than a quarter; else all there is. A quarter, as with the
    turns of the uplink, so that a backlog of days does not keep a model away for days.
    """

    MODELS_SHARE = 0.25
    # Seconds after a record's turn in which models still keep to their share: records seldom come alone.
    BUSY = 1.0
    # A piece of a model is so many seconds' worth: an alarm waits no longer for one that is under way.
    PIECE = 0.25
    _SMALLEST_PIECE_BYTES = 1 << 10

    def __init__(self, bits_per_second: float | None, models_bits_per_second: float | None, clock: Clock) -> None:
        rates = [None if bits is None else bits / 8 for bits in (bits_per_second, models_bits_per_second)]
        self._slowest = min((rate for rate in rates if rate is not None), default=None)
        self._all, self._models = (Allowance(rate) for rate in rates)
        self._share = Allowance(None if rates[0] is None else rates[0] * self.MODELS_SHARE)
        self._busy_until = float("-inf")
        self._clock = clock
        self._mutex = threading.Lock()
        self._never = threading.Event()

    def wait(self) -> float:
        """Seconds until the next message may leave; 0 = now."""
        with self._mutex:
            return self._all.wait(self._clock.monotonic())

    def spend(self, size_bytes: int) -> None:
        """A message of that size leaves."""
        with self._mutex:
            now = self._clock.monotonic()
            self._all.take(size_bytes)
            self._busy_until = now + self._all.wait(now) + self.BUSY

    def piece_bytes(self, most: int) -> int:
        """How much of a model to read at once, at most *most*."""
        if self._slowest is None:
            return most
        return min(most, max(self._SMALLEST_PIECE_BYTES, round(self._slowest * self.PIECE)))

    def hold(self) -> bool:
        """Wait a little if it is too early for the next piece of a model; whether it was. Ask again until it is not."""
        with self._mutex:
            now = self._clock.monotonic()
            shared = self._share if now < self._busy_until else self._all
            seconds = max(self._models.wait(now), shared.wait(now))
        if seconds > 0:
            self._clock.wait(self._never, min(seconds, self.PIECE))
        return seconds > 0

    def spend_on_model(self, size_bytes: int) -> None:
        """A piece of a model of that size has come."""
        with self._mutex:
            now = self._clock.monotonic()
            self._all.take(size_bytes)
            self._models.take(size_bytes)
            if now < self._busy_until:
                self._share.take(size_bytes)
