"""Type-checked, never run: what an application may rely on. `make check` reads it."""

from __future__ import annotations

from pathlib import Path

import outstation
from outstation.buffer import Buffer, Receipt
from outstation.provider import Provider
from outstation.providers.hub import HubProvider
from outstation.providers.local import LocalProvider
from outstation.types import Ledger, Record, StationStatus
from outstation.wire import Columns, decode


def both_ways_in_give_a_station() -> tuple[outstation.Station, outstation.Station]:
    return outstation.open(path="outstation.toml"), outstation.connect(Path("agent.sock"))


def an_application(station: outstation.Station) -> StationStatus:
    with station:
        reader = station.models.get("meter-digits", timeout=10.0)
        name: str = reader.name
        first, second = reader.run_many([{"image": 1}, {"image": 2}], timeout=1.0)
        reader.capture({"image": first}, note="7", timeout=second)
        shapes: list[tuple[int, ...]] = [spec.shape for spec in (*reader.inputs, *reader.outputs)]
        assert len(shapes) >= len(reader.labels)
        station.telemetry.event(name, {"value": 1}, priority=0).wait(timeout=1.0)
        station.buffer.stream("raw").append(b"x", content_type="image/jpeg", attributes={"camera": "2"})
        return station.status()


def a_buffer_of_ones_own(folder: Path) -> list[Record]:
    buffer = Buffer.open(folder)
    stream = buffer.stream("readings")
    receipt: Receipt = stream.append_many([b"a", b"b"], times_unix_nano=[1, 2])
    receipt.wait()
    ledger: Ledger = stream.ledger()
    assert ledger.balanced
    return list(stream.read(after=0))


def a_function_in_the_cloud(data: bytes) -> Columns:
    header, columns = decode(data)
    assert header.count == len(columns)
    return columns


def adapters_are_providers(local: LocalProvider, hub: HubProvider) -> tuple[Provider, Provider]:
    return local, hub
