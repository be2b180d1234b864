"""What places in a cloud have in common: an address, and reading through URLs that are signed for each request."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from outstation.errors import SettingsError
from outstation.provider import ByteStream
from outstation.wire.urls import UrlFiles


class CloudPlace(ABC):
    """The reading half of a place (see :class:`outstation.models.place.Place`), and a device's source. Thread-safe.

    One code resumes downloads from every cloud: :class:`outstation.wire.urls.UrlFiles`.
    """

    def __init__(self, uri: str) -> None:
        """*uri* is ``SCHEME://NAME`` or ``SCHEME://NAME/PREFIX``; SettingsError if it is not. Asks nobody."""
        scheme, _, rest = uri.partition("://")
        self._name, _, prefix = rest.partition("/")
        if not self._name or "?" in uri:
            raise SettingsError(f"{scheme}://{self._name.partition('?')[0]} is no {scheme}://NAME/PREFIX.")
        self._prefix = prefix.strip("/") + "/" if prefix.strip("/") else ""
        self._address = f"{scheme}://{self._name}/{self._prefix}".rstrip("/")
        self._files = UrlFiles(self._url)
        self._mutex = threading.Lock()  # of the credentials, while they are looked up again

    def __str__(self) -> str:
        return self._address

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def open(self, path: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        """As :meth:`outstation.models.fetch.Source.open`."""
        return self._files.open(path, offset, timeout)

    def publishing(self) -> AbstractContextManager[None]:
        return nullcontext()  # nobody is seen before the exchange

    def local(self, path: str) -> Path | None:
        return None

    def _url(self, path: str, again: bool) -> str:
        return "" if again and not self._renewed() else self._signed_url(self._prefix + path)

    @abstractmethod
    def _signed_url(self, path: str) -> str:
        """A URL of *path* that may be read now."""

    @abstractmethod
    def _renewed(self) -> bool:
        """Look the credentials up again; whether they are others now."""
