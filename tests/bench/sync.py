"""From a backlog to a far end: ours to a hub, beside bare grpcio, NATS JetStream and MQTT with a message a record.

The records are those of the buffer's benchmark: JSON of about 140 B with attributes. Ours and bare grpcio carry the
same blocks from the same disk to a process of its own; the hub has them on its disk, fsynced, when it acknowledges. The
clients of NATS and MQTT are given records from memory; neither server syncs a message to the disk.
"""

from __future__ import annotations

import asyncio
import gzip
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import report
from buffer import OPTIONS, PLACE, Work, telemetry
from peers import servers
from peers.bare_stream import PATH
from report import Row

from outstation.buffer import Buffer
from outstation.clock import SystemClock
from outstation.providers.hub import HubProvider
from outstation.settings import UplinkSettings
from outstation.sync.uplink import UplinkThread
from outstation.testing import FlakyLink
from outstation.types import Identity

PAYLOAD_BYTES = 1_000_000_000
APPENDED_AT_ONCE = 1900  # records: a block of the default size, about
IN_FLIGHT = 1000
OTLP_BATCH = 512  # the default of OpenTelemetry's batch processors
JSON = "application/json"


@contextmanager
def folder() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(prefix="bench-", dir=PLACE))
    try:
        yield place
    finally:
        shutil.rmtree(place)


def fill(stream: Any, work: Work, payload_bytes: int) -> int:
    """Append *work* again and again until *payload_bytes* are there; how many payload bytes that were."""
    done = 0
    while done < payload_bytes:
        for n in range(0, len(work), APPENDED_AT_ONCE):
            part = slice(n, n + APPENDED_AT_ONCE)
            stream.append_many(
                work.payloads[part],
                times_unix_nano=work.times[part],
                content_type=JSON,
                attributes=work.attributes[part],
            )
        done += work.payload_bytes
    stream.flush()
    return done


def drain(buffer: Buffer, address: str, state_dir: Path) -> float:
    """Seconds from the uplink's start until the hub has acknowledged everything."""
    provider = HubProvider(
        identity=Identity("press-7"), options={"address": address}, state_dir=state_dir, clock=SystemClock()
    )
    uplink = UplinkThread(buffer, provider, UplinkSettings(), SystemClock())
    stream = buffer.stream("events")
    begin = time.perf_counter()
    uplink.start()
    while stream.acknowledged < stream.last_sequence:
        time.sleep(0.005)
    took = time.perf_counter() - begin
    uplink.close()
    provider.close()
    return took


def bare(buffer: Buffer, address: str) -> float:
    """Seconds for the same blocks over one grpcio stream, a window of 64 under way as ours has."""
    room, count = threading.Semaphore(64), 0

    def blocks() -> Iterator[bytes]:
        nonlocal count
        for block in buffer.stream("events").blocks():
            room.acquire()
            count += 1
            yield block.data

    with grpc.insecure_channel(address, [("grpc.max_send_message_length", 64 << 20)]) as channel:
        begin = time.perf_counter()
        for _ in channel.stream_stream(PATH)(blocks()):
            room.release()
        return time.perf_counter() - begin


def by_grpc(payload_bytes: int) -> Iterator[Row]:
    work = telemetry(200_000)
    with folder() as place, Buffer.open(place / "buffer", OPTIONS) as buffer:
        done = fill(buffer.stream("events"), work, payload_bytes)
        with servers.bare_grpc() as address:
            peer = done / 1e6 / min(bare(buffer, address) for _ in range(3))
        with servers.hub(place / "hub") as (address, _):
            own = done / 1e6 / drain(buffer, address, place)
    yield Row(f"drain {done / 1e9:.2g} GB to a hub", own, reach=100.0, unit="MB/s of payload")
    yield Row("the same", own, "bare grpcio", peer, 1 / 1.3, unit="MB/s of payload")
    yield from others(own, work)


def others(own: float, work: Work) -> Iterator[Row]:
    with folder() as place, servers.nats(place) as url:
        yield Row(
            "the same", own, "NATS JetStream", asyncio.run(jetstream(url, work.head(20_000))), unit="MB/s of payload"
        )
    with folder() as place, servers.mosquitto(place) as (host, port):
        yield Row("the same", own, "MQTT, QoS 1", mqtt(host, port, work.head(20_000)), unit="MB/s of payload")


async def jetstream(url: str, work: Work) -> float:
    """Megabytes of payload a second, :data:`IN_FLIGHT` messages unconfirmed."""
    import nats  # noqa: PLC0415  one peer may be missing

    client = await nats.connect(url)
    stream = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    await stream.add_stream(name="BENCH", subjects=["bench.>"])
    begin = time.perf_counter()
    waiting = []
    for payload, attributes in zip(work.payloads, work.attributes, strict=True):
        waiting.append(await stream.publish_async("bench.events", payload, headers=dict(attributes)))
        if len(waiting) == IN_FLIGHT:
            await asyncio.gather(*waiting)
            waiting.clear()
    await asyncio.gather(*waiting)
    took = time.perf_counter() - begin
    await client.close()
    return work.payload_bytes / 1e6 / took


def mqtt(host: str, port: int, work: Work) -> float:
    """Megabytes of payload a second, a QoS 1 publication a record with awscrt's client."""
    from awscrt import mqtt5  # noqa: PLC0415

    up = threading.Event()
    options = mqtt5.ClientOptions(
        host_name=host, port=port, on_lifecycle_event_connection_success_fn=lambda _: up.set()
    )
    client = mqtt5.Client(options)
    client.start()
    up.wait(10)
    room = threading.Semaphore(100)  # unacknowledged at once, as brokers allow
    begin = time.perf_counter()
    for payload, attributes in zip(work.payloads, work.attributes, strict=True):
        room.acquire()
        properties = [mqtt5.UserProperty(name, value) for name, value in attributes.items()]
        packet = mqtt5.PublishPacket(
            topic="bench/events", payload=payload, qos=mqtt5.QoS.AT_LEAST_ONCE, user_properties=properties
        )
        client.publish(packet).add_done_callback(lambda _: room.release())
    for _ in range(100):
        room.acquire()
    took = time.perf_counter() - begin
    client.stop()
    return work.payload_bytes / 1e6 / took


def on_the_wire(count: int) -> Iterator[Row]:
    """Bytes that leave the device for a record, all headers of the protocol included, TCP's not."""
    work = telemetry(count)
    with folder() as place:
        with Buffer.open(place / "buffer", OPTIONS) as buffer:
            fill(buffer.stream("events"), work, 1)
            with servers.hub(place / "hub") as (address, _), FlakyLink(address) as link:
                drain(buffer, link.address, place)
                own = link.bytes_forwarded[0] / count
        (place / "broker").mkdir()
        with servers.mosquitto(place / "broker") as (host, port), FlakyLink(f"{host}:{port}") as link:
            mqtt(*_apart(link.address), work)
            message_a_record = link.bytes_forwarded[0] / count
    yield Row("bytes on the wire a record", own, "JSON over MQTT", message_a_record, smaller=True, unit="bytes")
    yield Row("bytes on the wire a record", own, "OTLP with gzip", otlp(work), smaller=True, unit="bytes")


def _apart(address: str) -> tuple[str, int]:
    host, _, port = address.partition(":")
    return host, int(port)


def otlp(work: Work) -> float:
    """Bytes a record of gzipped export requests with :data:`OTLP_BATCH` log records each; gRPC's heads left out."""
    from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as service  # noqa: PLC0415
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue  # noqa: PLC0415
    from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs  # noqa: PLC0415

    total = 0
    for n in range(0, len(work), OTLP_BATCH):
        records = [
            LogRecord(
                time_unix_nano=moment,
                body=AnyValue(string_value=payload.decode()),
                attributes=[KeyValue(key=k, value=AnyValue(string_value=v)) for k, v in attributes.items()],
            )
            for moment, attributes, payload in work.part(n, n + OTLP_BATCH)
        ]
        request = service.ExportLogsServiceRequest(
            resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=records)])]
        )
        total += len(gzip.compress(request.SerializeToString(), 6))
    return total / len(work)


def run(scale: float) -> list[Row]:
    return [*by_grpc(int(PAYLOAD_BYTES * scale)), *on_the_wire(int(100_000 * max(scale, 0.1)))]


if __name__ == "__main__":
    report.main("sync", run)
