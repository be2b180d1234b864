"""Where a device's models come from: what the settings name, one source or several in order."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from outstation.clock import Clock
from outstation.errors import AccessDeniedError, FileChangedError, LinkError, OutstationError, SettingsError
from outstation.models.fetch import FolderSource, Source
from outstation.provider import Artifacts, ByteStream
from outstation.settings import ModelsSettings

HUB = "hub:"
# Seconds for which a source that could not be reached is asked last: about as often as the repository is looked at.
REST = 60.0

logger = logging.getLogger(__name__)


class ProviderSource:
    """Files that the provider brings: the hub, a bucket."""

    def __init__(self, artifacts: Artifacts, prefix: str = "") -> None:
        self._artifacts = artifacts
        self._prefix = prefix

    def __repr__(self) -> str:
        return f"<ProviderSource {self._prefix or 'hub'}>"

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        return self._artifacts.open(self._prefix + path, offset, timeout)


class SourcesInOrder:
    """Several sources of the same repository: the first that can be reached and has a file gives it. Thread-safe.

    A download that breaks off goes on with whichever serves next: its bytes are believed by their signed hashes.
    """

    def __init__(self, sources: Sequence[Source], clock: Clock) -> None:
        self._parts = tuple(_Part(source, clock) for source in sources)
        self._serving = ""

    def __repr__(self) -> str:
        return f"<SourcesInOrder {', '.join(map(repr, self._parts))}>"

    def in_order(self) -> tuple[Source, ...]:
        """The sources as they are asked now: those at rest come last."""
        return tuple(sorted(self._parts, key=lambda part: part.rests))

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        """As :meth:`Source.open`; the error is that of a link if any source could not be asked."""
        with ExitStack() as opened:
            yield self._first(path, offset, timeout, opened)

    def _first(self, path: str, offset: int, timeout: float, opened: ExitStack) -> ByteStream:
        errors: list[OutstationError] = []
        for source in self.in_order():
            try:
                stream = opened.enter_context(source.open(path, offset, timeout))
            except FileChangedError:
                raise
            except OutstationError as exc:
                errors.append(exc)
                continue
            if repr(source) != self._serving:
                self._serving = repr(source)
                why = f" ({' '.join(map(str, errors))})" if errors else ""
                logger.info("Models: files come from %s%s.", self._serving, why)
            return stream
        chosen = next((exc for exc in errors if isinstance(exc, LinkError)), errors[0])
        raise type(chosen)(" ".join(map(str, errors)), hint=chosen.hint) from chosen


class _Part:
    """One source, with a memory of when it could not be reached."""

    def __init__(self, source: Source, clock: Clock) -> None:
        self._source = source
        self._clock = clock
        self._rests_until = float("-inf")

    def __repr__(self) -> str:
        return repr(self._source)

    @property
    def rests(self) -> bool:
        return self._clock.monotonic() < self._rests_until

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        with self._watched(), self._source.open(path, offset, timeout) as stream:
            yield stream

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except (FileChangedError, AccessDeniedError):
            raise  # it was reached; and a bucket that may not be listed refuses every root that is not there yet
        except LinkError:
            self._rests_until = self._clock.monotonic() + REST
            raise


def each_source(source: Source) -> tuple[Source, ...]:
    """The sources to ask for metadata, one after the other: a mix of several is no repository."""
    return source.in_order() if isinstance(source, SourcesInOrder) else (source,)


def open_sources(settings: ModelsSettings, artifacts: Artifacts | None, clock: Clock) -> Source:
    """What ``models.repository`` names. SettingsError as :func:`open_source`."""
    sources = [open_source(uri, artifacts, settings.azure_connection_file) for uri in settings.repositories]
    return sources[0] if len(sources) == 1 else SourcesInOrder(sources, clock)


def open_source(uri: str, artifacts: Artifacts | None, azure_connection_file: str = "") -> Source:
    """The source that *uri* names: "hub:" or "hub:FOLDER/", a folder's path, file://…, https://…, s3://… or az://…

    Raises SettingsError for a scheme that is not known, or for "hub:" with a provider that brings no files;
    MissingExtraError.
    """
    if uri.startswith(HUB):
        if artifacts is None:
            raise SettingsError(
                "models.repository is 'hub:', but this provider brings no files.",
                hint="Use the provider 'hub', or set models.repository to a folder.",
            )
        return ProviderSource(artifacts, uri.removeprefix(HUB))
    scheme, _, _ = uri.partition("://")
    if scheme == uri:
        return FolderSource(Path(uri))
    if scheme == "file":
        return FolderSource(Path(unquote(urlsplit(uri).path)))
    if scheme in {"http", "https"}:
        from outstation.wire.urls import HttpSource  # noqa: PLC0415 - others need no HTTP client

        return HttpSource(uri)
    if scheme == "s3":
        from outstation.models.s3_place import S3Place  # noqa: PLC0415 - boto3 is an extra

        return S3Place(uri)
    if scheme == "az":
        from outstation.models.azure_place import AzurePlace  # noqa: PLC0415 - an extra, too

        return AzurePlace(uri, azure_connection_file)
    raise SettingsError(
        f"models.repository: the scheme of {scheme}:// is not known.",
        hint="Use a folder, file://, https://, s3://, az:// or 'hub:'.",
    )
