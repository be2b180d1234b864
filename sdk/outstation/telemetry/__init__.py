"""What an application tells of itself: events now; OpenTelemetry's exporters write into the same buffer."""

from outstation.telemetry.events import Telemetry

__all__ = ["Telemetry"]
