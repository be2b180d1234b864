"""The one sending thread: takes blocks from the buffer, hands them to the provider, moves cursors on acknowledgement.

A message's way: ``_run`` connects and backs off; ``_pump`` fills the window, ``_next`` chooses the stream, whose lane
(lane.py) has the next piece; ``_send`` hands it over; the provider's threads leave word (word.py); ``_settle`` acts
on it and moves the cursor. How much and how fast is decided in pacing.py and budget.py.

Nothing is lost because the cursor moves only on the far end's word. Nothing arrives twice because each message names
(stream, epoch, first sequence number), and the far end drops what it has.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import replace

from outstation.buffer import Buffer, Stream
from outstation.clock import Clock
from outstation.errors import DeadlineError, OutstationError, RefusedError, StorageError
from outstation.provider import Acknowledgement, Provider
from outstation.settings import UplinkSettings
from outstation.sync.budget import Budget
from outstation.sync.deadletter import DEAD_LETTER, set_aside
from outstation.sync.lane import Lane, Piece, UnderWay
from outstation.sync.link import LinkMonitor
from outstation.sync.pacing import Backoff, Flow, Sent, Turns, Window
from outstation.sync.word import Word
from outstation.types import AcknowledgedBy, Link, StreamReport

log = logging.getLogger("outstation.sync")

# How often the account of every stream goes up. It is a few dozen bytes a stream, and an operator who looks at a
# gap wants the reason within the minute.
LEDGER_INTERVAL = 15.0
# The longest sleep with nothing to do: a missed wake-up costs this much and no more.
IDLE_INTERVAL = 1.0
# A message under way gets this much more time for its size before the link is taken for lost: 32 kbit/s is what the
# worst radio that is worth the name brings.
SLOWEST_BYTES_PER_SECOND = 4_000
# A stream that the disk cannot read holds up no other; it is looked at again after this many seconds.
UNREADABLE_INTERVAL = 30.0


class UplinkThread:
    """Sends what the buffer holds, for as long as it runs. Started and closed once each; read from any thread."""

    def __init__(
        self,
        buffer: Buffer,
        provider: Provider,
        settings: UplinkSettings,
        clock: Clock,
        *,
        on_link: Callable[[Link], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        """*on_link* hears, on the uplink's thread, when the link comes and goes. Raises SettingsError."""
        self._buffer = buffer
        self._provider = provider
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._link = LinkMonitor(clock, Backoff(settings.backoff_first, settings.backoff_ceiling), on_link)
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._flow = Flow(settings.window_bytes)
        self._window = Window(settings.window_messages, self._flow.window_bytes)
        self._turns = Turns()
        self._budget = Budget(settings, provider.limits, clock)
        self._lanes: dict[str, Lane] = {}
        self._word = Word(self._concerns, self._wake.set)
        self._ledgers: tuple[StreamReport, ...] = ()  # as told last on this connection
        self._ledgers_due = 0.0
        self._life_at = 0.0  # monotonic seconds; when the far end last said anything
        self._awaited: Sent | None = None  # the oldest message under way,
        self._awaited_since = 0.0  # and since when it is the oldest, in monotonic seconds
        self._thread = threading.Thread(target=self._run, name="outstation-uplink", daemon=True)

    @property
    def link(self) -> Link:
        return replace(self._link.link, metered=self._budget.metered)

    @property
    def metered(self) -> bool:
        """Whether only urgent streams are sent, as every byte costs. May be set at any time, from any thread."""
        return self._budget.metered

    @metered.setter
    def metered(self, metered: bool) -> None:
        self._budget.metered = metered
        self._wake.set()

    def stretched(self, interval: float) -> float:
        """*interval* of anything that is sent by itself, longer on a metered link."""
        return self._budget.stretched(interval)

    def start(self) -> None:
        self._buffer.on_commit(self._wake.set)
        self._thread.start()

    def close(self, timeout: float = 10.0) -> None:
        """End the thread; what was not acknowledged stays in the buffer. Idempotent."""
        self._stopping.set()
        self._wake.set()
        self._disconnect()  # first: a connect or a send that is waiting ends now
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._disconnect()

    def _run(self) -> None:
        reason = ""
        while not self._stopping.is_set():
            self._link.trying()
            try:
                self._connect()
                self._pump()
            except OutstationError as exc:
                reason = str(exc)
            except Exception as exc:
                # A fault in an adapter must not end the only sending thread.
                log.exception("the uplink's provider failed")
                reason = f"{type(exc).__name__}: {exc}"
            self._disconnect()
            if self._stopping.is_set():
                return
            wait = self._link.failed(reason, self._jitter())
            log.info("link is down (%s); next try in %.1f s", reason, wait)
            self._clock.wait(self._stopping, wait)

    def _disconnect(self) -> None:
        try:
            self._provider.uplink.disconnect()
        except Exception:
            log.exception("the uplink's provider failed to disconnect")

    def _connect(self) -> None:
        if self._window:
            self._flow.lost()
        self._window.clear()
        self._window.max_bytes = self._flow.window_bytes
        self._lanes.clear()
        self._ledgers_due = 0.0
        self._ledgers = ()
        self._provider.uplink.connect(self._word.begin(), self._settings.connect_timeout)
        self._life_at = self._clock.monotonic()
        self._awaited = None
        self._link.connected()
        log.info("link is up")

    def _pump(self) -> None:
        """Send and settle until the connection is lost (raises) or the station closes (returns)."""
        while not self._stopping.is_set():
            self._wake.clear()
            self._settle()
            pause = self._budget.wait()
            while not (self._stopping.is_set() or pause) and (chosen := self._next()) is not None:
                if not self._send(*chosen):
                    break  # no room in the transport; what is under way says whether the link lives
                self._settle()
                pause = self._budget.wait()
            self._check_overdue()
            self._send_ledgers()
            self._look_for_life()
            self._clock.wait(self._wake, min(pause or IDLE_INTERVAL, IDLE_INTERVAL))

    def _next(self) -> tuple[Lane, Piece] | None:
        """What to send now, or None: nothing is waiting, or the window is full."""
        if not self._window.has_room():
            return None
        ready = {stream.name: stream.settings.priority for stream in self._buffer.streams() if self._waits(stream)}
        while (name := self._turns.next((priority, name) for name, priority in ready.items())) is not None:
            lane = self._lanes[name]
            piece = self._head(lane)
            if piece is None:  # it only seemed so: its last records were let go, or its disk cannot be read
                del ready[name]
                continue
            if not self._window.has_room(piece.size_bytes):
                return None
            self._turns.served(name)
            return lane, piece
        return None

    def _waits(self, stream: Stream) -> bool:
        """Whether *stream* has something that may be sent now, as far as its counters tell."""
        if stream.name == DEAD_LETTER or not self._budget.admits(stream.settings.priority):
            return False
        lane = self._lanes.get(stream.name)
        if lane is None:
            limit = self._provider.limits.max_message_bytes
            lane = self._lanes[stream.name] = Lane(stream, self._flow, limit)
        return lane.waits and lane.retry_at <= self._clock.monotonic()

    def _head(self, lane: Lane) -> Piece | None:
        """The next piece of a stream; None when there is none, or none can be read."""
        try:
            return lane.head()
        except StorageError as exc:
            log.warning("stream %r is passed over for %g s: %s", lane.stream.name, UNREADABLE_INTERVAL, exc)
            lane.retry_at = self._clock.monotonic() + UNREADABLE_INTERVAL
            return None

    def _send(self, lane: Lane, piece: Piece) -> bool:
        """Hand *piece* over; False when the transport had no room for it in time, and it must be sent again."""
        message = lane.sent(piece)
        try:
            self._provider.uplink.send(message, self._settings.send_timeout)
        except DeadlineError:
            if not self._window:
                raise  # nothing is under way that could show a sign of life
            lane.put_back(piece)
            return False
        except RefusedError as exc:
            lane.under_way[message.last_sequence].refused = str(exc)
        self._budget.spend(piece.size_bytes)
        at = self._clock.monotonic()
        self._window.add(Sent(message.stream, message.last_sequence, piece.size_bytes, at, piece.end))
        return True

    def _concerns(self, word: Acknowledgement) -> bool:
        """Whether *word* is of what was sent. On the provider's thread."""
        lane = self._lanes.get(word.stream)
        # An older epoch is another life of this stream; beyond what was sent is word for somebody else.
        return lane is not None and lane.stream.epoch == word.epoch and word.through <= lane.sent_through

    def _settle(self) -> None:
        """Act on what the provider's threads left: move cursors, set refused records aside, see a lost link."""
        heard = self._word.take()
        if heard.from_far_end:
            self._life_at = self._clock.monotonic()
        for word in heard.refused:
            if (entry := self._lanes[word.stream].under_way.get(word.through)) is not None:
                entry.refused = word.refused
        for name, through in heard.acknowledged.items():
            self._link.acknowledged()
            self._advance(self._lanes[name], through)
        for (name, last), held_bytes in heard.held.items():
            self._hold(self._lanes[name], last, held_bytes)
        for word in heard.accepted:
            if (entry := self._lanes[word.stream].under_way.get(word.through)) is not None:
                entry.accepted += 1
        for lane in self._lanes.values():
            self._pass_decided(lane)
        if heard.lost is not None:
            raise heard.lost

    def _advance(self, lane: Lane, through: int) -> None:
        for last, entry in lane.under_way.items():
            if last <= through and entry.refused:
                self._set_aside(lane, entry)
        lane.stream.acknowledge(max(through, lane.stream.acknowledged))
        lane.forget(through)
        self._learn(self._window.acknowledge(lane.stream.name, through))

    def _hold(self, lane: Lane, last: int, held_bytes: int) -> None:
        """The far end holds a part of a record; that makes room in the window, and moves no cursor."""
        entry = lane.under_way.get(last)
        if entry is not None:
            entry.held_bytes = held_bytes
            self._learn(self._window.hold(lane.stream.name, last, held_bytes))

    def _learn(self, arrived: list[Sent]) -> None:
        if arrived:
            size_bytes = sum(sent.size_bytes for sent in arrived)
            self._flow.acknowledged(size_bytes, arrived[-1].at, self._clock.monotonic())
            self._window.max_bytes = self._flow.window_bytes

    def _pass_decided(self, lane: Lane) -> None:
        """Move on over what was refused, or is with the broker where its word is enough, in the order of sending."""
        by_broker = lane.stream.settings.acknowledged_by is AcknowledgedBy.BROKER
        through = 0
        for last, entry in lane.under_way.items():
            if not (entry.refused or (by_broker and entry.is_with_broker)):
                break
            through = last
        if through:
            self._link.acknowledged()
            self._advance(lane, through)

    def _set_aside(self, lane: Lane, entry: UnderWay) -> None:
        count = set_aside(self._buffer, entry.message, after=lane.stream.acknowledged, reason=entry.refused)
        log.warning("%d records of stream %r were refused and set aside: %s", count, lane.stream.name, entry.refused)

    def _check_overdue(self) -> None:
        """Take the link for lost when the oldest message has been the oldest for too long.

        What was sent before it may be slow and still move. Word on what was sent after it shows no more than that
        something arrives: a message that a broker lost, or a hub that is one of several, would be waited for for ever.
        """
        oldest, now = self._window.oldest(), self._clock.monotonic()
        if oldest is not self._awaited:
            self._awaited, self._awaited_since = oldest, now
        if oldest is None:
            return
        allowed = self._settings.acknowledge_timeout + oldest.size_bytes / SLOWEST_BYTES_PER_SECOND
        if now - self._awaited_since > allowed:
            raise DeadlineError(f"The far end acknowledged nothing for {allowed:.0f} s.")

    def _send_ledgers(self) -> None:
        now = self._clock.monotonic()
        if now < self._ledgers_due:
            return
        self._ledgers_due = now + self._budget.stretched(LEDGER_INTERVAL)
        reports = tuple(stream.report() for stream in self._buffer.streams())
        if reports == self._ledgers:
            return
        try:
            self._provider.uplink.send_ledgers(reports, self._settings.send_timeout)
            self._ledgers = reports
        except DeadlineError:
            if not self._window:
                raise
            # No room behind what is under way, and that says whether the link lives.

    def _look_for_life(self) -> None:
        """After a while without word from the far end, see whether a message still goes there and back."""
        now = self._clock.monotonic()
        if now - self._life_at > self._budget.stretched(self._settings.canary_interval):
            self._provider.uplink.probe(self._settings.send_timeout)
            self._life_at = self._clock.monotonic()

    def __repr__(self) -> str:
        link = self.link
        return f"<uplink {link.state.value}, {len(self._window)} messages under way>"
