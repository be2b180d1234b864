"""A device in a process of its own, that is killed: from outside at any instant, or by itself at its n-th write."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from outstation.durable import FILES, Files
from outstation.errors import CheckFailedError
from outstation.models.checking import CheckResult
from outstation.models.fetch import FolderSource
from outstation.models.reconciler import Reconciler
from outstation.models.store import ModelStore
from outstation.settings import ModelsSettings

DONE, TOO_LATE = 0, 3


class Checker:
    """Rejects 4.0.0."""

    def check(self, model, timeout):
        if model.version == "4.0.0":
            raise CheckFailedError("golden case 0 is off")
        return CheckResult(1, 0.001, 1)


def live(folder: str, repository: str, root: str, goal: str, kill_at: int | None, *, shadow: float = 0.0) -> None:
    """Reconcile until *goal* is active; SIGKILL to itself before the *kill_at*-th operation on the disk.

    A newer version is *shadow* seconds in the shadow of the one before.
    """
    if kill_at is not None:
        _arm(kill_at)
    store = ModelStore(Path(folder))
    settings = ModelsSettings(
        repository="given",
        root=root,
        names=("pump",),
        poll_interval=0.02,
        retry_interval=0.02,
        probation=0.0,
        shadow=shadow,
    )
    reconciler = Reconciler(store, FolderSource(Path(repository)), Checker(), settings)
    reconciler.start()
    until = time.monotonic() + 20.0
    while store.model("pump").active != goal:
        if time.monotonic() > until:
            os._exit(TOO_LATE)
        time.sleep(0.002)
    reconciler.close()
    os._exit(DONE)


def _arm(kill_at: int) -> None:
    left = [kill_at]

    def counting(function):
        def call(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **options)

        return call

    for name in ("open", "write", "sync", "sync_directory", "rename", "unlink", "make_directory"):
        setattr(FILES, name, counting(getattr(Files(), name)))
    os.link = counting(os.link)
    os.fsync = counting(os.fsync)
