"""The Open Inference Protocol over REST: paths, JSON, and tensors in JSON or in binary behind it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec
import numpy as np

from outstation.errors import InvalidInputError, OutstationError
from outstation.wire.datatypes import (
    DTYPES,
    Array,
    datatype_of,
    described,
    element_count,
    from_raw,
    object_array,
    to_raw,
)
from outstation.wire.tensors import InferRequest, InferResponse, ModelKey
from outstation_inference.front import Connection
from outstation_inference.http1 import Http1, Request
from outstation_inference.jobs import Job, http_code
from outstation_inference.metrics import page
from outstation_inference.service import InferenceService

log = logging.getLogger("outstation.inference")

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|config|stats|infer))?"
)
_JSON_LENGTH = "inference-header-content-length"
# Decoded, JSON takes up to ten times its size in memory. Larger tensors travel in binary behind it.
MAX_JSON_BYTES = 8 << 20
_BINARY = "application/octet-stream"


class _Tensor(msgspec.Struct):
    name: str
    shape: list[int]
    datatype: str
    data: Any = None
    parameters: dict[str, Any] = {}


class _Output(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _Call(msgspec.Struct):
    inputs: list[_Tensor]
    id: str = ""
    outputs: list[_Output] = []
    parameters: dict[str, Any] = {}


_DECODER = msgspec.json.Decoder(_Call)


class RestSpeaker:
    """One connection that speaks HTTP/1.1. Called with the connection's lock held."""

    def __init__(self, connection: Connection, service: InferenceService, *, max_message_bytes: int) -> None:
        self._connection = connection
        self._service = service
        self._http = Http1(max_message_bytes=max_message_bytes)
        self.output = self._http.output
        self.cancelled = False

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
        request = self._http.receive(data)
        while request is not None:
            job = self._job(request)
            if job is not None:
                return [job]  # what the client sends behind it waits for its answer
            request = self._http.receive(b"")
        return []

    def leave(self) -> None:
        self._http.leave()

    def gone(self) -> None:
        self.cancelled = True

    def _job(self, request: Request) -> Job | None:
        path = request.path.partition("?")[0]
        match = _MODEL.fullmatch(path)
        try:
            if match is not None and match["verb"] == "infer":
                if request.method != "POST":
                    self._say(request, 405, {"error": "infer is called with POST."})
                    return None
                key = ModelKey(unquote(match["name"]), unquote(match["version"] or ""))
                return RestJob(self._connection, self, self._http, request, key)
            status, body = self._asked(request, path, match)
        except OutstationError as exc:
            status, body = http_code(exc), _error(exc)
        except Exception:
            log.exception("%s failed inside the server", path)
            status, body = 500, {"error": "It failed inside the server; its log says why."}
        self._say(request, status, body)
        return None

    def _asked(self, request: Request, path: str, match: re.Match[str] | None) -> tuple[int, Any]:
        if path == "/v2/repository/index":  # Triton's clients ask it with POST
            return 200, self._service.index()
        if request.method not in ("GET", "HEAD"):
            return 405, {"error": f"{path[:200]} is asked with GET."}
        if path in _PAGES:
            return _PAGES[path](self._service)
        if match is not None:
            key = ModelKey(unquote(match["name"]), unquote(match["version"] or ""))
            return self._asked_of_model(key, match["verb"])
        return 404, {"error": f"There is nothing at {path[:200]}."}

    def _asked_of_model(self, key: ModelKey, verb: str | None) -> tuple[int, Any]:
        if verb == "ready":
            ready = self._service.model_ready(key)
            return (200 if ready else 503), {"name": key.name, "ready": ready}
        if verb == "stats":
            return 200, {"model_stats": [_statistics(row) for row in self._service.statistics(key)]}
        model = self._service.model_metadata(key)
        if verb == "config":
            rows = {
                kind: [
                    {"name": t.name, "data_type": f"TYPE_{t.datatype.replace('BYTES', 'STRING')}", "dims": t.shape}
                    for t in tensors
                ]
                for kind, tensors in (("input", model.inputs), ("output", model.outputs))
            }
            return 200, {"name": model.name, "platform": model.platform, "max_batch_size": 0, **rows}
        return 200, model

    def _say(self, request: Request, status: int, body: Any) -> None:
        if isinstance(body, str):
            data, kind = body.encode(), "text/plain; version=0.0.4"
        else:
            data, kind = msgspec.json.encode(body), "application/json"
        self._http.answer(
            status, b"" if request.method == "HEAD" else data, keep_alive=request.keep_alive, content_type=kind
        )


def _ready(service: InferenceService) -> tuple[int, Any]:
    ready = service.ready()
    return (200 if ready else 503), {"ready": ready}


_PAGES: Mapping[str, Callable[[InferenceService], tuple[int, Any]]] = {
    "/v2": lambda service: (200, service.server_metadata()),
    "/v2/health/live": lambda _: (200, {"live": True}),
    "/v2/health/ready": _ready,
    "/v2/models/stats": lambda service: (
        200,
        {"model_stats": [_statistics(row) for row in service.statistics(ModelKey(""))]},
    ),
    "/metrics": lambda service: (200, page(service)),
}


class RestJob:
    """One POST of infer; see :class:`outstation_inference.jobs.Job`."""

    __slots__ = ("_binary", "_connection", "_http", "_key", "_request", "_speaker", "arrived", "deadline")

    def __init__(
        self, connection: Connection, speaker: RestSpeaker, http: Http1, request: Request, key: ModelKey
    ) -> None:
        self._connection = connection
        self._speaker = speaker
        self._http = http
        self._request = request
        self._key = key
        self._binary: frozenset[str] | bool = False  # which outputs travel in binary; True = all
        self.arrived = time.monotonic()
        self.deadline: float | None = None

    @property
    def model_hint(self) -> str:
        return self._key.name

    @property
    def size_bytes(self) -> int:
        return len(self._request.body)

    @property
    def cancelled(self) -> bool:
        return self._speaker.cancelled

    def request(self) -> InferRequest:
        call, binary = _decoded(self._request)
        names = [tensor.name for tensor in call.inputs]
        if len(set(names)) != len(names):
            raise InvalidInputError("Two inputs have the same name.")
        inputs: dict[str, Array] = {}
        at = 0
        for tensor in call.inputs:
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                inputs[tensor.name] = _from_json(tensor)
                continue
            if type(size) is not int or not 0 <= size <= len(binary) - at:
                raise InvalidInputError(f"Input {tensor.name!r} claims {size} bytes; {len(binary) - at} are left.")
            where = f"Input {tensor.name!r}"
            inputs[tensor.name] = from_raw(where, tensor.datatype, tensor.shape, binary[at : at + size])
            at += size
        if at != len(binary):
            raise InvalidInputError(f"{len(binary) - at} bytes are behind the last input.")
        self._binary = call.parameters.get("binary_data_output") is True or frozenset(
            output.name for output in call.outputs if output.parameters.get("binary_data") is True
        )
        outputs = tuple(output.name for output in call.outputs)
        return InferRequest(self._key.name, inputs, self._key.version, call.id, outputs, call.parameters)

    def answer(self, response: InferResponse) -> None:
        rows: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for name, array in response.outputs.items():
            row: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
            if self._binary is True or (self._binary and name in self._binary):
                parts.append(to_raw(array))
                row["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                row["data"] = array.ravel().tolist()
            rows.append(row)
        said = {"model_name": response.model, "model_version": response.version, "outputs": rows}
        if response.id:
            said["id"] = response.id
        text = msgspec.json.encode(said)
        if parts:
            headers = {"Inference-Header-Content-Length": str(len(text))}
            self._put(200, b"".join((text, *parts)), _BINARY, headers)
        else:
            self._put(200, text, "application/json", {})

    def fail(self, error: OutstationError) -> None:
        self._put(http_code(error), msgspec.json.encode(_error(error)), "application/json", {})

    def _put(self, status: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        with self._connection.lock:
            self._http.answer(
                status, body, keep_alive=self._request.keep_alive, content_type=content_type, headers=headers
            )
            self._connection.flush()
            self._connection.answered()


def _decoded(request: Request) -> tuple[_Call, bytes]:
    body = request.body
    text = request.headers.get(_JSON_LENGTH)
    length = len(body)
    if text is not None:
        if not text.isdecimal() or len(text) > 12 or int(text) > length:
            raise InvalidInputError(f"Inference-Header-Content-Length is {text[:20]!r}; the body has {length} bytes.")
        length = int(text)
    if length > MAX_JSON_BYTES:
        raise InvalidInputError(
            f"The JSON of the call has {length} bytes; {MAX_JSON_BYTES} is the most.",
            hint="Send large tensors in binary (binary_data_size), or over gRPC.",
        )
    try:
        return _DECODER.decode(body[:length]), body[length:]
    except msgspec.MsgspecError as exc:
        raise InvalidInputError(f"The body is no inference request: {exc}.") from exc
    except RecursionError as exc:
        raise InvalidInputError("The body is nested too deeply.") from exc


def _from_json(tensor: _Tensor) -> Array:
    where = f"Input {tensor.name!r}"
    dtype = DTYPES.get(tensor.datatype)
    if dtype is None:
        raise InvalidInputError(f"{where} has the unknown datatype {tensor.datatype!r}.")
    count = element_count(tensor.shape, where)
    elements = _flat(tensor.data, tensor.datatype, where)
    if elements.size != count:
        needs = described(tensor.datatype, tensor.shape)
        raise InvalidInputError(f"{where} has {elements.size} elements; {needs} needs {count}.")
    return elements.reshape(tensor.shape)


def _flat(data: Any, datatype: str, where: str) -> Array:
    if not isinstance(data, list):
        raise InvalidInputError(f"{where} has no list of data.")
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        words = _leaves(data)
        if not all(isinstance(word, str) for word in words):
            raise InvalidInputError(f"{where} is BYTES; its data must be strings.")
        return object_array(words)
    if dtype.kind in "iu":  # numpy would make floats of large integers
        numbers = _leaves(data)
        if not all(type(number) is int for number in numbers):
            raise InvalidInputError(f"{where} is {datatype}; its data is something else.")
        bounds = np.iinfo(dtype)
        if numbers and not (bounds.min <= min(numbers) and max(numbers) <= bounds.max):
            raise InvalidInputError(f"{where} holds a value that {datatype} cannot.")
        return np.array(numbers, dtype)
    try:
        wide = np.array(data) if data else np.array([], dtype)
    except ValueError as exc:
        raise InvalidInputError(f"{where} has rows of different lengths.") from exc
    if wide.size and wide.dtype.kind not in ("b" if dtype.kind == "b" else "iuf"):
        raise InvalidInputError(f"{where} is {datatype}; its data is something else.")
    with np.errstate(over="ignore"):  # too large for the datatype is infinite, as everywhere
        return wide.ravel().astype(dtype)


def _leaves(data: list[Any]) -> list[Any]:
    while data and any(isinstance(entry, list) for entry in data):
        data = [leaf for entry in data for leaf in (entry if isinstance(entry, list) else [entry])]
    return data


def _error(error: OutstationError) -> dict[str, str]:
    return {"error": str(error), **({"hint": error.hint} if error.hint else {})}


def _statistics(row: Any) -> dict[str, Any]:
    def duration(nanoseconds: int) -> dict[str, int]:
        return {"count": row.calls, "ns": nanoseconds}

    return {
        "name": row.name,
        "version": row.version,
        "last_inference": row.last_unix_nano // 1_000_000,
        "inference_count": row.calls,
        "execution_count": row.executions,
        "inference_stats": {
            "success": duration(row.queue_nano + row.compute_nano),
            "fail": {"count": row.errors, "ns": 0},
            "queue": duration(row.queue_nano),
            "compute_input": duration(0),
            "compute_infer": duration(row.compute_nano),
            "compute_output": duration(0),
        },
    }
