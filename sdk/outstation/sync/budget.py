"""What may leave now: hours of the day, a metered link, bits and messages a second."""

from __future__ import annotations

import time
from collections.abc import Callable

from outstation.bandwidth import Allowance, Bandwidth
from outstation.clock import Clock
from outstation.provider import Limits
from outstation.settings import UplinkSettings
from outstation.sync.pacing import Hours

# On a metered link the account, the report and the canary come this many times more seldom.
METERED_FACTOR = 60


def local_minute(time_unix_nano: int) -> int:
    """The minute of the day on this machine's clock on the wall."""
    now = time.localtime(time_unix_nano // 1_000_000_000)
    return now.tm_hour * 60 + now.tm_min


class Budget:
    """Used by the uplink's thread alone; ``metered`` may be set from any."""

    def __init__(
        self,
        settings: UplinkSettings,
        limits: Limits,
        clock: Clock,
        minute: Callable[[int], int] = local_minute,
        bandwidth: Bandwidth | None = None,
    ) -> None:
        """*bandwidth*: what the station may spend, else the settings' bound. SettingsError for hours that are none."""
        self.metered = settings.metered
        self._hours = Hours.parse(settings.send_hours)
        self._urgent = settings.urgent_priority
        self._bandwidth = bandwidth or Bandwidth(settings.max_bits_per_second, None, clock)
        self._messages = Allowance(limits.messages_per_second)
        self._clock = clock
        self._minute = minute

    def admits(self, priority: int) -> bool:
        """Whether records of *priority* may leave now."""
        if priority <= self._urgent:
            return True
        if self.metered or not self._hours.spans:
            return not self.metered
        return self._hours.are_open(self._minute(self._clock.time_unix_nano()))

    def wait(self) -> float:
        """Seconds until the next message may leave; 0 = now."""
        return max(self._bandwidth.wait(), self._messages.wait(self._clock.monotonic()))

    def spend(self, size_bytes: int) -> None:
        """A message of that size leaves."""
        self._bandwidth.spend(size_bytes)
        self._messages.take(1)

    def stretched(self, interval: float) -> float:
        """*interval*, longer on a metered link."""
        return interval * METERED_FACTOR if self.metered else interval
