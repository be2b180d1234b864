"""The sinks that the settings ask for, each with what it imports; Parquet files when they ask for none."""

from __future__ import annotations

import secrets
from contextlib import ExitStack

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import mapped_os_errors
from outstation_hub.settings import HubSettings
from outstation_hub.sinks import Sink


def made_sinks(settings: HubSettings, clock: Clock) -> tuple[Sink, ...]:
    """Make them. MissingExtraError, SettingsError; nothing is connected yet."""
    wanted = settings.sinks or ("parquet",)
    with ExitStack() as undo:
        sinks = []
        for name in wanted:
            sinks.append(_MAKERS[name](settings, clock))
            undo.callback(sinks[-1].close)
        undo.pop_all()
    return tuple(sinks)


def _parquet(settings: HubSettings, clock: Clock) -> Sink:
    from outstation_hub.sinks.parquet import ParquetSink  # noqa: PLC0415

    owner = settings.data / "sinks" / "parquet.id"
    if not owner.exists():
        make_directories(owner.parent)
        write_atomically(owner, secrets.token_hex(8).encode())
    with mapped_os_errors(doing="read the name of the sink", path=owner):
        name = owner.read_text()
    return ParquetSink(settings.parquet_dir, clock=clock, compact_after=settings.compact_after, owner=name)


def _nats(settings: HubSettings, _: Clock) -> Sink:
    from outstation_hub.sinks.nats import NatsSink  # noqa: PLC0415

    return NatsSink(settings.nats, stream=settings.nats_stream)


def _kafka(settings: HubSettings, _: Clock) -> Sink:
    from outstation_hub.sinks.kafka import KafkaSink, TransactionalKafkaSink  # noqa: PLC0415

    kind = TransactionalKafkaSink if settings.kafka_transactions else KafkaSink
    return kind(settings.kafka, topic=settings.kafka_topic, options=settings.kafka_options)


def _otlp(settings: HubSettings, clock: Clock) -> Sink:
    from outstation_hub.sinks.otlp import OtlpSink  # noqa: PLC0415

    return OtlpSink(settings.otlp, settings.data / "sinks" / "otlp.rejected", clock, headers=settings.otlp_headers)


_MAKERS = {"parquet": _parquet, "nats": _nats, "kafka": _kafka, "otlp": _otlp}
