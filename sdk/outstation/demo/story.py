"""The demo's story, in order: a model, an outage, a kill, three updates of which one is good, and the account."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from outstation.demo.account import Account, ReadingsLog, compare, delivered, outcomes
from outstation.demo.plant import MODEL, Plant, kill_moments
from outstation.demo.processes import DemoError
from outstation.demo.screen import Figures, Screen
from outstation.types import ModelPhase, Reported

# How the station's life is shared out: reading online, the outage, and reading on with what came of it.
ONLINE, OUTAGE, AFTER = 0.3, 0.45, 0.25
SETTLE_TIMEOUT = 30.0
LOOK_INTERVAL = 0.1
_DECIDED = {ModelPhase.ACTIVE, ModelPhase.REFUSED, ModelPhase.REJECTED, ModelPhase.ROLLED_BACK}


def tell(
    console: Console, folder: Path, interrupted: threading.Event, *, seconds: float, rate: float, seed: int | None
) -> Account:
    """Run the whole story in *folder*; the account. DemoError when a part fails, or *interrupted* is set."""
    with Screen(console) as screen, Plant(folder, rate, screen, interrupted) as plant:
        return _Story(plant, screen, seconds, seed).run()


class _Story:
    def __init__(self, plant: Plant, screen: Screen, seconds: float, seed: int | None) -> None:
        self._plant = plant
        self._screen = screen
        self._seconds = seconds
        self._seed = seed
        self._figures = Figures()
        self._log = ReadingsLog(plant.readings_log)
        self._reported = Reported()
        self._decided: set[str] = set()
        self._recent: list[tuple[float, int]] = []

    def run(self) -> Account:
        plant, screen = self._plant, self._screen
        screen.step("1. The operator makes a signed repository and publishes v1.")
        plant.desk("model", "init", str(plant.repository), "--keys", str(plant.keys))
        plant.publish("1.0.0", "v1")
        plant.start_hub()
        plant.desk("fleet", "set-model", MODEL, "latest", "--hub", plant.hub_address)
        plant.start_device()
        screen.step("2. Agent and inference run; the station fetches v1, verifies it, checks its golden inputs.")
        reader = plant.start_reader()
        screen.step("   v1 is active; the reader classifies scans and records an event for each.")
        self._watch(self._seconds * ONLINE)

        screen.step("3. The link goes down. Reading goes on.")
        plant.cut()
        went_down = time.time()
        self._outage(self._seconds * OUTAGE)

        backlog_end = self._appended()
        plant.heal()
        came_up = time.time()
        screen.step("4. The link is back: the backlog drains, and the updates are judged.")
        drained = self._until(lambda: self._acknowledged() >= backlog_end, "the backlog to drain") - came_up
        screen.step(f"   drained after {drained:.2f} s")
        self._until(self._judged, "the versions to be judged")
        self._watch(self._seconds * AFTER)

        log = self._log.look()
        backlog = sum(went_down <= reading["time"] < came_up for reading in log)
        reader_code = plant.end(reader)
        if reader_code != 0:
            raise DemoError(f"The reader ended with code {reader_code}.")
        return self._account(outage=came_up - went_down, backlog=backlog, drained=drained)

    def _outage(self, seconds: float) -> None:
        """Kill and restart the agent at a random moment, while the operator publishes three updates."""
        plant, screen = self._plant, self._screen
        begin = time.monotonic()
        failures: list[Exception] = []

        def publish() -> None:
            try:
                plant.publish("2.0.0", "v2")
                plant.publish("3.0.0", "v2")
                screen.step(f"   v3 is tampered with after signing: {plant.tamper('3.0.0').name}")
                plant.publish("4.0.0", "v4", "--no-check")
            except DemoError as exc:
                failures.append(exc)

        operator = threading.Thread(target=publish, name="outstation-demo-operator")
        operator.start()
        try:
            self._kill_and_restart(*kill_moments(self._seed, seconds))
            while time.monotonic() < begin + seconds or operator.is_alive():
                self._watch(LOOK_INTERVAL)
        finally:
            operator.join()
        if failures:
            raise failures[0]

    def _kill_and_restart(self, after: float, away: float) -> None:
        self._watch(after)
        self._screen.step("   SIGKILL to the agent.")
        self._plant.kill_agent()
        self._figures.uplink = "agent killed"
        self._watch(away)
        self._plant.start_agent()
        self._plant.wait_agent(self._look)
        self._screen.step("   The agent is back, with what it had on its disk.")

    def _account(self, *, outage: float, backlog: int, drained: float) -> Account:
        """Wait until the hub has written what the reader produced, then count. What is missing is lost."""
        plant, screen = self._plant, self._screen
        screen.step("5. The reader has stopped; the account:")
        log = self._log.look()
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            counts = compare(log, delivered(plant.parquet))
            if not counts["lost"]:
                break
            self._watch(0.5)
        self._look()
        accuracy = counts.pop("accuracy")
        dropped: dict[str, int] = {}
        for report in self._reported.streams:
            for reason, count in report.ledger.dropped.items():
                dropped[reason.value] = dropped.get(reason.value, 0) + count
        return Account(
            **counts,
            dropped=dict(sorted(dropped.items())),
            outage_seconds=round(outage, 2),
            kills=plant.kills,
            backlog=backlog,
            drain_seconds=round(drained, 3),
            drain_records_per_second=round(backlog / max(drained, 1e-3), 1),
            models=outcomes(self._reported.models, accuracy),
        )

    def _watch(self, seconds: float) -> None:
        """Let it run for *seconds*, showing the figures; DemoError when a part has ended."""
        end = time.monotonic() + seconds
        while True:
            self._look()
            left = end - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(LOOK_INTERVAL, left))

    def _until(self, condition: Callable[[], bool], what: str) -> float:
        """Watch until *condition* holds; the wall time when it did."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < deadline:
            self._look()
            if condition():
                return time.time()
            time.sleep(LOOK_INTERVAL / 2)
        raise DemoError(f"Waited {SETTLE_TIMEOUT:g} s in vain for {what}.")

    def _look(self) -> None:
        self._plant.check()
        status = self._plant.status()
        figures = self._figures
        figures.link = "up" if self._plant.link_is_up else "DOWN"
        if status is not None:
            self._reported = status.reported
            figures.uplink = status.reported.link.state.value if status.reported.link else "-"
            figures.depth = sum(report.ledger.pending for report in status.reported.streams)
            figures.active = next((model.active for model in status.reported.models if model.active), "-")
            self._say_decisions()
        log = self._log.look()
        now = time.monotonic()
        self._recent = [(at, count) for at, count in self._recent if now - at < 2.0] + [(now, len(log))]
        (first_at, first_count), (last_at, last_count) = self._recent[0], self._recent[-1]
        figures.produced = len(log)
        figures.rate = (last_count - first_count) / max(last_at - first_at, LOOK_INTERVAL)
        last = [reading for reading in log[-500:] if "failed" not in reading]
        figures.accuracy = sum(reading["digit"] == reading["truth"] for reading in last) / len(last) if last else None
        self._screen.update(figures)

    def _say_decisions(self) -> None:
        """A line for each version when it is decided, with the reason where it was turned down."""
        for model in self._reported.models:
            for version in model.versions:
                if version.phase in _DECIDED and version.version not in self._decided:
                    self._decided.add(version.version)
                    why = f": {version.reason}" if version.reason else ""
                    self._screen.step(f"   {model.name} {version.version} is {version.phase.value}{why}")

    def _appended(self) -> int:
        self._look()
        return sum(report.ledger.appended for report in self._reported.streams)

    def _acknowledged(self) -> int:
        ledgers = [report.ledger for report in self._reported.streams]
        return sum(ledger.acknowledged + ledger.dropped_total for ledger in ledgers)

    def _judged(self) -> bool:
        phases = {version.version: version.phase for model in self._reported.models for version in model.versions}
        return all(phases.get(version) in _DECIDED for version in ("2.0.0", "3.0.0", "4.0.0"))
