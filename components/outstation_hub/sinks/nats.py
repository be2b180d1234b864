"""NATS JetStream: one message a record, with an id by which the server drops what comes twice.

Subject ``PREFIX.STATION.STREAM`` (a dot in a station's name is written ``%2E``); the payload is the record's own.

| header | |
|---|---|
| ``Nats-Msg-Id`` | ``STATION/STREAM/EPOCH/SEQUENCE``: within the stream's duplicate window it is taken once |
| ``Outstation-Epoch``, ``-Sequence``, ``-Time`` | epoch in hexadecimal, number, nanoseconds since 1970 |
| ``Outstation-Content-Type`` | |
| ``Outstation-Attributes`` | a JSON object, if there are any |

Since the id is of the record and not of a hub, several hubs may feed one stream, and a station may change between
them. Whoever reads beyond the duplicate window (a hub that was dead for longer replays its last batch) drops what
has the id of one before.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from typing import Any

from outstation.errors import ClosedError, MissingExtraError, ProviderUnavailableError
from outstation.types import Record
from outstation_hub.sinks import Arrival

try:
    import nats
    from nats.errors import Error as NatsError
    from nats.js.api import StreamConfig
    from nats.js.errors import NotFoundError
except ImportError as exc:
    raise MissingExtraError("nats", "The NATS sink") from exc

log = logging.getLogger("outstation.hub")

# Published and not yet confirmed: enough to fill a link of 50 ms at the server's own speed, and little enough that a
# lost connection repeats only these.
_IN_FLIGHT = 1000
# Seconds for one batch; a server that takes longer is as good as away, and the batch comes again.
_BATCH_TIMEOUT = 60.0
DUPLICATE_WINDOW = 3600.0


class NatsSink:
    """Publishes to one JetStream stream, which it makes if there is none. Used by one thread; owns another."""

    name = "nats"

    def __init__(
        self,
        servers: str,
        *,
        stream: str = "OUTSTATION",
        prefix: str = "outstation",
        duplicate_window: float = DUPLICATE_WINDOW,
        batch_timeout: float = _BATCH_TIMEOUT,
    ) -> None:
        """*servers*: URLs with commas between. *duplicate_window* in seconds, for a stream that is made here."""
        self._servers = servers.split(",")
        self._stream = stream
        self._prefix = prefix
        self._duplicate_window = duplicate_window
        self._batch_timeout = batch_timeout
        self._client: Any = None
        self._jetstream: Any = None
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="outstation-hubserver-nats-loop", daemon=True
        )
        self._thread.start()

    def write(self, arrivals: Sequence[Arrival]) -> None:
        self._run(self._publish(arrivals), self._batch_timeout)

    def close(self) -> None:
        if self._closed:
            return
        with suppress(ProviderUnavailableError):
            self._run(self._disconnect(), 5.0)
        self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None], timeout: float) -> None:
        if self._closed:
            work.close()
            raise ClosedError("The sink is closed.")
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, timeout), self._loop)
        try:
            future.result()
        except (NatsError, OSError, asyncio.TimeoutError) as exc:
            detail = str(exc) or type(exc).__name__
            raise ProviderUnavailableError(f"NATS at {','.join(self._servers)} did not take a batch: {detail}") from exc

    # -- on the loop's thread ------------------------------------------------------------------------------------

    async def _publish(self, arrivals: Sequence[Arrival]) -> None:
        try:
            await self._connect()
            waiting: list[asyncio.Future[Any]] = []
            for arrival in arrivals:
                subject = subject_of(self._prefix, arrival.station, arrival.stream)
                for record in arrival.columns.records():
                    headers = headers_of(arrival.station, arrival.stream, arrival.header.epoch, record)
                    waiting.append(await self._jetstream.publish_async(subject, record.payload, headers=headers))
                    if len(waiting) >= _IN_FLIGHT:
                        await asyncio.gather(*waiting)
                        waiting.clear()
            await asyncio.gather(*waiting)
        except BaseException:
            # What is under way on this connection must not arrive after the next try has begun.
            await self._disconnect()
            raise

    async def _connect(self) -> None:
        if self._client is not None and self._client.is_connected:
            return
        await self._disconnect()
        self._client = await nats.connect(
            self._servers,
            allow_reconnect=False,  # the drain tries again; a buffer inside the client would blur what was taken
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=5,
            error_cb=_quiet,
        )
        self._jetstream = self._client.jetstream(publish_async_max_pending=_IN_FLIGHT)
        try:
            await self._jetstream.stream_info(self._stream)
        except NotFoundError:
            subjects = [f"{self._prefix}.>"]
            config = StreamConfig(name=self._stream, subjects=subjects, duplicate_window=self._duplicate_window)
            await self._jetstream.add_stream(config)

    async def _disconnect(self) -> None:
        client, self._client, self._jetstream = self._client, None, None
        if client is not None:
            with suppress(NatsError, OSError, asyncio.TimeoutError):
                await client.close()


def subject_of(prefix: str, station: str, stream: str) -> str:
    """The subject of a station's stream."""
    return f"{prefix}.{station.replace('.', '%2E')}.{stream.replace('.', '%2E')}"


def headers_of(station: str, stream: str, epoch: int, record: Record) -> dict[str, str]:
    """What is said of *record* beside its payload."""
    headers = {
        "Nats-Msg-Id": f"{station}/{stream}/{epoch:016x}/{record.sequence}",
        "Outstation-Epoch": f"{epoch:016x}",
        "Outstation-Sequence": str(record.sequence),
        "Outstation-Time": str(record.time_unix_nano),
        # Whatever a station writes, a header holds no line break: JSON escapes everything but plain letters.
        "Outstation-Content-Type": json.dumps(record.content_type)[1:-1],
    }
    if record.attributes:
        headers["Outstation-Attributes"] = json.dumps(dict(record.attributes))
    return headers


async def _quiet(exc: Exception) -> None:
    log.info("NATS: %s", exc)
