"""What "works" means for a provider: a pytest class that every adapter passes, ours and those of others.

::

    from outstation.testing.contract import ProviderContract

    class TestMyProvider(ProviderContract):
        @pytest.fixture
        def far_end(self): ...          # a FarEnd: the other side, as a test sees it

        @pytest.fixture
        def provider(self, far_end): ...   # the adapter, with the identity ProviderContract.identity

A capability that is None is not tested. Nothing here sleeps for luck; ``patience`` bounds every wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from outstation.errors import (
    ClosedError,
    InvalidInputError,
    LinkError,
    ModelNotFoundError,
    OutstationError,
)
from outstation.provider import Acknowledgement, Message, Provider, UplinkListener
from outstation.types import (
    Desired,
    DesiredModel,
    DropReason,
    Identity,
    Ledger,
    Link,
    LinkState,
    ModelPhase,
    ModelReport,
    ModelVersionReport,
    Reported,
    StreamReport,
)
from outstation.wire.block import encode
from outstation.wire.columns import Columns

Arrived = tuple[str, int, int, bytes]  # stream, epoch, sequence, payload


class FarEnd(Protocol):
    """The other side, as a test sees it. Methods may block while the far end settles."""

    def arrived(self, station: str) -> list[Arrived]:
        """Every record that is durably there, as often as it is there."""
        ...

    def wish(self, models: tuple[DesiredModel, ...]) -> None:
        """Let the operator want *models* of every station."""
        ...

    def reported(self, station: str) -> Reported | None:
        """The last report of *station*."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Put a file into the repository, with "/" between the parts of *path*."""
        ...


def message(first: int, count: int, *, stream: str = "events", epoch: int = 7, note: str = "") -> Message:
    """A block of *count* records from sequence number *first* on, as a message."""
    numbers = range(first, first + count)
    payloads = [f"{stream}-{epoch}-{number}{note}".encode() for number in numbers]
    block = encode(Columns(numbers, [1_700_000_000_000_000_000 + n for n in numbers], payloads), epoch=epoch)
    return Message(stream, epoch, first, first + count - 1, block)


class Ear:
    """Remembers what a listener is told."""

    def __init__(self) -> None:
        self.acknowledgements: list[Acknowledgement] = []
        self.losses: list[Exception] = []
        self._heard = threading.Condition()

    @property
    def listener(self) -> UplinkListener:
        return UplinkListener(self._acknowledged, self._lost)

    def wait(self, condition: Callable[[Ear], bool], timeout: float) -> None:
        """Until *condition* of this ear holds; AssertionError after *timeout* seconds."""
        with self._heard:
            if not self._heard.wait_for(lambda: condition(self), timeout):
                raise AssertionError(f"Heard after {timeout} s: {self.acknowledgements}, lost: {self.losses}")

    def through(self, stream: str, epoch: int = 7) -> int:
        """The highest sequence number that the far end has confirmed."""
        mine = [a for a in self.acknowledgements if (a.stream, a.epoch) == (stream, epoch) and not a.refused]
        return max((a.through for a in mine), default=0)

    def _acknowledged(self, acknowledgement: Acknowledgement) -> None:
        with self._heard:
            self.acknowledgements.append(acknowledgement)
            self._heard.notify_all()

    def _lost(self, exc: Exception) -> None:
        with self._heard:
            self.losses.append(exc)
            self._heard.notify_all()


class ProviderContract:
    """Derive, give the two fixtures, and pass."""

    identity = Identity("contract-station", {"site": "test"})
    patience = 10.0  # seconds that anything may take

    @pytest.fixture
    def far_end(self) -> Any:
        """The other side: a :class:`FarEnd`, empty."""
        raise NotImplementedError("Give the fixture `far_end`.")

    @pytest.fixture
    def provider(self, far_end: FarEnd) -> Any:
        """The adapter under test, freshly made; the fixture closes it."""
        raise NotImplementedError("Give the fixture `provider`.")

    @pytest.fixture
    def ear(self) -> Ear:
        return Ear()

    @pytest.fixture
    def connected(self, provider: Provider, ear: Ear) -> Iterator[Provider]:
        """The provider with its uplink connected to *ear*."""
        provider.uplink.connect(ear.listener, self.patience)
        yield provider
        provider.uplink.disconnect()

    # -- what it says of itself ----------------------------------------------------------------------------------

    def test_it_is_a_provider_of_that_identity(self, provider: Provider) -> None:
        assert isinstance(provider, Provider)
        assert provider.name
        assert provider.identity == self.identity

    def test_its_limits_make_sense(self, provider: Provider) -> None:
        limits = provider.limits
        assert limits.max_message_bytes is None or limits.max_message_bytes > 0
        assert limits.messages_per_second is None or limits.messages_per_second > 0

    # -- uplink --------------------------------------------------------------------------------------------------

    def test_what_is_acknowledged_has_arrived_once(self, connected: Provider, far_end: FarEnd, ear: Ear) -> None:
        for sent in (message(1, 3), message(4, 2)):
            connected.uplink.send(sent, self.patience)
        ear.wait(lambda ear: ear.through("events") == 5, self.patience)
        expected = [("events", 7, n, f"events-7-{n}".encode()) for n in range(1, 6)]
        assert sorted(far_end.arrived(self.identity.station)) == expected

    def test_a_message_sent_again_is_acknowledged_and_not_doubled(
        self, connected: Provider, far_end: FarEnd, ear: Ear
    ) -> None:
        connected.uplink.send(message(1, 3), self.patience)
        ear.wait(lambda ear: ear.through("events") == 3, self.patience)
        before = len(ear.acknowledgements)
        connected.uplink.send(message(1, 3), self.patience)
        ear.wait(lambda ear: len(ear.acknowledgements) > before, self.patience)
        assert ear.acknowledgements[-1].through == 3
        assert len(far_end.arrived(self.identity.station)) == 3

    def test_streams_and_epochs_are_kept_apart(self, connected: Provider, far_end: FarEnd, ear: Ear) -> None:
        connected.uplink.send(message(1, 2), self.patience)
        connected.uplink.send(message(1, 2, stream="readings"), self.patience)
        connected.uplink.send(message(1, 1, epoch=8), self.patience)
        ear.wait(lambda ear: ear.through("events") == ear.through("readings") == 2, self.patience)
        ear.wait(lambda ear: ear.through("events", 8) == 1, self.patience)
        arrived = far_end.arrived(self.identity.station)
        assert sorted({(stream, epoch) for stream, epoch, _, _ in arrived}) == [
            ("events", 7),
            ("events", 8),
            ("readings", 7),
        ]
        assert len(arrived) == 5

    def test_gaps_in_the_sequence_are_taken(self, connected: Provider, far_end: FarEnd, ear: Ear) -> None:
        connected.uplink.send(message(1, 2), self.patience)
        connected.uplink.send(message(100, 2), self.patience)
        ear.wait(lambda ear: ear.through("events") == 101, self.patience)
        assert [n for _, _, n, _ in sorted(far_end.arrived(self.identity.station))] == [1, 2, 100, 101]

    def test_a_block_that_is_none_is_refused_with_a_reason_and_the_rest_moves_on(
        self, connected: Provider, far_end: FarEnd, ear: Ear
    ) -> None:
        connected.uplink.send(Message("events", 7, 1, 3, b"this is no block"), self.patience)
        ear.wait(lambda ear: any(a.refused and a.through == 3 for a in ear.acknowledgements), self.patience)
        connected.uplink.send(message(4, 1), self.patience)
        ear.wait(lambda ear: ear.through("events") == 4, self.patience)
        assert [n for _, _, n, _ in far_end.arrived(self.identity.station)] == [4]

    def test_the_account_of_the_streams_goes_up(self, connected: Provider) -> None:
        ledger = Ledger(10, 5, 2, {DropReason.EVICTED: 3})
        connected.uplink.send_ledgers((StreamReport("events", 7, ledger, 100, 1),), self.patience)

    def test_a_probe_comes_back_while_connected_and_not_after(self, connected: Provider) -> None:
        connected.uplink.probe(self.patience)
        connected.uplink.disconnect()
        with pytest.raises((LinkError, ClosedError)):
            connected.uplink.probe(self.patience)

    def test_connecting_twice_changes_nothing(self, connected: Provider, ear: Ear) -> None:
        connected.uplink.connect(ear.listener, self.patience)
        connected.uplink.send(message(1, 1), self.patience)
        ear.wait(lambda ear: ear.through("events") == 1, self.patience)
        assert ear.losses == []

    def test_without_a_connection_nothing_is_sent(self, provider: Provider, ear: Ear) -> None:
        with pytest.raises(LinkError):
            provider.uplink.send(message(1, 1), self.patience)
        provider.uplink.connect(ear.listener, self.patience)
        provider.uplink.disconnect()
        provider.uplink.disconnect()
        with pytest.raises(LinkError):
            provider.uplink.send(message(1, 1), self.patience)
        with pytest.raises(LinkError):
            provider.uplink.send_ledgers((), self.patience)
        assert ear.losses == []

    def test_after_a_disconnect_it_connects_again(self, provider: Provider, far_end: FarEnd, ear: Ear) -> None:
        for first in (1, 2):
            provider.uplink.connect(ear.listener, self.patience)
            provider.uplink.send(message(first, 1), self.patience)
            ear.wait(lambda ear, first=first: ear.through("events") == first, self.patience)  # type: ignore[misc]
            provider.uplink.disconnect()
        assert len(far_end.arrived(self.identity.station)) == 2

    # -- desired and reported ------------------------------------------------------------------------------------

    def test_without_a_wish_the_desired_state_is_empty(self, provider: Provider) -> None:
        desired = self._desired(provider)
        assert desired.current(self.patience) == Desired()

    def test_a_wish_is_seen_and_its_revision_grows(self, provider: Provider, far_end: FarEnd) -> None:
        desired = self._desired(provider)
        revisions = []
        for version in ("1.0.0", "2.0.0"):
            far_end.wish((DesiredModel("digits", version),))
            current = desired.current(self.patience)
            assert current.models == (DesiredModel("digits", version),)
            revisions.append(current.revision)
        assert 0 < revisions[0] < revisions[1]

    def test_a_watcher_hears_each_change_until_it_stops(self, provider: Provider, far_end: FarEnd) -> None:
        desired = self._desired(provider)
        heard: list[Desired] = []
        news = threading.Condition()

        def hear(state: Desired) -> None:
            with news:
                heard.append(state)
                news.notify_all()

        stop = desired.watch(hear)
        for version in ("1.0.0", "2.0.0"):
            wanted = (DesiredModel("digits", version),)
            far_end.wish(wanted)
            with news:
                assert news.wait_for(lambda: bool(heard) and heard[-1].models == wanted, self.patience)  # noqa: B023
        stop()
        stop()

    def test_a_report_arrives_and_the_last_one_wins(self, provider: Provider, far_end: FarEnd) -> None:
        desired = self._desired(provider)
        versions = (
            ModelVersionReport("2.0.0", ModelPhase.ACTIVE, 5, saved_bytes=7),
            ModelVersionReport("3.0.0", ModelPhase.REFUSED, 6, "sha256 differs"),
        )
        ledger = Ledger(10, 5, 2, {DropReason.EVICTED: 3})
        state = Reported(
            models=(ModelReport("digits", "2.0.0", versions),),
            streams=(StreamReport("events", 2**64 - 1, ledger, 4096, 17),),
            link=Link(LinkState.ONLINE, 3, "häß"),
            revision=7,
            time_unix_nano=8,
            software="outstation test",
        )
        for report in (Reported(revision=1), state):
            desired.report(report, self.patience)
            self._until(lambda report=report: far_end.reported(self.identity.station) == report)  # type: ignore[misc]

    # -- artifacts -----------------------------------------------------------------------------------------------

    def test_a_file_of_the_repository_is_read_from_any_offset(self, provider: Provider, far_end: FarEnd) -> None:
        artifacts = self._artifacts(provider)
        data = bytes(range(256)) * 4000
        far_end.put("targets/digits/1.0.0/model.onnx", data)
        far_end.put("empty", b"")
        for offset in (0, 1, 300_000, len(data)):
            assert self._read(artifacts, "targets/digits/1.0.0/model.onnx", offset) == data[offset:]
        assert self._read(artifacts, "empty", 0) == b""

    def test_a_file_that_is_not_there_is_said_to_be_missing(self, provider: Provider, far_end: FarEnd) -> None:
        artifacts = self._artifacts(provider)
        far_end.put("metadata/root.json", b"{}")
        for path in ("metadata/1.root.json", "metadata", "nowhere/at/all"):
            with pytest.raises(ModelNotFoundError):
                self._read(artifacts, path, 0)

    def test_nothing_outside_the_repository_is_given_away(self, provider: Provider, far_end: FarEnd) -> None:
        artifacts = self._artifacts(provider)
        far_end.put("metadata/root.json", b"{}")
        for path in ("../desired.json", "metadata/../../desired.json", "//etc/passwd", "/etc/passwd"):
            with pytest.raises(OutstationError):
                self._read(artifacts, path, 0)

    def test_an_offset_beyond_the_end_is_an_error(self, provider: Provider, far_end: FarEnd) -> None:
        artifacts = self._artifacts(provider)
        far_end.put("short", b"abc")
        with pytest.raises(InvalidInputError):
            self._read(artifacts, "short", 4)

    # -- the end -------------------------------------------------------------------------------------------------

    def test_closing_is_final_idempotent_and_leaves_no_thread(self, provider: Provider, ear: Ear) -> None:
        provider.uplink.connect(ear.listener, self.patience)
        if provider.desired is not None:
            provider.desired.watch(lambda _: None)
        provider.close()
        provider.close()
        with pytest.raises((ClosedError, LinkError)):
            provider.uplink.connect(ear.listener, 1.0)
        with pytest.raises((ClosedError, LinkError)):
            provider.uplink.send(message(1, 1), 1.0)
        mine = f"outstation-{provider.name}-"
        self._until(lambda: not any(t.name.startswith(mine) and t.is_alive() for t in threading.enumerate()))

    # -- helpers -------------------------------------------------------------------------------------------------

    def _desired(self, provider: Provider) -> Any:
        return provider.desired or pytest.skip(f"{provider.name} has no desired state")

    def _artifacts(self, provider: Provider) -> Any:
        return provider.artifacts or pytest.skip(f"{provider.name} has no artifacts")

    def _read(self, artifacts: Any, path: str, offset: int) -> bytes:
        pieces = []
        with artifacts.open(path, offset, self.patience) as stream:
            while piece := stream.read(100_000):
                assert len(piece) <= 100_000
                pieces.append(piece)
        return b"".join(pieces)

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self.patience
        while not condition():
            assert time.monotonic() < deadline, f"not so within {self.patience} s"
            time.sleep(0.01)
