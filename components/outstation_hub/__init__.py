"""The far end of your own: takes blocks from stations, keeps them, and hands them to sinks."""

from outstation_hub.hub import Hub
from outstation_hub.settings import HubSettings

__all__ = ["Hub", "HubSettings"]
