"""Files of the repository that a hub serves."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from outstation.errors import (
    DeadlineError,
    InvalidInputError,
    LinkError,
)
from outstation.provider import ByteStream
from outstation.providers.hub.link import Link
from outstation.wire import convert
from outstation.wire.client import Responses
from outstation.wire.messages import FetchRequest


class HubArtifacts:
    """Files of the hub's repository, in the chunks that the hub sends."""

    def __init__(self, station: str, link: Link) -> None:
        self._station = station
        self._link = link

    @contextmanager
    def open(self, uri: str, offset: int, timeout: float) -> Iterator[ByteStream]:
        """As :class:`outstation.provider.Artifacts`; *timeout* bounds the wait for each chunk, not the whole file."""
        if offset < 0:
            raise InvalidInputError(f"There is no byte {offset} in {uri}.")
        request = FetchRequest(self._station, uri.removeprefix("hub:"), offset)
        with self._link.client().stream(convert.FETCH, request) as call, _Chunks(call, timeout) as chunks:
            yield chunks


class _Chunks:
    """The chunks of one call as a byte stream, with a watch on how long each takes."""

    def __init__(self, call: Responses[bytes], timeout: float) -> None:
        self._call = call
        self._timeout = timeout
        self._rest = memoryview(b"")
        self._waiting_since: float | None = None
        self._late = False
        self._done = threading.Event()
        # gRPC's iteration knows no timeout for one message, so somebody else must look at the clock.
        self._watch = threading.Thread(target=self._look, name="outstation-hub-fetch", daemon=True)

    def __enter__(self) -> _Chunks:
        self._watch.start()
        try:
            self._next()  # a file that is not there is an error of open(), not of the first read()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, size: int) -> bytes:
        if not self._rest:
            self._next()
        piece, self._rest = self._rest[:size], self._rest[size:]
        return bytes(piece)

    def _next(self) -> None:
        self._waiting_since = time.monotonic()
        try:
            self._rest = memoryview(next(self._call, b""))
        except LinkError as exc:
            if self._late:
                raise DeadlineError(f"The hub sent nothing for {self._timeout:g} s.") from exc
            raise
        finally:
            self._waiting_since = None

    def _look(self) -> None:
        while not self._done.wait(min(0.2, self._timeout / 4)):
            since = self._waiting_since
            if since is not None and time.monotonic() - since > self._timeout:
                self._late = True
                self._call.cancel()
                return

    def _end(self) -> None:
        self._done.set()
        self._watch.join()
