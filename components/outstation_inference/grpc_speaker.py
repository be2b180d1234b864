"""The Open Inference Protocol over gRPC: which bytes mean which question."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from outstation.errors import OutstationError
from outstation.wire.method import Method
from outstation.wire.tensors import (
    MODEL_CONFIG,
    MODEL_INFER,
    MODEL_METADATA,
    MODEL_READY,
    MODEL_STATISTICS,
    MODEL_STREAM_INFER,
    REPOSITORY_INDEX,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    InferRequest,
    InferResponse,
    StreamAnswer,
)
from outstation_inference.front import Connection
from outstation_inference.http2 import INTERNAL, INVALID_ARGUMENT, OK, UNIMPLEMENTED, Http2, Message, Stream
from outstation_inference.jobs import Job, grpc_code
from outstation_inference.service import InferenceService

log = logging.getLogger("outstation.inference")

_INFER, _STREAM_INFER = MODEL_INFER.path, MODEL_STREAM_INFER.path
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_SERVING, _NOT_SERVING = b"\x08\x01", b"\x08\x02"  # HealthCheckResponse.status
_MAX_MESSAGE = 2000  # of an error; it travels in a header

# The body of a question, to the body of its answer.
Question = Callable[[bytes], bytes]


def questions(service: InferenceService) -> dict[str, Question]:
    """Every method that is answered at once, by its path."""

    def bound(method: Method[Any, Any], function: Callable[[Any], Any]) -> tuple[str, Question]:
        decode, encode = method.request.decode, method.response.encode
        return method.path, lambda data: encode(function(decode(data)))

    return {
        _HEALTH_CHECK: lambda _: _SERVING if service.ready() else _NOT_SERVING,
        **dict(
            (
                bound(SERVER_LIVE, lambda _: True),
                bound(SERVER_READY, lambda _: service.ready()),
                bound(SERVER_METADATA, lambda _: service.server_metadata()),
                bound(MODEL_READY, service.model_ready),
                bound(MODEL_METADATA, service.model_metadata),
                bound(MODEL_CONFIG, service.model_metadata),
                bound(MODEL_STATISTICS, service.statistics),
                bound(REPOSITORY_INDEX, lambda _: service.index()),
            )
        ),
    }


class GrpcSpeaker:
    """One connection that speaks gRPC. Called with the connection's lock held."""

    def __init__(
        self, connection: Connection, asked: Mapping[str, Question], *, max_message_bytes: int, max_streams: int
    ) -> None:
        self._connection = connection
        self._asked = asked
        self._http = Http2(max_message_bytes=max_message_bytes, max_streams=max_streams)
        self.output = self._http.output

    @property
    def closing(self) -> bool:
        return self._http.closing

    @closing.setter
    def closing(self, value: bool) -> None:
        self._http.closing = value

    @property
    def idle(self) -> bool:
        return self._http.idle

    @property
    def held_bytes(self) -> int:
        return self._http.held_bytes

    def receive(self, data: bytes) -> list[Job]:
        jobs: list[Job] = []
        for message in self._http.receive(data):
            stream = message.stream
            if stream.path == _STREAM_INFER:
                self._on_stream(message, jobs)
            elif message.data is None:
                self._on_call(stream, jobs)
            elif stream.message is None:
                stream.message = message.data
            else:
                self._http.finish(stream, INVALID_ARGUMENT, "A unary call has one message.")
        return jobs

    def leave(self) -> None:
        self._http.leave()

    def gone(self) -> None:
        for stream in self._http.streams.values():
            stream.cancelled = True

    def _on_call(self, stream: Stream, jobs: list[Job]) -> None:
        data, stream.message = stream.message, None
        if data is None:
            self._http.finish(stream, INVALID_ARGUMENT, "The call has no message.")
        elif stream.path == _INFER:
            jobs.append(GrpcJob(self._connection, self._http, stream, data))
        else:
            self._answer(stream, data)

    def _answer(self, stream: Stream, data: bytes) -> None:
        question = self._asked.get(stream.path)
        if question is None:
            self._http.finish(stream, UNIMPLEMENTED, f"There is no method {stream.path[:200]} here.")
            return
        try:
            self._http.answer(stream, question(data))
        except OutstationError as exc:
            finish(self._http, stream, exc)
        except Exception:
            log.exception("%s failed inside the server", stream.path)
            self._http.finish(stream, INTERNAL, "It failed inside the server; its log says why.")

    def _on_stream(self, message: Message, jobs: list[Job]) -> None:
        stream = message.stream
        if message.data is not None:
            stream.open_calls += 1
            jobs.append(StreamJob(self._connection, self._http, stream, message.data))
        elif stream.open_calls == 0:
            self._http.finish(stream, OK)


class GrpcJob:
    """One unary ModelInfer; see :class:`outstation_inference.jobs.Job`."""

    __slots__ = ("_connection", "_data", "_http", "_stream", "arrived", "deadline", "model_hint")

    def __init__(self, connection: Connection, http: Http2, stream: Stream, data: bytes) -> None:
        self._connection = connection
        self._http = http
        self._stream = stream
        self._data = data
        self.arrived = time.monotonic()
        self.deadline = None if stream.timeout is None else self.arrived + stream.timeout
        self.model_hint = _model_of(data)

    @property
    def size_bytes(self) -> int:
        return len(self._data)

    @property
    def cancelled(self) -> bool:
        return self._stream.cancelled

    def request(self) -> InferRequest:
        return InferRequest.unpack(self._data)

    def answer(self, response: InferResponse) -> None:
        data = response.pack()
        with self._connection.lock:
            self._http.answer(self._stream, data)
            self._connection.flush()

    def fail(self, error: OutstationError) -> None:
        with self._connection.lock:
            finish(self._http, self._stream, error)
            self._connection.flush()


class StreamJob(GrpcJob):
    """One message of ModelStreamInfer: its answer is a message too, and so is its error."""

    __slots__ = ()

    def answer(self, response: InferResponse) -> None:
        self._put(StreamAnswer(response))

    def fail(self, error: OutstationError) -> None:
        self._put(StreamAnswer(None, str(error)))

    def _put(self, answer: StreamAnswer) -> None:
        data = MODEL_STREAM_INFER.response.encode(answer)
        stream = self._stream
        with self._connection.lock:
            self._http.send(stream, data)
            stream.open_calls -= 1
            if stream.half_closed and stream.open_calls == 0:
                self._http.finish(stream, OK)
            self._connection.flush()


def finish(http: Http2, stream: Stream, error: OutstationError) -> None:
    """End the call with *error*: the protocol's code for everyone, class and hint for clients of ours."""
    extra: dict[str, str | bytes] = {"outstation-error": type(error).__name__}
    if error.hint:
        extra["outstation-hint-bin"] = error.hint.encode()[:1000]
    http.finish(stream, grpc_code(error), str(error)[:_MAX_MESSAGE], extra)


def _model_of(data: bytes) -> str:
    """The model's name, which every client writes first: field 1 of the message, shorter than 128 bytes."""
    if len(data) < 2 or data[0] != 0x0A or data[1] > 127:
        return ""
    return data[2 : 2 + data[1]].decode("ascii", "replace")
