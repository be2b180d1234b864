"""``outstation.v1.Fleet``: what operators want of stations, what stations tell, and the files of the repository."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from outstation.errors import InvalidInputError, OutstationError, ProviderUnavailableError
from outstation.types import Desired
from outstation.wire import convert, fleet
from outstation.wire.messages import (
    FetchRequest,
    HubStatus,
    ModelWish,
    StationEntry,
    StationReport,
    StationsPage,
    StationsRequest,
    Steering,
    Wish,
    WishEntry,
    WishName,
)
from outstation.wire.services import Caller, handler
from outstation_hub.access import Access
from outstation_hub.accounts import Accounts
from outstation_hub.repository import Repository
from outstation_hub.stations import Stations
from outstation_hub.wishes import Wishes

# Files that one station fetches at once: a model and its metadata. More would hold the places of other stations.
MAX_FETCHES = 4
# What one page of stations may hold: well under a message, whatever one station's entry adds beyond it.
PAGE_BYTES = 4 << 20


class FleetService:
    """Serves ``outstation.v1.Fleet``. Thread-safe."""

    def __init__(
        self,
        wishes: Wishes,
        stations: Stations,
        accounts: Accounts,
        repository: Repository | None,
        access: Access,
        *,
        status: Callable[[], HubStatus],
        is_connected: Callable[[str], bool],
    ) -> None:
        self._wishes = wishes
        self._stations = stations
        self._accounts = accounts
        self._repository = repository
        self._access = access
        self._status = status
        self._is_connected = is_connected
        self._lock = threading.Lock()
        self._fetches: Counter[str] = Counter()

    def handler(self, on_refused: Callable[[OutstationError], None] = lambda error: None) -> Any:
        """The service; *on_refused* hears of each call that failed."""
        return handler(
            "outstation.v1.Fleet",
            {
                convert.GET_DESIRED: self.get_desired,
                convert.WATCH_DESIRED: self.watch_desired,
                convert.REPORT: self.report,
                convert.FETCH: self.fetch,
                convert.SET_DESIRED: self.set_desired,
                fleet.SET_MODEL: self.set_model,
                fleet.UNSET_MODEL: self.unset_model,
                fleet.STEER_ROLLOUT: self.steer_rollout,
                fleet.LIST_WISHES: self.list_wishes,
                fleet.LIST_STATIONS: self.list_stations,
                fleet.GET_HUB_STATUS: self.get_hub_status,
            },
            on_refused=on_refused,
        )

    # -- for stations --------------------------------------------------------------------------------------------

    def get_desired(self, station: str, caller: Caller) -> Desired:
        self._access.reader(caller, station)
        return self._wishes.get(station)

    def watch_desired(self, station: str, caller: Caller) -> Iterator[Desired]:
        self._access.reader(caller, station)
        stop = threading.Event()

        def ended() -> None:
            stop.set()
            self._wishes.wake(station)

        caller.on_end(ended)
        yield from self._wishes.watch(station, stop)

    def report(self, report: StationReport, caller: Caller) -> None:
        self._access.station(caller, report.station)
        self._stations.take_report(report.station, report.reported)

    def fetch(self, request: FetchRequest, caller: Caller) -> Iterator[bytes]:
        self._access.reader(caller, request.station)
        if self._repository is None:
            raise InvalidInputError("This hub has no repository.", hint="Start it with --repository FOLDER.")
        with self._one_fetch(request.station):
            yield from self._repository.read(request.path, request.offset)

    @contextmanager
    def _one_fetch(self, station: str) -> Iterator[None]:
        with self._lock:
            if self._fetches[station] >= MAX_FETCHES:
                raise ProviderUnavailableError(f"Station {station!r} fetches {MAX_FETCHES} files already.")
            self._fetches[station] += 1
        try:
            yield
        finally:
            with self._lock:
                self._fetches[station] -= 1
                if not self._fetches[station]:
                    del self._fetches[station]

    # -- for operators -------------------------------------------------------------------------------------------

    def set_desired(self, wish: Wish, caller: Caller) -> Desired:
        self._access.operator(caller)
        return self._wishes.put(wish.station, wish.models)

    def set_model(self, wish: ModelWish, caller: Caller) -> WishEntry:
        self._access.operator(caller)
        return self._wishes.put_model(wish)

    def unset_model(self, name: WishName, caller: Caller) -> WishEntry:
        self._access.operator(caller)
        return self._wishes.unset_model(name)

    def steer_rollout(self, steering: Steering, caller: Caller) -> WishEntry:
        self._access.operator(caller)
        return self._wishes.steer(steering)

    def list_wishes(self, _: None, caller: Caller) -> tuple[WishEntry, ...]:
        self._access.operator(caller)
        return self._wishes.entries()

    def list_stations(self, request: StationsRequest, caller: Caller) -> StationsPage:
        self._access.operator(caller)
        page: list[StationEntry] = []
        size = 0
        for entry in self._stations.list():
            if entry.station <= request.after or request.station not in ("", entry.station):
                continue
            if size >= PAGE_BYTES:
                return StationsPage(tuple(page), more=True)
            full = self._full(entry)
            page.append(full)
            size += len(fleet.station_entry_to_wire(full).SerializeToString())
        return StationsPage(tuple(page))

    def get_hub_status(self, _: None, caller: Caller) -> HubStatus:
        self._access.operator(caller)
        return self._status()

    def _full(self, entry: StationEntry) -> StationEntry:
        name = entry.station
        return replace(
            entry,
            connected=self._is_connected(name),
            applied=self._wishes.applied(name),
            accounts=self._accounts.of(name),
            counts=self._stations.counts(name),
        )
