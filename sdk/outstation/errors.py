"""Every error that Outstation raises, in one tree, named by what the caller can do about it.

::

    OutstationError
    ├── ConfigurationError          change the settings or the installation
    │   ├── SettingsError           a key, a value or a file of settings is wrong
    │   ├── MissingExtraError       install the extra that the message names
    │   └── UnknownProviderError    no provider of that name is installed
    ├── InvalidInputError           change the call: names, types, shapes, sizes
    │   ├── InvalidNameError        a stream, model or station name outside its alphabet
    │   ├── UnreadableFileError     an image or a recording that was given cannot be read
    │   ├── RecordTooLargeError     one record over the bound of its stream
    │   ├── RegionNotFoundError     no shared memory is registered under that name
    │   └── RegionExistsError       shared memory is registered under that name already
    ├── StorageError                the data folder or its disk
    │   ├── BufferLockedError       another process owns the folder
    │   ├── BufferFullError         the policy says reject; free room or choose another policy
    │   ├── DiskFullError           no space left; retry when there is
    │   ├── DiskError               an I/O error, a read-only or unwritable folder
    │   ├── CorruptBlockError       stored or received bytes fail their checksum
    │   └── DecryptionError         a key is missing or wrong, or a block is not where it was written
    ├── LinkError                   the path to the far end
    │   ├── LinkDownError           nobody answers; retried by itself
    │   ├── ProviderUnavailableError  the platform answers, but not now
    │   ├── DeadlineError           no answer within the timeout
    │   ├── FileChangedError        a file was replaced while it was fetched
    │   ├── AccessDeniedError       the far end knows us and says no
    │   └── RefusedError            the far end will never take this message
    ├── WireError                   bytes from outside that are not what they claim to be
    │   └── UnsupportedVersionError written by a newer Outstation
    ├── ModelError                  models, from repository to runtime
    │   ├── ManifestError           malformed, or of an unknown version; names the field
    │   ├── RepositoryError         unreadable, empty, or not a repository
    │   ├── UntrustedError          signature, hash, expiry or rollback check failed
    │   ├── DeltaError              a delta is malformed, of another base, or gives other bytes than it should
    │   ├── ModelNotFoundError      no such model or version
    │   ├── ModelNotReadyError      no version is active yet; wait or look at `outstation status`
    │   ├── ModelLoadError          the runtime cannot load the file
    │   ├── CheckFailedError        golden inputs or a budget were not met
    │   └── InferenceError          the runtime failed while computing
    └── ClosedError                 used after close()

``retryable`` says whether the same call may succeed later with nothing changed. ``hint`` says what to do
now, in one sentence; the command line prints it under the message.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar


class OutstationError(Exception):
    """The root of the tree. ``str(error)`` is one sentence; ``error.hint`` is what to do now."""

    retryable: ClassVar[bool] = False
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = self.default_hint if hint is None else hint


class ConfigurationError(OutstationError):
    """The settings or the installation must change."""


class SettingsError(ConfigurationError):
    """A key, a value or a file of settings is wrong; the message names it."""

    default_hint = "Compare the file with docs/settings.md."


class MissingExtraError(ConfigurationError):
    """A part that was asked for needs an optional package that is not installed."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(
            f"{needed_for} needs the extra {extra!r}, which is not installed.",
            hint=f"pip install 'outstation[{extra}]'",
        )
        self.extra = extra


class UnknownProviderError(ConfigurationError):
    """No installed package offers a provider of that name."""


class InvalidInputError(OutstationError, ValueError):
    """The call itself is wrong: a name, a type, a shape or a size; the message says which."""


class InvalidNameError(InvalidInputError):
    """A name outside its alphabet."""


class UnreadableFileError(InvalidInputError):
    """An image or a recording that was given to a model cannot be read: damaged, too large, or of another format."""


class RecordTooLargeError(InvalidInputError):
    """One record is larger than its stream accepts."""


class RegionNotFoundError(InvalidInputError):
    """No shared memory is registered with the inference server under that name."""


class RegionExistsError(InvalidInputError):
    """Shared memory is registered with the inference server under that name already."""


class StorageError(OutstationError):
    """The data folder or the disk under it."""


class BufferLockedError(StorageError):
    """Another process owns the folder; ``pid`` is its process id, or None if it could not be read."""

    default_hint = "Stop that process, use outstation.connect() to talk to it, or choose another data folder."

    def __init__(self, message: str, *, pid: int | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.pid = pid


class BufferFullError(StorageError):
    """The stream or the folder has reached its bound and its policy is to reject."""

    retryable = True
    default_hint = "Wait for the link to drain it, raise max_bytes, or choose a policy that drops."


class DiskFullError(StorageError):
    """The disk has no room left; nothing that was confirmed is lost."""

    retryable = True
    default_hint = "Free space on the disk; writing goes on by itself afterwards."


class DiskError(StorageError):
    """The disk or the folder refused: an I/O error, read-only, or no permission."""

    default_hint = "Check the folder's owner and mount, and the disk's health (dmesg)."


class CorruptBlockError(StorageError):
    """Bytes fail their checksum."""

    default_hint = "Run `outstation buffer verify` to see what is damaged; the rest stays readable."


class DecryptionError(StorageError):
    """A block cannot be opened: the key is missing or wrong, or the block was moved."""


class LinkError(OutstationError):
    """The path to the far end."""


class LinkDownError(LinkError):
    """Nobody answers at the far end."""

    retryable = True
    default_hint = "The station goes on by itself; records wait in the buffer until the link is back."


class ProviderUnavailableError(LinkError):
    """The platform answers, but cannot serve now."""

    retryable = True


class DeadlineError(LinkError):
    """No answer came within the timeout."""

    retryable = True


class FileChangedError(LinkError):
    """What is being fetched is another file now; asked again, it comes from the last piece that was verified."""

    retryable = True


class AccessDeniedError(LinkError):
    """The far end knows us and refuses: credentials, certificate or policy."""

    default_hint = "Check the station's certificate and the far end's policy."


class RefusedError(LinkError):
    """The far end will never take this message, however often it is sent."""


class WireError(OutstationError):
    """Bytes from outside are not what they claim to be."""


class UnsupportedVersionError(WireError):
    """Written by a newer version of Outstation."""

    default_hint = "Upgrade Outstation on this side."


class ModelError(OutstationError):
    """Models, from the repository to the runtime."""


class ManifestError(ModelError):
    """A manifest is malformed or of an unknown version; the message holds the path of the field."""


class RepositoryError(ModelError):
    """A model repository cannot be read, is empty, or is no repository."""


class UntrustedError(ModelError):
    """A signature, hash, expiry or rollback check failed: the bytes are refused."""

    default_hint = "Nothing was installed. Ask the publisher; do not copy the file by hand."


class DeltaError(ModelError):
    """A delta is malformed, was made from another base, or does not give the bytes that were signed."""

    default_hint = "A station fetches the whole file instead; make the delta again at the desk."


class ModelNotFoundError(ModelError):
    """No model or version of that name."""


class ModelNotReadyError(ModelError):
    """No version of the model is active yet."""

    retryable = True
    default_hint = "Run `outstation status` to see what the station is waiting for."


class ModelLoadError(ModelError):
    """The runtime cannot load the model file."""


class CheckFailedError(ModelError):
    """A version failed its golden inputs or a budget."""


class InferenceError(ModelError):
    """The runtime failed while computing an answer."""


class ClosedError(OutstationError):
    """The object was used after close()."""


@contextmanager
def mapped(table: Mapping[type[BaseException], type[OutstationError]], *, doing: str) -> Iterator[None]:
    """Translate foreign exceptions at a boundary: ``mapped({socket.timeout: LinkDownError}, doing="publish")``.

    The first key that matches wins; an error of ours passes unchanged. The foreign one stays as ``__cause__``.
    """
    try:
        yield
    except OutstationError:
        raise
    except tuple(table) as exc:
        ours = next(ours for theirs, ours in table.items() if isinstance(exc, theirs))
        detail = str(exc) or type(exc).__name__
        raise ours(f"Could not {doing}: {detail}") from exc


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def from_os_error(exc: OSError, *, doing: str, path: Path | str) -> StorageError:
    """The error of ours for an :class:`OSError` from the disk: no room, not permitted, read-only, or I/O."""
    reason = exc.strerror or type(exc).__name__
    if exc.errno in _FULL:
        return DiskFullError(f"Could not {doing}: no space left for {path}.")
    if exc.errno in {errno.EACCES, errno.EPERM}:
        return DiskError(
            f"Could not {doing}: no permission for {path}.",
            hint="Give the user that runs Outstation the right to write there, or choose another data folder.",
        )
    if exc.errno == errno.EROFS:
        return DiskError(f"Could not {doing}: {path} is on a read-only file system.", hint="Remount it writable.")
    return DiskError(f"Could not {doing} at {path}: {reason}.")


@contextmanager
def mapped_os_errors(*, doing: str, path: Path | str) -> Iterator[None]:
    """Translate every :class:`OSError` of the body through :func:`from_os_error`."""
    try:
        yield
    except OSError as exc:
        raise from_os_error(exc, doing=doing, path=path) from exc
