"""A chain of metadata, verified from the first trusted root to the targets, with no network and no clock. Pure."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from tuf.api.exceptions import (
    BadVersionNumberError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from outstation.errors import ModelNotFoundError, UntrustedError

SIGNED_AT = "x-outstation-signed-at"  # in the timestamp: a time that has certainly passed, for clocks that stand still
SIGNED_AT_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
YANKED = "yanked"  # in the custom field of a version's manifest: the reason why it was withdrawn
TARGETS = "targets/"

S = TypeVar("S", bound=Signed)


class TrustedMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """The contents of ``trusted.json``: the chain of roots from the first trusted one on, and what they vouch for."""

    format: int = 1
    roots: tuple[bytes, ...]
    timestamp: bytes
    snapshot: bytes
    targets: bytes


@dataclass(frozen=True, slots=True)
class Chain:
    """Verified metadata."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets

    def expired(self, reference: datetime.datetime) -> str:
        """Which part is past its date at *reference*, in words, or ""."""
        for part in (self.root, self.timestamp, self.snapshot, self.targets):
            if part.is_expired(reference):
                return f"{part.type}.json expired on {part.expires:%Y-%m-%d %H:%M} UTC"
        return ""


def verify_chain(metadata: TrustedMetadata) -> Chain:
    """Every signature, version and hash from the first root to the targets; the first root itself is believed.

    Dates are not looked at. UntrustedError names the file that fails.
    """
    root = verify_roots(metadata.roots)
    with judged("timestamp.json"):
        timestamp = _vouched(Timestamp, metadata.timestamp, root)
    with judged("snapshot.json"):
        snapshot = _vouched(Snapshot, metadata.snapshot, root)
        _check_meta(timestamp.snapshot_meta, metadata.snapshot, snapshot)
    with judged("targets.json"):
        targets = _vouched(Targets, metadata.targets, root)
        meta = snapshot.meta.get("targets.json")
        if meta is None:
            raise RepositoryError("the snapshot does not list it")
        _check_meta(meta, metadata.targets, targets)
    return Chain(root, timestamp, snapshot, targets)


def verify_roots(roots: Sequence[bytes]) -> Root:
    """The last of *roots*, each vouched for by the one before and by itself; UntrustedError. The first is believed."""
    root = first_root(roots[0])
    for data in roots[1:]:
        with judged("root.json"):
            following = _vouched(Root, data, root)
            _vouched(Root, data, following)
            if following.version != root.version + 1:
                raise BadVersionNumberError(f"expected version {root.version + 1}, got {following.version}")
            root = following
    return root


@dataclass(frozen=True, slots=True)
class SignedFile:
    """One file as the publisher signed it. ``source_path`` is where it lies, relative to the repository."""

    path: str
    sha256: str
    size_bytes: int
    source_path: str
    custom: Mapping[str, Any] = field(default_factory=dict)


def signed_file(chain: Chain, path: str) -> SignedFile:
    """What *chain* says of the target *path*. ModelNotFoundError if nothing, UntrustedError without a SHA-256."""
    target = chain.targets.targets.get(path)
    if target is None:
        raise ModelNotFoundError(f"The repository lists no {path}.")
    if "sha256" not in target.hashes:
        raise UntrustedError(f"{path} is signed without a sha256.")
    return SignedFile(path, target.hashes["sha256"], target.length, _place(target, chain.root), custom(target))


def first_root(data: bytes) -> Root:
    """The root that is believed without proof, if it is a root and signed by its own keys; else UntrustedError."""
    with judged("The first trusted root.json"):
        root = signed(Root, data)
        return _vouched(Root, data, root)


def signed_at(timestamp: Timestamp) -> int:
    """Nanoseconds since 1970 when the publisher signed *timestamp*; 0 when other tools made it."""
    try:
        said = datetime.datetime.strptime(str(timestamp.unrecognized_fields[SIGNED_AT]), SIGNED_AT_FORMAT)
    except (KeyError, ValueError):
        return 0
    return int(said.replace(tzinfo=datetime.timezone.utc).timestamp()) * 1_000_000_000


@contextmanager
def judged(what: str) -> Iterator[None]:
    """Translate what python-tuf says of the file *what* into an UntrustedError that names it."""
    try:
        yield
    except (RepositoryError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UntrustedError(in_words(what, exc)) from exc


def in_words(what: str, exc: BaseException) -> str:
    """One sentence: which file, what is wrong with it in the words of an operator, and what python-tuf said."""
    said = str(exc).rstrip(".")
    if isinstance(exc, UnsignedMetadataError):
        return f"{what} is not signed by enough of the trusted keys: {said}."
    if isinstance(exc, BadVersionNumberError):
        return f"{what} is of another version than what is trusted already (a rollback or a mix): {said}."
    if isinstance(exc, LengthOrHashMismatchError):
        return f"{what} is not the file that was signed together with the rest: {said}."
    if isinstance(exc, DownloadLengthMismatchError):
        return f"{what} is longer than any such file may be: {said}."
    return f"{what} is not valid: {said}."


def signed(kind: type[S], data: bytes) -> S:
    """The signed part of *data*, if it is of that *kind*; nothing is verified."""
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    if not isinstance(metadata.signed, kind):
        raise RepositoryError(f"it is of type {metadata.signed.type}")
    return metadata.signed


def _vouched(kind: type[S], data: bytes, root: Root) -> S:
    """The signed part of *data*, after *root*'s keys for its role were found on it."""
    metadata: Metadata[Any] = Metadata.from_bytes(data)
    root.verify_delegate(kind.type, metadata.signed_bytes, metadata.signatures)
    return signed(kind, data)


def _check_meta(meta: MetaFile, data: bytes, signed: Signed) -> None:
    meta.verify_length_and_hashes(data)
    if signed.version != meta.version:
        raise BadVersionNumberError(f"expected version {meta.version}, got {signed.version}")


def _place(target: TargetFile, root: Root) -> str:
    """Where a target lies: with consistent snapshots its first hash stands before the file's name."""
    folder, slash, name = target.path.rpartition("/")
    prefix = f"{next(iter(target.hashes.values()))}." if root.consistent_snapshot else ""
    return f"{TARGETS}{folder}{slash}{prefix}{name}"


def custom(target: TargetFile) -> Mapping[str, Any]:
    """The publisher's own signed fields of *target*."""
    return target.custom if isinstance(target.custom, dict) else {}
