"""What goes wrong in a seeded run, and when. Drawn before anything starts: a seed tells all of it."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faults.sync_plant import Plant
from faults.sync_process import Process

STEPS = 6
# Longer than the keepalive of the plant's link: what is swallowed that long must be noticed.
LONG, LONG_CHANCE = 2.0, 0.08
HEAL_CHANCE = 0.7  # else the fault lasts while the next ones come
WIPE_CHANCE = 0.25
REST_TIMEOUT = 120.0  # seconds in which a healed plant must confirm, and send, all it holds


@dataclass(frozen=True)
class Step:
    """One fault: how, for how long, and whether it ends then."""

    fault: str
    how: Any
    seconds: float
    heals: bool

    def __str__(self) -> str:
        how = "" if self.how is None else f" {self.how}"
        return f"{self.fault}{how} for {self.seconds:.2f} s{'' if self.heals else ', not healed'}"


def drawn(seed: int, *, small_disk: bool, tls: bool, broker: bool = False) -> list[Step]:
    """The schedule of *seed*."""
    dice = random.Random(seed)
    left_out = set() if small_disk else {"full disk"}
    left_out |= set() if tls else UNSAFE_IN_PLAIN
    left_out |= set() if broker else OF_A_BROKER
    names = [name for name in FAULTS if name not in left_out]
    steps = []
    for name in dice.sample(names, STEPS):
        seconds = LONG if dice.random() < LONG_CHANCE else dice.uniform(0.05, 0.4)
        steps.append(Step(name, FAULTS[name].draw(dice), seconds, dice.random() < HEAL_CHANCE))
    if dice.random() < WIPE_CHANCE:
        steps.insert(dice.randint(0, STEPS), Step("wipe", dice.choice(("drained", "undelivered")), 0.3, True))
    return steps


def play(plant: Plant, steps: list[Step]) -> None:
    """Let it all happen. Afterwards nothing is healed but what a step healed."""
    for step in steps:
        if step.fault == "wipe":
            _wipe(plant, step.how)
        else:
            FAULTS[step.fault].begin(plant, step.how)
        threading.Event().wait(step.seconds)  # not for luck: a fault lasts so long
        plant.check()
        if step.heals:
            plant.heal()


def _wipe(plant: Plant, how: str) -> None:
    plant.heal()
    plant.rest(REST_TIMEOUT)
    if how == "drained":
        plant.drained(REST_TIMEOUT)
    plant.wipe()
    for application in plant.applications:
        application.resume()


@dataclass(frozen=True)
class Fault:
    begin: Callable[[Plant, Any], object]
    draw: Callable[[random.Random], Any] = lambda dice: None


def _kill(process: Process) -> None:
    if process.alive:
        process.kill()


def _stop(process: Process) -> None:
    if process.alive:
        process.signal(signal.SIGSTOP)


def _restart(plant: Plant, how: tuple[str, tuple[str, ...]]) -> None:
    """End all, by force or in order, and start them in a given order; on a full disk a hub may say no."""
    way, order = how
    for process in plant.processes:
        if process.alive:
            process.signal(signal.SIGCONT)
            process.kill() if way == "kill" else process.stop()
    for process in sorted(plant.processes, key=lambda process: order.index(process.name)):
        if process is plant.hub and plant.is_full:
            continue  # it starts when there is room again
        process.start()
        process.wait_ready()


def _order(dice: random.Random) -> tuple[str, tuple[str, ...]]:
    return dice.choice(("kill", "end")), tuple(dice.sample(("hub", "agent", "broker"), 3))


def _way(dice: random.Random) -> dict[str, bool]:
    return {"downward": dice.random() < 0.5}


def _pieces(dice: random.Random) -> dict[str, Any]:
    return {"pieces": dice.randint(1, 3), **_way(dice)}


def _hole(dice: random.Random) -> dict[str, bool]:
    upward = dice.random() < 0.7
    return {"upward": upward, "downward": not upward or dice.random() < 0.5}


def _slow(dice: random.Random) -> dict[str, float]:
    return {"latency": dice.choice((0.0, 0.05, 0.3)), "bytes_per_second": dice.choice((20_000, 200_000, 2_000_000))}


FAULTS = {
    "cut": Fault(lambda plant, _: plant.link.cut()),
    "down": Fault(lambda plant, _: plant.link.down()),
    "black hole": Fault(lambda plant, how: plant.link.black_hole(**how), _hole),
    "slow": Fault(lambda plant, how: plant.link.up(**how), _slow),
    "half close": Fault(lambda plant, how: plant.link.half_close(**how), _way),
    "corrupt": Fault(lambda plant, how: plant.link.corrupt(**how), _pieces),
    "swallow": Fault(lambda plant, how: plant.link.swallow(**how), _pieces),
    "kill hub": Fault(lambda plant, _: _kill(plant.hub)),
    "kill agent": Fault(lambda plant, _: _kill(plant.agent)),
    "stop hub": Fault(lambda plant, _: _stop(plant.hub)),
    "stop agent": Fault(lambda plant, _: _stop(plant.agent)),
    "kill broker": Fault(lambda plant, _: _kill(plant.broker)),
    "stop broker": Fault(lambda plant, _: _stop(plant.broker)),
    "restart all": Fault(_restart, _order),
    "full disk": Fault(lambda plant, left: plant.fill(left), lambda dice: dice.choice((0, 1 << 20, 60 << 20))),
}
# Without TLS nothing but TCP's own checksum, which a proxy renews, stands between a name or a number and a flipped
# bit: plain text is for a link that does not do that.
UNSAFE_IN_PLAIN = {"corrupt", "swallow"}
OF_A_BROKER = {"kill broker", "stop broker"}
