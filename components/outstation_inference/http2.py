"""gRPC over HTTP/2 (RFC 9113), the server's side, without a socket: bytes in, calls out; answers in, bytes out.

Why not grpcio: its Python server spends 0.3 ms of this machine's time on each call, which is ten times what a small
model takes (docs/adr/0031-an-http2-front-of-our-own.md). What a gRPC server of unary and streaming calls needs of
HTTP/2 is little, and it is all here: no push, no priorities, no compression of what we send.

Every bound is ours and announced: streams at once, bytes of a header block, bytes of a message. A client that breaks
the protocol gets GOAWAY with a reason, and :attr:`Http2.closing` is set.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from collections.abc import Mapping
from urllib.parse import quote

from outstation_inference import frames
from outstation_inference.frames import Http2Error
from outstation_inference.hpack import Decoder, HpackError, literal
from outstation_inference.streams import (
    INVALID_ARGUMENT,
    OK,
    UNIMPLEMENTED,
    CallError,
    Message,
    Stream,
    problem_of,
    stream_of,
)


class Http2:
    """One connection. Not thread-safe: its owner holds a lock around every call."""

    def __init__(self, *, max_message_bytes: int, max_streams: int) -> None:
        self.closing = False  # nothing more will be read; what is in :attr:`output` should still be sent
        self.output = bytearray()
        self.streams: dict[int, Stream] = {}
        self._max_message_bytes = max_message_bytes
        self._max_streams = max_streams
        self._decoder = Decoder(frames.MAX_HEADER_BYTES)
        self._input = b""  # a frame that is not whole yet
        self._greeted = False
        self._last_id = 0
        self._leaving = False
        self._block: tuple[int, int, bytearray] | None = None  # headers that will be continued: stream, flags, bytes
        self._window = frames.DEFAULT_WINDOW  # that we may still send on all streams together
        self._peer_window = frames.DEFAULT_WINDOW  # of each new stream
        self._peer_frame = 16_384
        self._consumed = 0
        self._unsent = 0  # bytes that wait in the streams for room in a window
        # A stream's window holds the largest message, so that only long streams need updates of it.
        self._our_window = min(frames.MAX_WINDOW, max_message_bytes + frames.DEFAULT_WINDOW)
        self._greet()

    # -- receiving ---------------------------------------------------------------------------------------------

    def receive(self, data: bytes | memoryview) -> list[Message]:
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
            self._input = bytes(data[self._read_frames(data, begin, messages) :])
        except Http2Error as exc:
            self._goaway(exc.code, str(exc))
            self.closing = True
        return messages

    def _missing(self) -> int:
        """How many bytes the frame that is not whole still needs; more than any when its head is not whole."""
        if not self._greeted or len(self._input) < frames.HEAD.size:
            return frames.MAX_WINDOW
        return frames.HEAD.size + int.from_bytes(self._input[:3], "big") - len(self._input)

    def _read_frames(self, data: bytes | memoryview, at: int, messages: list[Message]) -> int:
        """Take the whole frames of *data* from *at* on; where the first that is not whole begins."""
        if not self._greeted:
            if not frames.PREFACE.startswith(bytes(data[: len(frames.PREFACE)])):
                raise Http2Error(frames.PROTOCOL_ERROR, "this is no HTTP/2")
            if len(data) < len(frames.PREFACE):
                return 0
            self._greeted = True
            at = len(frames.PREFACE)
        view = memoryview(data)
        streams = self.streams
        while len(data) - at >= frames.HEAD.size:
            length_type, flags, stream_id = frames.HEAD.unpack_from(data, at)
            length, kind = length_type >> 8, length_type & 0xFF
            if length > frames.MAX_FRAME_BYTES:
                raise Http2Error(
                    frames.FRAME_SIZE_ERROR, f"a frame of {length} bytes; {frames.MAX_FRAME_BYTES} is the most"
                )
            begin = at + frames.HEAD.size
            if len(data) < begin + length:
                break
            at = begin + length
            if kind == frames.DATA and self._block is None:
                stream = streams.get(stream_id)
                if stream is not None and flags == 0 and length < stream.missing:
                    # Inside a large message, which comes in dozens of frames: there is nothing to decide.
                    stream.missing -= length
                    stream.body += view[begin:at]
                    self._received(stream, length)
                else:
                    self._on_data(flags, stream_id & frames.MAX_WINDOW, view[begin:at], messages)
            else:
                self._frame(kind, flags, stream_id & frames.MAX_WINDOW, bytes(view[begin:at]), messages)
        return at

    def _frame(self, kind: int, flags: int, stream_id: int, payload: bytes, messages: list[Message]) -> None:
        if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block[0]):
            raise Http2Error(frames.PROTOCOL_ERROR, "headers were begun and not ended")
        if kind == frames.HEADERS:
            self._on_headers(flags, stream_id, payload, messages)
        elif kind == frames.CONTINUATION:
            self._on_continuation(flags, payload, messages)
        elif kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload, messages)
        elif kind == frames.SETTINGS:
            self._on_settings(flags, payload)
        elif kind == frames.PING:
            if len(payload) != 8:
                raise Http2Error(frames.FRAME_SIZE_ERROR, "a ping has 8 bytes")
            if not flags & frames.ACK:
                self._put(frames.PING, frames.ACK, 0, payload)
        elif kind == frames.PUSH_PROMISE:
            raise Http2Error(frames.PROTOCOL_ERROR, "a client may not push")
        # PRIORITY, frames.GOAWAY and what is unknown need no answer.

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, messages: list[Message]) -> None:
        if stream_id % 2 == 0:
            raise Http2Error(frames.PROTOCOL_ERROR, f"a client may not open stream {stream_id}")
        payload = frames.unpadded(payload) if flags & frames.PADDED else payload
        if flags & frames.PRIORITY_FLAG:
            payload = payload[5:]
        if not flags & frames.END_HEADERS:
            self._block = (stream_id, flags, bytearray(payload))
            return
        self._open(flags, stream_id, payload, messages)

    def _on_continuation(self, flags: int, payload: bytes, messages: list[Message]) -> None:
        if self._block is None:
            raise Http2Error(frames.PROTOCOL_ERROR, "nothing to continue")
        stream_id, first_flags, block = self._block
        block += payload
        if len(block) > frames.MAX_HEADER_BYTES:
            raise Http2Error(frames.ENHANCE_YOUR_CALM, f"headers of more than {frames.MAX_HEADER_BYTES} bytes")
        if flags & frames.END_HEADERS:
            self._block = None
            self._open(first_flags, stream_id, bytes(block), messages)

    def _open(self, flags: int, stream_id: int, block: bytes, messages: list[Message]) -> None:
        try:
            headers = self._decoder.decode(block)
        except HpackError as exc:
            raise Http2Error(frames.COMPRESSION_ERROR, str(exc)) from exc
        stream = self.streams.get(stream_id)
        if stream is not None:  # trailers of the client: gRPC has none that matter
            if flags & frames.END_STREAM:
                self._half_close(stream, messages)
            return
        if stream_id <= self._last_id:
            return  # a stream that is over
        if self._leaving or len(self.streams) >= self._max_streams:
            self._last_id = max(self._last_id, stream_id)
            self._reset(stream_id, frames.REFUSED_STREAM)
            return
        self._last_id = stream_id
        stream = stream_of(stream_id, headers, self._peer_window)
        self.streams[stream_id] = stream
        problem = problem_of(headers)
        if problem:
            self.finish(stream, UNIMPLEMENTED, problem)
        elif flags & frames.END_STREAM:
            self._half_close(stream, messages)

    def _on_data(self, flags: int, stream_id: int, payload: memoryview, messages: list[Message]) -> None:
        stream = self.streams.get(stream_id)
        if stream is None or stream.half_closed:
            if stream_id > self._last_id or stream_id == 0:
                raise Http2Error(frames.PROTOCOL_ERROR, f"data for stream {stream_id}, which is not open")
            self._received(None, len(payload))
            return
        self._received(stream, len(payload))
        if stream.trailers is None:
            payload = frames.unpadded(payload) if flags & frames.PADDED else payload
            try:
                messages.extend(Message(stream, data) for data in stream.take(payload, self._max_message_bytes))
            except CallError as exc:
                self.finish(stream, exc.status, str(exc))
        if flags & frames.END_STREAM:
            self._half_close(stream, messages)

    def _received(self, stream: Stream | None, size: int) -> None:
        """Give the client back the room in the windows that *size* bytes took."""
        self._consumed += size
        if self._consumed > frames.MAX_WINDOW // 2:
            self._put(frames.WINDOW_UPDATE, 0, 0, frames.U32.pack(self._consumed))
            self._consumed = 0
        if stream is not None:
            stream.received += size
            if stream.received > self._our_window // 2:
                self._put(frames.WINDOW_UPDATE, 0, stream.id, frames.U32.pack(stream.received))
                stream.received = 0

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
            raise Http2Error(frames.FRAME_SIZE_ERROR, "a reset has 4 bytes")
        stream = self.streams.pop(stream_id, None)
        if stream is None:
            if stream_id > self._last_id:
                raise Http2Error(frames.PROTOCOL_ERROR, f"stream {stream_id} is not open")
            return
        stream.cancelled = True
        self._unsent -= len(stream.outgoing)
        stream.outgoing.clear()

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error(frames.FRAME_SIZE_ERROR, "a window update has 4 bytes")
        more = frames.U32.unpack(payload)[0] & frames.MAX_WINDOW
        if more == 0:
            raise Http2Error(frames.PROTOCOL_ERROR, "a window update of 0")
        if stream_id == 0:
            self._window += more
            if self._window > frames.MAX_WINDOW:
                raise Http2Error(frames.FLOW_CONTROL_ERROR, "the window is too large")
            for stream in [stream for stream in self.streams.values() if stream.outgoing]:
                self._pump(stream)
            return
        stream_ = self.streams.get(stream_id)
        if stream_ is not None:
            stream_.window += more
            if stream_.window > frames.MAX_WINDOW:
                raise Http2Error(frames.FLOW_CONTROL_ERROR, "the window is too large")
            self._pump(stream_)

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if len(payload) % 6:
            raise Http2Error(frames.FRAME_SIZE_ERROR, "settings come in sixes")
        for key, value in struct.iter_unpack(">HI", payload):
            if key == frames.SETTING_WINDOW:
                if value > frames.MAX_WINDOW:
                    raise Http2Error(frames.FLOW_CONTROL_ERROR, "the window is too large")
                for stream in list(self.streams.values()):
                    stream.window += value - self._peer_window
                self._peer_window = value
            elif key == frames.SETTING_FRAME:
                if not 16_384 <= value < 1 << 24:
                    raise Http2Error(frames.PROTOCOL_ERROR, f"frames of {value} bytes")
                self._peer_frame = value
        self._put(frames.SETTINGS, frames.ACK, 0, b"")
        for stream in list(self.streams.values()):
            self._pump(stream)

    # -- sending -----------------------------------------------------------------------------------------------

    def answer(self, stream: Stream, data: bytes) -> None:
        """The one message of a unary call, and its end. Nothing happens when the call was cancelled."""
        size = len(data) + frames.PREFIX.size
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
        self.output += frames.whole_answer(stream.id, data)

    def send(self, stream: Stream, data: bytes) -> None:
        """One message of a call that goes on."""
        if stream.cancelled or stream.trailers is not None:
            return
        if not stream.headers_sent:
            stream.headers_sent = True
            self._put(frames.HEADERS, frames.END_HEADERS, stream.id, frames.RESPONSE_HEADERS)
        stream.outgoing += frames.PREFIX.pack(0, len(data))
        stream.outgoing += data
        self._unsent += frames.PREFIX.size + len(data)
        self._pump(stream)

    def finish(self, stream: Stream, status: int, message: str = "", extra: Mapping[str, str | bytes] = {}) -> None:
        """End a call with a status of gRPC. Idempotent. Bytes in *extra* travel as "-bin" headers do."""
        if stream.cancelled or stream.trailers is not None:
            return
        stream.missing = 0
        block = b"" if stream.headers_sent else frames.RESPONSE_HEADERS
        block += frames.OK_TRAILERS if status == OK else literal("grpc-status", str(status))
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
            self._put(frames.DATA, 0, stream.id, bytes(memoryview(outgoing)[:size]))
            del outgoing[:size]
            self._unsent -= size
            self._window -= size
            stream.window -= size
        if stream.trailers is None or stream.id not in self.streams:
            return
        if stream.trailers:
            self._put(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, stream.id, stream.trailers)
            stream.trailers = b""
        if not stream.half_closed:
            self._reset(stream.id, frames.NO_ERROR)  # whatever the client still sends is not needed
        self.streams.pop(stream.id, None)

    def leave(self) -> None:
        """Tell the client to open no more streams here; those open are answered."""
        if not self._leaving:
            self._leaving = True
            self._goaway(frames.NO_ERROR, "the server stops")

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
            (frames.SETTING_MAX_STREAMS, self._max_streams),
            (frames.SETTING_WINDOW, self._our_window),
            (frames.SETTING_FRAME, frames.MAX_FRAME_BYTES),
            (frames.SETTING_LIST, frames.MAX_HEADER_BYTES),
        )
        self._put(frames.SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings))
        # What we hold is bounded by message and stream; the connection's own window must never be what stops a call.
        self._put(frames.WINDOW_UPDATE, 0, 0, frames.U32.pack(frames.MAX_WINDOW - frames.DEFAULT_WINDOW))

    def _goaway(self, code: int, reason: str) -> None:
        self._put(frames.GOAWAY, 0, 0, struct.pack(">II", self._last_id, code) + reason.encode())

    def _reset(self, stream_id: int, code: int) -> None:
        self._put(frames.RST_STREAM, 0, stream_id, frames.U32.pack(code))

    def _put(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        self.output += frames.HEAD.pack(len(payload) << 8 | kind, flags, stream_id)
        self.output += payload
