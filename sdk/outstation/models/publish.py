"""Publishing: a repository of static files, signed. The same as `outstation model init` and `publish`.

Interrupted at any instant, a reader sees the old state or the new one: files of a version get names that nothing
refers to yet, then targets and snapshot under new numbers, and ``timestamp.json``, which points to them, last. Of two
who publish at once, the second to get there is told so, and nothing of the first is lost (``place.py``).
"""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from securesystemslib.signer import Key, Signer
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp

from outstation.clock import Clock, SystemClock
from outstation.durable import write_atomically
from outstation.errors import ConfigurationError, InvalidInputError, ModelNotFoundError, RepositoryError
from outstation.models.bundle import Draft, make_bundle
from outstation.models.chain import SIGNED_AT, SIGNED_AT_FORMAT, TARGETS, YANKED, custom
from outstation.models.delta_publishing import MadeDelta, forget_deltas, make_deltas
from outstation.models.deltas import DEFAULT_BASES, DELTAS, FOLDER, MAX_BASES
from outstation.models.keyring import Externals, Keyring
from outstation.models.keys import ONLINE_ROLES, ROOT_KEYS, ROOT_THRESHOLD
from outstation.models.manifest import MANIFEST, Manifest, encode_manifest
from outstation.models.place import Place, open_place
from outstation.models.repository import FIRST_ROOT, TIMESTAMP, Repository

DAY = 24 * 3600.0
# How long each part is believed. A device that hears nothing for longer calls the repository stale and goes on with
# what it has; so these are about how soon a freeze is noticed, not about how long a station may be alone.
LIFETIMES: Mapping[str, float] = {
    "root": 3650 * DAY,
    "targets": 730 * DAY,
    "snapshot": 730 * DAY,
    "timestamp": 90 * DAY,
}


# Numbers that publishers took and did not get to use; each is an interrupted publish.
MAX_NUMBERS_TAKEN = 1000


Signers = Mapping[str, Sequence[Signer]]  # by role


def init_repository(
    repository: Path | str | Place,
    keys: Path,
    *,
    passphrase: bytes | None = None,
    signers: Externals | None = None,
    clock: Clock = SystemClock(),
) -> Path:
    """Make an empty *repository* (see ``open_place``) and its keys in *keys*; returns the path of the first root.

    The keys are new files, except those in *signers*, which live elsewhere and need their public key.
    The root needs two of its three keys and lists one key each for targets, snapshot and timestamp. That file is
    what a device is given at enrolment; it lies in the repository's folder, else beside the keys. RepositoryError when
    there is a repository or a key already.
    """
    place = open_place(repository)
    _check_empty(place)
    folder = place.local("")
    if folder is not None and folder.resolve() in (keys.resolve(), *keys.resolve().parents):
        raise InvalidInputError("The keys must not lie inside the repository: everybody reads that.")
    made = Keyring(keys, passphrase, signers).make()
    now = now_of(clock)
    root = Root(version=1, expires=expiry("root", now), consistent_snapshot=True)
    for name in ROOT_KEYS:
        root.add_key(made[name].public_key, "root")
    root.roles["root"].threshold = ROOT_THRESHOLD
    for role in ONLINE_ROLES:
        root.add_key(made[role].public_key, role)
    data = signed_bytes(root, [made[name] for name in ROOT_KEYS])
    if not place.create(FIRST_ROOT, data):
        raise _is_taken(place)
    online = {role: (made[role],) for role in ONLINE_ROLES}
    write_state(place, online, Targets(version=1), snapshot_version=1, timestamp_version=1, mark="", now=now)
    path = place.local(FIRST_ROOT)
    if path is None:
        path = keys / Path(FIRST_ROOT).name
        write_atomically(path, data)
    return path


def _check_empty(place: Place) -> None:
    for path in (FIRST_ROOT, TIMESTAMP):
        try:
            place.read(path)
        except ModelNotFoundError:
            continue
        raise _is_taken(place)


def _is_taken(place: Place) -> RepositoryError:
    return RepositoryError(f"{place} holds a repository already.", hint="Choose another folder.")


def publish(
    source: Path,
    *,
    repository: Path | str | Place,
    keys: Path,
    draft: Draft,
    check: bool = True,
    deltas: int = DEFAULT_BASES,
    passphrase: bytes | None = None,
    signers: Externals | None = None,
    clock: Clock = SystemClock(),
) -> Manifest:
    """Sign *source* (a model file or a folder) as the version that *draft* describes; returns its manifest.

    With the keys in the folder *keys*, or those in *signers*.

    Computes the expected outputs of the golden inputs, or checks those given unless *check* is False. Makes deltas
    from the *deltas* newest versions before. A version that is published is never changed: RepositoryError. Also
    raises InvalidInputError, ModelLoadError, ManifestError, ConfigurationError for keys, MissingExtraError,
    StorageError, LinkError.
    """
    if not 0 <= deltas <= MAX_BASES:
        raise InvalidInputError(f"Deltas are made from 0 to {MAX_BASES} versions, not {deltas}.")
    place = open_place(repository)
    with place.publishing():
        desk = Repository(place)
        if (draft.name, draft.version) in desk.versions():
            raise RepositoryError(
                f"{draft.name} {draft.version} is published already.", hint="A version never changes: choose the next."
            )
        online = _signers(desk, Keyring(keys, passphrase, signers))
        with tempfile.TemporaryDirectory(prefix="outstation-bundle-") as folder:
            bundle = Path(folder)
            manifest = make_bundle(source, bundle, draft, check=check)
            write_atomically(bundle / MANIFEST, encode_manifest(manifest))
            targets = desk.chain.targets
            prefix = f"{draft.name}/{draft.version}"
            for path in (*(file.path for file in manifest.files), MANIFEST):
                target = TargetFile.from_file(f"{prefix}/{path}", str(bundle / path), ["sha256"])
                _put(place, bundle / path, target)
                targets.targets[target.path] = target
            work = bundle / FOLDER
            work.mkdir()
            for made in make_deltas(desk, manifest, bundle, work, deltas):
                _add_delta(desk, f"{prefix}/{made.result}", made, targets)
        versions = [version for name, version in desk.versions() if name == draft.name]
        forgotten = forget_deltas(desk, targets.targets, draft.name, versions)
        _write_next(desk, online, targets, clock)
        for path in forgotten:  # nobody who reads the new state asks for them
            place.delete(path)
        return manifest


def _add_delta(desk: Repository, whole: str, made: MadeDelta, targets: Targets) -> None:
    """Place the delta, sign it, and name it in what is signed of the *whole* file."""
    target = TargetFile.from_file(made.path, str(made.file), ["sha256"])
    target.unrecognized_fields["custom"] = made.custom
    _put(desk.place, made.file, target)
    made.file.unlink()
    targets.targets[made.path] = target
    said = custom(targets.targets[whole])
    listed = {**said.get(DELTAS, {}), made.base_sha256: made.path}
    targets.targets[whole].unrecognized_fields["custom"] = {**said, DELTAS: listed}


def refresh(
    repository: Path | str | Place,
    *,
    keys: Path,
    passphrase: bytes | None = None,
    signers: Externals | None = None,
    clock: Clock = SystemClock(),
) -> None:
    """Sign the timestamp anew, so that devices go on calling the repository fresh. Needs the timestamp's key only."""
    place = open_place(repository)
    with place.publishing():
        desk = Repository(place)
        online = _signers(desk, Keyring(keys, passphrase, signers), ("timestamp",))
        old = desk.chain.timestamp
        write_timestamp(place, online, old.version + 1, old.snapshot_meta, mark=desk.mark, now=now_of(clock))


def yank(
    name: str,
    version: str,
    reason: str,
    *,
    repository: Path | str | Place,
    keys: Path,
    passphrase: bytes | None = None,
    signers: Externals | None = None,
    clock: Clock = SystemClock(),
) -> None:
    """Withdraw a version: devices that take "latest" go back to the one before. The files stay, the reason is signed.

    ModelNotFoundError if it is not published, InvalidInputError without a reason.
    """
    if not reason.strip():
        raise InvalidInputError("A version is withdrawn for a reason: stations report it.")
    place = open_place(repository)
    with place.publishing():
        desk = Repository(place)
        if (name, version) not in desk.versions():
            raise ModelNotFoundError(f"{place} holds no {name} {version}.", hint="See `outstation model list`.")
        targets = desk.chain.targets
        target = targets.targets[f"{name}/{version}/{MANIFEST}"]
        target.unrecognized_fields["custom"] = {**custom(target), YANKED: reason.strip()}
        _write_next(desk, _signers(desk, Keyring(keys, passphrase, signers)), targets, clock)


def _write_next(desk: Repository, signers: Signers, targets: Targets, clock: Clock) -> None:
    targets.version += 1
    write_state(
        desk.place,
        signers,
        targets,
        snapshot_version=desk.chain.snapshot.version + 1,
        timestamp_version=desk.chain.timestamp.version + 1,
        mark=desk.mark,
        now=now_of(clock),
    )


def write_state(
    place: Place,
    signers: Signers,
    targets: Targets,
    *,
    snapshot_version: int,
    timestamp_version: int,
    mark: str,
    now: datetime.datetime,
) -> None:
    """Sign and write targets, snapshot and timestamp; the state becomes visible with the last of them."""
    targets.expires = expiry("targets", now)
    meta = {"targets.json": _create_next(place, targets, signers)}
    snapshot = Snapshot(version=snapshot_version, expires=expiry("snapshot", now), meta=meta)
    snapshot_meta = _create_next(place, snapshot, signers)
    write_timestamp(place, signers, timestamp_version, snapshot_meta, mark=mark, now=now)


def _create_next(place: Place, signed: Targets | Snapshot, signers: Signers) -> MetaFile:
    """Write *signed* under its number, or the next that nobody has taken: interrupted, or at this very moment."""
    for _ in range(MAX_NUMBERS_TAKEN):
        data = signed_bytes(signed, signers[signed.type])
        if place.create(f"metadata/{signed.version}.{signed.type}.json", data):
            return _meta(signed, data)
        signed.version += 1
    raise RepositoryError(f"{place} has {MAX_NUMBERS_TAKEN} files of {signed.type} that nothing refers to.")


def write_timestamp(
    place: Place,
    signers: Signers,
    version: int,
    snapshot_meta: MetaFile,
    *,
    mark: str,
    now: datetime.datetime,
) -> None:
    """Exchange the timestamp that has that *mark* for the next; RepositoryError when it has changed meanwhile."""
    timestamp = Timestamp(
        version=version,
        expires=expiry("timestamp", now),
        snapshot_meta=snapshot_meta,
        unrecognized_fields={SIGNED_AT: now.strftime(SIGNED_AT_FORMAT)},
    )
    data = signed_bytes(timestamp, signers["timestamp"])
    # A first try whose answer was lost on its way may have been taken.
    if not place.exchange(TIMESTAMP, data, mark) and place.read(TIMESTAMP).data != data:
        raise RepositoryError(
            f"Somebody else has published to {place} meanwhile.",
            hint="Do it again: it then starts from what is there now.",
        )


def trusted_keys(root: Root, role: str) -> dict[str, Key]:
    """The keys that *root* trusts for *role*, by key id."""
    return {keyid: root.keys[keyid] for keyid in root.roles[role].keyids}


def _signers(desk: Repository, keyring: Keyring, roles: tuple[str, ...] = ONLINE_ROLES) -> Signers:
    return {role: (keyring.signer(role, trusted_keys(desk.chain.root, role)),) for role in roles}


def _put(place: Place, file: Path, target: TargetFile) -> None:
    """Copy *file* to where a reader of consistent snapshots asks for *target*."""
    folder, _, name = target.path.rpartition("/")
    place.put(file, f"{TARGETS}{folder}/{target.hashes['sha256']}.{name}")


def signed_bytes(signed: Signed, signers: Iterable[Signer]) -> bytes:
    """*signed* with the signature of each of *signers*. ConfigurationError when one does not sign."""
    metadata: Metadata[Any] = Metadata(signed)
    try:
        for signer in signers:
            metadata.sign(signer, append=True)
    except UnsignedMetadataError as exc:
        raise ConfigurationError(f"The key for {signed.type} does not sign: {exc.__cause__ or exc}") from exc
    return metadata.to_bytes()


def _meta(signed: Signed, data: bytes) -> MetaFile:
    return MetaFile.from_data(signed.version, data, ["sha256"])


def expiry(role: str, now: datetime.datetime) -> datetime.datetime:
    return now + datetime.timedelta(seconds=LIFETIMES[role])


def now_of(clock: Clock) -> datetime.datetime:
    seconds = clock.time_unix_nano() // 1_000_000_000
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
