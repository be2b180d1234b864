"""What is believed of a repository: python-tuf decides, this file remembers, and checks again without a network.

python-tuf's client does the updates, in a scratch folder. What it lacks is here: the trusted metadata is kept as one
file that is replaced whole; it is verified again from the first trusted root at every start, offline; a clock that
is behind the latest time ever trusted is not believed; and beside "yes" and "no" there is "stale": signed by the
right keys, but past its date, so that what is installed goes on answering and nothing newer is believed.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import msgspec
from tuf.api.exceptions import DownloadError, DownloadHTTPError, ExpiredMetadataError
from tuf.api.exceptions import RepositoryError as TufRepositoryError
from tuf.api.metadata import TargetFile
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    ModelNotFoundError,
    RepositoryError,
    SettingsError,
    UntrustedError,
    mapped_os_errors,
)
from outstation.models.chain import (
    YANKED,
    Chain,
    SignedFile,
    TrustedMetadata,
    custom,
    first_root,
    in_words,
    signed_at,
    signed_file,
    verify_chain,
)
from outstation.models.fetch import READ_BYTES, Source
from outstation.models.manifest import MANIFEST
from outstation.models.versions import is_version
from outstation.shapes import learn
from outstation.types import MODEL_NAME

METADATA = "metadata/"
_NANO = 1_000_000_000
# The floor moves with every look at the repository; so often is it written, to spare the flash.
_FLOOR_STEP_NANO = 3600 * _NANO

logger = logging.getLogger(__name__)


class Trust(str, Enum):
    """How far the repository is believed."""

    FRESH = "fresh"  # signed by the right keys and within its dates
    STALE = "stale"  # signed by the right keys, but past its date or not reached: nothing newer is believed
    REFUSED = "refused"  # the last answer of the source failed a check; what was trusted before stays


@dataclass(frozen=True, slots=True)
class Standing:
    """The present answer and its reason ("" when fresh), since when."""

    trust: Trust
    reason: str = ""
    since_unix_nano: int = 0


class TrustedRepository:
    """One repository as this device believes it. Use from one thread; only :meth:`refresh` needs the source.

    *directory* holds ``trusted.json`` and ``clock.json``; *root* is the first trusted root (bytes of ``root.json``).
    """

    def __init__(self, directory: Path, root: bytes, clock: Clock) -> None:
        first_root(root)
        self._directory = directory
        self._bootstrap = root
        self._clock = clock
        self._metadata: TrustedMetadata | None = None
        self._chain: Chain | None = None
        self._floor = _read_floor(directory / "clock.json")
        self.standing = Standing(Trust.STALE, "The repository was not reached yet.", clock.time_unix_nano())
        make_directories(directory)
        for left_over in directory.glob("scratch-*"):
            shutil.rmtree(left_over, ignore_errors=True)

    def time_unix_nano(self) -> int:
        """The time that is believed: the clock's, but never before the latest time that was trusted."""
        return max(self._clock.time_unix_nano(), self._floor)

    def load(self) -> Standing:
        """Verify what is on the disk, from the first root on, without a network. Idempotent."""
        path = self._directory / "trusted.json"
        try:
            stored = msgspec.json.decode(path.read_bytes(), type=TrustedMetadata)
            if self._bootstrap not in stored.roots:
                raise UntrustedError("The stored metadata does not begin at the first trusted root.json.")
            self._adopt(stored)
        except FileNotFoundError:
            return self.standing
        except (msgspec.DecodeError, UntrustedError) as exc:
            with mapped_os_errors(doing="put the refused metadata aside", path=path):
                path.replace(path.with_name("refused.json"))
            return self._stand(Trust.REFUSED, f"On the disk: {exc}")
        return self._judge()

    def refresh(self, source: Source, timeout: float) -> Standing:
        """Ask *source* for newer metadata; keeps it only if everything about it is right.

        A wrong answer is no exception but :attr:`standing`: refused or stale, with the reason; what was trusted
        before stays. Raises LinkError when the source cannot be asked, RepositoryError when there is no repository.
        """
        fetcher = _SourceFetcher(source, timeout, self._clock)
        with tempfile.TemporaryDirectory(prefix="scratch-", dir=self._directory) as scratch:
            folder = Path(scratch)
            self._seed(folder)
            try:
                self._update(folder, fetcher)
                fresh = _read_scratch(folder, self._bootstrap)
                chain = verify_chain(fresh)
            except ExpiredMetadataError as exc:
                return self._stand(Trust.STALE, f"{exc} (this device's clock says {self._now():%Y-%m-%d}).")
            except UntrustedError as exc:
                return self._stand(Trust.REFUSED, str(exc))
        late = chain.expired(self._now())
        if late:
            return self._stand(Trust.STALE, f"{late} (the time that is believed here: {self._now():%Y-%m-%d}).")
        if fresh != self._metadata:
            write_atomically(self._directory / "trusted.json", msgspec.json.encode(fresh))
            self._metadata, self._chain = fresh, chain
        self._raise_floor(chain)
        return self._stand(Trust.FRESH, "")

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of *name* that the publisher offers; what was withdrawn is not among them."""
        found = (path.split("/") for path, target in self._targets().items() if YANKED not in custom(target))
        return tuple(
            parts[1]
            for parts in found
            if len(parts) == 3 and parts[0] == name and parts[2] == MANIFEST and is_version(parts[1])
        )

    def names(self) -> tuple[str, ...]:
        """The models in the repository, sorted."""
        names = {path.split("/", 1)[0] for path in self._targets() if path.endswith("/" + MANIFEST)}
        return tuple(sorted(name for name in names if MODEL_NAME.fullmatch(name)))

    def withdrawn(self, name: str, version: str) -> str:
        """Why the publisher withdrew that version, or ""."""
        target = self._targets().get(f"{name}/{version}/{MANIFEST}")
        return str(custom(target).get(YANKED, "")) if target else ""

    def file(self, path: str) -> SignedFile:
        """What is signed for *path*. ModelNotFoundError if nothing is, UntrustedError without a SHA-256."""
        if self._chain is None:
            raise ModelNotFoundError(f"Nothing is trusted yet that would list {path}.")
        return signed_file(self._chain, path)

    def _targets(self) -> Mapping[str, TargetFile]:
        return self._chain.targets.targets if self._chain else {}

    def _now(self) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(self.time_unix_nano() / _NANO, datetime.timezone.utc)

    def _adopt(self, metadata: TrustedMetadata) -> None:
        start = metadata.roots.index(self._bootstrap)
        metadata = msgspec.structs.replace(metadata, roots=metadata.roots[start:])
        self._chain = verify_chain(metadata)
        self._metadata = metadata

    def _judge(self) -> Standing:
        late = self._chain.expired(self._now()) if self._chain else "nothing is trusted yet"
        return self._stand(Trust.STALE, f"{late}.") if late else self._stand(Trust.FRESH, "")

    def _stand(self, trust: Trust, reason: str) -> Standing:
        if (trust, reason) != (self.standing.trust, self.standing.reason):
            self.standing = Standing(trust, reason, self._clock.time_unix_nano())
        return self.standing

    def _seed(self, folder: Path) -> None:
        """Give python-tuf's client what was trusted before: it knows by that what would be a rollback."""
        if self._metadata is None or self._chain is None:
            return
        (folder / "root_history").mkdir()
        first = self._chain.root.version - len(self._metadata.roots) + 1
        for version, data in enumerate(self._metadata.roots, first):
            (folder / "root_history" / f"{version}.root.json").write_bytes(data)
        for role in ("timestamp", "snapshot", "targets"):
            (folder / f"{role}.json").write_bytes(getattr(self._metadata, role))

    def _update(self, folder: Path, fetcher: _SourceFetcher) -> None:
        updater = Updater(str(folder), METADATA, fetcher=fetcher, config=UpdaterConfig(), bootstrap=self._bootstrap)
        try:
            updater.refresh()
        except ExpiredMetadataError:
            raise
        except DownloadHTTPError as exc:
            raise RepositoryError(
                f"There is no repository: {exc}",
                hint="Make one with `outstation model init`, or correct models.repository.",
            ) from exc
        except (TufRepositoryError, DownloadError) as exc:
            raise UntrustedError(in_words(fetcher.last, exc)) from exc

    def _raise_floor(self, chain: Chain) -> None:
        # Within the dates of fresh metadata the clock is plausible; the timestamp's own time is certain.
        trusted = max(self._clock.time_unix_nano(), signed_at(chain.timestamp))
        if trusted >= self._floor + _FLOOR_STEP_NANO:
            write_atomically(self._directory / "clock.json", msgspec.json.encode({"time_unix_nano": trusted}))
            self._floor = trusted


class _SourceFetcher(FetcherInterface):
    """python-tuf's fetcher over a Source. Remembers what it fetched last, for messages."""

    def __init__(self, source: Source, timeout: float, clock: Clock) -> None:
        self._source = source
        self._timeout = timeout
        self._clock = clock
        self.last = ""

    def _fetch(self, url: str) -> Iterator[bytes]:
        self.last = url.removeprefix(METADATA)
        deadline = self._clock.monotonic() + self._timeout
        try:
            with self._source.open(url, 0, self._timeout) as stream:
                while piece := stream.read(READ_BYTES):
                    yield piece
                    if self._clock.monotonic() > deadline:
                        raise DeadlineError(f"{self.last} did not arrive within {self._timeout:g} s.")
        except ModelNotFoundError as exc:
            raise DownloadHTTPError(str(exc), 404) from exc
        except AccessDeniedError as exc:
            if not self.last.endswith(".root.json"):
                raise
            # A bucket that may not be listed says 403 of a file that is not there; python-tuf knows that of roots.
            raise DownloadHTTPError(str(exc), 403) from exc


def _read_scratch(folder: Path, bootstrap: bytes) -> TrustedMetadata:
    history = sorted((folder / "root_history").glob("*.root.json"), key=lambda path: int(path.name.split(".")[0]))
    roots = [path.read_bytes() for path in history]
    return TrustedMetadata(
        roots=tuple(roots[roots.index(bootstrap) :]),
        timestamp=(folder / "timestamp.json").read_bytes(),
        snapshot=(folder / "snapshot.json").read_bytes(),
        targets=(folder / "targets.json").read_bytes(),
    )


def _read_floor(path: Path) -> int:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, int])["time_unix_nano"]
    except (OSError, msgspec.DecodeError, KeyError):
        return 0


def root_fingerprint(root: bytes) -> str:
    """The SHA-256 of a root.json, to compare by eye at enrolment."""
    return hashlib.sha256(root).hexdigest()


def read_first_root(path: str) -> bytes:
    """The bytes of the file that the setting models.root names; SettingsError when there is none."""
    if not path:
        raise SettingsError(
            "models.repository is set, but not models.root.",
            hint="Set models.root to a copy of the repository's metadata/1.root.json that you trust.",
        )
    try:
        return Path(path).read_bytes()
    except OSError as exc:
        raise SettingsError(f"The first trusted root {path} (models.root) cannot be read: {exc.strerror}.") from exc


learn(TrustedMetadata)
