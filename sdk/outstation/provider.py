"""What a platform must offer, as narrow Protocols. Adapters live in ``outstation.providers`` or in packages of others.

A capability that a platform has not is None; the station says so once and goes on without. Every call takes a
``timeout`` in seconds and raises errors of :mod:`outstation.errors` only. Callbacks come on the provider's own
threads: they must hand over and return at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from outstation.clock import Clock
from outstation.errors import UnknownProviderError
from outstation.types import Desired, Identity, Reported, StreamReport

ENTRY_POINT_GROUP = "outstation.providers"


@dataclass(frozen=True, slots=True)
class Limits:
    """What the platform can carry; the uplink re-slices and paces to fit. None = no limit."""

    max_message_bytes: int | None = None
    messages_per_second: float | None = None
    ordered: bool = True
    durable_on_accept: bool = False  # an accepted message is already safe at the far end


@dataclass(frozen=True, slots=True)
class Message:
    """One block on its way up. ``block`` is the encoded block of :mod:`outstation.wire.block`, never encrypted.

    Where the block is larger than a message may be, ``block`` is one part of it (:mod:`outstation.wire.parts`).

    ``after`` and ``settled`` let a far end behind a broker, which may lose or reorder, see a hole: ``after`` is the
    last sequence number that was sent before this message (whatever lies between was dropped, and the ledger says
    why), ``settled`` the one through which nothing needs to be sent again. None = the sender makes no claim.
    """

    stream: str
    epoch: int
    first_sequence: int
    last_sequence: int
    block: bytes
    priority: int = 5
    after: int | None = None
    settled: int = 0


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The far end holds every record of (stream, epoch) through sequence number ``through``, durably.

    ``refused`` is empty, or the reason why the message that ends at ``through`` will never be taken.
    ``held_bytes`` is 0, or says that nothing is acknowledged yet: the far end holds, in memory, that many bytes of the
    block that ends at ``through`` and comes in parts (:mod:`outstation.wire.parts`).
    """

    stream: str
    epoch: int
    through: int
    refused: str = ""
    held_bytes: int = 0


@dataclass(frozen=True, slots=True)
class UplinkListener:
    """Where an uplink reports. All are called on the provider's thread and only hand over.

    ``acknowledged`` may come late, twice, or for an older epoch; the caller sorts that out.
    ``lost`` says that the connection is gone and everything unacknowledged must be sent again.
    ``accepted`` is for platforms with a broker in between: it took the one message that ends at ``through``, whatever
    became of those before it, and says nothing of the far end.
    """

    acknowledged: Callable[[Acknowledgement], None]
    lost: Callable[[Exception], None]
    accepted: Callable[[Acknowledgement], None] = lambda _: None


class Uplink(Protocol):
    """The way up for blocks."""

    def connect(self, listener: UplinkListener, timeout: float) -> None:
        """Reach the far end, or raise LinkError. Idempotent when connected; may be called again after ``lost``."""
        ...

    def send(self, message: Message, timeout: float) -> None:
        """Hand one message to the far end; returns when the transport took it, which proves nothing.

        Delivery is proved by an :class:`Acknowledgement` on the listener. Raises LinkError; RefusedError for a
        message that can never pass.
        """
        ...

    def send_ledgers(self, reports: tuple[StreamReport, ...], timeout: float) -> None:
        """Tell the far end the account of each stream, so that it knows what is missing and why."""
        ...

    def probe(self, timeout: float) -> None:
        """Send something all the way and see it answered; raises LinkError when nothing comes back in time.

        Asked for when nothing else has shown for a while that the connection carries both ways: a broker may accept
        and lose, and a subscription may be gone while publishing still works.
        """
        ...

    def disconnect(self) -> None:
        """Drop the connection. Idempotent; never raises. From any thread: a connect or send that waits ends soon."""
        ...


class DesiredState(Protocol):
    """The operator's wish, and what the station answers."""

    def current(self, timeout: float) -> Desired:
        """The desired state now. LinkError when the far end cannot be asked."""
        ...

    def watch(self, callback: Callable[[Desired], None]) -> Callable[[], None]:
        """Call *callback* for each change, until the returned function is called. Survives lost connections."""
        ...

    def report(self, state: Reported, timeout: float) -> None:
        """Tell the far end how the station is. The last report wins."""
        ...


class ByteStream(Protocol):
    """Bytes that arrive in order."""

    def read(self, size: int) -> bytes:
        """Up to *size* bytes; b"" at the end. LinkError when the connection breaks."""
        ...


class Artifacts(Protocol):
    """Files at the far end: model repositories."""

    def open(self, uri: str, offset: int, timeout: float) -> AbstractContextManager[ByteStream]:
        """The bytes of *uri* from *offset* on. ModelNotFoundError if there is no such file."""
        ...


class Commands(Protocol):
    """Calls from the far end to the station."""

    def serve(self, name: str, handler: Callable[[bytes], bytes]) -> None: ...


class Secrets(Protocol):
    """Secrets kept by the platform."""

    def get(self, name: str, timeout: float) -> bytes: ...


class Lifecycle(Protocol):
    """What the platform wants to know of the process."""

    def running(self) -> None: ...

    def failed(self, reason: str) -> None: ...


@runtime_checkable
class Provider(Protocol):
    """One platform. Made by :func:`load_provider`; owns its connections; ``close`` ends them."""

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> Identity: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def uplink(self) -> Uplink: ...
    @property
    def desired(self) -> DesiredState | None: ...
    @property
    def commands(self) -> Commands | None: ...
    @property
    def artifacts(self) -> Artifacts | None: ...
    @property
    def secrets(self) -> Secrets | None: ...
    @property
    def lifecycle(self) -> Lifecycle | None: ...

    def close(self) -> None:
        """End every connection and thread of the provider. Idempotent."""
        ...


class ProviderFactory(Protocol):
    """What an entry point of the group ``outstation.providers`` names: usually the adapter's class.

    *options* is the settings table of that name (``[hub]`` for the provider ``hub``), not yet checked: the adapter
    decodes it with :func:`outstation.settings.decoded` into a typed object of its own. *state_dir* is a folder
    that belongs to the adapter alone.
    """

    def __call__(
        self, *, identity: Identity, options: Mapping[str, Any], state_dir: Path, clock: Clock
    ) -> Provider: ...


def provider_names() -> tuple[str, ...]:
    """The names that installed packages offer, sorted."""
    return tuple(sorted({point.name for point in _points()}))


def load_provider(name: str) -> ProviderFactory:
    """The factory that is registered as *name*; UnknownProviderError lists what there is instead."""
    for point in _points():
        if point.name == name:
            factory: ProviderFactory = point.load()
            return factory
    known = ", ".join(provider_names()) or "none"
    raise UnknownProviderError(
        f"No provider {name!r} is installed (installed: {known}).",
        hint="Set `provider` to one of those, or install the package that brings it.",
    )


def _points() -> Iterator[Any]:
    from importlib.metadata import entry_points  # noqa: PLC0415  25 ms, for the one call at a station's start

    yield from entry_points(group=ENTRY_POINT_GROUP)
