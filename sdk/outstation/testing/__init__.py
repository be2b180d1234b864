"""What ships for tests, ours and yours: a clock that moves by hand, a link that fails on command, and the contract.

``ProviderContract`` needs pytest and is imported from :mod:`outstation.testing.contract`.
"""

from outstation.testing.clock import FakeClock
from outstation.testing.link import FlakyLink

__all__ = ["FakeClock", "FlakyLink"]
