"""``outstation hub`` and ``outstation fleet`` as an operator types them."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hub_parts import HubProcess, hub_provider, rows, run
from outstation.cli.main import app
from outstation.testing.contract import Ear, message
from outstation.types import (
    Desired,
    DesiredModel,
    DropReason,
    Ledger,
    ModelPhase,
    ModelReport,
    ModelVersionReport,
    Placement,
    Reported,
    StreamReport,
)
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
    models = (ModelReport("digits", "2.0.0", versions, Placement("cpu", ("cuda: gone",))),)
    streams = (StreamReport("events", 7, ledger, 4096),)
    labels = {"line": "3", "site": "x"}
    provider.desired.report(Reported(models, streams, None, 0, time.time_ns(), "o 1", labels), 5)
    yield provider
    provider.close()


def test_what_arrived_lies_in_parquet(hub, station):
    wait_until(lambda: len(rows(hub.parquet)) == 3)


def test_ls_lists_the_stations(hub, station):
    done = run("fleet", "ls", "--hub", hub.address)
    assert done.returncode == 0
    name, seen, *rest = done.stdout.rstrip("\n").split("\t")
    assert name == "press-7"
    assert seen.endswith("s ago")
    assert rest == ["connected", "2", "4.1 kB", "evicted 3", "digits 2.0.0", "line=3, site=x", "o 1"]
    (entry,) = json.loads(run("fleet", "ls", "--hub", hub.address, "--json").stdout)
    assert entry["station"] == "press-7"
    assert entry["reported"]["streams"][0]["ledger"]["dropped"] == {"evicted": 3}


def test_show_gives_each_version_with_its_reason_and_each_account(hub, station):
    done = run("fleet", "show", "press-7", "--hub", hub.address)
    assert "digits\t2.0.0\tactive\tonnx on cpu (cuda: gone)\t-" in done.stdout
    assert "digits\t3.0.0\trefused\t-\tsha256 differs" in done.stdout
    assert "events\t10\t5\t2\tevicted 3\t3\t0\t-" in done.stdout
    assert "labels line=3, site=x" in done.stdout
    assert json.loads(run("fleet", "show", "press-7", "--hub", hub.address, "--json").stdout)["station"] == "press-7"
    done = run("fleet", "show", "press-9", "--hub", hub.address)
    assert done.returncode == 2
    assert "never seen" in done.stderr


def test_set_model_changes_one_model_and_leaves_the_others(hub, station):
    said = run("fleet", "set-model", "digits", "--hub", hub.address).stdout
    assert said == "every station: digits latest (revision 1); it decides for 1 of 1 stations known\n"
    run("fleet", "set-model", "faces", "1.0.0", "--hub", hub.address)
    done = run("fleet", "set-model", "digits", "2.0.0", "--station", "press-7", "--hub", hub.address, "--json")
    assert json.loads(done.stdout)["wish"]["name"] == {"model": "digits", "target": {"station": "press-7", "where": {}}}
    wanted = station.desired.current(5)
    assert wanted == Desired((DesiredModel("digits", "2.0.0"), DesiredModel("faces", "1.0.0")), 3)
    shown = run("fleet", "show", "press-7", "--hub", hub.address).stdout
    assert "digits\t2.0.0\t2.0.0\tstation press-7\t3" in shown
    assert "faces\t-\t1.0.0\tevery station\t2" in shown
    run("fleet", "unset-model", "digits", "--station", "press-7", "--hub", hub.address)
    assert station.desired.current(5).models[0] == DesiredModel("digits", "latest")
    run("fleet", "unset-model", "digits", "--hub", hub.address)
    run("fleet", "unset-model", "faces", "--hub", hub.address)


def test_ls_filters_by_label_by_what_is_behind_and_by_silence(hub, station):
    def listed(*arguments):
        return run("fleet", "ls", "--hub", hub.address, *arguments).stdout.count("\n")

    assert listed("--where", "line=3", "--where", "site=x") == 1
    assert listed("--where", "line=4") == 0
    assert listed("--behind") == 0
    run("fleet", "set-model", "digits", "2.1.0", "--where", "line=3", "--hub", hub.address)
    done = run("fleet", "ls", "--behind", "--hub", hub.address)
    assert "digits 2.0.0 -> 2.1.0" in done.stdout
    run("fleet", "unset-model", "digits", "--where", "line=3", "--hub", hub.address)
    assert listed("--stale", "3600") == 0
    assert listed("--stale", "0") == 1
    assert "None of 1 stations" in run("fleet", "ls", "--where", "line=4", "--hub", hub.address).stderr


def test_a_rollout_is_shown_stopped_resumed_and_ended(hub, station):
    def fleet(*arguments):
        return run("fleet", *arguments, "--hub", hub.address)

    made = fleet("set-model", "digits", "3.0.0", "--where", "line=3", "--percent", "100", "--stop-after", "1")
    assert "line=3: digits 3.0.0 to 100 %" in made.stdout  # which press-7 has refused already
    shown = fleet("show-rollout", "digits").stdout
    assert "stopped: 1 of 1 stations turned it down (press-7)" in shown
    assert "press-7\trefused\tsha256 differs" in shown
    assert fleet("set-model", "digits", "3.0.0", "--where", "line=3", "--percent", "50").returncode == 2
    assert "digits\t3.0.0\tline=3\t100 %, stopped\t0 of 1\t0\t1" in fleet("wishes").stdout
    assert fleet("resume-rollout", "digits", "--where", "line=3").returncode == 0
    assert "running" in fleet("show-rollout", "digits").stdout
    assert fleet("end-rollout", "digits", "--where", "line=3").stdout.startswith("ended: line=3: digits 3.0.0")
    done = fleet("show-rollout", "digits")
    assert (done.returncode, "no rollout" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--where", "line"], "no condition"),
        (["--where", "line=3", "--where", "line=4"], "two values"),
        (["--where", "line=3", "--station", "press-7"], "one station or for labels"),
        (["--percent", "10"], "names its version"),
        (["1.0.0", "--percent", "0"], "no percentage"),
        (["1.0.0", "--percent", "10", "--station", "press-7"], "in stages"),
        (["1.0.0", "--percent", "10", "--stop-after", "few"], "no number of stations"),
        (["one"], "no version"),
        (["--where", "LINE=3"], "no name of a label"),
    ],
)
def test_a_wish_that_makes_no_sense_is_one_sentence(hub, arguments, sentence):
    done = run("fleet", "set-model", "digits", *arguments, "--hub", hub.address)
    assert done.returncode == 2
    assert sentence in done.stderr


def test_a_hub_that_nobody_has_connected_to_says_so(tmp_path):
    with HubProcess(tmp_path) as empty:
        done = run("fleet", "ls", "--hub", empty.address)
        assert (done.returncode, done.stdout) == (0, "")
        assert "No station has connected" in done.stderr
        assert json.loads(run("fleet", "ls", "--json", "--hub", empty.address).stdout) == []
        assert "Nothing is wanted" in run("fleet", "wishes", "--hub", empty.address).stderr


def test_the_hub_tells_what_it_has_taken_and_refused(hub, station):
    status = json.loads(run("fleet", "hub", "--json", "--hub", hub.address).stdout)
    assert status["counts"]["records"] == 3
    assert status["connected"] == status["stations"] == 1
    assert "records\t3" in run("fleet", "hub", "--hub", hub.address).stdout


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
        "fleet unset-model",
        "fleet wishes",
        "fleet show-rollout",
        "fleet resume-rollout",
        "fleet end-rollout",
        "fleet hub",
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
    (sink,) = json.loads(run("fleet", "sinks", "--hub", hub.address, "--json").stdout)
    assert (sink["name"], sink["waiting_blocks"], sink["failure"]) == ("parquet", 0, "")
