"""The calls of one HTTP/2 connection: what their headers say, what has come of them, and what waits to be sent."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from outstation_inference.frames import PREFIX
from outstation_inference.hpack import Header

# The status codes of gRPC that a call can end with here.
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 8, 12, 13

# A message as it came; a large one stays in the buffer that it was gathered in.
Bytes = bytes | bytearray

_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


class CallError(Exception):
    """One call is not what it should be; ``status`` of gRPC is its end."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(slots=True, eq=False)
class Stream:
    """One call. Belongs to its :class:`Http2`; ``cancelled`` may be read from any thread."""

    id: int
    path: str
    timeout: float | None  # seconds that the caller waits, from the moment the call came
    encoding: str
    window: int  # bytes that we may still send
    received: int = 0  # bytes since the client's window was last renewed
    message: Bytes | None = None  # of a unary call, until the client has ended its side
    open_calls: int = 0  # of a stream of calls: those not yet answered
    body: bytearray = field(default_factory=bytearray)  # of a message that is not whole yet
    missing: int = 0  # bytes until it is; 0 while that is not known, and when no more is wanted
    outgoing: bytearray = field(default_factory=bytearray)  # what the client's window had no room for
    trailers: bytes | None = None  # to be sent after that
    headers_sent: bool = False
    half_closed: bool = False  # the client will send no more
    cancelled: bool = False

    def take(self, payload: memoryview, limit: int) -> Iterator[Bytes]:
        """The messages that *payload* makes whole; CallError when one has more than *limit* bytes, or is damaged."""
        if not self.body and len(payload) >= PREFIX.size:
            compressed, length = PREFIX.unpack_from(payload)
            if not compressed and length == len(payload) - PREFIX.size <= limit:
                yield bytes(payload[PREFIX.size :])  # the usual case: one frame, all of it
                return
        self.body += payload
        self.missing = 0
        while len(self.body) >= PREFIX.size:
            compressed, length = PREFIX.unpack_from(self.body)
            if length > limit:
                self.body.clear()
                raise CallError(RESOURCE_EXHAUSTED, f"Received message larger than max ({length} vs. {limit})")
            end = PREFIX.size + length
            if len(self.body) < end:
                self.missing = end - len(self.body)
                return
            data = self._first(end)
            yield inflated(data, self.encoding, limit) if compressed else data

    def _first(self, end: int) -> Bytes:
        """The message that ends at *end* of the body, taken from it."""
        body = self.body
        if len(body) == end:
            self.body = bytearray()  # the message stays where it is: a large one is not copied again
            del body[: PREFIX.size]
            return body
        data = bytes(memoryview(body)[PREFIX.size : end])
        del body[:end]
        return data


@dataclass(slots=True)
class Message:
    """A whole message of a call; ``data`` None = the client has ended its side."""

    stream: Stream
    data: Bytes | None


def inflated(data: Bytes, encoding: str, limit: int) -> bytes:
    """A compressed message as it was; CallError when it is none, or has more than *limit* bytes."""
    if encoding not in ("gzip", "deflate"):
        raise CallError(UNIMPLEMENTED, f"The encoding {encoding!r} is not known here.")
    try:
        plain = zlib.decompressobj(wbits=47).decompress(data, limit + 1)  # gzip or zlib, by its header
    except zlib.error as exc:
        raise CallError(INVALID_ARGUMENT, f"The message is not {encoding}: {exc}.") from exc
    if len(plain) > limit:
        raise CallError(RESOURCE_EXHAUSTED, "Received message larger than max after decompression")
    return plain


def stream_of(stream_id: int, headers: tuple[Header, ...], window: int) -> Stream:
    """The call that *headers* open; *window* is what the client takes of it at once."""
    path = encoding = ""
    timeout: float | None = None
    for name, value in headers:
        if name == ":path":
            path = value
        elif name == "grpc-timeout":
            timeout = _timeout(value)
        elif name == "grpc-encoding":
            encoding = value
    return Stream(stream_id, path, timeout, encoding, window)


def problem_of(headers: tuple[Header, ...]) -> str:
    """Why *headers* are not those of a gRPC call; "" when they are."""
    for name, value in headers:
        if name == "content-type":
            return "" if value.startswith("application/grpc") else f"{value!r} is not spoken here; gRPC is."
    return "Only gRPC is spoken over HTTP/2 here."


def _timeout(text: str) -> float | None:
    """Seconds of a ``grpc-timeout``; None when it is malformed, as if there were none."""
    unit = _SECONDS.get(text[-1:])
    digits = text[:-1]
    return int(digits) * unit if unit is not None and digits.isdecimal() and len(digits) <= 8 else None
