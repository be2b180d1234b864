"""Whatever the link, the disk and the processes do: what was confirmed is in the sink, once and in order.

Each run has a seed, from which its whole schedule follows. A run that fails prints both; to see it again:
``make soak PYTEST_ARGS="-k seed-17"`` (``make test`` for the first dozen).
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from faults.sync_plant import KEPT, STREAMS, Plant
from faults.sync_schedule import REST_TIMEOUT, drawn, play

# "mqtt" puts a mosquitto between agent and hub, and its faults into the schedule.
EVERYDAY = {"hub": 9, "mqtt": 3}  # a dozen
SOAK = 200
RUNS = [
    pytest.param(provider, n, id=f"{provider}-seed-{n}-", marks=() if n <= everyday else pytest.mark.soak)
    for provider, everyday in EVERYDAY.items()
    for n in range(1, SOAK + 1)
]


@pytest.mark.parametrize(("provider", "seed"), RUNS)
def test_every_confirmed_record_arrives_once_and_in_order(tmp_path: Path, provider: str, seed: int) -> None:
    tls = seed % 3 != 0 and provider == "hub"
    plant = Plant(tmp_path, seed, tls=tls, provider=provider)
    steps = drawn(seed, small_disk=plant.has_small_disk, tls=tls, broker=plant.broker is not None)
    try:
        plant.start()
        play(plant, steps)
        plant.heal()
        plant.rest(REST_TIMEOUT)
        plant.drained(REST_TIMEOUT)
        ledgers = plant.status()
        found = plant.finish()
        check_order(found, plant, ledgers)
        check_payloads(found, plant)
    except BaseException:
        print(f"seed {seed}, {provider}, {'TLS' if tls else 'plain text'}:", *map(str, steps), sep="\n  ")
        print(plant.told())
        raise
    finally:
        plant.close()


def check_order(found: list[dict[str, Any]], plant: Plant, ledgers: dict[str, Any]) -> None:
    """Each life of each stream: its numbers once each, as many as its account says."""
    numbers: dict[tuple[str, int], list[int]] = defaultdict(list)
    for row in found:
        assert row["station"] == "press-7"
        numbers[row["stream"], row["epoch"]].append(row["sequence"])
    living = {(name, epoch): ledger for name, (epoch, ledger) in ledgers.items() if ledger["appended"]}
    assert set(numbers) <= set(living) | set(plant.wiped)
    for key, sequences in numbers.items():
        assert len(set(sequences)) == len(sequences), f"{key}: a number came twice"
        if key[0] in KEPT or key[0] == "health":
            assert sequences == list(range(1, len(sequences) + 1)), f"{key}: a number is missing"
    for key, ledger in living.items():
        dropped = sum(ledger["dropped"].values())
        assert ledger["appended"] == ledger["acknowledged"] + dropped
        # A record may arrive, and be let go before the word on it does.
        assert ledger["acknowledged"] <= len(numbers[key]) <= ledger["appended"], key
        if key[0] in KEPT:
            assert dropped == 0
    for key, wiped in plant.wiped.items():
        if key[0] in KEPT:
            assert wiped.acknowledged <= len(numbers[key]) <= wiped.taken, key


def check_payloads(found: list[dict[str, Any]], plant: Plant) -> None:
    """What applications were told, beside what is in the sink."""
    for name in STREAMS:
        arrived = [row for row in found if row["stream"] == name]
        payloads = [row["payload"] for row in arrived]
        assert len(set(payloads)) == len(payloads), f"{name}: a record came twice"
        confirmed = {payload for app in plant.applications for payload in app.confirmed[name]}
        refused = {payload for app in plant.applications for payload in app.refused[name]}
        assert not refused & set(payloads), f"{name}: a refused record came"
        assert set(payloads) <= confirmed, f"{name}: a record came that nobody was told of"
        check_writers(arrived, name)
        if name in KEPT:
            # A wipe takes with it what had not left by then, and nothing else.
            lives = [(key, wiped) for key, wiped in plant.wiped.items() if key[0] == name]
            gone = sum(wiped.taken - sum(row["epoch"] == key[1] for row in arrived) for key, wiped in lives)
            missing = confirmed - set(payloads)
            assert len(missing) == gone, f"{name}: {len(missing)} are missing, {gone} were wiped"
            assert missing <= set().union(*(wiped.before for _, wiped in lives)), f"{name}: lost beside the wipe"


def check_writers(arrived: list[dict[str, Any]], name: str) -> None:
    """Each application's records lie in the order in which it appended them."""
    last: dict[tuple[int, bytes], int] = {}
    for row in arrived:  # sorted by epoch and number
        origin, writer, number = row["payload"].split(b" ", 1)[0].split(b"/")
        assert origin.decode() == name
        key = (row["epoch"], writer)
        assert int(number) > last.get(key, -1), f"{name}: out of order"
        last[key] = int(number)
