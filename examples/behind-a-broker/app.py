"""Writes ten readings; the station sends them through the broker to whatever hub is behind it."""

from __future__ import annotations

import time

import outstation

with outstation.open(path="examples/behind-a-broker/outstation.toml") as station:
    for value in range(10):
        station.telemetry.event("reading", {"value": value})
    station.buffer.flush()
    events = station.buffer.stream("events")
    deadline = time.monotonic() + 30
    while events.acknowledged < events.last_sequence and time.monotonic() < deadline:
        time.sleep(0.05)
    print(f"{events.acknowledged} of {events.last_sequence} readings are at the hub")
