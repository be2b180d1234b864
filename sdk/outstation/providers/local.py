"""A folder is the cloud: for developers, for tests, and for a stick that is carried to where the network is.

::

    FOLDER/desired.json                     {"models": [{"name": "digits", "version": "latest"}], "revision": 3}
    FOLDER/repository/...                   the files of a model repository
    FOLDER/stations/STATION/desired.json    the wish for that station alone; wins over the one above
    FOLDER/stations/STATION/reported.json   what the station tells of itself
    FOLDER/stations/STATION/ledgers.json    the account of each stream
    FOLDER/stations/STATION/blocks/STREAM/EPOCH.FIRST.oblk   blocks, for outstation.wire.decode

A block that comes twice overwrites itself, so each record is there once.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import (
    ClosedError,
    InvalidInputError,
    LinkDownError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    StorageError,
)
from outstation.provider import Acknowledgement, ByteStream, Limits, Message, UplinkListener
from outstation.settings import Seconds, Table, decoded
from outstation.shapes import learn
from outstation.types import STATION_NAME, STREAM_NAME, Desired, Identity, Reported, StreamReport, checked_name
from outstation.wire.block import BlockHeader, decode

# A wish and a report are a few KB; more than this is some other file.
_MAX_DOCUMENT_BYTES = 1 << 20


class LocalOptions(Table, frozen=True):
    """``[options.local]``."""

    folder: str = ""  # "" = the folder "cloud" in the provider's own state folder
    poll_interval: Seconds = 0.5  # seconds between looks at desired.json


class LocalProvider:
    """The provider ``local``. Thread-safe; one thread for each watch of the desired state."""

    name = "local"
    commands = None
    secrets = None
    lifecycle = None

    def __init__(self, *, identity: Identity, options: Mapping[str, Any], state_dir: Path, clock: Clock) -> None:
        checked = decoded(options, LocalOptions, where="[options.local]")
        folder = Path(checked.folder) if checked.folder else state_dir / "cloud"
        station = folder / "stations" / checked_name(STATION_NAME, identity.station, "station")
        self.identity = identity
        self.limits = Limits(durable_on_accept=True)
        self.uplink = FolderUplink(station)
        self.desired = FolderDesired(folder, station, checked.poll_interval, clock)
        self.artifacts = FolderArtifacts(folder / "repository")

    def close(self) -> None:
        self.uplink.close()
        self.desired.close()


@contextmanager
def _as_link(doing: str) -> Iterator[None]:
    """A folder that fails is a far end that is away: the same errors, so that callers need no second set."""
    try:
        yield
    except StorageError as exc:
        raise ProviderUnavailableError(str(exc), hint=exc.hint) from exc
    except OSError as exc:
        raise LinkDownError(f"Could not {doing}: {exc.strerror}.", hint="Is the folder there, and mounted?") from exc


class FolderUplink:
    """Blocks land as files; the acknowledgement follows the fsync at once, on the sender's thread."""

    def __init__(self, station: Path) -> None:
        self._station = station
        self._listener: UplinkListener | None = None
        self._made: set[Path] = set()
        self._closed = False
        self._lock = threading.Lock()  # one writer a file, whoever calls

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        if self._closed:
            raise ClosedError("The provider is closed.")
        with _as_link("reach the folder"):
            make_directories(self._station)
        self._made.clear()
        self._listener = listener

    def send(self, message: Message, timeout: float) -> None:
        with self._lock:
            listener = self._listener
            if listener is None:
                raise LinkDownError("The folder is not connected.")
            refused = _flaw(message)
            if not refused:
                with _as_link("write a block"):
                    write_atomically(self._path(message), message.block)
        listener.acknowledged(Acknowledgement(message.stream, message.epoch, message.last_sequence, refused))

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        with self._lock, _as_link("write the ledgers"):
            if self._listener is None:
                raise LinkDownError("The folder is not connected.")
            write_atomically(self._station / "ledgers.json", _document(reports))

    def probe(self, timeout: float) -> None:
        if self._listener is None:
            raise LinkDownError("The folder is not connected.")
        with _as_link("look at the folder"):
            self._station.stat()

    def disconnect(self) -> None:
        self._listener = None

    def close(self) -> None:
        self._closed = True
        self.disconnect()

    def _path(self, message: Message) -> Path:
        folder = self._station / "blocks" / checked_name(STREAM_NAME, message.stream, "stream")
        if folder not in self._made:
            make_directories(folder)
            self._made.add(folder)
        return folder / f"{message.epoch:016x}.{message.first_sequence:020d}.oblk"


def _flaw(message: Message) -> str:
    """Why nobody could ever read this block; "" if it is sound."""
    try:
        header, _ = decode(message.block)
    except OutstationError as exc:
        return str(exc)
    return "" if _matches(header, message) else "The block is not the one that its message names."


def _matches(header: BlockHeader, message: Message) -> bool:
    return (header.epoch, header.first_sequence, header.last_sequence) == (
        message.epoch,
        message.first_sequence,
        message.last_sequence,
    )


class FolderDesired:
    """desired.json down, reported.json up."""

    def __init__(self, folder: Path, station: Path, interval: float, clock: Clock) -> None:
        self._wishes = (station / "desired.json", folder / "desired.json")
        self._reported = station / "reported.json"
        self._interval = interval
        self._clock = clock
        self._stops: set[threading.Event] = set()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._closed = False

    def current(self, timeout: float) -> Desired:
        for path in self._wishes:
            with _as_link("read the desired state"), suppress(FileNotFoundError), path.open("rb") as file:
                return _wish(path, file)
        return Desired()

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        stop = threading.Event()
        thread = threading.Thread(target=self._look, args=(callback, stop), name="outstation-local-desired")
        with self._lock:
            if self._closed:
                raise ClosedError("The provider is closed.")
            self._stops.add(stop)
            self._threads.append(thread)
            thread.start()
        return stop.set

    def report(self, state: Reported, timeout: float) -> None:
        with self._lock, _as_link("write the report"):
            make_directories(self._reported.parent)
            write_atomically(self._reported, _document(state))

    def close(self) -> None:
        with self._lock:
            self._closed = True
            threads, self._threads = self._threads, []
        for stop in self._stops:
            stop.set()
        for thread in threads:
            thread.join()

    def _look(self, callback: Callable[[Desired], None], stop: threading.Event) -> None:
        last: Desired | None = None
        while not stop.is_set():
            # A folder that is away, or a file that is being edited, is looked at again.
            with suppress(OutstationError):
                now = self.current(self._interval)
                if now != last:
                    last = now
                    callback(now)
            self._clock.wait(stop, self._interval)


def _wish(path: Path, file: BinaryIO) -> Desired:
    data = file.read(_MAX_DOCUMENT_BYTES)
    try:
        wish = msgspec.json.decode(data, type=Desired)
    except (msgspec.ValidationError, msgspec.DecodeError) as exc:
        raise ProviderUnavailableError(f"{path} is no desired state: {exc}.") from exc
    if wish.revision:
        return wish
    # Whoever edits by hand forgets to count; the time of the change grows as well.
    return Desired(wish.models, os.fstat(file.fileno()).st_mtime_ns)


def _document(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


class FolderArtifacts:
    """Files below the folder ``repository``."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @contextmanager
    def open(self, uri: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        relative = Path(uri.removeprefix("local:").lstrip("/"))
        if ".." in relative.parts:
            raise RefusedError(f"{uri!r} points out of the repository.")
        with _as_link(f"read {uri}"), _opened(self._root / relative, uri) as file:
            if offset > file.seek(0, os.SEEK_END):
                raise InvalidInputError(f"{uri} ends before byte {offset}.")
            file.seek(offset)
            yield _File(file)


@contextmanager
def _opened(path: Path, uri: str) -> Iterator[BinaryIO]:
    try:
        file = path.open("rb")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as exc:
        raise ModelNotFoundError(f"The repository has no {uri}.") from exc
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ModelNotFoundError(f"The repository has no {uri}.")
        yield file


class _File:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        with _as_link("read the repository"):
            return self._file.read(size)


learn(LocalOptions, Desired)
