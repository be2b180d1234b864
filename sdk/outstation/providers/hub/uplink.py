"""Blocks up to a hub, acknowledgements down, over one ``Push`` call at a time.

A message's way up: ``HubUplink.send`` puts it into the outbox of the connection; gRPC's thread takes it from there,
with what waits behind it, and writes it; the connection's reader thread hands each acknowledgement to the listener.
When the call ends, for whatever reason, the reader says ``lost`` once and is done.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from outstation._version import __version__
from outstation.errors import (
    DeadlineError,
    LinkDownError,
    OutstationError,
    RefusedError,
)
from outstation.provider import Acknowledgement, Message, UplinkListener
from outstation.providers.hub.link import Link
from outstation.types import StreamReport
from outstation.wire import convert
from outstation.wire.client import Client, Responses
from outstation.wire.messages import Hello, Ledgers, Messages, Upward, Welcome

# Handed over and not yet written. It keeps gRPC busy while the uplink encodes the next; more would only age, and be
# forgotten when the connection is lost. Small messages go together, as each costs both sides about as much as 30 KB.
_OUTBOX_MESSAGES = 16
_OUTBOX_BYTES = 256 << 10


class HubUplink:
    """One ``Push`` call at a time."""

    def __init__(self, station: str, link: Link, max_message_bytes: int) -> None:
        self._station = station
        self._link = link
        self._max_message_bytes = max_message_bytes
        self._lock = threading.Lock()
        self._connection: _Connection | None = None
        self._abandoned = threading.Event()  # disconnect() does not wait for a connect() in progress

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        with self._lock:
            self._abandoned.clear()
            if self._connection is not None and self._connection.alive:
                return
            deadline = time.monotonic() + timeout
            client = self._link.client()
            # Waiting for the channel, rather than failing while gRPC is between two tries, finds a link that has
            # just come back.
            client.wait_ready(timeout, self._abandoned)
            self._link.renew_if_due(timeout)
            hello = Hello(self._station, f"outstation {__version__}", self._link.instance)
            connection = _Connection(hello, self._link.client(), listener, self._max_message_bytes)
            try:
                connection.wait_welcome(max(0.25, deadline - time.monotonic()))
            except OutstationError:
                connection.end()
                raise
            self._connection = connection

    def send(self, message: Message, timeout: float) -> None:
        if len(message.block) > self._max_message_bytes:
            raise RefusedError(f"A block of {len(message.block)} bytes is over options.hub.max_message_bytes.")
        self._alive().outbox.put(message, timeout)

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        self._alive().outbox.put(Ledgers(reports), timeout)

    def probe(self, timeout: float) -> None:
        self._alive()
        self._link.client().unary(convert.GET_DESIRED)(self._station, timeout)

    def disconnect(self) -> None:
        self._abandoned.set()
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.end()

    def _alive(self) -> _Connection:
        connection = self._connection
        if connection is None or not connection.alive:
            raise LinkDownError(f"There is no connection to the hub at {self._link.address}.")
        return connection


class Outbox:
    """A bounded queue that gRPC iterates over. Closing it ends the iteration and wakes whoever waits to put."""

    def __init__(self, first: Upward, max_message_bytes: int) -> None:
        self._items: deque[Upward] = deque([first])
        self._bytes = 0
        self._together_bytes = min(_OUTBOX_BYTES, max_message_bytes)
        self._changed = threading.Condition()
        self._closed = False
        self.max_blocks = 0  # that the hub takes in one message; it says so in its welcome

    def put(self, item: Upward, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(self._has_room, timeout):
                raise DeadlineError(f"The hub took nothing for {timeout:g} s.")
            if self._closed:
                raise LinkDownError("The connection to the hub was lost.")
            self._items.append(item)
            self._bytes += _size(item)
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._items.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Upward]:
        return self

    def __next__(self) -> Upward:
        with self._changed:
            self._changed.wait_for(lambda: self._items or self._closed)
            if self._closed:
                raise StopIteration
            item = self._items.popleft()
            if isinstance(item, Message):
                item = self._with_next(item)
            self._bytes -= _size(item)
            self._changed.notify_all()
            return item

    def _with_next(self, first: Message) -> Message | Messages:
        """*first*, with what waits behind it, as far as the hub takes it."""
        together, size = [first], _size(first)
        while self._items and len(together) < self.max_blocks:
            item = self._items[0]
            size += _size(item)
            if not isinstance(item, Message) or size > self._together_bytes:
                break
            together.append(item)
            self._items.popleft()
        return first if len(together) == 1 else Messages(tuple(together))

    def _has_room(self) -> bool:
        return self._closed or (len(self._items) < _OUTBOX_MESSAGES and self._bytes < _OUTBOX_BYTES)


def _size(item: Upward) -> int:
    """The bytes of the blocks in *item*."""
    if isinstance(item, Messages):
        return sum(map(_size, item.messages))
    return len(item.block) if isinstance(item, Message) else 0


class _Connection:
    """One ``Push`` call, from Hello to its end."""

    def __init__(self, hello: Hello, client: Client, listener: UplinkListener, max_message_bytes: int) -> None:
        self.outbox = Outbox(hello, max_message_bytes)
        self._listener = listener
        self._changed = threading.Condition()
        self._welcome = False
        self._ended: OutstationError | None = None
        self._ours = False  # we ended it: nobody needs to be told
        self._call: Responses[Any] = client.stream(convert.PUSH, self.outbox)
        self._reader = threading.Thread(target=self._read, name="outstation-hub-uplink", daemon=True)
        self._reader.start()

    @property
    def alive(self) -> bool:
        return self._welcome and self._ended is None

    def wait_welcome(self, timeout: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._welcome or self._ended, timeout)
            if self._ended is not None:
                raise self._ended
            if not self._welcome:
                raise DeadlineError(f"The hub did not answer within {timeout:.1f} s.")

    def end(self) -> None:
        """End the call and its thread, without a word to the listener. Idempotent."""
        self._ours = True
        self.outbox.close()
        self._call.cancel()
        if threading.current_thread() is not self._reader:
            self._reader.join()

    def _read(self) -> None:
        ended: OutstationError = LinkDownError("The hub ended the connection.")
        try:
            for answer in self._call:
                if isinstance(answer, Acknowledgement):
                    self._listener.acknowledged(answer)
                elif isinstance(answer, Welcome):
                    self.outbox.max_blocks = answer.max_blocks
                    with self._changed:
                        self._welcome = True
                        self._changed.notify_all()
        except OutstationError as exc:
            ended = exc
        self._call.cancel()
        with self._changed:
            self._ended = ended
            self._changed.notify_all()
        self.outbox.close()
        if self._welcome and not self._ours:
            self._listener.lost(ended)
