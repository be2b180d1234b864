"""The Open Inference Protocol over REST: paths, and what is asked at them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec

from outstation.errors import InvalidInputError, OutstationError
from outstation.shapes import learn
from outstation.wire.questions import LABELS, IndexQuery, ModelKey, RepositoryOrder
from outstation.wire.shared import Region
from outstation_inference.chores import Chores
from outstation_inference.front import Connection
from outstation_inference.http1 import Http1, Request
from outstation_inference.jobs import Job, http_code
from outstation_inference.metrics import page
from outstation_inference.regions import NoRegions
from outstation_inference.rest_call import RestJob, said
from outstation_inference.service import InferenceService

log = logging.getLogger("outstation.inference")

_MODEL = re.compile(
    r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<verb>ready|config|stats|infer))?"
)


_REGION = re.compile(
    r"/v2/(?P<kind>system|cuda)sharedmemory(?:/region/(?P<name>[^/]+))?/(?P<verb>status|register|unregister)"
)
_ORDER = re.compile(r"/v2/repository/models/(?P<name>[^/]+)/(?P<verb>load|unload)")

_METADATA = ("name", "versions", "platform", "inputs", "outputs")  # what the protocol tells of a model
_Answer = tuple[int, Any]  # status of HTTP, and what becomes the body


class _RegionBody(msgspec.Struct):
    key: str
    byte_size: int
    offset: int = 0


class _IndexBody(msgspec.Struct):
    ready: bool = False


class _OrderBody(msgspec.Struct):
    parameters: dict[str, Any] = {}


_T = TypeVar("_T")


class RestSpeaker:
    """One connection that speaks HTTP/1.1. Called with the connection's lock held."""

    def __init__(
        self, connection: Connection, service: InferenceService, chores: Chores, *, max_message_bytes: int
    ) -> None:
        self._connection = connection
        self._service = service
        self._chores = chores
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
    def stalled(self) -> bool:
        return False  # HTTP/1.1 has no windows but the socket's

    @property
    def held_bytes(self) -> int:
        return self._http.held_bytes

    def receive(self, data: bytes | memoryview) -> list[Job]:
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
            order = _ORDER.fullmatch(path)
            if order is not None and request.method == "POST":
                self._chores.put(lambda: self._obey(request, path, order))
                return None
        except OutstationError as exc:
            self._say(request, http_code(exc), said(exc))
            return None
        self._say(request, *self._answer(path, lambda: self._asked(request, path, match)))
        return None

    def _obey(self, request: Request, path: str, order: re.Match[str]) -> None:
        """Load or unload a model and answer; on the chores' thread."""

        def obeyed() -> _Answer:
            wanted = RepositoryOrder(unquote(order["name"]), "", tuple(_body(request, _OrderBody).parameters))
            (self._service.load if order["verb"] == "load" else self._service.unload)(wanted)
            return 200, {}

        status, body = self._answer(path, obeyed)
        with self._connection.lock:
            self._say(request, status, body)
            self._connection.flush()
            self._connection.answered()

    def _answer(self, path: str, function: Callable[[], _Answer]) -> _Answer:
        """What *function* answers, or the answer that its error is."""
        try:
            return function()
        except OutstationError as exc:
            return http_code(exc), said(exc)
        except Exception:
            log.exception("%s failed inside the server", path)
            return 500, {"error": "It failed inside the server; its log says why."}

    def _asked(self, request: Request, path: str, match: re.Match[str] | None) -> _Answer:
        if path == "/v2/repository/index":  # Triton's clients ask it with POST
            return 200, self._service.index(IndexQuery("", _body(request, _IndexBody).ready))
        region = _REGION.fullmatch(path)
        if region is not None:
            return self._asked_of_region(request, region["kind"], unquote(region["name"] or ""), region["verb"])
        if path not in _PAGES and match is None:
            return 404, {"error": f"There is nothing at {path[:200]}."}
        if request.method not in ("GET", "HEAD"):
            return 405, {"error": f"{path[:200]} is asked with GET."}
        if match is None or path in _PAGES:  # "stats" is no model's name there
            return _PAGES[path](self._service)
        key = ModelKey(unquote(match["name"]), unquote(match["version"] or ""))
        return self._asked_of_model(key, match["verb"])

    def _asked_of_region(self, request: Request, kind: str, name: str, verb: str) -> _Answer:
        regions = self._service.regions if kind == "system" else NoRegions()
        if verb == "status":
            return 200, [_region(region) for region in regions.status(name)]
        if request.method != "POST":
            return 405, {"error": f"{verb} is called with POST."}
        if verb == "unregister":
            regions.unregister(name)
        elif isinstance(regions, NoRegions):
            regions.register(name)
        else:
            body = _body(request, _RegionBody)
            regions.register(Region(name, body.key, body.offset, body.byte_size))
        return 200, {}

    def _asked_of_model(self, key: ModelKey, verb: str | None) -> _Answer:
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
            labels = {LABELS: {"string_value": "\n".join(model.labels)}} if model.labels else {}
            about = {"name": model.name, "platform": model.platform, "max_batch_size": 0, "parameters": labels}
            return 200, {**about, **rows}
        return 200, {field: getattr(model, field) for field in _METADATA}

    def _say(self, request: Request, status: int, body: Any) -> None:
        if isinstance(body, str):
            data, kind = body.encode(), "text/plain; version=0.0.4"
        else:
            data, kind = msgspec.json.encode(body), "application/json"
        self._http.answer(
            status, b"" if request.method == "HEAD" else data, keep_alive=request.keep_alive, content_type=kind
        )


def _body(request: Request, kind: type[_T]) -> _T:
    """The JSON of *request*; an empty one says nothing beside the path."""
    try:
        return msgspec.json.decode(request.body or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise InvalidInputError(f"The body is not what is asked for here: {exc}.") from exc


def _region(region: Region) -> dict[str, Any]:
    return {"name": region.name, "key": region.key, "offset": region.offset, "byte_size": region.size_bytes}


def _ready(service: InferenceService) -> _Answer:
    ready = service.ready()
    return (200 if ready else 503), {"ready": ready}


_PAGES: Mapping[str, Callable[[InferenceService], _Answer]] = {
    "/v2": lambda service: (200, service.server_metadata()),
    "/v2/health/live": lambda _: (200, {"live": True}),
    "/v2/health/ready": _ready,
    "/v2/models/stats": lambda service: (
        200,
        {"model_stats": [_statistics(row) for row in service.statistics(ModelKey(""))]},
    ),
    "/metrics": lambda service: (200, page(service)),
}


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


learn(_RegionBody, _IndexBody, _OrderBody)
