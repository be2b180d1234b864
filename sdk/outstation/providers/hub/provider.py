"""The provider itself: its capabilities, put together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from outstation.clock import Clock
from outstation.provider import Limits
from outstation.providers.hub.artifacts import HubArtifacts
from outstation.providers.hub.desired import HubDesired
from outstation.providers.hub.link import Link
from outstation.providers.hub.options import HubOptions, tls_of
from outstation.providers.hub.uplink import HubUplink
from outstation.settings import decoded
from outstation.types import Identity


class HubProvider:
    """The provider ``hub``. Thread-safe. Nothing is connected, and no thread started, before the first call."""

    name = "hub"
    commands = None
    secrets = None
    lifecycle = None

    def __init__(self, *, identity: Identity, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> None:
        checked = decoded(options, HubOptions, where="[options.hub]")
        tls = tls_of(checked)
        self.identity = identity
        self.limits = Limits(max_message_bytes=checked.max_message_bytes)
        self._link = Link(identity.station, checked, tls, clock)
        self.uplink = HubUplink(identity.station, self._link, checked.max_message_bytes)
        self.desired = HubDesired(identity.station, self._link, clock)
        self.artifacts = HubArtifacts(identity.station, self._link)

    def close(self) -> None:
        self.uplink.disconnect()
        self.desired.stop()
        self._link.close()
        self.desired.join()
