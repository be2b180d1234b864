"""One JetStream stream as a log that several hubs write: where a subject ends, and the next message there."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, NamedTuple

from outstation.errors import ClosedError, MissingExtraError, ProviderUnavailableError
from outstation.types import Record

try:
    import nats
    from nats.errors import Error as NatsError
    from nats.js.api import Header, RetentionPolicy, StreamConfig
    from nats.js.errors import APIError, NotFoundError
except ImportError as exc:
    raise MissingExtraError("nats", "The NATS relay") from exc

from outstation_hub.sinks.nats import DUPLICATE_WINDOW, headers_of, subject_of

log = logging.getLogger("outstation.hub")

# What the client raises: mapped by whoever calls.
FOREIGN_ERRORS = (NatsError, OSError, asyncio.TimeoutError)
# Seconds for one answer. A server that takes longer is as good as away; stations send again.
_ANSWER_TIMEOUT = 10.0
_WRONG_LAST_SEQUENCE = 10071


class Tip(NamedTuple):
    """Where a subject ends: the stream's number of its last message, and the record's. Both 0: it is empty."""

    position: int
    mark: int


class OvertakenError(Exception):
    """The subject does not end where it was thought to. Never leaves the hub."""


class JetStream:
    """The log. Owns a thread with a loop; coroutines run there, the rest is thread-safe."""

    def __init__(
        self,
        servers: str,
        *,
        stream: str = "OUTSTATION",
        prefix: str = "outstation",
        answer_timeout: float = _ANSWER_TIMEOUT,
    ) -> None:
        """*servers*: URLs with commas between. Nothing is connected before the first use."""
        self._answer_timeout = answer_timeout
        self._servers = servers.split(",")
        self._stream = stream
        self._prefix = prefix
        self._client: Any = None
        self._context: Any = None
        self._closed = False
        self._guard = threading.Lock()
        self._connecting = asyncio.Lock()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="outstation-hubserver-relay-loop", daemon=True
        )
        self._thread.start()

    def subject(self, station: str, stream: str, epoch: int) -> str:
        """Where the records of one life of a stream go."""
        return f"{subject_of(self._prefix, station, stream)}.{epoch:016x}"

    def submit(self, work: Coroutine[Any, Any, int]) -> Future[int]:
        """Run *work* on the loop; work of one caller begins in the order in which it was given. ClosedError."""
        with self._guard:
            if self._closed:
                work.close()
                raise ClosedError("The log is closed.")
            return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """End the work that is under way, and the thread. Idempotent."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # -- on the loop's thread ------------------------------------------------------------------------------------

    async def tip(self, subject: str) -> Tip:
        """The end of *subject*, as the log has it. Raises FOREIGN_ERRORS; ProviderUnavailableError: it is no end."""
        context = await self._connected()
        try:
            last = await context.get_last_msg(self._stream, subject)
        except NotFoundError:
            return Tip(0, 0)
        number = (last.headers or {}).get("Outstation-Sequence", "")
        if not number.isdecimal():
            raise ProviderUnavailableError(f"The last message of {subject} was written by somebody else than a hub.")
        return Tip(last.seq, int(number))

    async def publish(self, subject: str, source: tuple[str, str, int], record: Record, tip: Tip) -> Tip:
        """Append *record* to *subject* if that still ends at *tip*, else OvertakenError. Raises FOREIGN_ERRORS."""
        context = await self._connected()
        headers = headers_of(*source, record)
        headers[Header.EXPECTED_LAST_SUBJECT_SEQUENCE] = str(tip.position)
        try:
            stored = await context.publish(
                subject, record.payload, timeout=self._answer_timeout, stream=self._stream, headers=headers
            )
        except APIError as exc:
            if exc.err_code == _WRONG_LAST_SEQUENCE:
                raise OvertakenError from exc
            raise
        except FOREIGN_ERRORS:
            await self._disconnect()  # silence for that long: the next try finds another server, or none
            raise
        return Tip(stored.seq, record.sequence)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is None or not self._client.is_connected:
                await self._disconnect()
                await self._connect()
            return self._context

    async def _connect(self) -> None:
        client = await nats.connect(
            self._servers,
            allow_reconnect=False,  # stations send again; a buffer inside the client would blur what was taken
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            ping_interval=5,
            error_cb=_quiet,
        )
        self._client = client
        self._context = client.jetstream(timeout=self._answer_timeout)
        try:
            await self._prepare()
        except BaseException:
            await self._disconnect()
            raise

    async def _prepare(self) -> None:
        """The stream is there and keeps what a hub must find again."""
        try:
            config = (await self._context.stream_info(self._stream)).config
        except NotFoundError:
            subjects = [f"{self._prefix}.>"]
            config = StreamConfig(name=self._stream, subjects=subjects, duplicate_window=DUPLICATE_WINDOW)
            await self._context.add_stream(config)
            return
        if config.retention not in (None, RetentionPolicy.LIMITS):
            raise ProviderUnavailableError(
                f"The stream {self._stream} deletes what was read, and with it what the hubs must know.",
                hint="Give it the retention policy `limits`, or name another stream.",
            )

    async def _disconnect(self) -> None:
        client, self._client, self._context = self._client, None, None
        if client is not None:
            with suppress(*FOREIGN_ERRORS):
                await client.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._disconnect()


async def _quiet(exc: Exception) -> None:
    log.info("NATS: %s", exc)
