"""``outstation hub`` and ``outstation fleet`` as an operator types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hub_parts import HubProcess, hub_provider, rows, run
from outstation.cli.main import app
from outstation.testing.contract import Ear, message
from outstation.types import DropReason, Ledger, ModelPhase, ModelReport, ModelVersionReport, Reported, StreamReport
from support import wait_until


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with HubProcess(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture(scope="module")
def station(hub, tmp_path_factory):
    """A station that has sent three records and told how it is."""
    provider, ear = hub_provider(hub.address, tmp_path_factory.mktemp("station")), Ear()
    provider.uplink.connect(ear.listener, 5)
    provider.uplink.send(message(1, 3), 5)
    ear.wait(lambda ear: ear.through("events") == 3, 5)
    versions = (
        ModelVersionReport("2.0.0", ModelPhase.ACTIVE),
        ModelVersionReport("3.0.0", ModelPhase.REFUSED, 0, "sha256 differs"),
    )
    ledger = Ledger(10, 5, 2, {DropReason.EVICTED: 3})
    models = (ModelReport("digits", "2.0.0", versions),)
    provider.desired.report(Reported(models=models, streams=(StreamReport("events", 7, ledger),), software="o 1"), 5)
    yield provider
    provider.close()


def test_what_arrived_lies_in_parquet(hub, station):
    wait_until(lambda: len(rows(hub.parquet)) == 3)


def test_ls_lists_the_stations(hub, station):
    done = run("fleet", "ls", "--hub", hub.address)
    assert done.returncode == 0
    name, seen, waiting, models, software = done.stdout.rstrip("\n").split("\t")
    assert (name, waiting, models, software) == ("press-7", "2", "digits 2.0.0", "o 1")
    assert seen.endswith("s ago")
    (entry,) = json.loads(run("fleet", "ls", "--hub", hub.address, "--json").stdout)
    assert entry["station"] == "press-7"
    assert entry["reported"]["streams"][0]["ledger"]["dropped"] == {"evicted": 3}


def test_show_gives_each_version_with_its_reason_and_each_account(hub, station):
    done = run("fleet", "show", "press-7", "--hub", hub.address)
    assert "digits\t3.0.0\trefused\tsha256 differs" in done.stdout
    assert "events\t10\t5\t2\tevicted 3" in done.stdout
    assert json.loads(run("fleet", "show", "press-7", "--hub", hub.address, "--json").stdout)["station"] == "press-7"
    done = run("fleet", "show", "press-9", "--hub", hub.address)
    assert done.returncode == 2
    assert "never seen" in done.stderr


def test_set_model_changes_one_model_and_leaves_the_others(hub, station):
    assert (
        run("fleet", "set-model", "digits", "--hub", hub.address).stdout
        == "every station: digits latest (revision 1)\n"
    )
    run("fleet", "set-model", "faces", "1.0.0", "--hub", hub.address)
    done = run("fleet", "set-model", "digits", "2.0.0", "--station", "press-7", "--hub", hub.address, "--json")
    assert json.loads(done.stdout) == {
        "models": [{"name": "faces", "version": "1.0.0"}, {"name": "digits", "version": "2.0.0"}],
        "revision": 3,
    }
    assert station.desired.current(5).revision == 3


def test_an_address_that_nobody_answers_for_is_one_sentence_and_a_hint():
    done = run("fleet", "ls", "--hub", "127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: 127.0.0.1:1 does not answer")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        "hub",
        "hub init",
        "hub enroll",
        "hub operator",
        "hub revoke",
        "enroll",
        "fleet ls",
        "fleet show",
        "fleet set-model",
    ],
)
def test_help_ends_with_an_example(command):
    done = CliRunner().invoke(app, [*command.split(), "--help"])
    assert done.exit_code == 0
    assert "Example: outstation " + command in done.stdout


def test_sigterm_ends_a_hub_in_order_and_its_folder_may_be_used_again(tmp_path):
    hub = HubProcess(tmp_path).start()
    assert hub.stop() == 0
    assert hub.start().stop() == 0


def test_plain_text_to_other_machines_is_asked_wrongly(tmp_path):
    done = run("hub", "--listen", "0.0.0.0:0", "--data", str(tmp_path))
    assert done.returncode == 2
    assert "--insecure" in done.stderr


def test_a_folder_of_another_hub_is_refused_by_name(tmp_path):
    with HubProcess(tmp_path) as hub:
        done = run("hub", "--listen", "127.0.0.1:0", "--data", str(Path(hub.folder) / "hub"))
    assert done.returncode == 1
    assert str(hub.process.pid) in done.stderr


def test_a_relay_takes_no_sinks(tmp_path):
    done = run("hub", "--relay", "nats://127.0.0.1:1", "--parquet", str(tmp_path), "--data", str(tmp_path / "hub"))
    assert done.returncode != 0
    assert "keeps nothing to feed parquet with" in done.stderr


def test_options_of_kafka_are_read_from_a_file_and_their_values_are_not_shown(tmp_path):
    options = tmp_path / "kafka.toml"
    options.write_text('sasl.pasword = "hunter2"\n"enable.ssl.certificate.verification" = true\n')
    arguments = ("--kafka", "127.0.0.1:1", "--kafka-options", str(options), "--data", str(tmp_path / "hub"))
    done = run("hub", "--listen", "127.0.0.1:0", *arguments)
    assert done.returncode != 0
    assert "sasl.pasword" in done.stderr
    assert "enable.ssl.certificate.verification" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout


def test_sinks_shows_what_waits_for_each(hub, station):
    wait_until(lambda: run("fleet", "sinks", "--hub", hub.address).stdout.split("\t")[:2] == ["parquet", "0"])
    status = json.loads(run("fleet", "sinks", "--hub", hub.address, "--json").stdout)
    assert status["software"].startswith("outstation-hub ")
    assert (status["connected"], status["records"], status["refused"]) == (1, 3, 0)
