"""Outstation: run ML in the field; sync when connected.

``outstation.open()`` holds a station in this process; ``outstation.connect()`` talks to the agent on this device.
Both give a :class:`Station` with three rooms: ``models``, ``telemetry``, ``buffer``.
"""

from outstation._version import __version__
from outstation.errors import OutstationError
from outstation.station import Station, connect, open  # noqa: A004  outstation.open() reads well and is always qualified

__all__ = ["OutstationError", "Station", "__version__", "connect", "open"]
