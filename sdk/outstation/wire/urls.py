"""Files behind URLs of http and https: any static file server, a bucket by signed URLs, with or without Range."""

from __future__ import annotations

import http.client
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from outstation._version import __version__
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    FileChangedError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    ProviderUnavailableError,
    SettingsError,
)
from outstation.provider import ByteStream

Ask = Callable[[str, bool], str]

_SKIP_BYTES = 256 << 10
_MISSING = {404, 410}
# A bucket says 400 of a token that is no longer valid.
_DENIED = {400, 401, 403, 407}
_BEYOND_THE_END = 416
# Files whose ETag is remembered: a download is one file, and beside it goes the metadata.
_MAX_ETAGS = 64


class UrlFiles:
    """Files, each at the URL that is asked for when it is opened. A Source, and an Artifacts for a provider's adapter.

    *ask* (path, again) gives the URL of a file; its errors pass. Where a URL is refused, because it has expired
    perhaps, *ask* is asked once more with *again* True ("" = there is no other), and the file goes on at the same byte.
    No URL gets into a message: what is behind the "?" may be a secret. Thread-safe if *ask* is.

    Asks for the rest of a file with Range and If-Range; a server that ignores them costs the bytes again, not the
    download. Proxies and certificates are the system's. What arrives is believed by its signed hash only.
    """

    def __init__(self, ask: Ask) -> None:
        self._url_of = ask
        self._opener = urllib.request.build_opener(_NoDowngrade())
        self._mutex = threading.Lock()
        self._etags: dict[str, str] = {}  # of files seen, so that a file that was replaced is not continued

    @contextmanager
    def open(self, path: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        """Bytes of *path* from *offset* on; *timeout* is seconds of silence.

        ModelNotFoundError, AccessDeniedError, LinkError; FileChangedError if *offset* is not 0 and the file is not the
        one that was opened last under that name.
        """
        response = self._answer(path, offset, timeout)
        if response is None:
            yield _Nothing()
            return
        with response:
            self._check_same(path, offset, str(response.headers.get("ETag", "")))
            stream = _Body(response, path)
            # 200 to a Range request: the server begins at the beginning, whatever it was asked for.
            stream.skip(offset - _begins_at(response))
            yield stream

    def _answer(self, path: str, offset: int, timeout: float) -> Any | None:
        """The response, or None when *offset* is the end of the file."""
        url = self._url_of(path, False)
        try:
            return self._ask(url, path, offset, timeout)
        except AccessDeniedError:
            newer = self._url_of(path, True)
            if newer in {"", url}:
                raise
        return self._ask(newer, path, offset, timeout)

    def _ask(self, url: str, path: str, offset: int, timeout: float) -> Any | None:
        with _mapped(path):
            try:
                return self._opener.open(self._request(url, path, offset), timeout=timeout)
            except urllib.error.HTTPError as exc:
                with exc:
                    if exc.code == _BEYOND_THE_END:
                        return None
                    raise _refusal(exc.code, path) from exc

    def _request(self, url: str, path: str, offset: int) -> urllib.request.Request:
        if not url.startswith(("http://", "https://")):
            raise LinkDownError(f"The address that was given for {path} is neither http nor https.")
        # Identity: bytes must be those that were signed.
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})  # noqa: S310 - looked at above
        request.add_header("User-Agent", f"outstation/{__version__}")
        if offset:
            request.add_header("Range", f"bytes={offset}-")
            with self._mutex:
                etag = self._etags.get(path, "")
            if etag and not etag.startswith("W/"):  # a weak one is not allowed there
                request.add_header("If-Range", etag)
        return request

    def _check_same(self, path: str, offset: int, etag: str) -> None:
        """Remember the ETag; FileChangedError if it is another one in the middle: not every server minds ours."""
        with self._mutex:
            before = self._etags.pop(path, "")
            if etag:
                self._etags[path] = etag
            if len(self._etags) > _MAX_ETAGS:
                del self._etags[next(iter(self._etags))]
        if offset and before and etag and before != etag:
            raise FileChangedError(f"{path} was replaced at its source while it was fetched.")


class HttpSource(UrlFiles):
    """Files below *base*, an http or https URL; a query in it (a SAS token) goes with every request. Thread-safe.

    SettingsError when it is no such URL.
    """

    def __init__(self, base: str) -> None:
        try:
            self._parts = urlsplit(base)
        except ValueError:
            raise SettingsError("The address of the repository is none: its host cannot be read.") from None
        super().__init__(self._below)

    def __repr__(self) -> str:
        return f"<HttpSource {self._parts.scheme}://{self._parts.hostname}{self._parts.path}>"

    def _below(self, path: str, again: bool) -> str:
        if again:
            return ""
        parts = self._parts
        place = f"{parts.path.rstrip('/')}/{quote(path)}"
        return urlunsplit((parts.scheme, parts.netloc, place, parts.query, ""))


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
        return AccessDeniedError(
            f"The server refuses to give {path} (HTTP {code}).",
            hint="Check the credentials, what they may read, and this device's clock.",
        )
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
    except (http.client.InvalidURL, ValueError):
        # Not "from": the text of the cause shows the query.
        raise LinkDownError(f"The address that was given for {path} is none.") from None
    except (OSError, http.client.HTTPException) as exc:
        raise LinkDownError(f"The connection broke over {path}: {exc or type(exc).__name__}.") from exc
