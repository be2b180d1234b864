"""One call of a model over REST: its JSON, and tensors in JSON or in binary behind it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import numpy as np

from outstation.errors import InvalidInputError, OutstationError
from outstation.wire.datatypes import (
    BF16,
    DTYPES,
    Array,
    datatype_of,
    described,
    element_count,
    from_bf16,
    from_raw,
    object_array,
    to_bf16,
    to_raw,
)
from outstation.wire.questions import ModelKey
from outstation.wire.shared import SharedTensor, window_of
from outstation.wire.tensors import InferRequest, InferResponse, classes_of
from outstation_inference.front import Connection
from outstation_inference.http1 import Http1, Request
from outstation_inference.jobs import http_code, names_shared_memory

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


class Caller(Protocol):
    """Who made the call; ``cancelled`` once it has gone."""

    @property
    def cancelled(self) -> bool: ...


class RestJob:
    """One POST of infer; see :class:`outstation_inference.jobs.Job`."""

    __slots__ = ("_binary", "_caller", "_connection", "_http", "_key", "_request", "arrived", "deadline")

    def __init__(self, connection: Connection, caller: Caller, http: Http1, request: Request, key: ModelKey) -> None:
        self._connection = connection
        self._caller = caller
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
    def shared(self) -> bool:
        return names_shared_memory(self._request.body)

    @property
    def cancelled(self) -> bool:
        return self._caller.cancelled

    def request(self) -> InferRequest:
        call, binary = _decoded(self._request)
        names = [tensor.name for tensor in call.inputs]
        if len(set(names)) != len(names):
            raise InvalidInputError("Two inputs have the same name.")
        inputs: dict[str, Array] = {}
        shared: dict[str, SharedTensor] = {}
        at = 0
        for tensor in call.inputs:
            where = f"Input {tensor.name!r}"
            window = window_of(tensor.parameters, where)
            if window is not None:
                shared[tensor.name] = SharedTensor(tensor.datatype, tuple(tensor.shape), window)
                continue
            size = tensor.parameters.get("binary_data_size")
            if size is None:
                inputs[tensor.name] = _from_json(tensor)
                continue
            if type(size) is not int or not 0 <= size <= len(binary) - at:
                raise InvalidInputError(f"Input {tensor.name!r} claims {size} bytes; {len(binary) - at} are left.")
            inputs[tensor.name] = from_raw(where, tensor.datatype, tensor.shape, binary[at : at + size])
            at += size
        if at != len(binary):
            raise InvalidInputError(f"{len(binary) - at} bytes are behind the last input.")
        self._binary = call.parameters.get("binary_data_output") is True or frozenset(
            output.name for output in call.outputs if output.parameters.get("binary_data") is True
        )
        windows = {output.name: window_of(output.parameters, f"Output {output.name!r}") for output in call.outputs}
        into = {name: window for name, window in windows.items() if window is not None}
        counts = {output.name: classes_of(output.parameters, f"Output {output.name!r}") for output in call.outputs}
        return InferRequest(
            self._key.name,
            inputs,
            self._key.version,
            call.id,
            tuple(windows),
            call.parameters,
            shared=shared,
            into=into,
            classes={name: count for name, count in counts.items() if count},
        )

    def answer(self, response: InferResponse) -> None:
        rows: list[dict[str, Any]] = []
        parts: list[bytes] = []
        for name, array in response.outputs.items():
            row: dict[str, Any] = {"name": name, "datatype": datatype_of(array), "shape": array.shape}
            if name in response.into:
                pass  # it lies where the caller wanted it; clients take parameters for those of binary data
            elif self._binary is True or (self._binary and name in self._binary):
                parts.append(to_raw(array))
                row["parameters"] = {"binary_data_size": len(parts[-1])}
            else:
                row["data"] = (from_bf16(array) if array.dtype == BF16 else array).ravel().tolist()
            rows.append(row)
        answer = {"model_name": response.model, "model_version": response.version, "outputs": rows}
        if response.id:
            answer["id"] = response.id
        text = msgspec.json.encode(answer)
        if parts:
            headers = {"Inference-Header-Content-Length": str(len(text))}
            self._put(200, b"".join((text, *parts)), _BINARY, headers)
        else:
            self._put(200, text, "application/json", {})

    def fail(self, error: OutstationError) -> None:
        self._put(http_code(error), msgspec.json.encode(said(error)), "application/json", {})

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
        if dtype == BF16:
            return to_bf16(wide.ravel().astype(np.float32))
        return wide.ravel().astype(dtype)


def _leaves(data: list[Any]) -> list[Any]:
    while data and any(isinstance(entry, list) for entry in data):
        data = [leaf for entry in data for leaf in (entry if isinstance(entry, list) else [entry])]
    return data


def said(error: OutstationError) -> dict[str, str]:
    """*error* as the body of an answer."""
    return {"error": str(error), **({"hint": error.hint} if error.hint else {})}
