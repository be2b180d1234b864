"""The Open Inference Protocol over gRPC: which bytes mean which question."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from outstation.errors import InferenceError, OutstationError
from outstation.wire.method import Method
from outstation.wire.questions import (
    GPU_MEMORY_REGISTER,
    GPU_MEMORY_STATUS,
    GPU_MEMORY_UNREGISTER,
    HEALTH_CHECK,
    MODEL_CONFIG,
    MODEL_METADATA,
    MODEL_READY,
    MODEL_STATISTICS,
    REPOSITORY_INDEX,
    REPOSITORY_LOAD,
    REPOSITORY_UNLOAD,
    SERVER_LIVE,
    SERVER_METADATA,
    SERVER_READY,
    SHARED_MEMORY_REGISTER,
    SHARED_MEMORY_STATUS,
    SHARED_MEMORY_UNREGISTER,
)
from outstation.wire.tensors import (
    ASKS_FOR_FINAL,
    MODEL_INFER,
    MODEL_STREAM_INFER,
    InferRequest,
    InferResponse,
    StreamAnswer,
)
from outstation_inference.chores import Chores
from outstation_inference.front import Connection
from outstation_inference.http2 import Http2
from outstation_inference.jobs import Job, grpc_code, names_shared_memory
from outstation_inference.regions import NoRegions
from outstation_inference.service import InferenceService
from outstation_inference.streams import INVALID_ARGUMENT, OK, UNIMPLEMENTED, Bytes, Message, Stream

log = logging.getLogger("outstation.inference")

_INFER, _STREAM_INFER = MODEL_INFER.path, MODEL_STREAM_INFER.path
_MAX_MESSAGE = 2000  # of an error; it travels in a header

# The body of a question, to the body of its answer.
Question = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Questions:
    """What is asked besides calls, by its method's path."""

    quick: Mapping[str, Question]
    slow: Mapping[str, Question]  # not for the thread that reads
    chores: Chores


def questions(service: InferenceService, chores: Chores) -> Questions:
    """Every method that *service* answers."""

    def bound(method: Method[Any, Any], function: Callable[[Any], Any]) -> tuple[str, Question]:
        decode, encode = method.request.decode, method.response.encode
        return method.path, lambda data: encode(function(decode(data)))

    quick = dict(
        (
            bound(HEALTH_CHECK, service.healthy),
            bound(SERVER_LIVE, lambda _: True),
            bound(SERVER_READY, lambda _: service.ready()),
            bound(SERVER_METADATA, lambda _: service.server_metadata()),
            bound(MODEL_READY, service.model_ready),
            bound(MODEL_METADATA, service.model_metadata),
            bound(MODEL_CONFIG, service.model_metadata),
            bound(MODEL_STATISTICS, service.statistics),
            bound(REPOSITORY_INDEX, service.index),
            bound(SHARED_MEMORY_STATUS, service.regions.status),
            bound(SHARED_MEMORY_REGISTER, service.regions.register),
            bound(SHARED_MEMORY_UNREGISTER, service.regions.unregister),
            bound(GPU_MEMORY_STATUS, NoRegions().status),
            bound(GPU_MEMORY_REGISTER, NoRegions().register),
            bound(GPU_MEMORY_UNREGISTER, NoRegions().unregister),
        )
    )
    slow = dict((bound(REPOSITORY_LOAD, service.load), bound(REPOSITORY_UNLOAD, service.unload)))
    return Questions(quick, slow, chores)


class GrpcSpeaker:
    """One connection that speaks gRPC. Called with the connection's lock held."""

    def __init__(self, connection: Connection, asked: Questions, *, max_message_bytes: int, max_streams: int) -> None:
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
    def stalled(self) -> bool:
        return self._http.stalled

    @property
    def held_bytes(self) -> int:
        return self._http.held_bytes

    def receive(self, data: bytes | memoryview) -> list[Job]:
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
        elif (question := self._asked.quick.get(stream.path)) is not None:
            self._say(stream, _answered(stream.path, question, data))
        elif (question := self._asked.slow.get(stream.path)) is not None:
            self._say_later(stream, question, data)
        else:
            self._http.finish(stream, UNIMPLEMENTED, f"There is no method {stream.path[:200]} here.")

    def _say(self, stream: Stream, answer: bytes | OutstationError) -> None:
        if isinstance(answer, bytes):
            self._http.answer(stream, answer)
        else:
            finish(self._http, stream, answer)

    def _say_later(self, stream: Stream, question: Question, data: Bytes) -> None:
        def chore() -> None:
            answer = _answered(stream.path, question, data)
            with self._connection.lock:
                self._say(stream, answer)
                self._connection.flush()

        try:
            self._asked.chores.put(chore)
        except OutstationError as exc:
            finish(self._http, stream, exc)

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

    def __init__(self, connection: Connection, http: Http2, stream: Stream, data: Bytes) -> None:
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
    def shared(self) -> bool:
        return names_shared_memory(self._data)

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

    __slots__ = ("_final", "_id")

    def __init__(self, connection: Connection, http: Http2, stream: Stream, data: Bytes) -> None:
        super().__init__(connection, http, stream, data)
        self._id = ""  # until the call is read
        self._final = False

    def request(self) -> InferRequest:
        request = super().request()
        self._id = request.id
        self._final = request.parameters.get(ASKS_FOR_FINAL) is True
        return request

    def answer(self, response: InferResponse) -> None:
        self._put(StreamAnswer(response, final=self._final))

    def fail(self, error: OutstationError) -> None:
        self._put(StreamAnswer(None, str(error), self._id, self._final))

    def _put(self, answer: StreamAnswer) -> None:
        data = MODEL_STREAM_INFER.response.encode(answer)
        stream = self._stream
        with self._connection.lock:
            self._http.send(stream, data)
            stream.open_calls -= 1
            if stream.half_closed and stream.open_calls == 0:
                self._http.finish(stream, OK)
            self._connection.flush()


def _answered(path: str, question: Question, data: Bytes) -> bytes | OutstationError:
    try:
        return question(bytes(data))
    except OutstationError as exc:
        return exc
    except Exception:
        log.exception("%s failed inside the server", path)
        return InferenceError("It failed inside the server; its log says why.")


def finish(http: Http2, stream: Stream, error: OutstationError) -> None:
    """End the call with *error*: the protocol's code for everyone, class and hint for clients of ours."""
    extra: dict[str, str | bytes] = {"outstation-error": type(error).__name__}
    if error.hint:
        extra["outstation-hint-bin"] = error.hint.encode()[:1000]
    http.finish(stream, grpc_code(error), str(error)[:_MAX_MESSAGE], extra)


def _model_of(data: Bytes) -> str:
    """The model's name, which every client writes first: field 1 of the message, shorter than 128 bytes."""
    if len(data) < 2 or data[0] != 0x0A or data[1] > 127:
        return ""
    return data[2 : 2 + data[1]].decode("ascii", "replace")
