"""A repository behind HTTP or HTTPS: any static file server, with or without Range."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from outstation._version import __version__
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    ProviderUnavailableError,
)
from outstation.provider import ByteStream

_SKIP_BYTES = 256 << 10
_MISSING = {404, 410}
_DENIED = {401, 403, 407}
_BEYOND_THE_END = 416


class HttpSource:
    """Files below *base*, an http or https URL; a query in it (a SAS token) goes with every request. Thread-safe.

    Asks for the rest of a file with Range and If-Range; a server that ignores them costs the bytes again, not the
    download. Proxies and certificates are the system's. What arrives is believed by its signed hash only.
    """

    def __init__(self, base: str) -> None:
        self._parts = urlsplit(base)
        self._opener = urllib.request.build_opener(_NoDowngrade())
        self._etags: dict[str, str] = {}  # of files seen, so that a file that was replaced is not continued

    def __repr__(self) -> str:
        return f"<HttpSource {self._parts.scheme}://{self._parts.hostname}{self._parts.path}>"

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        """Bytes of *path* from *offset* on; *timeout* is seconds of silence.

        ModelNotFoundError, AccessDeniedError, LinkError.
        """
        response = self._ask(path, offset, timeout)
        if response is None:
            yield _Nothing()
            return
        with response:
            self._etags[path] = response.headers.get("ETag", "")
            stream = _Body(response, path)
            # 200 to a Range request: the server begins at the beginning, whatever it was asked for.
            stream.skip(offset - _begins_at(response))
            yield stream

    def _ask(self, path: str, offset: int, timeout: float) -> Any | None:
        """The response, or None when *offset* is the end of the file."""
        with _mapped(path):
            try:
                return self._opener.open(self._request(path, offset), timeout=timeout)
            except urllib.error.HTTPError as exc:
                with exc:
                    if exc.code == _BEYOND_THE_END:
                        return None
                    raise _refusal(exc.code, path) from exc

    def _request(self, path: str, offset: int) -> urllib.request.Request:
        parts = self._parts
        place = f"{parts.path.rstrip('/')}/{quote(path)}"
        url = urlunsplit((parts.scheme, parts.netloc, place, parts.query, ""))
        # open_source lets nothing but http and https come here. Identity: bytes must be those that were signed.
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})  # noqa: S310
        request.add_header("User-Agent", f"outstation/{__version__}")
        if offset:
            request.add_header("Range", f"bytes={offset}-")
            etag = self._etags.get(path, "")
            if etag and not etag.startswith("W/"):  # a weak one is not allowed there
                request.add_header("If-Range", etag)
        return request


class _Body:
    """The body of a response, with errors of ours."""

    def __init__(self, response: Any, path: str) -> None:
        self._response = response
        self._path = path

    def read(self, size: int) -> bytes:
        with _mapped(self._path):
            data: bytes = self._response.read(size)
            return data

    def skip(self, size: int) -> None:
        if size < 0:
            raise LinkDownError(f"The server sent another part of {self._path} than it was asked for.")
        while size > 0:
            piece = self.read(min(size, _SKIP_BYTES))
            if not piece:
                return
            size -= len(piece)


class _Nothing:
    def read(self, size: int) -> bytes:
        del size
        return b""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to anything else."""

    def redirect_request(self, req: Any, *rest: Any) -> Any:
        newurl = rest[-1]  # after the body, the status, its message and the headers
        scheme = urlsplit(newurl).scheme
        if scheme not in {"http", "https"} or (req.type == "https" and scheme != "https"):
            raise LinkDownError(f"The server redirects from {req.type} to {scheme}, which is not followed.")
        return super().redirect_request(req, *rest)


def _begins_at(response: Any) -> int:
    """Where the body begins in the file: by Content-Range ("bytes 4-9/10") of a 206, else 0."""
    if response.status != http.client.PARTIAL_CONTENT:
        return 0
    start = str(response.headers.get("Content-Range", "")).removeprefix("bytes ").partition("-")[0]
    if not start.isdigit():
        raise LinkDownError("The server sent a part of a file without saying which.")
    return int(start)


def _refusal(code: int, path: str) -> LinkError | ModelNotFoundError:
    if code in _MISSING:
        return ModelNotFoundError(f"The server has no {path}.")
    if code in _DENIED:
        return AccessDeniedError(f"The server refuses to give {path} (HTTP {code}).")
    return ProviderUnavailableError(f"The server cannot give {path} now (HTTP {code}).")


@contextmanager
def _mapped(path: str) -> Iterator[None]:
    """Foreign errors of one request, while it is opened and while it is read."""
    try:
        yield
    except (TimeoutError, urllib.error.URLError) as exc:
        reason = getattr(exc, "reason", exc)
        if isinstance(reason, TimeoutError):
            raise DeadlineError(f"The server was silent for too long over {path}.") from exc
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise AccessDeniedError(f"The server's certificate is not trusted: {reason.verify_message}.") from exc
        raise LinkDownError(f"The server cannot be reached for {path}: {reason}.") from exc
    except (OSError, http.client.HTTPException) as exc:
        raise LinkDownError(f"The connection broke over {path}: {exc or type(exc).__name__}.") from exc
