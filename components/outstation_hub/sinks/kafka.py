"""Kafka: one message a record, keyed by the station, so that a station's records keep their order within a stream.

Topic: ``PREFIX`` + stream if the setting ends with a dot (one topic a stream), else that one topic. Key: the
station's name. Value: the record's payload, unchanged. Timestamp: the record's own, in milliseconds.

| header | |
|---|---|
| ``id`` | ``STATION/STREAM/EPOCH/SEQUENCE``: names a record for ever, whichever hub wrote it |
| ``station``, ``stream``, ``epoch``, ``sequence``, ``time`` | epoch in hexadecimal, nanoseconds since 1970 |
| ``content-type`` | |
| ``attributes`` | a JSON object, if there are any |

:class:`TransactionalKafkaSink` writes a batch and the drain's position in one transaction, so a batch is never
there twice for whoever reads committed messages. :class:`KafkaSink` needs no transactions of the brokers; after a
failure it repeats what it does not know to be there, and readers drop an ``id`` that they have seen.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from outstation.errors import MissingExtraError, ProviderUnavailableError, SettingsError
from outstation.types import Record
from outstation_hub.sinks import Arrival, Position

try:
    from confluent_kafka import (
        OFFSET_BEGINNING,
        Consumer,
        KafkaError,
        KafkaException,
        Message,
        Producer,
        TopicPartition,
    )
except ImportError as exc:
    raise MissingExtraError("kafka", "The Kafka sink") from exc

log = logging.getLogger("outstation.hub")

# Seconds for one batch; brokers that take longer are as good as away, and the batch comes again.
_BATCH_TIMEOUT = 30.0
# Seconds for a question to the brokers; a hub that is told to stop waits for it once more.
_ANSWER_TIMEOUT = 10.0
# Bytes of a batch that librdkafka holds beside the batch itself; what is over waits in `produce`.
_QUEUE_KILOBYTES = 32 << 10
# How far back from its end the topic of positions is read, in steps: the last one is nearly always near.
_LOOK_BACK = (1_000, 100_000, None)
POSITIONS = "outstation-positions"
# What the sink decides itself; set by an operator they would break what it promises.
_OURS = frozenset({"enable.idempotence", "acks", "transactional.id", "bootstrap.servers", "transaction.timeout.ms"})


class KafkaSink:
    """An idempotent producer. Used by one thread; librdkafka has its own."""

    name = "kafka"

    def __init__(
        self,
        servers: str,
        *,
        topic: str = "outstation.",
        options: Mapping[str, str] | None = None,
        batch_timeout: float = _BATCH_TIMEOUT,
    ) -> None:
        """*servers*: host:port with commas between. *options*: librdkafka's, such as ``sasl.password``.

        SettingsError for an option that librdkafka does not know. Nothing is connected yet.
        """
        ours = sorted(_OURS & set(options or {}))
        if ours:
            raise SettingsError(f"The Kafka sink sets {ours[0]} itself.", hint="Remove it from the options.")
        self._servers = servers
        self._topic = topic
        self._options = dict(options or {})
        self._batch_timeout = batch_timeout
        self._producer: Any = None
        self._checked_options()

    def write(self, arrivals: Sequence[Arrival]) -> None:
        deadline = time.monotonic() + self._batch_timeout
        try:
            self._produce(self._made({}), arrivals, deadline)
        except (KafkaException, ProviderUnavailableError) as exc:
            raise self._given_up(exc) from exc

    def close(self) -> None:
        self._drop()

    # -- one batch -----------------------------------------------------------------------------------------------

    def _produce(self, producer: Any, arrivals: Sequence[Arrival], deadline: float) -> None:
        """Hand over all of *arrivals* and wait for each report. Raises the first failure."""
        failures: list[KafkaError] = []
        on_delivery = partial(_note, failures)
        for arrival in arrivals:
            topic = self._topic + arrival.stream if self._topic.endswith(".") else self._topic
            for record in arrival.columns.records():
                message = _message(arrival, record) | {"on_delivery": on_delivery}
                self._hand_over(producer, topic, message, deadline)
            if failures:
                break
        while len(producer) and not failures and time.monotonic() < deadline:
            producer.flush(min(0.5, max(0.0, deadline - time.monotonic())))
        if failures:
            raise KafkaException(failures[0])
        if len(producer):
            raise ProviderUnavailableError(f"no answer for {len(producer)} messages")

    @staticmethod
    def _hand_over(producer: Any, topic: str, message: Mapping[str, Any], deadline: float) -> None:
        while not _queued(producer, topic, message):
            if time.monotonic() >= deadline:
                raise ProviderUnavailableError("the queue is full and nothing of it goes out")
            producer.poll(0.1)
        producer.poll(0)

    # -- the producer --------------------------------------------------------------------------------------------

    def _made(self, more: Mapping[str, Any]) -> Any:
        """The producer; a new one after each failure, as only that is certain to know nothing of what failed."""
        if self._producer is None:
            self._producer = Producer(self._config(more))
        return self._producer

    def _config(self, more: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "partitioner": "murmur2_random",  # as Java's: whoever else writes the topic agrees on the partition
            "linger.ms": 5,
            "compression.type": "zstd",
            **self._options,
            "bootstrap.servers": self._servers,
            "enable.idempotence": True,
            "acks": "all",
            "queue.buffering.max.kbytes": _QUEUE_KILOBYTES,
            "message.timeout.ms": round(1000 * self._batch_timeout),
            "error_cb": _tell,
            "logger": log,
            **more,
        }

    def _checked_options(self) -> None:
        try:
            Producer({**self._options, "logger": log, "error_cb": _tell})
        except (KafkaException, ValueError, TypeError) as exc:
            # librdkafka names the option and, for some, shows its value: only the name may get out.
            names = ", ".join(sorted(self._options)) or "none"
            raise SettingsError(f"Kafka does not take these options: {names}.", hint=_reason(exc)) from None

    def _given_up(self, exc: BaseException) -> ProviderUnavailableError:
        self._drop()
        return ProviderUnavailableError(f"Kafka at {self._servers} did not take a batch: {_reason(exc)}")

    def _drop(self) -> None:
        producer, self._producer = self._producer, None
        if producer is not None:
            # What is under way must not arrive after the next try has begun; what has left cannot be called back.
            with suppress(KafkaException):
                producer.purge(in_queue=True, in_flight=True, blocking=False)
                producer.flush(1.0)


class TransactionalKafkaSink(KafkaSink):
    """As :class:`KafkaSink`, and a batch is there with the drain's position or not at all.

    The position is a message of the topic ``outstation-positions``, keyed by the transactional id. That is made
    from the inbox's epoch, so a hub that is started again ends what it left open, and a new inbox begins anew.
    """

    _epoch: int | None = None  # of the inbox that the present producer is for

    def position(self, epoch: int) -> int:
        """The last number of the inbox *epoch* that is committed. Ends a transaction that was left open."""
        try:
            producer = self._begun(epoch)
            found = _read_position(self._reading(), producer, _identity(epoch), self._batch_timeout)
        except (KafkaException, ProviderUnavailableError) as exc:
            raise self._given_up(exc) from exc
        return found

    def write_through(self, arrivals: Sequence[Arrival], position: Position) -> None:
        deadline = time.monotonic() + self._batch_timeout
        try:
            producer = self._begun(position.epoch)
            producer.begin_transaction()
            try:
                producer.produce(
                    POSITIONS, str(position.through).encode(), key=_identity(position.epoch).encode(), partition=0
                )
                self._produce(producer, arrivals, deadline)
            except BaseException:
                with suppress(KafkaException):  # readers wait behind an open transaction
                    producer.abort_transaction(5.0)
                raise
            producer.commit_transaction(max(1.0, deadline - time.monotonic()))
        except (KafkaException, ProviderUnavailableError) as exc:
            # Perhaps it was committed and only the answer was lost: the drain asks for the position next.
            raise self._given_up(exc) from exc

    def _begun(self, epoch: int) -> Any:
        if self._producer is None or self._epoch != epoch:
            self._drop()
            more = {
                "transactional.id": _identity(epoch),
                # A hub that hangs for longer is cut off, so that readers need not wait for it.
                "transaction.timeout.ms": round(2000 * self._batch_timeout),
            }
            producer = self._made(more)
            self._epoch = epoch
            producer.init_transactions(min(_ANSWER_TIMEOUT, self._batch_timeout))
        return self._producer

    def _reading(self) -> dict[str, Any]:
        # Options of producers alone would be warned about; those of the connection are needed.
        shared = {k: v for k, v in self._options.items() if k.split(".")[0] in {"security", "ssl", "sasl", "client"}}
        return {
            **shared,
            "bootstrap.servers": self._servers,
            "group.id": "outstation-hub",  # nothing is committed; the client insists on a name
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "error_cb": _tell,
            "logger": log,
        }


def _read_position(config: dict[str, Any], producer: Any, identity: str, timeout: float) -> int:
    # A producer's question makes the topic where brokers allow that; a consumer's does not.
    found = producer.list_topics(POSITIONS, timeout=min(_ANSWER_TIMEOUT, timeout)).topics[POSITIONS]
    if found.error is not None and found.error.code() != KafkaError.LEADER_NOT_AVAILABLE:
        raise KafkaException(found.error)
    consumer = Consumer(config)
    try:
        low, high = consumer.get_watermark_offsets(TopicPartition(POSITIONS, 0), timeout=min(_ANSWER_TIMEOUT, timeout))
        for back in _LOOK_BACK:
            start = OFFSET_BEGINNING if back is None or high - back <= low else high - back
            last = _last_of(consumer, start, identity, time.monotonic() + timeout)
            if last is not None:
                return last
            if start == OFFSET_BEGINNING:
                break
    finally:
        consumer.close()
    return 0


def _last_of(consumer: Any, start: int, identity: str, deadline: float) -> int | None:
    """The last position of *identity* from *start* on; KafkaException, ProviderUnavailableError."""
    consumer.assign([TopicPartition(POSITIONS, 0, start)])
    last = None
    while time.monotonic() < deadline:
        message = consumer.poll(0.5)
        if message is None:
            continue
        error = message.error()
        if error is not None and error.code() == KafkaError._PARTITION_EOF:
            return last
        if error is not None:
            raise KafkaException(error)
        if message.key() == identity.encode():
            last = int(message.value())
    raise ProviderUnavailableError(f"{POSITIONS} could not be read to its end")


def _identity(epoch: int) -> str:
    return f"outstation-hub-{epoch:016x}"


def _queued(producer: Any, topic: str, message: Mapping[str, Any]) -> bool:
    try:
        producer.produce(topic, **message)
    except BufferError:
        return False
    return True


def _message(arrival: Arrival, record: Record) -> dict[str, Any]:
    return {
        "value": record.payload,
        "key": arrival.station.encode(),
        # Kafka's timestamps begin in 1970, and 0 means now; the header has the whole truth.
        "timestamp": max(1, record.time_unix_nano // 1_000_000),
        "headers": _headers(arrival, record),
    }


def _headers(arrival: Arrival, record: Record) -> list[tuple[str, bytes]]:
    epoch = f"{arrival.header.epoch:016x}"
    headers = {
        "id": f"{arrival.station}/{arrival.stream}/{epoch}/{record.sequence}",
        "station": arrival.station,
        "stream": arrival.stream,
        "epoch": epoch,
        "sequence": str(record.sequence),
        "time": str(record.time_unix_nano),
        "content-type": record.content_type,
    }
    if record.attributes:
        headers["attributes"] = json.dumps(dict(record.attributes))
    return [(name, value.encode()) for name, value in headers.items()]


def _note(failures: list[KafkaError], error: KafkaError | None, _: Message) -> None:
    # On the thread that polls. The first failure tells why; all of them would fill the memory.
    if error is not None and not failures:
        failures.append(error)


def _tell(error: KafkaError) -> None:
    log.info("Kafka: %s", error.str())


def _reason(exc: BaseException) -> str:
    if isinstance(exc, KafkaException) and exc.args and isinstance(exc.args[0], KafkaError):
        return str(exc.args[0].str())
    return str(exc) or type(exc).__name__
