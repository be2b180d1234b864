"""One remote method as a value: its path, and how its messages become bytes and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Request = TypeVar("Request")
Response = TypeVar("Response")
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Codec(Generic[Value]):
    """How one kind of message becomes bytes and back; ``decode`` raises WireError for bytes that are none."""

    encode: Callable[[Value], bytes]
    decode: Callable[[bytes], Value]


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """``path`` is "/package.Service/Method"; the two flags say which side may send many messages."""

    path: str
    request: Codec[Request]
    response: Codec[Response]
    streams_requests: bool = False
    streams_responses: bool = False
