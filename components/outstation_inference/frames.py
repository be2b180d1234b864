"""What frames of HTTP/2 (RFC 9113) are made of: kinds, flags, codes, and the layout of their heads."""

from __future__ import annotations

import struct
from typing import TypeVar

from outstation_inference.hpack import literal

# What a client says first; no request of HTTP/1.1 begins like it.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# One header block, continued or not. gRPC's own default is 8 KiB; nobody needs more than twice that.
MAX_HEADER_BYTES = 16 << 10
# Of what we receive: as much as is read at once, so that a frame in pieces is joined once.
MAX_FRAME_BYTES = 256 << 10
DEFAULT_WINDOW = 65_535
MAX_WINDOW = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x7, 0x8, 0x9, 0xB
SETTING_MAX_STREAMS, SETTING_WINDOW, SETTING_FRAME, SETTING_LIST = 0x3, 0x4, 0x5, 0x6

HEAD = struct.Struct(">IBI")  # length << 8 | type, flags, stream
PREFIX = struct.Struct(">BI")  # of a gRPC message: compressed or not, length
U32 = struct.Struct(">I")

# Of every answer, and of one that went well.
RESPONSE_HEADERS = b"\x88" + literal("content-type", "application/grpc")  # 0x88: ":status: 200" of the static table
OK_TRAILERS = literal("grpc-status", "0")

_Bytes = TypeVar("_Bytes", bytes, memoryview)


class Http2Error(Exception):
    """The client broke the protocol; ``code`` is told to it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def unpadded(payload: _Bytes) -> _Bytes:
    """*payload* of a frame with the flag PADDED, without its padding; Http2Error."""
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]


def whole_answer(stream_id: int, data: bytes) -> bytes:
    """Headers, one message and the end of a call that went well, where a frame and the windows have room for all."""
    size = PREFIX.size + len(data)
    return b"".join(
        (
            HEAD.pack(len(RESPONSE_HEADERS) << 8 | HEADERS, END_HEADERS, stream_id),
            RESPONSE_HEADERS,
            HEAD.pack(size << 8 | DATA, 0, stream_id),
            PREFIX.pack(0, len(data)),
            data,
            HEAD.pack(len(OK_TRAILERS) << 8 | HEADERS, END_HEADERS | END_STREAM, stream_id),
            OK_TRAILERS,
        )
    )
