"""A segment that was written again, on its way into the place of the old one and into the account.

Between the rename and the entry in the list of segments the file is not what the list says. So nothing may end it
there: a folder that cannot be synced does not, and what Ctrl-C has ended, on the thread of somebody who helped out, is
gone on with before anything else is done with the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from outstation.buffer.rewrite import Rewritten, Taken, Untold
from outstation.buffer.segment import Segment
from outstation.buffer.stream import Stream
from outstation.durable import Files
from outstation.types import DropReason


class _Step(NamedTuple):
    rewritten: Rewritten
    reason: DropReason
    start: int
    needless: list[Path]


class Placing:
    """Of one stream. One thread at a time."""

    def __init__(self, stream: Stream, files: Files) -> None:
        self._stream = stream
        self._files = files
        self._untold = Untold()
        self._step: _Step | None = None

    def untold(self, segments: Sequence[Segment]) -> Taken:
        """What earlier rewrites took of *segments* and no balance on the disk tells of."""
        return self._untold.of(segments)

    def told(self, rewrites: int) -> None:
        """A balance is on the disk that includes so many rewrites."""
        self._untold.told(rewrites)

    def put(self, rewritten: Rewritten, reason: DropReason, *, start: int, needless: Sequence[Path] = ()) -> list[Path]:
        """Put *rewritten* in its place, and what it took of those after *start* into the account as *reason*.

        Returns *needless*, the files that it stands for. Raises OSError, and then the old file is in place.
        """
        self._step = _Step(rewritten, reason, start, list(needless))
        return self._go_on(self._step, again=False)

    def go_on(self) -> list[Path]:
        """As :meth:`put` for what was interrupted there, if anything was."""
        return [] if self._step is None else self._go_on(self._step, again=True)

    def _go_on(self, step: _Step, *, again: bool) -> list[Path]:
        rewritten = step.rewritten
        path = rewritten.segment.path
        try:
            self._files.rename(rewritten.temporary, path)
        except FileNotFoundError:
            if not again:
                self._step = None
                raise
            # The try that was interrupted has done it.
        except OSError:
            self._step = None
            with suppress(OSError):
                self._files.unlink(rewritten.temporary)
            raise
        with suppress(OSError):  # the checkpoint syncs the folder too, and nothing is removed before it
            self._files.sync_directory(path.parent)
        self._untold.add(rewritten)
        self._stream.learn_marks(rewritten.marks)  # before anyone is told that they are all known
        self._stream.put_back(rewritten.segment, step.reason, rewritten.lost, start=step.start)
        self._step = None
        return step.needless
