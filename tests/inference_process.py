"""The inference component as a real process, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from outstation.settings import InferenceSettings
from outstation_inference import InferenceProcess

COMMAND = (sys.executable, "-m", "outstation", "inference")


@contextlib.contextmanager
def served(path: Path, name: str, **settings) -> Iterator[str]:
    """The file *path* served from a thread of this process, which starts sooner; the address over TCP."""
    settings = {"listen": "127.0.0.1:0", **settings}
    process = InferenceProcess.of_file(path, name, InferenceSettings(**settings))
    try:
        yield process.addresses[0]
    finally:
        process.close()


class InferenceServer:
    """Started by the constructor, which returns when it is ready; a context manager that ends it."""

    def __init__(self, *arguments: str | Path, environ: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        line = self.process.stdout.readline()
        assert line.startswith("inference ready on "), line + self.process.stderr.read()
        self.addresses: Sequence[str] = re.findall(r"(?:unix:|http://)?[^ \n]*[:/][^ \n]+", line)

    @property
    def address(self) -> str:
        """Of gRPC over TCP."""
        return next(a for a in self.addresses if not a.startswith(("unix:", "http://")))

    def stop(self, timeout: float = 30.0) -> int:
        """SIGTERM; the exit code."""
        self.process.terminate()
        return self.process.wait(timeout)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> InferenceServer:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        self.process.stdout.close()
        self.process.stderr.close()
