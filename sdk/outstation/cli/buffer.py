"""``outstation buffer``: look into the store-and-forward buffer of a station, running or not."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from outstation.cli.process import DataDir, SettingsPath, load_settings
from outstation.cli.tables import draw
from outstation.types import DropReason, Record

if TYPE_CHECKING:
    from outstation.buffer.view import StreamView

POLL_INTERVAL = 0.5  # seconds between two looks of `tail -f` at another process's files

app = typer.Typer(
    help="Look into the buffer, running or not, without disturbing it.\n\nExample: outstation buffer ls",
    no_args_is_help=True,
)

Name = Annotated[str, typer.Argument(metavar="STREAM", help="The stream's name, as `ls` shows it.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object a line.")]
Since = Annotated[str | None, typer.Option("--since", help="From this time on: 2026-11-22T10:00:00+00:00.")]
Until = Annotated[str | None, typer.Option("--until", help="Up to this time.")]


@app.command("ls")
def list_streams(settings: SettingsPath = None, data: DataDir = None, as_json: AsJson = False) -> None:
    """List the streams: records pending, bytes on the disk, last number.

    Example: outstation buffer ls --data /var/lib/outstation
    """
    rows = [
        {
            "stream": view.name,
            "pending": view.found.balance.accounted_pending,
            "stored_bytes": view.stored_bytes,
            "last_sequence": view.found.balance.last_sequence,
            "epoch": f"{view.found.epoch:016x}",
        }
        for view in _views(settings, data)
    ]
    _show(rows, as_json, title="streams")


@app.command("cat")
def cat(  # noqa: PLR0917  typer calls it by name
    stream: Name,
    after: Annotated[int, typer.Option("--after", min=0, help="Begin after this sequence number.")] = 0,
    since: Since = None,
    until: Until = None,
    as_json: AsJson = False,
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Write the records of a stream to stdout: the payloads, each with a newline, or JSON.

    Example: outstation buffer cat events --after 1000 --json
    """
    (view,) = _views(settings, data, stream)
    for record in view.read(after, since_unix_nano=_nano(since), until_unix_nano=_nano(until)):
        _write(record, as_json)
    sys.stdout.flush()


@app.command("tail")
def tail(  # noqa: PLR0917  typer calls it by name
    stream: Name,
    count: Annotated[int, typer.Option("-n", "--lines", min=0, help="How many of the newest to begin with.")] = 10,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    as_json: AsJson = False,
    settings: SettingsPath = None,
    data: DataDir = None,
) -> None:
    """Write the newest records of a stream, and with -f those that come.

    Example: outstation buffer tail -f events
    """
    position: int | None = None
    while True:
        (view,) = _views(settings, data, stream)
        position = max(0, view.found.balance.last_sequence - count) if position is None else position
        for record in view.read(position):
            _write(record, as_json)
            position = record.sequence
        sys.stdout.flush()
        if not follow:
            return
        time.sleep(POLL_INTERVAL)


@app.command("verify")
def verify(settings: SettingsPath = None, data: DataDir = None, as_json: AsJson = False) -> None:
    """Read every byte and check every checksum. Exit code 1 when there is damage.

    Example: outstation buffer verify && echo sound
    """
    rows = []
    count = 0
    for view in _views(settings, data):
        rows += [
            {
                "stream": view.name,
                "file": fault.path.name,
                "offset": fault.offset,
                "bytes": fault.size,
                "what": fault.what,
            }
            for fault in view.faults()
        ]
        count += 1
    if rows:
        _show(rows, as_json, title="damage")
        raise typer.Exit(1)
    if not as_json:
        print(f"{count} streams, no damage.")


@app.command("repair")
def repair(settings: SettingsPath = None, data: DataDir = None) -> None:
    """Take what is damaged out of the way: its bytes go to quarantine, its records are counted as corrupt.

    So does what the disk cannot read now, without the minute of new tries that a running station gives it. Nothing else
    is touched. The station must not run. Example: outstation buffer repair
    """
    from outstation.buffer import Buffer  # noqa: PLC0415  a quick --help

    known = load_settings(settings, data)
    serials = {view.name: {fault.serial for fault in view.faults()} for view in _views(settings, data)}
    with Buffer.open(known.data_dir / "buffer", known.buffer) as buffer:
        for stream in buffer.streams():
            stream.suspect(serials.get(stream.name, set()), hopeless=True)
        buffer.flush()
        for stream in buffer.streams():
            ledger = stream.ledger()
            print(f"{stream.name}: {ledger.pending} pending, {ledger.dropped[DropReason.CORRUPT]} corrupt in all.")


@app.command("stat")
def stat(
    interval: Annotated[float, typer.Option("--interval", min=0.0, help="Seconds to watch the growth for.")] = 1.0,
    settings: SettingsPath = None,
    data: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """The account of every stream, its bytes, its oldest record, and when it will be full at the present rate.

    Example: outstation buffer stat --interval 10
    """
    before = {view.name: view.stored_bytes for view in _views(settings, data)}
    begin = time.monotonic()
    time.sleep(interval)
    views = _views(settings, data)
    passed = max(time.monotonic() - begin, 1e-9)
    known = load_settings(settings, data)
    _show(
        [_account(view, known.stream(view.name).max_bytes, before, passed) for view in views], as_json, title="account"
    )


def _account(view: StreamView, max_bytes: int, before: dict[str, int], passed: float) -> dict[str, object]:
    ledger = view.ledger()
    stored = view.stored_bytes
    rate = (stored - before.get(view.name, 0)) / passed
    oldest = view.oldest_unix_nano
    return {
        "stream": view.name,
        "appended": ledger.appended,
        "acknowledged": ledger.acknowledged,
        "pending": ledger.pending,
        **{reason.value: ledger.dropped[reason] for reason in DropReason},
        "stored_bytes": stored,
        "max_bytes": max_bytes,
        "oldest_seconds": round((time.time_ns() - oldest) / 1e9, 1) if oldest else None,
        "full_in_seconds": round((max_bytes - stored) / rate, 1) if rate > 0 else None,
    }


def _views(settings: Path | None, data: Path | None, only: str | None = None) -> list[StreamView]:
    from outstation.buffer.encryption import Keys  # noqa: PLC0415  a quick --help
    from outstation.buffer.view import look  # noqa: PLC0415

    known = load_settings(settings, data)
    return look(known.data_dir / "buffer", Keys.of(known.buffer), only)


def _show(rows: list[dict[str, object]], as_json: bool, *, title: str) -> None:
    if as_json:
        for row in rows:
            print(msgspec.json.encode(row).decode())
    elif not sys.stdout.isatty():
        for row in rows:
            print("\t".join(f"{key}={value}" for key, value in row.items()))
    else:
        columns = [key.replace("_", " ") for key in (rows[0] if rows else ("stream",))]
        draw(columns, [list(row.values()) for row in rows], title=title)


def _write(record: Record, as_json: bool) -> None:
    if not as_json:
        sys.stdout.buffer.write(record.payload + b"\n")
        return
    try:
        payload: dict[str, object] = {"payload": record.payload.decode()}
    except UnicodeDecodeError:
        payload = {"payload_base64": base64.b64encode(record.payload).decode()}
    line = {
        "sequence": record.sequence,
        "time_unix_nano": record.time_unix_nano,
        "content_type": record.content_type,
        "attributes": dict(record.attributes),
        **payload,
    }
    sys.stdout.buffer.write(msgspec.json.encode(line) + b"\n")


def _nano(text: str | None) -> int | None:
    """The instant that ISO 8601 *text* names."""
    import datetime  # noqa: PLC0415

    from outstation.errors import InvalidInputError  # noqa: PLC0415

    if text is None:
        return None
    try:
        moment = datetime.datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidInputError(f"{text!r} is no time.", hint="Write it as 2026-11-22T10:00:00+00:00.") from exc
    return round(moment.timestamp() * 1e9)
