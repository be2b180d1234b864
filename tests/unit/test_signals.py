"""A process ends on SIGTERM, whichever of its threads the kernel gives the signal to."""

from __future__ import annotations

import subprocess
import sys

# The other thread keeps the signal for itself: nothing interrupts the wait of the first.
PROCESS = """
import signal, threading
from outstation.cli.process import stop_on_signals
from outstation.clock import wait_for_signal

class Stop(threading.Event):
    def wait(self, timeout=None):
        about_to_wait.set()
        return super().wait(timeout)

stop, about_to_wait = Stop(), threading.Event()
stop_on_signals(stop.set)

def take_signal():
    about_to_wait.wait()
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
    threading.Event().wait(60)

threading.Thread(target=take_signal, daemon=True).start()
wait_for_signal(stop)
"""


def test_a_signal_that_another_thread_gets_ends_the_process():
    done = subprocess.run([sys.executable, "-c", PROCESS], timeout=30, check=False)
    assert done.returncode == 0
