"""OpenTelemetry: records go to any collector, over OTLP/gRPC or OTLP/HTTP. See docs/hub.md for what becomes of them.

What the collector cannot take now comes again. What it never will is set aside: cut out by halving the request,
kept as a file if there is room, counted for ever, and the rest goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import DiskError, ProviderUnavailableError, WireError, mapped_os_errors
from outstation_hub.sinks import Arrival
from outstation_hub.sinks.otlp_content import Piece, Signal, Source, piece_of, request_of
from outstation_hub.sinks.otlp_export import Answer, Verdict, exporter_for

log = logging.getLogger("outstation.hub")

# A request's bounds. gRPC servers take 4 MB unless they are told otherwise; half of it leaves room for resources.
_REQUEST_BYTES = 2 << 20
_REQUEST_PIECES = 1000
_REQUEST_TIMEOUT = 30.0  # seconds
# However long a collector wants to be left alone, it is asked again after this many seconds.
_MAX_DELAY = 300.0
# Files of what was refused: enough to see what is wrong, and no way to fill the disk.
_MAX_FILES = 1000


class OtlpSink:
    """Forwards to one collector. Used by one thread; :attr:`rejected` may be read by others."""

    name = "otlp"

    def __init__(
        self,
        endpoint: str,
        folder: Path,
        clock: Clock,
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = _REQUEST_TIMEOUT,
    ) -> None:
        """*folder*: for what the collector refuses. *headers* may hold a token; they are never logged."""
        self._exporter = exporter_for(endpoint, headers or {})
        self._endpoint = endpoint
        self._folder = folder
        self._clock = clock
        self._timeout = timeout
        self._count_path = folder / "count"
        self._rejected = _load_count(self._count_path)
        self._files = len(list(folder.glob("*.binpb")))
        self._not_before = 0.0
        # What of the present batch is there, so that a try that fails half-way does not repeat its first half.
        self._sent: dict[tuple[str, Source], int] = {}

    @property
    def rejected(self) -> int:
        """Records that the collector will never take, ever."""
        return self._rejected

    def write(self, arrivals: Sequence[Arrival]) -> None:
        wait = self._not_before - self._clock.monotonic()
        if wait > 0:
            raise ProviderUnavailableError(f"The collector at {self._endpoint} wants {wait:.0f} s of rest.")
        for pieces in _requests(self._pieces(arrivals)):
            self._send(pieces)
        self._sent.clear()

    def close(self) -> None:
        self._exporter.close()

    def _pieces(self, arrivals: Iterable[Arrival]) -> Iterator[Piece]:
        for arrival in arrivals:
            source = (arrival.station, arrival.stream, arrival.header.epoch)
            for record in arrival.columns.records():
                try:
                    piece = piece_of(source, record)
                except WireError as exc:
                    if record.sequence > self._sent.get(("", source), 0):
                        self._set_aside("unreadable", 1, record.payload, f"record {record.sequence} of {source}: {exc}")
                        self._sent["", source] = record.sequence
                    continue
                if record.sequence > self._sent.get((piece.signal.name, source), 0):
                    yield piece

    def _send(self, pieces: Sequence[Piece]) -> None:
        signal = pieces[0].signal
        request = request_of(signal, pieces).SerializeToString()
        answer = self._exporter.export(signal, request, self._timeout)
        if answer.verdict is Verdict.LATER:
            self._not_before = self._clock.monotonic() + min(_MAX_DELAY, answer.delay)
            raise ProviderUnavailableError(f"The collector at {self._endpoint} takes nothing now: {answer.reason}")
        if answer.verdict is Verdict.REFUSED and len(pieces) > 1:
            # One bad record must not take the others with it.
            middle = len(pieces) // 2
            self._send(pieces[:middle])
            self._send(pieces[middle:])
            return
        self._note_lost(signal, len(pieces), request, answer)
        for piece in pieces:
            self._sent[signal.name, piece.source] = piece.sequence

    def _note_lost(self, signal: Signal, count: int, request: bytes, answer: Answer) -> None:
        if answer.verdict is not Verdict.TAKEN:
            self._set_aside(signal.name, count, request, answer.reason)
        elif answer.rejected:
            self._set_aside(f"{signal.name}.partial", answer.rejected, request, answer.reason)
        elif answer.reason:
            log.warning("the collector at %s warns: %s", self._endpoint, answer.reason[:500])

    def _set_aside(self, kind: str, count: int, data: bytes, reason: str) -> None:
        make_directories(self._folder)
        if self._files < _MAX_FILES:
            write_atomically(self._folder / f"{self._rejected:012d}.{kind}.binpb", data)
            self._files += 1
        self._rejected += count
        write_atomically(self._count_path, f"{self._rejected}\n".encode())
        log.error("the collector at %s refused %d of %s for good: %s", self._endpoint, count, kind, reason[:500])


def _requests(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """*pieces* in requests of one signal each, within the bounds, in their order within a signal."""
    open_: dict[str, list[Piece]] = {}
    sizes: dict[str, int] = {}
    for piece in pieces:
        name = piece.signal.name
        own = open_.setdefault(name, [])
        if own and (sizes[name] + piece.size_bytes > _REQUEST_BYTES or len(own) >= _REQUEST_PIECES):
            yield own
            own = open_[name] = []
        if not own:
            sizes[name] = 0
        own.append(piece)
        sizes[name] += piece.size_bytes
    yield from filter(None, open_.values())


def _load_count(path: Path) -> int:
    if not path.exists():
        return 0
    with mapped_os_errors(doing="read what was refused", path=path):
        text = path.read_text().strip()
    if not text.isdecimal():
        raise DiskError(f"{path} is no count.", hint="Remove it; counting begins anew.")
    return int(text)
