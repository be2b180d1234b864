"""A model together with its processing, as one :class:`outstation.inference.runtime.Session`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from outstation.inference.runtime import Session, Stop
from outstation.inference.signature import Signature
from outstation.models.pipeline import Pipeline


class ProcessedSession:
    """Takes and gives what a caller sees. Whoever runs it, wherever, gets the same answer."""

    def __init__(self, session: Session, signature: Signature, pipeline: Pipeline) -> None:
        """*signature* is that of the model itself."""
        self._session = session
        self._signature = signature
        self._pipeline = pipeline
        self.placement = session.placement
        self.inputs = pipeline.inputs
        self.outputs = pipeline.outputs
        self.samples = pipeline.samples()

    def run(self, names: Sequence[str], feed: Mapping[str, Any], stop: Stop | None = None) -> list[Any]:
        """See :meth:`outstation.inference.runtime.Session.run`; UnreadableFileError for a file that is none.

        *stop* ends the model's computation, not what comes before and after it.
        """
        prepared = self._pipeline.feed(feed)
        if not self._signature.fits(prepared):
            self._signature.check(prepared)
        sources = self._pipeline.sources(names)
        values = self._session.run(sources, prepared, stop)
        return self._pipeline.answers(names, dict(zip(sources, values, strict=True)))

    def stop(self) -> Stop:
        return self._session.stop()
