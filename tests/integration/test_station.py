"""A whole station in this process: outstation.open(), and what it says when something is wrong."""

from __future__ import annotations

import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import outstation
from model_parts import Desk
from outstation import settings
from outstation.clock import SystemClock
from outstation.errors import (
    BufferLockedError,
    InvalidInputError,
    ModelNotReadyError,
    SettingsError,
    UnknownProviderError,
)
from outstation.models.publish import init_repository
from outstation.models.trust import Trust
from outstation.station import StationParts
from outstation.types import LinkState
from outstation.wire import decode
from support import wait_until


def overrides(folder: Path, **tables: object) -> dict[str, object]:
    return {"station": {"name": "s", "data_dir": str(folder / "data")}, "buffer": {"group_interval": 0.01}, **tables}


def arrived(folder: Path, stream: str = "events") -> list[bytes]:
    """Payloads of every block file of *stream* below *folder*, in the order of the files' names."""
    payloads: list[bytes] = []
    for path in sorted(folder.rglob(f"{stream}/*.oblk")):
        payloads += [record.payload for record in decode(path.read_bytes())[1].records()]
    return payloads


def test_an_event_travels_from_the_application_to_the_cloud_folder(tmp_path: Path) -> None:
    cloud = tmp_path / "cloud"
    with outstation.open(overrides=overrides(tmp_path, options={"local": {"folder": str(cloud)}})) as station:
        for number in range(5):
            station.telemetry.event("reading", {"value": number})
        wait_until(lambda: len(arrived(cloud)) == 5)
        wait_until(lambda: all(s.ledger.pending == 0 for s in station.status().reported.streams))
        assert station.status().reported.link.state is LinkState.ONLINE
    assert arrived(cloud) == [b'{"value":%d}' % number for number in range(5)]


def test_the_link_that_came_is_told_of_in_the_stream_of_the_stations_own_health(tmp_path: Path) -> None:
    cloud = tmp_path / "cloud"
    with outstation.open(overrides=overrides(tmp_path, options={"local": {"folder": str(cloud)}})) as station:
        wait_until(lambda: len(arrived(cloud, "health")) == 1)
        assert station.buffer.stream("health").settings.priority == 1
    assert arrived(cloud, "health") == [b'{"state":"online","reason":""}']


def test_events_of_a_priority_have_a_stream_of_that_priority(tmp_path: Path) -> None:
    with outstation.open(overrides=overrides(tmp_path, uplink={"enabled": False})) as station:
        station.telemetry.event("fire", priority=0).wait(5.0)
        streams = {report.stream for report in station.status().reported.streams}
        assert "events.p0" in streams
        assert station.buffer.stream("events.p0").settings.priority == 0
        with pytest.raises(InvalidInputError, match="0 \\(first\\) to 9"):
            station.telemetry.event("fire", priority=10)


def test_a_body_that_is_no_json_is_refused_with_a_hint(tmp_path: Path) -> None:
    with outstation.open(overrides=overrides(tmp_path, uplink={"enabled": False})) as station:
        with pytest.raises(InvalidInputError, match="body of event 'x' is no JSON") as caught:
            station.telemetry.event("x", {"value": object()})
        assert "tolist" in caught.value.hint
        with pytest.raises(InvalidInputError, match="1 to 128 characters"):
            station.telemetry.event("", {})


def test_a_data_folder_that_another_process_holds_names_its_pid(tmp_path: Path) -> None:
    script = (
        "import outstation, sys\n"
        f"s = outstation.open(overrides={overrides(tmp_path, uplink={'enabled': False})!r})\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdin is not None
    try:
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(BufferLockedError, match=str(holder.pid)) as caught:
            outstation.open(overrides=overrides(tmp_path))
        assert caught.value.pid == holder.pid
        assert "outstation.connect()" in caught.value.hint
    finally:
        holder.communicate(timeout=10)


def test_a_folder_without_write_permission_is_a_clear_error(tmp_path: Path) -> None:
    # Root may write anywhere, so the station is opened as nobody.
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o755)
    script = (
        "import os, outstation; outstation.open  # loaded now: nobody may not read every folder of Python\n"
        f"if os.getuid() == 0: os.setuid({pwd.getpwnam('nobody').pw_uid})\n"
        f"else: os.chmod({str(closed)!r}, 0o500)\n"
        f"try: outstation.open(overrides={overrides(closed)!r})\n"
        "except outstation.OutstationError as exc: print(type(exc).__name__, exc, '|', exc.hint)\n"
    )
    for folder in (tmp_path, *tmp_path.parents):
        if folder.owner() == "root" and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.startswith("DiskError Could not make the data folder: no permission"), done.stderr
    assert "right to write" in done.stdout


def test_a_hub_that_nobody_answers_for_does_not_stop_the_station(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = overrides(
        tmp_path,
        provider="hub",
        options={"hub": {"address": address}},
        uplink={"backoff_ceiling": 0.1, "connect_timeout": 0.2},
    )
    with outstation.open(overrides=settings) as station:
        station.telemetry.event("reading", {"value": 1}).wait(5.0)
        wait_until(lambda: station.status().reported.link.reason not in ("", "not tried yet"))
        link = station.status().reported.link
        assert link.state is not LinkState.ONLINE
        assert address in link.reason


def test_a_station_without_a_repository_says_so(tmp_path: Path) -> None:
    with (
        outstation.open(overrides=overrides(tmp_path, uplink={"enabled": False})) as station,
        pytest.raises(ModelNotReadyError, match="no models"),
    ):
        station.models.get("meter-digits")


def test_an_unknown_provider_is_named_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownProviderError, match=r"No provider 'clowd' is installed \(installed: .*local"):
        outstation.open(overrides=overrides(tmp_path, provider="clowd"))
    # What was made before the error is closed again: the folder is free.
    outstation.open(overrides=overrides(tmp_path, uplink={"enabled": False})).close()


def test_a_wrong_key_of_a_provider_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="adress") as caught:
        outstation.open(overrides=overrides(tmp_path, provider="hub", options={"hub": {"adress": "x:1"}}))
    assert "address" in caught.value.hint


def test_records_that_were_not_sent_are_there_after_a_restart(tmp_path: Path) -> None:
    with outstation.open(overrides=overrides(tmp_path, uplink={"enabled": False})) as station:
        station.telemetry.event("reading", {"value": 1})
    cloud = tmp_path / "cloud"
    with outstation.open(overrides=overrides(tmp_path, options={"local": {"folder": str(cloud)}})):
        wait_until(lambda: arrived(cloud) == [b'{"value":1}'])


def test_importing_outstation_imports_none_of_the_heavy_packages() -> None:
    script = "import outstation, sys; outstation.open, outstation.connect; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"grpc", "google.protobuf", "numpy", "onnxruntime", "tuf", "boto3", "awscrt", "azure", "typer", "rich"}
    assert not set(done.stdout.split()) & heavy


def test_records_and_models_share_one_budget_of_the_link(tmp_path: Path) -> None:
    root = init_repository(tmp_path / "repository", tmp_path / "keys")
    tables = {
        "uplink": {"max_bits_per_second": 80_000},
        "models": {"repository": [str(tmp_path / "gone"), str(tmp_path / "repository")], "root": str(root)},
    }
    parts = StationParts(settings.load(environ={}, overrides=overrides(tmp_path, **tables)), SystemClock())
    try:
        assert parts.bandwidth.piece_bytes(1 << 20) < 10_000
        assert parts.uplink._budget._bandwidth is parts.reconciler._meter is parts.bandwidth
        wait_until(lambda: parts.reconciler.standing().trust is Trust.FRESH)
    finally:
        parts.close()


def test_a_new_version_answers_only_when_the_application_lets_it(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    tables = {
        "uplink": {"enabled": False},
        "models": {
            "repository": str(desk.repository),
            "root": str(desk.root),
            "names": ["pump"],
            "probation": 0.0,
            "poll_interval": 0.1,
            "retry_interval": 0.1,
        },
    }
    closing = {"2.0.0"}  # the press, while it is asked for these
    asked = []

    def gate(model: str, version: str) -> bool:
        asked.append((model, version))
        return version not in closing

    with outstation.open(overrides=overrides(tmp_path, **tables), gate=gate) as station:
        pump = station.models.get("pump", timeout=30.0)
        desk.publish("2.0.0")
        wait_until(lambda: ("pump", "2.0.0") in asked, 30.0)
        assert pump.version == "1.0.0"
        closing.clear()
        wait_until(lambda: pump.version == "2.0.0", 30.0)
