"""Models by hand: a repository's metadata and one version on a stick, handed in at the box. The same checks apply.

What is handed in lies in ``incoming/`` of the model store until the reconciler has taken what it wants from it. So it
does not matter whether an agent runs at that moment, and the stick may be pulled as soon as the copy is made.
"""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path

from outstation.durable import FILES, make_directories, move_atomically, write_atomically
from outstation.errors import InvalidInputError, ModelNotFoundError, OutstationError, mapped_os_errors
from outstation.models.fetch import FolderSource, Source
from outstation.models.manifest import MANIFEST
from outstation.models.place import Place
from outstation.provider import ByteStream

INCOMING = "incoming"
_BUILDING = ".building"
# More than these have been handed in and not been wanted: the oldest go.
MAX_INCOMING = 8


def export_version(repository: Path | str | Place, name: str, version: str, folder: Path) -> int:
    """Copy all metadata of *repository* and the files of one version into the empty *folder*; returns the bytes.

    Everything is verified on its way. ModelNotFoundError, UntrustedError, RepositoryError, InvalidInputError,
    StorageError, LinkError; then *folder* is as empty as it was.
    """
    from outstation.models.chain import signed_file  # noqa: PLC0415 - the device's side needs no tuf
    from outstation.models.repository import Repository  # noqa: PLC0415

    desk = Repository(repository)
    if (name, version) not in desk.versions():
        raise ModelNotFoundError(f"{desk.place} holds no {name} {version}.", hint="See `outstation model list`.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInputError(f"{folder} is not empty.", hint="Give a new folder.")
    manifest = desk.published(name, version).manifest
    paths = [f"{name}/{version}/{path}" for path in (MANIFEST, *(file.path for file in manifest.files))]
    places = {path: folder / signed_file(desk.chain, path).source_path for path in paths}
    try:
        for path, place in places.items():
            make_directories(place.parent)
            desk.copy(path, place)
            FILES.sync_directory(place.parent)
        make_directories(folder / "metadata")
        for path, data in desk.metadata_files().items():
            write_atomically(folder / path, data)
    except OutstationError:
        for part in ("targets", "metadata"):
            shutil.rmtree(folder / part, ignore_errors=True)
        raise
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def hand_in(folder: Path, store: Path) -> Path:
    """Copy the exported *folder* into the model store *store*, whole or not at all; returns where it lies now.

    InvalidInputError when it is no export. It is believed no more than any other source.
    """
    if not (folder / "metadata" / "timestamp.json").is_file():
        raise InvalidInputError(f"{folder} holds no exported model.", hint="Make it with `outstation model export`.")
    target = store / INCOMING / f"{time.time_ns():020d}"
    building = target.with_name(target.name + _BUILDING)
    make_directories(target.parent)
    for part in ("metadata", "targets"):
        for path in sorted((folder / part).rglob("*")):
            if path.is_symlink():
                raise InvalidInputError(f"{path} is a symbolic link; an export holds plain files.")
            if path.is_file():
                _copy(path, building / path.relative_to(folder))
    move_atomically(building, target)
    return target


class Incoming:
    """A source that looks into what was handed in before it asks *behind*. Thread-safe."""

    def __init__(self, store: Path, behind: Source) -> None:
        self._folder = store / INCOMING
        self._behind = behind

    def folders(self) -> tuple[Path, ...]:
        """What lies there, in the order it came."""
        try:
            return tuple(sorted(path for path in self._folder.iterdir() if path.suffix != _BUILDING))
        except OSError:
            return ()

    def holds(self, path: str) -> bool:
        """Whether *path* was handed in."""
        return any((folder / path).is_file() for folder in self.folders())

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        """As :meth:`Source.open`."""
        for folder in self.folders():
            if (folder / path).is_file():
                return FolderSource(folder).open(path, offset, timeout)
        return self._behind.open(path, offset, timeout)

    def clear(self, folders: tuple[Path, ...]) -> None:
        """Delete these; what was handed in since they were listed stays."""
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(source: Path, target: Path) -> int:
    make_directories(target.parent)
    with mapped_os_errors(doing="copy the file", path=target):
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            FILES.sync(file.fileno())
        FILES.sync_directory(target.parent)
        return target.stat().st_size
