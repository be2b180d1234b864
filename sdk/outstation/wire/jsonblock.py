"""A block as a JSON document, for consumers that read nothing else, and back without losing a byte.

::

    {"outstation": 1, "station": "press-7", "stream": "events", "epoch": "00000000000000ff", "first": 1, "last": 2,
     "records": [{"sequence": 1, "time_unix_nano": 1700000000000000000, "content_type": "application/json",
                  "attributes": {"line": "3"}, "payload": {"value": 4}},
                 {"sequence": 2, "time_unix_nano": 1700000000000000001, "payload_base64": "AAEC"}]}

``first`` to ``last`` may reach past the records, where some were dropped. A payload stands as JSON when its content
type says so and it is JSON; its bytes are kept as they were. No content type means application/octet-stream.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated

import msgspec

from outstation.errors import WireError
from outstation.provider import Message
from outstation.shapes import learn
from outstation.types import OCTETS, Record
from outstation.wire.block import MAX_RECORDS, decode, encode
from outstation.wire.columns import Columns, Meta

VERSION = 1
# What a document costs beside its records: names, numbers, the longest stream and station.
_FRAME_BYTES = 512
_Sequence = Annotated[int, msgspec.Meta(ge=1, le=(1 << 63) - 1)]
_Time = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]


class _Row(msgspec.Struct, frozen=True, omit_defaults=True):
    sequence: _Sequence
    time_unix_nano: _Time
    content_type: str = OCTETS
    attributes: dict[str, str] = {}
    payload: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    payload_base64: str = ""


class _Document(msgspec.Struct, frozen=True):
    outstation: int
    station: str
    stream: str
    epoch: str
    first: _Sequence
    last: _Sequence
    records: list[msgspec.Raw]


def documents(message: Message, station: str, max_bytes: int) -> Iterator[tuple[int, int, bytes | None]]:
    """*message* as documents of at most *max_bytes*: (first, last, document), in order and without a gap.

    None instead of a document: that record alone is over *max_bytes* as JSON, and must go as a block.
    CorruptBlockError when the message holds no readable block.
    """
    _, columns = decode(message.block)
    rows = [(record.sequence, _row(record)) for record in columns.records()]
    room = max_bytes - _FRAME_BYTES
    first, at = message.first_sequence, 0
    while at < len(rows):
        end, size = at, 0
        while end < len(rows) and size + len(rows[end][1]) + 1 <= room:
            size += len(rows[end][1]) + 1
            end += 1
        alone = end == at
        end = max(end, at + 1)
        # Each piece reaches to where the next begins, so that the far end sees one unbroken run of numbers.
        last = message.last_sequence if end == len(rows) else rows[end][0] - 1
        yield first, last, None if alone else _framed(message, station, first, last, [row for _, row in rows[at:end]])
        first, at = last + 1, end


def block_of(message: Message, first: int, last: int) -> bytes:
    """The block of the records from *first* to *last* of *message* alone."""
    _, columns = decode(message.block)
    rest = columns.after(first - 1)
    keep = [n for n, sequence in enumerate(rest.sequences) if sequence <= last]
    part = Columns(
        [rest.sequences[n] for n in keep],
        [rest.times[n] for n in keep],
        [rest.payloads[n] for n in keep],
        None if rest.meta_index is None else [rest.meta_index[n] for n in keep],
        rest.metas,
    )
    return encode(part, epoch=message.epoch, first_sequence=first, span=last - first + 1)


def read_document(data: bytes, *, station: str, message: Message) -> bytes:
    """The block that the document *data* stands for; *message* and *station* say what it must be of. WireError."""
    try:
        found = msgspec.json.decode(data, type=_Document)
        if len(found.records) > MAX_RECORDS:
            raise WireError(f"A document of {len(found.records)} records.")
        rows = [msgspec.json.decode(row, type=_Row) for row in found.records]
        payloads = [_payload(row) for row in rows]
        epoch = int(found.epoch, 16)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError, RecursionError) as exc:
        raise WireError(f"The message is no document of records: {exc}") from exc
    if found.outstation != VERSION:
        raise WireError(f"A document of records of version {found.outstation}.")
    told = (station, message.stream, message.epoch, message.first_sequence, message.last_sequence)
    if (found.station, found.stream, epoch, found.first, found.last) != told:
        raise WireError("The document is not the one that its message names.")
    numbers = [row.sequence for row in rows]
    if not numbers or not found.first <= numbers[0] <= numbers[-1] <= found.last or sorted(set(numbers)) != numbers:
        raise WireError("The records of a document do not ascend within its bounds.")
    metas: dict[Meta, int] = {}
    index = [metas.setdefault((row.content_type, tuple(sorted(row.attributes.items()))), len(metas)) for row in rows]
    columns = Columns(numbers, [row.time_unix_nano for row in rows], payloads, index, tuple(metas))
    try:
        return encode(columns, epoch=epoch, first_sequence=found.first, span=found.last - found.first + 1)
    except (OverflowError, UnicodeEncodeError, WireError) as exc:
        raise WireError(f"The records of a document do not fit a block: {exc}") from exc


def _row(record: Record) -> bytes:
    raw = _as_json(record)
    return msgspec.json.encode(
        _Row(
            record.sequence,
            record.time_unix_nano,
            record.content_type,
            dict(record.attributes),
            msgspec.UNSET if raw is None else raw,
            base64.b64encode(record.payload).decode() if raw is None else "",
        )
    )


def _as_json(record: Record) -> msgspec.Raw | None:
    """The payload as it stands, if it is JSON by name and by nature."""
    kind = record.content_type.partition(";")[0].strip().lower()
    if kind != "application/json" and not kind.endswith("+json"):
        return None
    try:
        record.payload.decode()
        raw = msgspec.json.decode(record.payload, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return raw if bytes(raw) == record.payload else None  # space around it would be lost


def _payload(row: _Row) -> bytes:
    raw = b"" if isinstance(row.payload, msgspec.UnsetType) else bytes(row.payload)
    if raw and row.payload_base64:
        raise WireError("A record with two payloads.")
    try:
        return raw or base64.b64decode(row.payload_base64, validate=True)
    except binascii.Error as exc:
        raise WireError(f"A record's payload is no base64: {exc}") from exc


def _framed(message: Message, station: str, first: int, last: int, rows: list[bytes]) -> bytes:
    return msgspec.json.encode(
        _Document(
            VERSION, station, message.stream, f"{message.epoch:016x}", first, last, [msgspec.Raw(row) for row in rows]
        )
    )


learn(_Document, _Row)
