"""Is a version fit to answer? Loaded and tried in a process of its own, so that nothing it does can hurt ours.

The parent (:class:`SubprocessChecker`) starts ``python -m outstation.inference.check FOLDER``; the child writes one
line of JSON, the :class:`_Verdict`, to its standard output. A child that crashes, hangs or says anything else has
failed the version. The parent imports neither numpy nor a runtime: an agent checks models that it never runs.
"""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import msgspec

from outstation.errors import CheckFailedError, InferenceError, MissingExtraError, ModelLoadError, OutstationError
from outstation.inference.runtime import RuntimeOptions
from outstation.models.checking import CheckResult
from outstation.models.store import InstalledModel
from outstation.shapes import learn

# What the child needs of our environment: to find Python, its libraries and a place for temporary files. Keys,
# tokens and settings stay here.
_PASSED = ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "LANG", "LC_ALL", "TMPDIR", "TZ")
# Python looks for modules in its working folder first: it must never be one that a model's files lie in.
_PACKAGES = Path(__file__).parents[2]
# Of what the child says on its way down, the end tells why.
_LAST_WORDS_BYTES = 600
_MAX_VERDICT_BYTES = 64 << 10
# What a service manager sends when it stops all of us: no fault of the version.
_STOPPED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class _Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The child's one line."""

    cases: int = 0
    p95_latency: float = 0.0
    peak_memory_bytes: int = 0
    error: str = ""  # the name of the class, "" = passed
    message: str = ""
    hint: str = ""


class SubprocessChecker:
    """Checks versions before they answer, each in a child process. Thread-safe; meets ``models``' Checker."""

    def __init__(self, options: RuntimeOptions = RuntimeOptions(threads=1), *, python: str = sys.executable) -> None:
        self._options = options
        self._python = python
        self._lock = threading.Lock()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def check(self, model: InstalledModel, timeout: float) -> CheckResult:
        """Load *model*, compare its golden outputs, measure it against its budgets: within *timeout* seconds.

        ModelLoadError when it cannot be loaded; CheckFailedError for anything else that the version did, with the
        reason. InferenceError when the check could not be carried out: that says nothing of the version.
        """
        command = [
            self._python,
            "-m",
            "outstation.inference.check",
            str(model.folder.absolute()),
            msgspec.json.encode(self._options).decode(),
            str(math.ceil(timeout) + 1),
        ]
        with tempfile.TemporaryFile() as words:
            code, line = self._run(command, words, timeout)
            said = _tail(words.fileno())
        return _result(code, line, said)

    def close(self) -> None:
        """Stop the checks that run: they raise InferenceError, and so does every later one. Idempotent."""
        with self._lock:
            self._closed = True
            for child in self._children:
                child.terminate()

    def _run(self, command: list[str], words: IO[bytes], timeout: float) -> tuple[int, bytes]:
        """The child's exit code, and its one line; what it prints otherwise goes to *words*."""
        with self._lock:
            if self._closed:
                raise InferenceError("No more checks: the station is closing.")
            try:
                child = subprocess.Popen(  # noqa: S603 - our own interpreter, our own module
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=words,
                    env=_environment(os.environ),
                    cwd=_PACKAGES,
                    start_new_session=True,  # Ctrl-C is for us; it must not look as if the version had crashed
                )
            except OSError as exc:
                raise InferenceError(f"The check could not be started: {exc}.") from exc
            self._children.add(child)
        with child:
            try:
                line, _ = child.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as exc:
                child.kill()
                raise CheckFailedError(f"The check did not end within {timeout:g} s and was stopped.") from exc
            finally:
                with self._lock:
                    self._children.discard(child)
        return child.returncode, line


def _result(code: int, line: bytes, said: str) -> CheckResult:
    because = f": {said}" if said else "."
    if -code in _STOPPED:
        raise InferenceError(f"The check was stopped by {signal.Signals(-code).name} before its end.")
    if code < 0:
        raise CheckFailedError(f"The check was ended by {signal.Signals(-code).name}{because}")
    try:
        verdict = msgspec.json.decode(line[:_MAX_VERDICT_BYTES], type=_Verdict)
    except msgspec.MsgspecError as exc:
        raise CheckFailedError(f"The check ended with {code} and no verdict{because}") from exc
    if verdict.error == MissingExtraError.__name__:
        raise InferenceError(f"The check could not be carried out: {verdict.message}", hint=verdict.hint)
    if verdict.error:
        kind = ModelLoadError if verdict.error == ModelLoadError.__name__ else CheckFailedError
        raise kind(verdict.message, hint=verdict.hint)
    if code != 0:
        raise CheckFailedError(f"The check ended with {code}{because}")
    return CheckResult(verdict.cases, verdict.p95_latency, verdict.peak_memory_bytes)


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    passed = {name: ours[name] for name in _PASSED if name in ours}
    if "PYTHONPATH" in passed:  # the child's working folder is another
        passed["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, passed["PYTHONPATH"].split(os.pathsep)))
    return {**passed, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _tail(fd: int) -> str:
    size = os.fstat(fd).st_size
    data = os.pread(fd, _LAST_WORDS_BYTES, max(0, size - _LAST_WORDS_BYTES))
    lines = data.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


def main(arguments: list[str]) -> int:
    """The child: try the folder that the first argument names; the verdict goes to standard output."""
    verdict_fd = os.dup(1)
    os.dup2(2, 1)  # whatever a library prints is no verdict
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder, options = Path(arguments[0]), msgspec.json.decode(arguments[1], type=RuntimeOptions)
    signal.alarm(int(arguments[2]))  # a parent that was killed cannot stop a child that hangs
    try:
        from outstation.inference.trial import check_folder  # noqa: PLC0415 - see above

        result = check_folder(folder, options)
        verdict = _Verdict(result.cases, result.p95_latency, result.peak_memory_bytes)
    except OutstationError as exc:
        verdict = _Verdict(error=type(exc).__name__, message=str(exc), hint=exc.hint)
    except MemoryError:
        verdict = _Verdict(error="CheckFailedError", message="The device has not enough memory to check the version.")
    os.write(verdict_fd, msgspec.json.encode(verdict))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))


learn(_Verdict, RuntimeOptions)
