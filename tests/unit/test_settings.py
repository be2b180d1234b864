"""Settings come from file, environment and arguments, and say clearly what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest

from outstation import settings
from outstation.errors import InvalidNameError, SettingsError
from outstation.settings import Settings
from outstation.types import Durability, WhenFull


def load(tmp_path: Path, text: str, environ: dict[str, str] | None = None, **overrides: object) -> Settings:
    path = tmp_path / "outstation.toml"
    path.write_text(text)
    return settings.load(path, environ=environ or {}, overrides=overrides)


def test_without_file_or_environment_everything_has_a_default() -> None:
    assert settings.load(environ={}) == Settings()


def test_arguments_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    text = "[buffer]\nmax_bytes = 1\nsegment_bytes = 1\nblock_bytes = 1\n"
    environ = {"OUTSTATION_BUFFER__MAX_BYTES": "2", "OUTSTATION_BUFFER__SEGMENT_BYTES": "2"}
    got = load(tmp_path, text, environ, buffer={"max_bytes": 3}).buffer
    assert (got.max_bytes, got.segment_bytes, got.block_bytes) == (3, 2, 1)


def test_a_wrong_key_is_an_error_that_names_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"Unknown key 'buffer\.max_byte'") as caught:
        load(tmp_path, "[buffer]\nmax_byte = 1\n")
    assert caught.value.hint == "Did you mean 'max_bytes'?"


def test_a_wrong_key_of_a_stream_is_found_too(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"'buffer\.streams\.events\.prioritty'"):
        load(tmp_path, "[buffer.streams.events]\nprioritty = 1\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[buffer]\nmax_bytes = 'x'\n", r"buffer\.max_bytes: expected `int`"),
        ("[buffer.streams.a]\npriority = 10\n", r"priority: expected `int` <= 9"),
        ("[uplink]\nsend_timeout = 0\n", r"send_timeout: expected `float` > 0"),
        ("buffer = 3\n", "buffer"),
        ("[station\n", "not valid TOML"),
    ],
)
def test_a_wrong_value_is_named_with_its_path(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        load(tmp_path, text)


def test_a_missing_file_that_was_asked_for_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Could not read the settings file"):
        settings.load(tmp_path / "absent.toml", environ={})


def test_a_huge_file_is_no_settings_file(tmp_path: Path) -> None:
    path = tmp_path / "outstation.toml"
    path.write_bytes(b"#" * (settings.MAX_FILE_BYTES + 1))
    with pytest.raises(SettingsError, match="no settings file"):
        settings.load(path, environ={})


def test_the_environment_gives_lists_with_commas() -> None:
    got = settings.load(environ={"OUTSTATION_MODELS__NAMES": "a,b", "OUTSTATION_PROVIDER": "hub"})
    assert got.models.names == ("a", "b")
    assert got.provider == "hub"


def test_models_come_from_one_source_or_several_in_order(tmp_path: Path) -> None:
    assert load(tmp_path, "[models]\nrepository = 'a,b'\n").models.repositories == ("a,b",)
    assert load(tmp_path, "[models]\nrepository = ['hub:', 'b']\n").models.repositories == ("hub:", "b")
    assert load(tmp_path, "").models.repositories == ()
    environ = {"OUTSTATION_MODELS__REPOSITORY": "hub:,https://a/b"}
    assert settings.load(environ=environ).models.repositories == ("hub:", "https://a/b")
    with pytest.raises(SettingsError, match=r"models\.repository"):
        load(tmp_path, "[models]\nrepository = 5\n")


def test_a_stream_takes_its_own_policy_or_the_defaults(tmp_path: Path) -> None:
    text = "[buffer.defaults]\nwhen_full = 'reject'\n[buffer.streams.alarms]\npriority = 0\ndurability = 'record'\n"
    got = load(tmp_path, text)
    assert got.stream("alarms").durability is Durability.RECORD
    assert got.stream("alarms").priority == 0
    assert got.stream("other").when_full is WhenFull.REJECT


def test_a_station_name_outside_its_alphabet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidNameError, match="no name of a station"):
        _ = load(tmp_path, "[station]\nname = 'a/b'\n").identity


def test_the_tables_of_providers_stay_as_they_came(tmp_path: Path) -> None:
    got = load(tmp_path, "provider = 'hub'\n[options.hub]\naddress = 'x:1'\n[options.mqtt]\nhost = 'y'\n")
    assert got.provider_options == {"address": "x:1"}


def test_a_data_folder_too_deep_for_a_socket_names_the_key_to_set(tmp_path: Path) -> None:
    got = load(tmp_path, f"[station]\ndata_dir = '/{'d' * 100}'\n")
    with pytest.raises(SettingsError, match="at most 107 bytes") as caught:
        _ = got.agent_socket
    assert "station.socket" in caught.value.hint
