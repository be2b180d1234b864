"""The one sending thread: takes blocks from the buffer, hands them to the provider, moves cursors on acknowledgement.

A message's way, all of it in this file: ``_run`` connects and backs off; ``_pump`` fills the window, ``_next``
chooses the stream and the message, ``_send`` hands it over; the provider's thread calls ``_on_acknowledged`` or
``_on_lost``, which only leave word; ``_settle`` acts on it and moves the cursor.

Nothing is lost because the cursor moves only on the far end's word. Nothing arrives twice because each message names
(stream, epoch, first sequence number), and the far end drops what it has.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from outstation.buffer import Buffer, Stream
from outstation.clock import Clock
from outstation.errors import DeadlineError, OutstationError, RefusedError, StorageError
from outstation.provider import Acknowledgement, Message, Provider, UplinkListener
from outstation.settings import UplinkSettings
from outstation.sync.deadletter import DEAD_LETTER, set_aside
from outstation.sync.link import LinkMonitor
from outstation.sync.pacing import Backoff, Sent, Turns, Window
from outstation.sync.slicing import fitting
from outstation.types import Link

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


@dataclass(slots=True)
class _Lane:
    """One stream on its way up, for as long as one connection lives."""

    stream: Stream
    sent_through: int
    pending: Iterator[Message] | None = None
    head: Message | None = None
    retry_at: float = 0.0  # monotonic seconds; before then its disk is not asked again
    refused: dict[int, tuple[Message, str]] = field(default_factory=dict)  # by last sequence number, with the reason


class UplinkThread:
    """Sends what the buffer holds, for as long as it runs. Started and closed once each; read from any thread."""

    def __init__(
        self,
        buffer: Buffer,
        provider: Provider,
        settings: UplinkSettings,
        clock: Clock,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._buffer = buffer
        self._provider = provider
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._link = LinkMonitor(clock, Backoff(settings.backoff_first, settings.backoff_ceiling))
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._window = Window(settings.window_messages, settings.window_bytes)
        self._turns = Turns()
        self._lanes: dict[str, _Lane] = {}
        self._under_way: dict[tuple[str, int], Message] = {}  # by (stream, last sequence number)
        self._word = threading.Lock()  # guards the three below, written by the provider's threads
        self._acknowledged: dict[str, int] = {}  # by stream; cumulative, so one entry is enough
        self._refused: list[Acknowledgement] = []
        self._lost: Exception | None = None
        self._connection = 0  # which connection a listener belongs to; late word from an older one is ignored
        self._ledgers_due = 0.0
        self._word_at = 0.0  # monotonic seconds; when the far end last said anything of a message
        self._thread = threading.Thread(target=self._run, name="outstation-uplink", daemon=True)

    @property
    def link(self) -> Link:
        return self._link.link

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
            else:
                reason = "closed"
            self._disconnect()
            wait = self._link.failed(reason, self._jitter())
            if not self._stopping.is_set():
                log.info("link is down (%s); next try in %.1f s", reason, wait)
                self._clock.wait(self._stopping, wait)

    def _disconnect(self) -> None:
        try:
            self._provider.uplink.disconnect()
        except Exception:
            log.exception("the uplink's provider failed to disconnect")

    def _connect(self) -> None:
        self._connection += 1
        mine = self._connection
        with self._word:
            self._acknowledged.clear()
            self._refused.clear()
            self._lost = None
        self._window.clear()
        self._lanes.clear()
        self._under_way.clear()
        self._ledgers_due = 0.0

        def acknowledged(acknowledgement: Acknowledgement) -> None:
            self._on_acknowledged(mine, acknowledgement)

        def lost(exc: Exception) -> None:
            self._on_lost(mine, exc)

        self._provider.uplink.connect(UplinkListener(acknowledged, lost), self._settings.connect_timeout)
        self._link.connected()
        log.info("link is up")

    def _pump(self) -> None:
        """Send and settle until the connection is lost (raises) or the station closes (returns)."""
        while not self._stopping.is_set():
            self._wake.clear()
            self._settle()
            while not self._stopping.is_set() and (message := self._next()) is not None:
                if not self._send(message):
                    break  # no room in the transport; what is under way says whether the link lives
                self._settle()
            self._check_overdue()
            self._send_ledgers()
            self._clock.wait(self._wake, IDLE_INTERVAL)

    def _next(self) -> Message | None:
        """The message to send now, or None: nothing is waiting, or the window is full."""
        if not self._window.has_room():
            return None
        ready = {stream.name: stream.settings.priority for stream in self._buffer.streams() if self._waits(stream)}
        while (name := self._turns.next((priority, name) for name, priority in ready.items())) is not None:
            lane = self._lanes[name]
            message = self._head(lane)
            if message is None:  # it only seemed so: its last records were let go, or its disk cannot be read
                del ready[name]
                continue
            if not self._window.has_room(len(message.block)):
                return None
            self._turns.served(name)
            lane.head = None
            return message
        return None

    def _waits(self, stream: Stream) -> bool:
        """Whether *stream* has something to send, as far as its counters tell."""
        if stream.name == DEAD_LETTER:
            return False
        lane = self._lanes.get(stream.name)
        if lane is None:
            lane = self._lanes[stream.name] = _Lane(stream, stream.acknowledged)
        if lane.retry_at > self._clock.monotonic():
            return False
        return lane.head is not None or lane.pending is not None or stream.last_sequence > lane.sent_through

    def _head(self, lane: _Lane) -> Message | None:
        """The next message of a stream, kept until it is sent; None when there is none, or none can be read."""
        if lane.head is None:
            if lane.pending is None:
                lane.pending = self._messages(lane)
            try:
                lane.head = next(lane.pending, None)
            except StorageError as exc:
                log.warning("stream %r is passed over for %g s: %s", lane.stream.name, UNREADABLE_INTERVAL, exc)
                lane.retry_at = self._clock.monotonic() + UNREADABLE_INTERVAL
            if lane.head is None:
                lane.pending = None
        return lane.head

    def _messages(self, lane: _Lane) -> Iterator[Message]:
        stream = lane.stream
        limit = self._provider.limits.max_message_bytes
        for block in stream.blocks(lane.sent_through):
            header = block.header
            whole = Message(
                stream.name,
                header.epoch,
                header.first_sequence,
                header.last_sequence,
                block.data,
                stream.settings.priority,
            )
            yield from fitting(whole, after=lane.sent_through, max_bytes=limit)

    def _send(self, message: Message) -> bool:
        """Hand *message* over; False when the transport had no room for it in time, and it must be sent again."""
        lane = self._lanes[message.stream]
        before, lane.sent_through = lane.sent_through, message.last_sequence
        limit = self._provider.limits.max_message_bytes
        try:
            if limit is not None and len(message.block) > limit:
                raise RefusedError(f"One record needs {len(message.block)} bytes; this provider carries {limit}.")
            # Noted first: the acknowledgement may come before send returns.
            self._under_way[message.stream, message.last_sequence] = message
            told = replace(message, after=before, settled=lane.stream.acknowledged)
            self._provider.uplink.send(told, self._settings.send_timeout)
        except DeadlineError:
            if not self._window:
                raise  # nothing is under way that could show a sign of life
            del self._under_way[message.stream, message.last_sequence]
            lane.sent_through, lane.head = before, message
            return False
        except RefusedError as exc:
            self._under_way[message.stream, message.last_sequence] = message
            refusal = Acknowledgement(message.stream, message.epoch, message.last_sequence, refused=str(exc))
            with self._word:
                self._refused.append(refusal)
        self._window.add(Sent(message.stream, message.last_sequence, len(message.block), self._clock.monotonic()))
        return True

    def _on_acknowledged(self, connection: int, acknowledgement: Acknowledgement) -> None:
        # On the provider's thread: leave word and return. One entry a stream, and no more refusals than messages
        # under way, bound what can wait here.
        lane = self._lanes.get(acknowledgement.stream)
        # An older epoch is another life of this stream; beyond what was sent is word for somebody else.
        if lane is None or lane.stream.epoch != acknowledgement.epoch or acknowledgement.through > lane.sent_through:
            return
        with self._word:
            if connection != self._connection:
                return
            if acknowledgement.refused:
                self._refused.append(acknowledgement)
                del self._refused[: -self._settings.window_messages]
            else:
                through = self._acknowledged.get(acknowledgement.stream, 0)
                self._acknowledged[acknowledgement.stream] = max(through, acknowledgement.through)
        self._wake.set()

    def _on_lost(self, connection: int, exc: Exception) -> None:
        with self._word:
            if connection == self._connection:
                self._lost = exc
        self._wake.set()

    def _settle(self) -> None:
        """Act on what the provider's threads left: move cursors, set refused records aside, see a lost link."""
        with self._word:
            acknowledged, self._acknowledged = self._acknowledged, {}
            refused, self._refused = self._refused, []
            lost = self._lost
        for refusal in refused:
            self._note_refusal(refusal)
        if acknowledged or refused:
            self._word_at = self._clock.monotonic()
        for name, through in acknowledged.items():
            self._link.acknowledged()
            self._advance(self._lanes[name], through)
        for lane in self._lanes.values():
            self._pass_refused(lane)
        if lost is not None:
            raise lost

    def _advance(self, lane: _Lane, through: int) -> None:
        for last in sorted(last for last in lane.refused if last <= through):
            self._set_aside(lane, last)
        lane.stream.acknowledge(max(through, lane.stream.acknowledged))
        self._window.acknowledge(lane.stream.name, through)
        for key in [key for key in self._under_way if key[0] == lane.stream.name and key[1] <= through]:
            del self._under_way[key]

    def _note_refusal(self, refusal: Acknowledgement) -> None:
        lane = self._lanes.get(refusal.stream)
        message = self._under_way.get((refusal.stream, refusal.through))
        if lane is not None and message is not None:
            lane.refused[refusal.through] = (message, refusal.refused)

    def _pass_refused(self, lane: _Lane) -> None:
        """Move on over refused messages that nothing unacknowledged stands before."""
        for last in sorted(lane.refused):
            first = lane.refused[last][0].first_sequence
            if any(name == lane.stream.name and end < first for name, end in self._under_way):
                return
            self._advance(lane, last)

    def _set_aside(self, lane: _Lane, last: int) -> None:
        message, reason = lane.refused.pop(last)
        count = set_aside(self._buffer, message, after=lane.stream.acknowledged, reason=reason)
        log.warning("%d records of stream %r were refused and set aside: %s", count, lane.stream.name, reason)

    def _check_overdue(self) -> None:
        """Take the link for lost when the oldest message is overdue: since it was sent, and since any word came."""
        oldest = self._window.oldest()
        if oldest is None:
            return
        allowed = self._settings.acknowledge_timeout + oldest.size_bytes / SLOWEST_BYTES_PER_SECOND
        if self._clock.monotonic() - max(oldest.at, self._word_at) > allowed:
            raise DeadlineError(f"The far end acknowledged nothing for {allowed:.0f} s.")

    def _send_ledgers(self) -> None:
        now = self._clock.monotonic()
        if now >= self._ledgers_due:
            self._ledgers_due = now + LEDGER_INTERVAL
            reports = tuple(stream.report() for stream in self._buffer.streams())
            try:
                self._provider.uplink.send_ledgers(reports, self._settings.send_timeout)
            except DeadlineError:
                if not self._window:
                    raise
                # No room behind what is under way, and that says whether the link lives.

    def __repr__(self) -> str:
        link = self.link
        return f"<uplink {link.state.value}, {len(self._window)} messages under way>"
