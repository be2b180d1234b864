"""Outstation: run ML in the field; sync when connected.

``outstation.open()`` holds a station in this process; ``outstation.connect()`` talks to the agent on this device.
Both give a :class:`Station` with three rooms: ``models``, ``telemetry``, ``buffer``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from outstation._version import __version__
from outstation.errors import OutstationError

if TYPE_CHECKING:
    from outstation.station import Station, connect, open  # noqa: A004  read as outstation.open()

__all__ = ["OutstationError", "Station", "__version__", "connect", "open"]

_OF_STATION = {"Station", "connect", "open"}


def __getattr__(name: str) -> Any:
    """The station's names, loaded when first used: who imports one room of ours does not pay for all of them."""
    if name not in _OF_STATION:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outstation import station  # noqa: PLC0415

    return getattr(station, name)
