"""HTTP/1.1 (RFC 9112), the server's side, without a socket: what REST clients of the protocol need of it.

One request at a time: the next one of a connection is looked at when the answer to the one before is written. Head
and body are bounded, and a length that contradicts itself ends the connection: two readers must never see two ends.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

# Request line and headers together; curl, browsers and tritonclient send well under 1 KiB.
MAX_HEAD_BYTES = 16 << 10
_REQUEST = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.([01])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x20-\x7e\x80-\xff\t]*?)[ \t]*")
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})(?:;[^\r\n]*)?")
_LENGTH = re.compile(r"[0-9]{1,12}")


class Http1Error(Exception):
    """The request cannot be read; answered with ``status``, then the connection ends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Request:
    """One whole request. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class Http1:
    """One connection. Not thread-safe: its owner holds a lock around every call."""

    def __init__(self, *, max_message_bytes: int) -> None:
        self.closing = False
        self.output = bytearray()
        self.busy = False  # a request waits for its answer
        self._max = max_message_bytes
        self._input = bytearray()
        self._head: tuple[str, str, dict[str, str], bool] | None = None  # read, while its body is not whole
        self._leaving = False

    def receive(self, data: bytes | memoryview) -> Request | None:
        """The next request that is whole, or None. Call again with b"" after an answer."""
        self._input += data
        if self.busy or self.closing:
            if len(self._input) > self._max + MAX_HEAD_BYTES:
                self.closing = True  # it sends on and on without waiting for answers
            return None
        try:
            request = self._next()
        except Http1Error as exc:
            self.busy = True
            self.closing = True
            self.answer(exc.status, str(exc).encode() + b"\n", keep_alive=False, content_type="text/plain")
            return None
        self.busy = request is not None
        return request

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        keep_alive: bool = True,
        content_type: str = "application/json",
        headers: Mapping[str, str] = {},
    ) -> None:
        """The answer to the request that was handed out last."""
        keep_alive = keep_alive and not self._leaving
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Content-Type: {content_type}",
            f"Content-Length: {len(body)}",
            *(f"{name}: {value}" for name, value in headers.items()),
        ]
        if not keep_alive:
            lines.append("Connection: close")
            self.closing = True
        self.output += "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
        self.output += body
        self.busy = False

    def leave(self) -> None:
        """End the connection after the answer in progress."""
        self._leaving = True
        if not self.busy:
            self.closing = True

    @property
    def idle(self) -> bool:
        """No request waits for an answer and nothing waits to be sent."""
        return not self.busy and not self.output

    @property
    def held_bytes(self) -> int:
        """What this connection keeps in memory."""
        return len(self._input) + len(self.output)

    def _next(self) -> Request | None:
        if self._head is None:
            end = self._input.find(b"\r\n\r\n")
            if end < 0 or end > MAX_HEAD_BYTES:
                if len(self._input) > MAX_HEAD_BYTES:
                    raise Http1Error(431, f"The headers are larger than {MAX_HEAD_BYTES} bytes.")
                return None
            head = bytes(self._input[:end])
            del self._input[: end + 4]
            self._head = _parsed(head)
            if self._head[2].get("expect", "").lower() == "100-continue":
                self.output += b"HTTP/1.1 100 Continue\r\n\r\n"
        method, path, headers, keep_alive = self._head
        body = self._body(headers)
        if body is None:
            return None
        self._head = None
        return Request(method, path, headers, _inflated(headers, body, self._max), keep_alive)

    def _body(self, headers: Mapping[str, str]) -> bytes | None:
        if "transfer-encoding" in headers:
            if headers["transfer-encoding"].lower() != "chunked" or "content-length" in headers:
                raise Http1Error(400, "The length of the body is not clear.")
            return self._chunked()
        text = headers.get("content-length", "0")
        if _LENGTH.fullmatch(text) is None:
            raise Http1Error(400, "The length of the body is no number.")
        length = int(text)
        if length > self._max:
            raise Http1Error(413, f"The body is larger than {self._max} bytes.")
        if len(self._input) < length:
            return None
        body = bytes(memoryview(self._input)[:length])
        del self._input[:length]
        return body

    def _chunked(self) -> bytes | None:
        # Read anew with each arrival: REST clients of tensors send a length, and this way there is no state to lose.
        buffer, at, body = self._input, 0, bytearray()
        while True:
            end = buffer.find(b"\r\n", at, at + MAX_HEAD_BYTES)
            if end < 0:
                break
            size_line = _CHUNK.fullmatch(bytes(buffer[at:end]))
            if size_line is None:
                raise Http1Error(400, "A chunk has no length.")
            size = int(size_line[1], 16)
            at = end + 2
            if len(body) + size > self._max:
                raise Http1Error(413, f"The body is larger than {self._max} bytes.")
            if size == 0:
                if len(buffer) < at + 2:
                    break
                if buffer[at : at + 2] != b"\r\n":
                    raise Http1Error(400, "Trailers are not taken.")
                del buffer[: at + 2]
                return bytes(body)
            if len(buffer) < at + size + 2:
                break
            body += buffer[at : at + size]
            at += size + 2
        if len(buffer) > 2 * self._max + MAX_HEAD_BYTES:
            raise Http1Error(413, f"The body is larger than {self._max} bytes.")
        return None


def _parsed(head: bytes) -> tuple[str, str, dict[str, str], bool]:
    first, *lines = head.split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None:
        raise Http1Error(400, "This is no request of HTTP/1.1.")
    headers: dict[str, str] = {}
    for line in lines:
        header = _HEADER.fullmatch(line)
        if header is None:
            raise Http1Error(400, "A header is malformed.")
        name = header[1].decode("ascii").lower()
        if name in headers and name in ("content-length", "transfer-encoding", "host"):
            raise Http1Error(400, f"{name} is there twice.")
        headers[name] = header[2].decode("latin-1")
    connection = headers.get("connection", "").lower()
    keep_alive = connection != "close" if request[3] == b"1" else connection == "keep-alive"
    return request[1].decode("ascii"), request[2].decode("ascii"), headers, keep_alive


def _inflated(headers: Mapping[str, str], body: bytes, limit: int) -> bytes:
    encoding = headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise Http1Error(415, f"The encoding {encoding!r} is not known here.")
    try:
        plain = zlib.decompressobj(wbits=47).decompress(body, limit + 1)
    except zlib.error as exc:
        raise Http1Error(400, f"The body is not {encoding}.") from exc
    if len(plain) > limit:
        raise Http1Error(413, f"The body is larger than {limit} bytes.")
    return plain
