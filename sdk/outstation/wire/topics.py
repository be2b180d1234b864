"""What stations and hubs say to each other over MQTT: topics, user properties and small JSON documents.

docs/hub.md is the page for people. Readers ignore fields that they do not know; a topic, a name or a number that is
not what it must be is a WireError.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import msgspec

from outstation.errors import SettingsError, WireError
from outstation.provider import Message
from outstation.shapes import learn
from outstation.types import STATION_NAME, STREAM_NAME, Desired, Reported, StreamReport

T = TypeVar("T")
JSON = "application/json"
BLOCK = "application/vnd.outstation.block"
# Acknowledgements and presence are some 200 bytes; a reason may be longer. More is somebody else's message.
MAX_WORD_BYTES = 8 << 10
# A wish or a report of a thousand models is some 100 KB.
MAX_DOCUMENT_BYTES = 1 << 20
MAX_REASON = 500
# AWS IoT Core allows seven slashes in a topic; the longest of ours has five behind the prefix.
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+){0,2}")
_EPOCH = re.compile(r"[0-9a-f]{1,16}")
_NUMBER = re.compile(r"[0-9]{1,19}")
_LINK = re.compile(r"[0-9a-f]{0,32}")
_MAX_SEQUENCE = (1 << 63) - 1

Sequence = Annotated[int, msgspec.Meta(ge=0, le=_MAX_SEQUENCE)]


@dataclass(frozen=True, slots=True)
class Topics:
    """The topics of one installation: ``{prefix}/{station}/...``. A *station* of "+" makes a filter."""

    prefix: str = "outstation"

    def __post_init__(self) -> None:
        if not _PREFIX.fullmatch(self.prefix):
            raise SettingsError(
                f"{self.prefix!r} is no prefix of topics.", hint="Up to three levels of letters, digits and . _ -"
            )

    def up(self, station: str, stream: str) -> str:
        return f"{self.prefix}/{station}/up/{stream}"

    def of(self, station: str, kind: str) -> str:
        """One of ``ack``, ``desired``, ``reported``, ``ledgers``, ``presence``, ``canary``."""
        return f"{self.prefix}/{station}/{kind}"

    def command(self, station: str, name: str) -> str:
        return f"{self.prefix}/{station}/cmd/{name}"

    def replies(self, station: str) -> str:
        """What an answer's topic must begin with: nobody may make a station publish elsewhere."""
        return f"{self.prefix}/{station}/reply/"

    def kind(self, topic: str) -> str:
        """What stands after the station's name in *topic*; not checked in any other way."""
        return topic.removeprefix(f"{self.prefix}/").partition("/")[2].partition("/")[0]

    def parse(self, topic: str) -> tuple[str, str, str]:
        """(station, kind, the rest after the kind) of *topic*. WireError when it is none of ours."""
        head = f"{self.prefix}/"
        station, _, rest = topic.removeprefix(head).partition("/")
        kind, _, rest = rest.partition("/")
        if not topic.startswith(head) or STATION_NAME.fullmatch(station) is None:
            raise WireError(f"{topic[:200]!r} is no topic of a station.")
        return station, kind, rest


# -- messages up --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Envelope:
    """What a message says beside its payload, as MQTT user properties.

    ``link`` is a random name of the sender's connection. ``after`` and ``settled`` are those of
    :class:`outstation.provider.Message`.
    """

    epoch: int
    first: int
    last: int
    after: int | None = None
    settled: int = 0
    link: str = ""

    def properties(self) -> tuple[tuple[str, str], ...]:
        found = [("epoch", f"{self.epoch:016x}"), ("first", str(self.first)), ("last", str(self.last))]
        if self.after is not None:
            found += [("after", str(self.after)), ("settled", str(self.settled))]
        return (*found, ("link", self.link)) if self.link else tuple(found)

    @classmethod
    def read(cls, properties: Mapping[str, str]) -> Envelope:
        """WireError when a property is missing, or no number."""
        epoch, link = properties.get("epoch", ""), properties.get("link", "")
        if not _EPOCH.fullmatch(epoch) or not _LINK.fullmatch(link):
            raise WireError("A message names no epoch, or a link that is none.")
        first, last = _number(properties, "first"), _number(properties, "last")
        if not 0 < first <= last:
            raise WireError(f"A message from {first} to {last}.")
        after = _number(properties, "after") if "after" in properties else None
        settled = _number(properties, "settled") if "settled" in properties else 0
        if after is not None and after >= first:
            raise WireError(f"A message from {first} that follows {after}.")
        return cls(int(epoch, 16), first, last, after, settled, link)

    def message(self, stream: str, block: bytes) -> Message:
        if STREAM_NAME.fullmatch(stream) is None:
            raise WireError(f"{stream[:63]!r} is no name of a stream.")
        return Message(stream, self.epoch, self.first, self.last, block, after=self.after, settled=self.settled)


def _number(properties: Mapping[str, str], name: str) -> int:
    text = properties.get(name, "")
    if not _NUMBER.fullmatch(text) or int(text) > _MAX_SEQUENCE:
        raise WireError(f"A message whose {name} is {text[:30]!r}.")
    return int(text)


# -- documents ----------------------------------------------------------------------------------------------------


class Held(msgspec.Struct, frozen=True):
    """How many bytes the far end has in memory of the block that ends at ``last`` and comes in parts."""

    last: Sequence
    bytes: Sequence


class Word(msgspec.Struct, frozen=True, omit_defaults=True):
    """The far end's word on one stream, on the topic ``ack``.

    Everything through ``through`` is on the far end's disk; with ``refused``, the message that ends there will never
    be taken, and nothing is said of others; with ``missing``, something before a message of the link of that name
    has not come, and all that is not acknowledged must be sent again; ``held`` makes room for more parts.
    """

    stream: str
    epoch: str
    through: Sequence
    refused: str = ""
    missing: str = ""
    held: Held | None = None

    @property
    def epoch_number(self) -> int:
        return int(self.epoch, 16)


class Presence(msgspec.Struct, frozen=True, omit_defaults=True):
    """Whether a station is connected, on the retained topic ``presence``; the broker says when it is not (will)."""

    connected: bool
    software: str = ""


def read_word(data: bytes) -> Word:
    word = _decoded(data, Word, MAX_WORD_BYTES)
    if not _EPOCH.fullmatch(word.epoch) or STREAM_NAME.fullmatch(word.stream) is None:
        raise WireError("An acknowledgement of no stream, or no epoch.")
    return word


def read_presence(data: bytes) -> Presence:
    return _decoded(data, Presence, MAX_WORD_BYTES)


def read_desired(data: bytes) -> Desired:
    """The desired state in a retained message; an empty one means that there is none."""
    return _decoded(data, Desired, MAX_DOCUMENT_BYTES) if data else Desired()


def read_reported(data: bytes) -> Reported:
    return _decoded(data, Reported, MAX_DOCUMENT_BYTES)


def read_ledgers(data: bytes) -> tuple[StreamReport, ...]:
    return _decoded(data, tuple[StreamReport, ...], MAX_DOCUMENT_BYTES)


def document(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _decoded(data: bytes, shape: type[T], max_bytes: int) -> T:
    if len(data) > max_bytes:
        raise WireError(f"A document of {len(data)} bytes, where {max_bytes} are the most.")
    try:
        return msgspec.json.decode(data, type=shape)
    except (msgspec.ValidationError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise WireError(f"No document of the kind: {exc}") from exc


learn(Word, Presence, Desired, Reported, StreamReport)
