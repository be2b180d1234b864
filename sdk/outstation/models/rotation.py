"""A key of a repository gives way to a new one: stolen, lost, or simply old. The roots are chained, so devices follow.

What the old key has signed is signed by both before the new root is written, so that a reader sees the old state or
the new one, whenever this is interrupted. Only when the old key is lost there is a moment in between, and a reader
that comes then goes on with what it trusts already.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from securesystemslib.signer import Key, Signer

from outstation.clock import Clock, SystemClock
from outstation.errors import ConfigurationError, RepositoryError, UntrustedError
from outstation.models.chain import Chain, TrustedMetadata, verify_chain, verify_roots
from outstation.models.keyring import External, Keyring, checked_key_name
from outstation.models.keys import ONLINE_ROLES, ROOT_KEYS
from outstation.models.place import Place, open_place
from outstation.models.publish import (
    expiry,
    now_of,
    signed_bytes,
    trusted_keys,
    write_state,
    write_timestamp,
)
from outstation.models.repository import read_metadata


@dataclass(frozen=True, slots=True)
class Rotation:
    """What was done: the ids of the keys, the number of the new root, and which of the root's keys signed it.

    ``old_keyid`` is "" when an earlier attempt, that was interrupted, had done it already.
    """

    name: str
    old_keyid: str
    new_keyid: str
    root_version: int
    signed_by: tuple[str, ...] = ()


def rotate_key(
    name: str,
    repository: Path | str | Place,
    *,
    keys: Path,
    root_keys: Path | None = None,
    signer: External | None = None,
    passphrase: bytes | None = None,
    clock: Clock = SystemClock(),
) -> Rotation:
    """Replace the key *name*: root1, root2, root3, targets, snapshot or timestamp.

    The new one is *signer*, or a new file beside the old one. Those of the root lie in *root_keys*, else in *keys*
    too, and enough of them must be there to sign. What is published at this moment is signed anew. Again after an
    interruption it goes on where it stopped. ConfigurationError when keys are missing, RepositoryError,
    UntrustedError when what lies in the repository is not what was signed.
    """
    checked_key_name(name)
    place = open_place(repository)
    with place.publishing():
        task = _Task(name, place, Keyring(keys, passphrase), Keyring(root_keys or keys, passphrase), clock)
        return task.run(signer)


class _Task:
    """One rotation."""

    def __init__(self, name: str, place: Place, online: Keyring, offline: Keyring, clock: Clock) -> None:
        self._name = name
        self._role = "root" if name in ROOT_KEYS else name
        self._place = place
        self._online = online
        self._offline = offline
        self._ring = offline if self._role == "root" else online
        self._clock = clock
        self._metadata, self._mark = read_metadata(place)
        self._root = verify_roots(self._metadata.roots)
        self._chain, self._untrusted = _trusted_state(self._metadata)

    def run(self, external: External | None) -> Rotation:
        following = self._ring.next_signer(self._name, external)
        new = following.public_key
        if new.keyid in self._root.roles[self._role].keyids:
            if self._untrusted is not None:
                self._sign_online((following,))
            done = Rotation(self._name, "", new.keyid, self._root.version)
        elif self._untrusted is not None:
            raise self._untrusted
        else:
            done = self._replace(following)
        self._ring.promote(self._name, external)
        return done

    def _replace(self, following: Signer) -> Rotation:
        before = trusted_keys(self._root, self._role)
        old_keyid = self._old_keyid(before)
        root = copy.deepcopy(self._root)
        root.version += 1
        root.expires = expiry("root", now_of(self._clock))
        root.revoke_key(old_keyid, self._role)
        root.add_key(following.public_key, self._role)
        signers = self._root_signers()
        signing = [*signers.values(), following] if self._role == "root" else list(signers.values())
        data = signed_bytes(root, signing)
        verify_roots((*self._metadata.roots, data))  # before anybody can read it
        old = self._ring.available((self._name,), before)
        if self._role != "root" and old:
            self._sign_online((*old.values(), following))
        if not self._place.create(f"metadata/{root.version}.root.json", data):
            raise RepositoryError(
                f"Somebody else has written root {root.version} of {self._place} meanwhile.",
                hint="Do it again: it then starts from what is there now.",
            )
        if self._role != "root" and not old:
            self._sign_online((following,))
        return Rotation(self._name, old_keyid, following.public_key.keyid, root.version, tuple(signers))

    def _root_signers(self) -> dict[str, Signer]:
        trusted = trusted_keys(self._root, "root")
        found = self._offline.available(ROOT_KEYS, trusted)
        needed = self._root.roles["root"].threshold
        if len(found) < needed:
            raise ConfigurationError(
                f"A new root needs {needed} of the root's {len(trusted)} keys; "
                f"{len(found)} of them can be read in {self._offline.folder}.",
                hint="Bring root1.pem, root2.pem and root3.pem together, and give their folder with --root-keys.",
            )
        return found

    def _old_keyid(self, before: Mapping[str, Key]) -> str:
        """The id of the key that goes. A lost one of the root is the one that is none of the others."""
        here = self._ring.available((self._name,), before)
        others = self._ring.available([name for name in ROOT_KEYS if name != self._name], before)
        left = set(before) - {signer.public_key.keyid for signer in others.values()}
        if here:
            return here[self._name].public_key.keyid
        if len(left) != 1:
            raise ConfigurationError(
                f"{self._name} is not in {self._ring.folder}, and it cannot be told which of the keys it was.",
                hint="Bring the other keys of that role together.",
            )
        return left.pop()

    def _sign_online(self, signers: Sequence[Signer]) -> None:
        """Sign anew what the role's key signs, and what depends on it; visible with the timestamp, which comes last."""
        chain = self._chain
        if self._role == "timestamp":
            now = now_of(self._clock)
            timestamp = chain.timestamp
            signing = {"timestamp": signers}
            version, meta = timestamp.version + 1, timestamp.snapshot_meta
            write_timestamp(self._place, signing, version, meta, mark=self._mark, now=now)
            return
        others = [role for role in ONLINE_ROLES if role != self._role]
        known = {role: (self._online.signer(role, trusted_keys(self._root, role)),) for role in others}
        chain.targets.version += 1
        write_state(
            self._place,
            {**known, self._role: signers},
            chain.targets,
            snapshot_version=chain.snapshot.version + 1,
            timestamp_version=chain.timestamp.version + 1,
            mark=self._mark,
            now=now_of(self._clock),
        )


def _trusted_state(metadata: TrustedMetadata) -> tuple[Chain, UntrustedError | None]:
    """What is published, as the last root vouches for it.

    When it does not, but the one before does, also why not: a rotation without the old key stopped between the two.
    """
    try:
        return verify_chain(metadata), None
    except UntrustedError as exc:
        if len(metadata.roots) == 1:
            raise
        return verify_chain(msgspec.structs.replace(metadata, roots=metadata.roots[:-1])), exc
