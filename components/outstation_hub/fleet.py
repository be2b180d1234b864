"""``outstation.v1.Fleet``: what operators want of stations, what stations tell, and the files of the repository."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from outstation.durable import write_atomically
from outstation.errors import DiskError, InvalidInputError, ProviderUnavailableError, mapped_os_errors
from outstation.types import MODEL_NAME, STATION_NAME, Desired, DesiredModel, checked_name
from outstation.wire import convert
from outstation.wire.messages import FetchRequest, StationEntry, StationReport, Wish
from outstation.wire.services import Caller, handler
from outstation_hub.access import Access
from outstation_hub.repository import Repository
from outstation_hub.stations import Stations

EVERY_STATION = ""
MAX_MODELS = 1000  # in one wish
MAX_VERSION = 100  # characters


class _State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file: one wish a station, "" for all that have none of their own. ``revision`` is of the last change."""

    revision: int = 0
    wishes: dict[str, Desired] = {}


class Wishes:
    """Desired state, kept in one file. Thread-safe; :meth:`put` returns when the change is on the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _load(path)
        self._changed = threading.Condition()
        self._closed = False

    @property
    def revision(self) -> int:
        """Grows with each change, of whatever station; 0 = nobody has wished anything."""
        return self._state.revision

    def get(self, station: str) -> Desired:
        """The wish for *station*: its own, else that for every station, else an empty one of revision 0."""
        state = self._state
        return state.wishes.get(station) or state.wishes.get(EVERY_STATION) or Desired()

    def put(self, station: str, models: tuple[DesiredModel, ...]) -> Desired:
        """Want *models* of *station* ("" = of every one without a wish of its own). InvalidInputError, DiskError."""
        if station != EVERY_STATION:
            checked_name(STATION_NAME, station, "station")
        if len(models) > MAX_MODELS or len({model.name for model in models}) != len(models):
            raise InvalidInputError(f"A wish names each model once, and at most {MAX_MODELS}.")
        for model in models:
            checked_name(MODEL_NAME, model.name, "model")
            if not 0 < len(model.version) <= MAX_VERSION:
                raise InvalidInputError(f"{model.version!r} is no version of {model.name!r}.")
        with self._changed:
            revision = self._state.revision + 1
            wish = Desired(models, revision)
            state = _State(revision, {**self._state.wishes, station: wish})
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(state), indent=2))
            self._state = state
            self._changed.notify_all()
        return wish

    def watch(self, station: str, stop: threading.Event) -> Iterator[Desired]:
        """The present wish, then each change, until *stop* is set (call :meth:`wake` then) or this is closed."""
        last: Desired | None = None
        while True:
            with self._changed:
                self._changed.wait_for(lambda: stop.is_set() or self._closed or self.get(station) != last)  # noqa: B023
                if stop.is_set():
                    return
                if self._closed:
                    raise ProviderUnavailableError("The hub is closing.")
                last = self.get(station)
            yield last

    def wake(self) -> None:
        """Let every watcher look whether it is to stop."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End every watch."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _load(path: Path) -> _State:
    if not path.exists():
        return _State()
    with mapped_os_errors(doing="read the desired state", path=path):
        data = path.read_bytes()
    try:
        return msgspec.json.decode(data, type=_State)
    except (msgspec.DecodeError, msgspec.ValidationError) as exc:
        raise DiskError(f"{path} is no desired state: {exc}.", hint="Restore it from a copy, or remove it.") from exc


class FleetService:
    """Serves ``outstation.v1.Fleet``. Thread-safe."""

    def __init__(self, wishes: Wishes, stations: Stations, repository: Repository | None, access: Access) -> None:
        self._wishes = wishes
        self._stations = stations
        self._repository = repository
        self._access = access

    @property
    def handler(self) -> Any:
        return handler(
            "outstation.v1.Fleet",
            {
                convert.GET_DESIRED: self.get_desired,
                convert.WATCH_DESIRED: self.watch_desired,
                convert.REPORT: self.report,
                convert.FETCH: self.fetch,
                convert.SET_DESIRED: self.set_desired,
                convert.LIST_STATIONS: self.list_stations,
            },
        )

    def get_desired(self, station: str, caller: Caller) -> Desired:
        self._access.reader(caller, station)
        return self._wishes.get(station)

    def watch_desired(self, station: str, caller: Caller) -> Iterator[Desired]:
        self._access.reader(caller, station)
        stop = threading.Event()

        def ended() -> None:
            stop.set()
            self._wishes.wake()

        caller.on_end(ended)
        yield from self._wishes.watch(station, stop)

    def report(self, report: StationReport, caller: Caller) -> None:
        self._access.station(caller, report.station)
        self._stations.take_report(report.station, report.reported)

    def fetch(self, request: FetchRequest, caller: Caller) -> Iterator[bytes]:
        self._access.reader(caller, request.station)
        if self._repository is None:
            raise InvalidInputError("This hub has no repository.", hint="Start it with --repository FOLDER.")
        yield from self._repository.read(request.path, request.offset)

    def set_desired(self, wish: Wish, caller: Caller) -> Desired:
        self._access.operator(caller)
        return self._wishes.put(wish.station, wish.models)

    def list_stations(self, _: None, caller: Caller) -> tuple[StationEntry, ...]:
        self._access.operator(caller)
        return self._stations.list()
