"""Settings: one frozen object from a file, the environment and arguments, in that order, the later ones winning.

The file is TOML (``outstation.toml``): the path given, else ``$OUTSTATION_SETTINGS``, else ``outstation.toml`` in
the working folder, else ``/etc/outstation/outstation.toml``, else none. The environment names a key with two
underscores between levels: ``OUTSTATION_BUFFER__MAX_BYTES=1000000``, ``OUTSTATION_STATION__NAME=press-7``.
An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import msgspec

from outstation.errors import SettingsError
from outstation.shapes import learn
from outstation.types import (
    STATION_NAME,
    AcknowledgedBy,
    Durability,
    Identity,
    WhenFull,
    checked_labels,
    checked_name,
)

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "OUTSTATION_"
PATH_VARIABLE = "OUTSTATION_SETTINGS"
SEARCH_PATH = (Path("outstation.toml"), Path("/etc/outstation/outstation.toml"))
# A settings file is written by hand; one larger than this is some other file.
MAX_FILE_BYTES = 1 << 20
MAX_SOCKET_PATH_BYTES = 107  # Linux: sun_path has 108, the last of them zero

T = TypeVar("T")
Seconds = Annotated[float, msgspec.Meta(gt=0, le=1e9)]  # up to thirty years: what a clock's arithmetic bears
Size = Annotated[int, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One table of the settings file. Adapters derive their own options from it."""


class StationSettings(Table, frozen=True):
    """``[station]``: who and where this installation is."""

    name: str = ""  # "" = the host's name
    data_dir: str = "outstation-data"  # everything durable lives below this folder
    socket: str = ""  # the agent's unix socket; "" = DATA_DIR/agent.sock
    labels: dict[str, str] = {}  # what operators group stations by, such as line = "3"; they travel to the far end


class StreamSettings(Table, frozen=True):
    """``[buffer.streams.NAME]``: how one stream keeps its records."""

    priority: Priority = 5  # 0 goes first, 9 last
    durability: Durability = Durability.GROUP
    when_full: WhenFull = WhenFull.DROP_OLDEST
    max_bytes: Size = 256 << 20
    max_age: Seconds | None = None  # seconds; older records expire
    acknowledged_by: AcknowledgedBy = AcknowledgedBy.FAR_END  # "broker": its word is enough, and it may lose records


class BufferSettings(Table, frozen=True):
    """``[buffer]``: the whole directory."""

    max_bytes: Size = 1 << 30
    min_free_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 << 20
    group_interval: Seconds = 0.5  # seconds; how long a record may wait for its fdatasync
    block_bytes: Size = 256 << 10  # of payload; a block closes at this size
    segment_bytes: Size = 8 << 20  # a segment file closes at this size
    zstd_level: Annotated[int, msgspec.Meta(ge=1, le=19)] = 1
    keys: dict[str, str] = {}  # by number from 1: "file:PATH" or "env:NAME" of 32 bytes in hexadecimal
    key_id: Annotated[int, msgspec.Meta(ge=0)] = 0  # number of the key to write with; required with keys
    defaults: StreamSettings = StreamSettings()
    streams: dict[str, StreamSettings] = {}


class UplinkSettings(Table, frozen=True):
    """``[uplink]``: how records leave."""

    enabled: bool = True
    window_messages: Size = 64  # sent and not yet acknowledged
    window_bytes: Size = 8 << 20  # at most; the uplink finds out how much less a slow link bears
    max_bits_per_second: Size | None = None  # of records and model files together; none = as fast as the link
    send_hours: tuple[str, ...] = ()  # local times such as "02:00-04:00" at which records leave; () = always
    metered: bool = False  # true: only urgent streams are sent, and less is said beside them
    urgent_priority: Priority = 0  # streams of this priority or a lower number leave at any hour and over any link
    canary_interval: Seconds = 60.0  # seconds without a sign of life before the link is tried with a round trip
    acknowledge_timeout: Seconds = 15.0  # seconds without an acknowledgement before everything is sent again
    connect_timeout: Seconds = 5.0
    send_timeout: Seconds = 10.0
    backoff_first: Seconds = 0.5
    backoff_ceiling: Seconds = 60.0


class ModelsSettings(Table, frozen=True):
    """``[models]``: where models come from and what is believed of them."""

    repository: str | tuple[str, ...] = ""  # a folder, a URI, "hub:", or several in order; "" = no models are delivered
    root: str = ""  # path of the first trusted root.json; required with a repository
    names: tuple[str, ...] = ()  # models to keep without being told to by the far end, at their latest version
    poll_interval: Seconds = 60.0  # seconds between looks at the repository
    retry_interval: Seconds = 5.0  # seconds before a look that failed is repeated
    shadow: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # seconds beside the active version before a newer one answers
    shadow_limit: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0  # share of calls that may disagree; 1 = only told
    probation: Annotated[float, msgspec.Meta(ge=0)] = 10.0  # seconds on live traffic before a version is trusted
    max_bytes: Size = 4 << 30  # bound of one model file
    max_store_bytes: Size = 16 << 30  # of all versions on this device together; three of each model must fit
    min_free_disk_bytes: Annotated[int, msgspec.Meta(ge=0)] = 96 << 20  # left to the buffer: a model waits instead
    max_bits_per_second: Size | None = None  # of model files; none = what uplink.max_bits_per_second leaves them
    azure_connection_file: str = ""  # holds a connection string for az://; "" = $AZURE_STORAGE_CONNECTION_STRING

    @property
    def repositories(self) -> tuple[str, ...]:
        """The sources in the order in which they are tried."""
        given = (self.repository,) if isinstance(self.repository, str) else self.repository
        return tuple(uri for uri in given if uri)


class BatchingSettings(Table, frozen=True):
    """``[inference.batching.NAME]``: calls of a model whose first axis counts independent rows, computed together."""

    max_calls: Size = 16
    delay: Annotated[float, msgspec.Meta(ge=0)] = 0.0  # seconds to wait for more; 0 = only those that wait already


class CaptureSettings(Table, frozen=True):
    """``[inference.capture.NAME]``: which calls of a model are kept for retraining, in the stream ``captures``."""

    rate: Share = 0.0  # of all calls, 0 to 1
    below: float | None = None  # calls whose best score of `output` is lower
    classes: tuple[str, ...] = ()  # calls that `output` says one of these of: labels, or numbers from 0
    output: str = ""  # "" = the first with several floating point numbers a row
    max_per_hour: Size = 60
    max_per_day: Size = 500
    max_bytes: Size = 4 << 20  # of one call's tensors; larger ones are not kept
    compress: bool = True  # tensors that become smaller by it


class InferenceSettings(Table, frozen=True):
    """``[inference]``: the inference component."""

    listen: str = "127.0.0.1:8001"  # host:port of gRPC and REST, both on the one port; "" = no TCP
    socket: str = ""  # unix socket; "" = DATA_DIR/inference.sock
    threads: Annotated[int, msgspec.Meta(ge=0)] = 1  # of one model's computation; 0 = the runtime's choice
    accelerators: tuple[str, ...] = ()  # tried in this order, the processor last; () = whatever the machine has
    shadow_tolerance: Annotated[float, msgspec.Meta(ge=0)] = 0.1  # how far floats may be off, as a share of the largest
    runtime: Annotated[str, msgspec.Meta(pattern="^(onnx|openvino)?$")] = ""  # for every model; "" = its manifest says
    parallel: bool = False  # true: nodes that do not wait for each other at once (OpenVINO: several calls at once)
    arena: bool = True  # false: less memory between calls, and slower ones
    workers: Size = 4  # calls that are computed at once
    queue: Annotated[int, msgspec.Meta(ge=0)] = 64  # calls that wait for a worker; more are refused
    max_message_bytes: Size = 64 << 20
    max_connections: Size = 1000  # the one idle for longest makes room for a new one
    max_shared_regions: Annotated[int, msgspec.Meta(ge=0)] = 64  # of shared memory, registered by clients; 0 = none
    batching: dict[str, BatchingSettings] = {}  # by model
    capture: dict[str, CaptureSettings] = {}  # by model


class Settings(Table, frozen=True):
    """All of it. Tables that belong to a provider stay as they came, in :attr:`options`."""

    provider: str = "local"
    station: StationSettings = StationSettings()
    buffer: BufferSettings = BufferSettings()
    uplink: UplinkSettings = UplinkSettings()
    models: ModelsSettings = ModelsSettings()
    inference: InferenceSettings = InferenceSettings()
    options: dict[str, dict[str, Any]] = {}  # by provider: [options.hub], [options.mqtt], ...

    @property
    def data_dir(self) -> Path:
        return Path(self.station.data_dir)

    @property
    def identity(self) -> Identity:
        name = self.station.name or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
        labels = checked_labels(self.station.labels, "[station]")
        return Identity(checked_name(STATION_NAME, name, "station"), labels)

    @property
    def agent_socket(self) -> Path:
        return _socket_path(self.station.socket, self.data_dir / "agent.sock", "station.socket")

    @property
    def inference_socket(self) -> Path:
        return _socket_path(self.inference.socket, self.data_dir / "inference.sock", "inference.socket")

    @property
    def provider_options(self) -> Mapping[str, Any]:
        return self.options.get(self.provider, {})

    def stream(self, name: str) -> StreamSettings:
        """The policy of the stream *name*: its own table, else the defaults."""
        return self.buffer.streams.get(name, self.buffer.defaults)


def load(
    path: Path | str | None = None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Settings from the file, then *environ*, then *overrides* (nested tables, as in the file).

    Raises SettingsError, with the file, the key's path and the nearest known key.
    """
    tree: dict[str, Any] = {}
    source = "the settings"
    found = _find(path, environ)
    if found is not None:
        tree = read_toml(found)
        source = str(found)
    _merge(tree, _from_environment(environ))
    _merge(tree, overrides or {})
    return decoded(tree, Settings, where=source)


def decoded(table: Mapping[str, Any], shape: type[T], *, where: str) -> T:
    """*table* as a *shape* (a :class:`Table`); strings from the environment become the numbers they spell."""
    for trail, key, known in _unknown_keys(table, shape):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        raise SettingsError(
            f"Unknown key {'.'.join((*trail, key))!r} in {where}.",
            hint=f"Did you mean {near[0]!r}?" if near else f"Known keys there: {', '.join(sorted(known))}.",
        )
    try:
        return msgspec.convert(table, shape, strict=False)
    except msgspec.ValidationError as exc:
        raise SettingsError(f"Wrong value in {where}: {_in_words(str(exc))}.") from exc


def _socket_path(chosen: str, default: Path, key: str) -> Path:
    path = Path(chosen) if chosen else default
    if len(os.fsencode(path.absolute())) > MAX_SOCKET_PATH_BYTES:
        raise SettingsError(
            f"The path of a unix socket has at most {MAX_SOCKET_PATH_BYTES} bytes; {path.absolute()} has more.",
            hint=f"Set {key} to a shorter one, such as /run/outstation/{default.name}.",
        )
    return path


def _find(path: Path | str | None, environ: Mapping[str, str]) -> Path | None:
    explicit = path if path is not None else environ.get(PATH_VARIABLE)
    if explicit is not None:
        return Path(explicit)
    return next((candidate for candidate in SEARCH_PATH if candidate.is_file()), None)


def read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise SettingsError(f"Could not read the settings file {path}: {exc.strerror}.") from exc
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} is larger than {MAX_FILE_BYTES} bytes: it is no settings file.")
    try:
        tree: dict[str, Any] = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} is not valid TOML: {exc}.") from exc
    return tree


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX) or variable == PATH_VARIABLE:
            continue
        *tables, key = variable[len(PREFIX) :].lower().split("__")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise SettingsError(
                    f"{variable} names a key of {table!r}, and another variable gives {table!r} a value."
                )
        node[key] = value.split(",") if (*tables, key) in _LISTS else value
    return tree


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = dict(value) if isinstance(value, Mapping) else value


def _unknown_keys(
    table: Mapping[str, Any], shape: Any, trail: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], str, list[str]]]:
    """Keys of *table* that *shape* has not, depth first, each with the path to its table and the keys known there."""
    if not (isinstance(shape, type) and issubclass(shape, msgspec.Struct)):
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(shape)}
    for key, value in table.items():
        if key not in fields:
            yield trail, key, list(fields)
        elif isinstance(value, Mapping):
            if get_origin(fields[key]) is dict:
                for name, entry in value.items():
                    if isinstance(entry, Mapping):
                        yield from _unknown_keys(entry, get_args(fields[key])[1], (*trail, key, name))
            else:
                yield from _unknown_keys(value, fields[key], (*trail, key))


def _in_words(message: str) -> str:
    """Turn msgspec's "Expected `int`, got `str` - at `$.buffer.max_bytes`", with the path first."""
    what, separator, path = message.partition(" - at `$.")
    return f"{path.rstrip('`')}: {what[0].lower()}{what[1:]}" if separator else what


def _list_keys(shape: type[msgspec.Struct], trail: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in msgspec.structs.fields(shape):
        if any(get_origin(kind) is tuple for kind in (field.type, *get_args(field.type))):
            yield (*trail, field.encode_name)
        elif isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _list_keys(field.type, (*trail, field.encode_name))


# Keys whose value is a list: the environment gives it with commas.
_LISTS = frozenset(_list_keys(Settings))


learn(Settings)
