"""An uplink for tests: a far end that a test plays, and the thread that sends to it."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from outstation.buffer import Buffer
from outstation.clock import SystemClock
from outstation.errors import LinkDownError, RefusedError
from outstation.provider import Acknowledgement, Limits, Message, UplinkListener
from outstation.settings import UplinkSettings
from outstation.sync.uplink import UplinkThread
from outstation.wire.block import decode

FAST = UplinkSettings(backoff_first=0.01, backoff_ceiling=0.02, acknowledge_timeout=5.0)


class FarEnd:
    """A provider whose other side a test plays: it keeps what came and acknowledges when it is told to."""

    name = "test"
    desired = commands = artifacts = secrets = lifecycle = None

    def __init__(self, max_message_bytes: int | None = None) -> None:
        self.limits = Limits(max_message_bytes=max_message_bytes)
        self.uplink = self
        self.identity = SimpleNamespace(station="s")
        self.listener: UplinkListener | None = None
        self.messages: list[Message] = []
        self.connects = 0
        self.up = True
        self.auto = True  # acknowledge each message as it comes
        self.refuse: set[int] = set()  # sequence numbers whose message is refused for good
        self.ledgers: list[Any] = []
        self.lock = threading.Lock()

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        self.connects += 1
        if not self.up:
            raise LinkDownError("nobody answers")
        self.listener = listener

    def send(self, message: Message, timeout: float) -> None:
        if not self.up:
            raise LinkDownError("cut")
        if any(message.first_sequence <= number <= message.last_sequence for number in self.refuse):
            raise RefusedError("poison")
        with self.lock:
            self.messages.append(message)
        if self.auto:
            self.acknowledge(message)

    def acknowledge(self, message: Message) -> None:
        assert self.listener is not None
        self.listener.acknowledged(Acknowledgement(message.stream, message.epoch, message.last_sequence))

    def send_ledgers(self, reports: Any, timeout: float) -> None:
        self.ledgers.append(reports)

    def probe(self, timeout: float) -> None:
        if not self.up:
            raise LinkDownError("cut")

    def disconnect(self) -> None:
        self.listener = None

    def lose(self) -> None:
        """The connection breaks, and stays broken."""
        self.up = False
        if self.listener is not None:
            self.listener.lost(LinkDownError("cut"))

    def arrived(self, stream: str) -> list[int]:
        """Sequence numbers in the order of their first arrival, as a far end that drops what it has sees them."""
        seen: list[int] = []
        for message in self.messages:
            if message.stream == stream:
                seen += [n for n in decode(message.block)[1].sequences if not seen or n > seen[-1]]
        return seen


def started(buffer: Buffer, far_end: Any, settings: UplinkSettings = FAST) -> UplinkThread:
    uplink = UplinkThread(buffer, far_end, settings, SystemClock(), jitter=lambda: 0.5)
    uplink.start()
    return uplink


def put(buffer: Buffer, count: int, stream: str = "events") -> None:
    for number in range(count):
        buffer.stream(stream).append(b"record %d" % number)
        if number % 10 == 9:
            buffer.flush()
    buffer.flush()
