"""``outstation.v1.Hub``: how the hub itself is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from outstation.wire import convert
from outstation.wire.messages import HubStatus
from outstation.wire.services import Caller, handler
from outstation_hub.access import Access


class StatusService:
    """Serves ``outstation.v1.Hub``. Thread-safe."""

    def __init__(self, status: Callable[[], HubStatus], access: Access) -> None:
        self._status = status
        self._access = access

    @property
    def handler(self) -> Any:
        return handler("outstation.v1.Hub", {convert.GET_STATUS: self.get_status})

    def get_status(self, _: None, caller: Caller) -> HubStatus:
        self._access.operator(caller)
        return self._status()
