"""gRPC over HTTP/2 (RFC 9113), the server's side, without a socket: bytes in, calls out; answers in, bytes out.

Why not grpcio: its Python server spends 0.3 ms of this machine's time on each call, which is ten times what a small
model takes (docs/adr/0031-an-http2-front-of-our-own.md). What a gRPC server of unary and streaming calls needs of
HTTP/2 is little, and it is all here: no push, no priorities, no compression of what we send.

Every bound is ours and announced: streams at once, bytes of a header block, bytes of a message. A client that breaks
the protocol gets GOAWAY with a reason, and :attr:`Http2.closing` is set.
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import quote

from outstation_inference.hpack import Decoder, HpackError, literal
from outstation_inference.streams import Bytes, Message, Stream, problem_of, stream_of

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
# One header block, continued or not. gRPC's own default is 8 KiB; nobody needs more than twice that.
MAX_HEADER_BYTES = 16 << 10
# Of what we receive: as much as is read at once, so that a frame in pieces is joined once.
MAX_FRAME_BYTES = 256 << 10
_DEFAULT_WINDOW = 65_535
_MAX_WINDOW = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITY_FLAG = 0x1, 0x1, 0x4, 0x8, 0x20
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR = 0x0, 0x1, 0x3, 0x6
REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 0x7, 0x8, 0x9, 0xB
_SETTING_MAX_STREAMS, _SETTING_WINDOW, _SETTING_FRAME, _SETTING_LIST = 0x3, 0x4, 0x5, 0x6

_HEAD = struct.Struct(">IBI")  # length << 8 | type, flags, stream
_PREFIX = struct.Struct(">BI")  # of a gRPC message: compressed or not, length
_U32 = struct.Struct(">I")

# The status codes of gRPC that we answer with.
OK, INVALID_ARGUMENT, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 0, 3, 8, 12, 13

_RESPONSE_HEADERS = b"\x88" + literal("content-type", "application/grpc")  # 0x88: ":status: 200" of the static table
_OK_TRAILERS = literal("grpc-status", "0")


_Bytes = TypeVar("_Bytes", bytes, memoryview)


class Http2Error(Exception):
    """The client broke the protocol; ``code`` is told to it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Http2:
    """One connection. Not thread-safe: its owner holds a lock around every call."""

    def __init__(self, *, max_message_bytes: int, max_streams: int) -> None:
        self.closing = False  # nothing more will be read; what is in :attr:`output` should still be sent
        self.output = bytearray()
        self.streams: dict[int, Stream] = {}
        self._max_message_bytes = max_message_bytes
        self._max_streams = max_streams
        self._decoder = Decoder(MAX_HEADER_BYTES)
        self._input = b""  # a frame that is not whole yet
        self._greeted = False
        self._last_id = 0
        self._leaving = False
        self._block: tuple[int, int, bytearray] | None = None  # headers that will be continued: stream, flags, bytes
        self._window = _DEFAULT_WINDOW  # that we may still send on all streams together
        self._peer_window = _DEFAULT_WINDOW  # of each new stream
        self._peer_frame = 16_384
        self._consumed = 0
        self._unsent = 0  # bytes that wait in the streams for room in a window
        # A stream's window holds the largest message, so that only long streams need updates of it.
        self._our_window = min(_MAX_WINDOW, max_message_bytes + _DEFAULT_WINDOW)
        self._greet()

    # -- receiving ---------------------------------------------------------------------------------------------

    def receive(self, data: bytes) -> list[Message]:
        """What *data* completes, in order. After a breach of the protocol :attr:`closing` is set."""
        messages: list[Message] = []
        if self.closing:
            return messages
        begin = 0
        try:
            if self._input:
                missing = self._missing()
                if missing < len(data):  # the frame in pieces is joined, and not all that came behind it
                    self._read_frames(self._input + data[:missing], 0, messages)
                    begin = missing
                else:
                    data = self._input + data
            self._input = data[self._read_frames(data, begin, messages) :]
        except Http2Error as exc:
            self._goaway(exc.code, str(exc))
            self.closing = True
        return messages

    def _missing(self) -> int:
        """How many bytes the frame that is not whole still needs; more than any when its head is not whole."""
        if not self._greeted or len(self._input) < _HEAD.size:
            return _MAX_WINDOW
        return _HEAD.size + int.from_bytes(self._input[:3], "big") - len(self._input)

    def _read_frames(self, data: bytes, at: int, messages: list[Message]) -> int:
        """Take the whole frames of *data* from *at* on; where the first that is not whole begins."""
        if not self._greeted:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Http2Error(PROTOCOL_ERROR, "this is no HTTP/2")
            if len(data) < len(PREFACE):
                return 0
            self._greeted = True
            at = len(PREFACE)
        view = memoryview(data)
        while len(data) - at >= _HEAD.size:
            length_type, flags, stream_id = _HEAD.unpack_from(data, at)
            length, kind = length_type >> 8, length_type & 0xFF
            if length > MAX_FRAME_BYTES:
                raise Http2Error(FRAME_SIZE_ERROR, f"a frame of {length} bytes; {MAX_FRAME_BYTES} is the most")
            begin = at + _HEAD.size
            if len(data) < begin + length:
                break
            at = begin + length
            if kind == DATA and self._block is None:
                self._on_data(flags, stream_id & _MAX_WINDOW, view[begin:at], messages)
            else:
                self._frame(kind, flags, stream_id & _MAX_WINDOW, data[begin:at], messages)
        return at

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, messages: list[Message]) -> None:
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block[0]):
            raise Http2Error(PROTOCOL_ERROR, "headers were begun and not ended")
        if kind == HEADERS:
            self._on_headers(flags, stream_id, payload, messages)
        elif kind == CONTINUATION:
            self._on_continuation(flags, payload, messages)
        elif kind == WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == RST_STREAM:
            self._on_reset(stream_id, payload, messages)
        elif kind == SETTINGS:
            self._on_settings(flags, payload)
        elif kind == PING:
            if len(payload) != 8:
                raise Http2Error(FRAME_SIZE_ERROR, "a ping has 8 bytes")
            if not flags & _ACK:
                self._put(PING, _ACK, 0, payload)
        elif kind == PUSH_PROMISE:
            raise Http2Error(PROTOCOL_ERROR, "a client may not push")
        # PRIORITY, GOAWAY and what is unknown need no answer.

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, messages: list[Message]) -> None:
        if stream_id % 2 == 0:
            raise Http2Error(PROTOCOL_ERROR, f"a client may not open stream {stream_id}")
        payload = _unpadded(payload) if flags & _PADDED else payload
        if flags & _PRIORITY_FLAG:
            payload = payload[5:]
        if not flags & _END_HEADERS:
            self._block = (stream_id, flags, bytearray(payload))
            return
        self._open(flags, stream_id, payload, messages)

    def _on_continuation(self, flags: int, payload: bytes, messages: list[Message]) -> None:
        if self._block is None:
            raise Http2Error(PROTOCOL_ERROR, "nothing to continue")
        stream_id, first_flags, block = self._block
        block += payload
        if len(block) > MAX_HEADER_BYTES:
            raise Http2Error(ENHANCE_YOUR_CALM, f"headers of more than {MAX_HEADER_BYTES} bytes")
        if flags & _END_HEADERS:
            self._block = None
            self._open(first_flags, stream_id, bytes(block), messages)

    def _open(self, flags: int, stream_id: int, block: bytes, messages: list[Message]) -> None:
        try:
            headers = self._decoder.decode(block)
        except HpackError as exc:
            raise Http2Error(COMPRESSION_ERROR, str(exc)) from exc
        stream = self.streams.get(stream_id)
        if stream is not None:  # trailers of the client: gRPC has none that matter
            if flags & _END_STREAM:
                self._half_close(stream, messages)
            return
        if stream_id <= self._last_id:
            return  # a stream that is over
        if self._leaving or len(self.streams) >= self._max_streams:
            self._last_id = max(self._last_id, stream_id)
            self._reset(stream_id, REFUSED_STREAM)
            return
        self._last_id = stream_id
        stream = stream_of(stream_id, headers, self._peer_window)
        self.streams[stream_id] = stream
        problem = problem_of(headers)
        if problem:
            self.finish(stream, UNIMPLEMENTED, problem)
        elif flags & _END_STREAM:
            self._half_close(stream, messages)

    def _on_data(self, flags: int, stream_id: int, payload: memoryview, messages: list[Message]) -> None:
        self._consumed += len(payload)
        if self._consumed > _MAX_WINDOW // 2:
            self._put(WINDOW_UPDATE, 0, 0, _U32.pack(self._consumed))
            self._consumed = 0
        stream = self.streams.get(stream_id)
        if stream is None or stream.half_closed:
            if stream_id > self._last_id or stream_id == 0:
                raise Http2Error(PROTOCOL_ERROR, f"data for stream {stream_id}, which is not open")
            return
        stream.received += len(payload)
        if stream.received > self._our_window // 2 and not flags & _END_STREAM:
            self._put(WINDOW_UPDATE, 0, stream_id, _U32.pack(stream.received))
            stream.received = 0
        if stream.trailers is None:
            self._take(stream, _unpadded(payload) if flags & _PADDED else payload, messages)
        if flags & _END_STREAM:
            self._half_close(stream, messages)

    def _take(self, stream: Stream, payload: memoryview, messages: list[Message]) -> None:
        """Add to the stream's body and hand out what is whole."""
        body = stream.body
        if not body and len(payload) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(payload)
            if not compressed and length == len(payload) - _PREFIX.size <= self._max_message_bytes:
                messages.append(Message(stream, bytes(payload[_PREFIX.size :])))  # the usual case: one frame, all of it
                return
        body += payload
        while len(body) >= _PREFIX.size:
            compressed, length = _PREFIX.unpack_from(body)
            if length > self._max_message_bytes:
                body.clear()
                words = f"Received message larger than max ({length} vs. {self._max_message_bytes})"
                self.finish(stream, RESOURCE_EXHAUSTED, words)
                return
            end = _PREFIX.size + length
            if len(body) < end:
                break
            data: Bytes
            if len(body) == end:
                data, body = body, bytearray()  # as it is: a large one is not copied again
                stream.body = body
                del data[: _PREFIX.size]
            else:
                data = bytes(memoryview(body)[_PREFIX.size : end])
                del body[:end]
            if compressed:
                plain = self._inflated(stream, data)
                if plain is None:
                    return
                data = plain
            messages.append(Message(stream, data))

    def _inflated(self, stream: Stream, data: Bytes) -> bytes | None:
        if stream.encoding not in ("gzip", "deflate"):
            self.finish(stream, UNIMPLEMENTED, f"The encoding {stream.encoding!r} is not known here.")
            return None
        inflater = zlib.decompressobj(wbits=47)  # gzip or zlib, by its header
        try:
            plain = inflater.decompress(data, self._max_message_bytes + 1)
        except zlib.error as exc:
            self.finish(stream, INVALID_ARGUMENT, f"The message is not {stream.encoding}: {exc}.")
            return None
        if len(plain) > self._max_message_bytes:
            self.finish(stream, RESOURCE_EXHAUSTED, "Received message larger than max after decompression")
            return None
        return plain

    def _half_close(self, stream: Stream, messages: list[Message]) -> None:
        stream.half_closed = True
        if stream.trailers is not None:
            self._pump(stream)
        elif stream.body:
            self.finish(stream, INVALID_ARGUMENT, "The call ends inside a message.")
        else:
            messages.append(Message(stream, None))

    def _on_reset(self, stream_id: int, payload: bytes, messages: list[Message]) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "a reset has 4 bytes")
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            if stream_id > self._last_id:
                raise Http2Error(PROTOCOL_ERROR, f"stream {stream_id} is not open")
            return
        stream.cancelled = True
        self._unsent -= len(stream.outgoing)
        stream.outgoing.clear()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(FRAME_SIZE_ERROR, "a window update has 4 bytes")
        more = _U32.unpack(payload)[0] & _MAX_WINDOW
        if more == 0:
            raise Http2Error(PROTOCOL_ERROR, "a window update of 0")
        if stream_id == 0:
            self._window += more
            if self._window > _MAX_WINDOW:
                raise Http2Error(FLOW_CONTROL_ERROR, "the window is too large")
            for stream in [stream for stream in self.streams.values() if stream.outgoing]:
                self._pump(stream)
            return
        stream_ = self.streams.get(stream_id)
        if stream_ is not None:
            stream_.window += more
            if stream_.window > _MAX_WINDOW:
                raise Http2Error(FLOW_CONTROL_ERROR, "the window is too large")
            self._pump(stream_)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & _ACK:
            return
        if len(payload) % 6:
            raise Http2Error(FRAME_SIZE_ERROR, "settings come in sixes")
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _SETTING_WINDOW:
                if value > _MAX_WINDOW:
                    raise Http2Error(FLOW_CONTROL_ERROR, "the window is too large")
                for stream in list(self.streams.values()):
                    stream.window += value - self._peer_window
                self._peer_window = value
            elif key == _SETTING_FRAME:
                if not 16_384 <= value < 1 << 24:
                    raise Http2Error(PROTOCOL_ERROR, f"frames of {value} bytes")
                self._peer_frame = value
        self._put(SETTINGS, _ACK, 0, b"")
        for stream in list(self.streams.values()):
            self._pump(stream)

    # -- sending -----------------------------------------------------------------------------------------------

    def answer(self, stream: Stream, data: bytes) -> None:
        """The one message of a unary call, and its end. Nothing happens when the call was cancelled."""
        size = len(data) + _PREFIX.size
        if not stream.half_closed or size > min(self._window, stream.window, self._peer_frame):
            self.send(stream, data)
            self.finish(stream, OK)
            return
        if stream.cancelled:
            return
        # The usual case in one go: everything fits, and the client waits.
        self._window -= size
        del self.streams[stream.id]
        stream.trailers = b""
        self.output += b"".join(
            (
                _HEAD.pack(len(_RESPONSE_HEADERS) << 8 | HEADERS, _END_HEADERS, stream.id),
                _RESPONSE_HEADERS,
                _HEAD.pack(size << 8 | DATA, 0, stream.id),
                _PREFIX.pack(0, len(data)),
                data,
                _HEAD.pack(len(_OK_TRAILERS) << 8 | HEADERS, _END_HEADERS | _END_STREAM, stream.id),
                _OK_TRAILERS,
            )
        )

    def send(self, stream: Stream, data: bytes) -> None:
        """One message of a call that goes on."""
        if stream.cancelled or stream.trailers is not None:
            return
        if not stream.headers_sent:
            stream.headers_sent = True
            self._put(HEADERS, _END_HEADERS, stream.id, _RESPONSE_HEADERS)
        stream.outgoing += _PREFIX.pack(0, len(data))
        stream.outgoing += data
        self._unsent += _PREFIX.size + len(data)
        self._pump(stream)

    def finish(self, stream: Stream, status: int, message: str = "", extra: Mapping[str, str | bytes] = {}) -> None:
        """End a call with a status of gRPC. Idempotent. Bytes in *extra* travel as "-bin" headers do."""
        if stream.cancelled or stream.trailers is not None:
            return
        block = b"" if stream.headers_sent else _RESPONSE_HEADERS
        block += _OK_TRAILERS if status == OK else literal("grpc-status", str(status))
        if message:
            block += literal("grpc-message", quote(message, safe=" !#$&'()*+,/:;=?@[]{}|<>\"^`\\~")[:4096])
        for name, value in extra.items():
            text = value if isinstance(value, str) else b64encode(value).decode().rstrip("=")
            block += literal(name, text)
        stream.headers_sent = True
        stream.trailers = block
        self._pump(stream)

    def _pump(self, stream: Stream) -> None:
        """Send what the windows allow of *stream*, then its end."""
        outgoing = stream.outgoing
        while outgoing:
            size = min(len(outgoing), self._window, stream.window, self._peer_frame)
            if size <= 0:
                return
            self._put(DATA, 0, stream.id, bytes(memoryview(outgoing)[:size]))
            del outgoing[:size]
            self._unsent -= size
            self._window -= size
            stream.window -= size
        if stream.trailers is None or stream.id not in self.streams:
            return
        if stream.trailers:
            self._put(HEADERS, _END_HEADERS | _END_STREAM, stream.id, stream.trailers)
            stream.trailers = b""
        if not stream.half_closed:
            self._reset(stream.id, NO_ERROR)  # whatever the client still sends is not needed
        self.streams.pop(stream.id, None)

    def leave(self) -> None:
        """Tell the client to open no more streams here; those open are answered."""
        if not self._leaving:
            self._leaving = True
            self._goaway(NO_ERROR, "the server stops")

    @property
    def held_bytes(self) -> int:
        """What this connection keeps in memory of messages that are not whole, and of answers not yet sent."""
        return len(self._input) + len(self.output) + self._unsent + sum(len(s.body) for s in self.streams.values())

    @property
    def stalled(self) -> bool:
        """Answers wait because the client's windows are full."""
        return self._unsent > 0

    @property
    def idle(self) -> bool:
        """No call is open and nothing waits to be sent."""
        return not self.streams and not self.output

    def _greet(self) -> None:
        settings = (
            (_SETTING_MAX_STREAMS, self._max_streams),
            (_SETTING_WINDOW, self._our_window),
            (_SETTING_FRAME, MAX_FRAME_BYTES),
            (_SETTING_LIST, MAX_HEADER_BYTES),
        )
        self._put(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings))
        # What we hold is bounded by message and stream; the connection's own window must never be what stops a call.
        self._put(WINDOW_UPDATE, 0, 0, _U32.pack(_MAX_WINDOW - _DEFAULT_WINDOW))

    def _goaway(self, code: int, reason: str) -> None:
        self._put(GOAWAY, 0, 0, struct.pack(">II", self._last_id, code) + reason.encode())

    def _reset(self, stream_id: int, code: int) -> None:
        self._put(RST_STREAM, 0, stream_id, _U32.pack(code))

    def _put(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.output += _HEAD.pack(len(payload) << 8 | kind, flags, stream_id)
        self.output += payload


def _unpadded(payload: _Bytes) -> _Bytes:
    if not payload or payload[0] >= len(payload):
        raise Http2Error(PROTOCOL_ERROR, "more padding than payload")
    return payload[1 : len(payload) - payload[0]]
