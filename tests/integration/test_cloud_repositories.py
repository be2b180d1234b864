"""Repositories in S3 and in Azure Blob Storage, against real servers on loopback: the desk, the devices, the links."""

from __future__ import annotations

import datetime
import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import tiny_models

if not os.environ.get("CI"):
    for module in ("boto3", "moto", "azure.storage.blob", "flask_cors"):
        pytest.importorskip(module)

from azure.storage.blob import ContainerSasPermissions, generate_container_sas

from cloud_parts import ACCOUNT, ACCOUNT_KEY, S3, Azurite, connection, free_port, lacks
from cutting_link import CuttingLink
from model_parts import UTC, Desk, Device, run
from outstation.errors import (
    AccessDeniedError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    RepositoryError,
    SettingsError,
    UntrustedError,
)
from outstation.models import azure_place, s3_place
from outstation.models import publish as publishing
from outstation.models.bundle import Draft, describe_file
from outstation.models.fetch import Download, Expected, FolderSource
from outstation.models.place import open_place
from outstation.models.repository import Repository
from outstation.models.rotation import rotate_key
from outstation.models.sources import open_source
from outstation.models.trust import TrustedRepository
from outstation.testing import FakeClock
from support import wait_until

MB = 1_000_000
ROOT = Path(__file__).parents[2]


def running(kind, folder):
    if lacks(kind) and not os.environ.get("CI"):
        pytest.skip(lacks(kind))
    server = kind(folder)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    yield from running(S3, tmp_path_factory.mktemp("s3"))


@pytest.fixture(scope="module")
def az(tmp_path_factory):
    yield from running(Azurite, tmp_path_factory.mktemp("azurite"))


@pytest.fixture(params=["s3", "az"])
def server(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def link(server):
    link = CuttingLink(server.port)
    yield link
    link.close()


@pytest.fixture
def bucket(server, link, monkeypatch):
    """An empty bucket or container; the environment leads to it over *link*."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in server.environ(link.port).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return server.bucket()


class CloudDesk(Desk):
    """A desk whose repository is not on its disk."""

    def __init__(self, folder, uri):
        self.folder, self.repository, self.keys = folder, open_place(uri), folder / "keys"
        self.root = publishing.init_repository(self.repository, self.keys)


@pytest.fixture
def desk(bucket, tmp_path):
    return CloudDesk(tmp_path, bucket.uri)


def problems(uri):
    return list(Repository(uri).problems(datetime.datetime.now(UTC)))


def reader(desk, folder):
    """A device that looks at the repository now."""
    clock = FakeClock(time_unix_nano=int(datetime.datetime.now(UTC).timestamp()) * 10**9)
    trusted = TrustedRepository(folder, desk.root.read_bytes(), clock)
    assert trusted.refresh(desk.repository, 10.0).trust.value == "fresh"
    return trusted


def put(desk, version, step):
    """Publish a model that hardly differs from the one of another *step*."""
    moved = np.random.default_rng(step).standard_normal((64, 96)) * 1e-3 * step
    weights = np.random.default_rng(0).standard_normal((64, 96)) + moved
    source = desk.folder / "source.onnx"
    source.write_bytes(tiny_models.linear(weights, np.zeros(96)))
    draft = Draft(name="pump", version=version)
    return publishing.publish(source, repository=desk.repository, keys=desk.keys, draft=draft)


# -- the desk ------------------------------------------------------------------------------------------------------


def test_a_device_follows_keys_that_are_rotated_in_a_bucket(desk, tmp_path):
    put(desk, "1.0.0", 0)
    device = reader(desk, tmp_path / "trust")
    for name in ("targets", "root1", "snapshot", "timestamp"):
        rotate_key(name, desk.repository, keys=desk.keys)
    put(desk, "1.1.0", 1)
    assert device.refresh(desk.repository, 10.0).trust.value == "fresh"
    assert set(device.versions("pump")) == {"1.0.0", "1.1.0"}
    assert problems(desk.repository) == []


def test_every_command_of_the_desk_works(bucket, tmp_path):
    uri, keys = bucket.uri, str(tmp_path / "keys")
    where = ("--repository", uri, "--keys", keys)
    assert f"{tmp_path}/keys/1.root.json" in run("init", uri, "--keys", keys).stdout
    for step, version in enumerate(("1.0.0", "1.1.0")):
        weights = np.random.default_rng(0).standard_normal((64, 96)) + step * 1e-4
        (tmp_path / "m.onnx").write_bytes(tiny_models.linear(weights, np.zeros(96)))
        said = run("publish", str(tmp_path / "m.onnx"), *where, "--name", "pump", "--version", version).stdout
    assert "delta of model.onnx from 1.0.0" in said
    assert run("list", uri).stdout.splitlines()[0].startswith("pump 1.1.0")
    assert f"{uri}: 5 files of 2 versions are what was signed" in run("verify", uri).stdout
    assert "tensors are the same" in run("diff", "1.0.0", "1.1.0", "--repository", uri, "--name", "pump").stdout
    assert "fresh for 90 days" in run("refresh", uri, "--keys", keys).stdout
    run("yank", "pump", "1.1.0", *where, "--reason", "wrong scaler")
    assert "wrong scaler" in run("list", uri).stdout
    run("export", "pump", "1.1.0", "--repository", uri, "--to", str(tmp_path / "stick"))
    clock = FakeClock(time_unix_nano=int(datetime.datetime.now(UTC).timestamp()) * 10**9)
    trusted = TrustedRepository(tmp_path / "trust", (tmp_path / "keys/1.root.json").read_bytes(), clock)
    assert trusted.refresh(FolderSource(tmp_path / "stick"), 5.0).trust.value == "fresh"
    with pytest.raises(RepositoryError, match="holds a repository already"):
        run("init", uri, "--keys", str(tmp_path / "others"))


def test_a_wrong_file_is_named_and_not_exported(desk, bucket, tmp_path):
    desk.publish("1.0.0")
    (path,) = [path for path in bucket.paths() if path.endswith("model.onnx")]
    bucket.put(path, bucket.get(path)[:-1] + b"!")
    (problem,) = problems(desk.repository)
    assert problem.startswith("pump/1.0.0/model.onnx has sha256")
    with pytest.raises(UntrustedError, match=r"pump/1\.0\.0/model\.onnx"):
        run("export", "pump", "1.0.0", "--repository", bucket.uri, "--to", str(tmp_path / "stick"))
    assert list((tmp_path / "stick").iterdir()) == []


class InterruptError(Exception):
    pass


STEPS = 6  # three files, targets, snapshot, timestamp


@pytest.mark.parametrize("step", [3, 5, STEPS])  # the steps that only a cloud takes; all of them: test_publish.py
def test_an_interrupted_publish_leaves_the_old_state_or_the_new_one(desk, tmp_path, monkeypatch, step):
    desk.publish("1.0.0")
    left = [step]

    def counted(function):
        def call(*arguments):
            if left[0] == 0:
                raise InterruptError
            left[0] -= 1
            return function(*arguments)

        return call

    with monkeypatch.context() as patch:
        kind = type(desk.repository)
        for name in ("put", "create", "exchange"):
            patch.setattr(kind, name, counted(getattr(kind, name)))
        if step < STEPS:
            with pytest.raises(InterruptError):
                desk.publish("2.0.0")
        else:
            desk.publish("2.0.0")
    assert left == [0]
    seen = reader(desk, tmp_path / "trust").versions("pump")
    assert set(seen) == ({"1.0.0"} if step < STEPS else {"1.0.0", "2.0.0"})
    assert problems(desk.repository) == []
    desk.publish("3.0.0")
    assert "3.0.0" in reader(desk, tmp_path / "trust").versions("pump")
    assert problems(desk.repository) == []


def test_of_two_who_publish_at_once_the_second_is_told_and_the_first_is_kept(desk, tmp_path, monkeypatch):
    """The other one publishes a whole version just before our last step, with the same numbers as we have taken."""
    desk.publish("1.0.0")
    kind = type(desk.repository)
    exchange = kind.exchange

    def late(*arguments):
        monkeypatch.setattr(kind, "exchange", exchange)
        desk.publish("1.1.0", factor=7.0)
        return exchange(*arguments)

    monkeypatch.setattr(kind, "exchange", late)
    with pytest.raises(RepositoryError, match="Somebody else has published") as caught:
        desk.publish("2.0.0")
    assert "again" in caught.value.hint
    assert set(reader(desk, tmp_path / "trust").versions("pump")) == {"1.0.0", "1.1.0"}
    assert problems(desk.repository) == []
    desk.publish("2.0.0")
    assert set(reader(desk, tmp_path / "trust").versions("pump")) == {"1.0.0", "1.1.0", "2.0.0"}
    assert problems(desk.repository) == []


def test_two_who_make_a_repository_at_once_do_not_mix_their_keys(bucket, tmp_path, monkeypatch):
    kind = type(open_place(bucket.uri))
    create = kind.create

    def late(*arguments):
        monkeypatch.setattr(kind, "create", create)
        publishing.init_repository(bucket.uri, tmp_path / "others")
        return create(*arguments)

    monkeypatch.setattr(kind, "create", late)
    with pytest.raises(RepositoryError, match="holds a repository already"):
        publishing.init_repository(bucket.uri, tmp_path / "keys")
    assert problems(bucket.uri) == []


def test_a_write_whose_answer_was_lost_is_known_again(desk, monkeypatch):
    kind = type(desk.repository)
    exchange = kind.exchange
    monkeypatch.setattr(kind, "exchange", lambda *arguments: exchange(*arguments) and exchange(*arguments))
    desk.publish("1.0.0")
    assert Repository(desk.repository).versions() == [("pump", "1.0.0")]


def test_publishing_in_parallel_loses_nothing(desk):
    """Three at once; whoever is told that somebody was faster does it again."""
    told = []

    def work(number):
        folder = desk.folder / str(number)
        folder.mkdir()
        (folder / "m.onnx").write_bytes(tiny_models.scale(float(number)))
        draft = Draft(name="pump", version=f"{number}.0.0")
        for _ in range(20):
            with suppress(RepositoryError):
                publishing.publish(folder / "m.onnx", repository=desk.repository, keys=desk.keys, draft=draft)
                return
            told.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(1, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Repository(desk.repository).versions()) == 3, told
    assert problems(desk.repository) == []


# -- devices -------------------------------------------------------------------------------------------------------


def test_a_device_follows_the_repository_and_takes_deltas(desk, tmp_path):
    put(desk, "1.0.0", 0)
    with Device(tmp_path / "device", desk.repository, desk.root.read_bytes()) as device:
        wait_until(lambda: device.active() == "1.0.0")
        put(desk, "1.1.0", 1)
        wait_until(lambda: device.active() == "1.1.0")
        assert device.store.reports()[0].versions[0].saved_bytes > 0


@pytest.fixture
def large(bucket, tmp_path):
    """A file of 14 MB in the bucket, and what is signed of it."""
    data = hashlib.sha512(b"seed").digest() * (14 * MB // 64)
    bucket.put("f", data)
    (tmp_path / "model.onnx").write_bytes(data)
    entry = describe_file(tmp_path, "model.onnx")
    return data, Expected("model.onnx", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)


def test_a_file_is_read_from_any_offset(bucket):
    bucket.put("a b/ü+f", b"0123456789")
    source = open_source(bucket.uri, None)
    for offset in (0, 3, 10):
        with source.open("a b/ü+f", offset, 5.0) as stream:
            assert stream.read(100) == b"0123456789"[offset:]
    with pytest.raises(ModelNotFoundError), source.open("nothing", 0, 5.0):
        pass


def test_a_link_cut_every_three_megabytes_costs_little(bucket, link, large, tmp_path):
    data, expected = large
    link.cut = 3 * MB
    source = open_source(bucket.uri, None)
    tries = 0
    while True:
        tries += 1
        try:
            Download(source, "f", tmp_path / "part", expected).run(5.0)
            break
        except LinkDownError:
            assert tries < 10
    assert (tmp_path / "part").read_bytes() == data
    assert link.bytes_down <= 1.05 * len(data)
    assert tries == 5


def test_an_object_that_was_replaced_in_the_middle_goes_on_from_what_was_verified(bucket, link, large, tmp_path):
    data, expected = large
    bucket.put("f", b"?" * len(data))  # what others put there first; its first bytes are wrong
    link.cut = 200_000
    source = open_source(bucket.uri, None)
    download = Download(source, "f", tmp_path / "part", expected)
    with pytest.raises(LinkDownError):
        download.run(5.0)
    assert (tmp_path / "part").stat().st_size > 0
    bucket.put("f", data)
    link.cut = None
    download.run(5.0)
    assert (tmp_path / "part").read_bytes() == data
    assert download.received_bytes <= len(data) + 200_000


# -- credentials ---------------------------------------------------------------------------------------------------


def test_a_place_that_is_not_there_is_an_error_of_the_settings(bucket, tmp_path):
    with pytest.raises(SettingsError, match="There is no"):
        publishing.init_repository(bucket.uri.replace("models-", "others-"), tmp_path / "keys")


def test_a_server_that_is_not_there_is_an_error_of_the_link(bucket, link, monkeypatch):
    monkeypatch.setitem(azure_place._PATIENCE, "retry_total", 0)
    place = open_place(bucket.uri)
    link.close()
    link.close = lambda: None
    with pytest.raises(LinkError):
        place.read("metadata/timestamp.json")
    with pytest.raises(LinkDownError), place.open("metadata/timestamp.json", 0, 5.0):
        pass


@pytest.mark.parametrize("uri", ["s3://", "s3:///x", "az://", "az://c/p?sig=x"])
def test_an_address_that_is_none_is_an_error_of_the_settings(bucket, uri):
    with pytest.raises(SettingsError) as caught:
        open_source(uri, None)
    assert "sig=x" not in str(caught.value)


class TestAzure:
    @pytest.fixture
    def server(self, az):
        return az

    @pytest.fixture
    def container(self, bucket, monkeypatch):
        monkeypatch.delenv(azure_place.VARIABLE)
        bucket.put("f", bytes(range(256)) * 2000)
        return bucket

    @staticmethod
    def signature(container, seconds):
        expiry = datetime.datetime.now(UTC) + datetime.timedelta(seconds=seconds)
        permission = ContainerSasPermissions(read=True)
        return generate_container_sas(
            ACCOUNT, container.name, account_key=ACCOUNT_KEY, permission=permission, expiry=expiry
        )

    def test_a_signature_that_expires_in_mid_download_is_read_again_from_its_file(
        self, container, link, tmp_path, caplog
    ):
        file = tmp_path / "connection"
        old = self.signature(container, 3)
        file.write_text(connection(link.port, f"SharedAccessSignature={old}"))
        data = container.get("f")
        source = open_source(container.uri, None, str(file))
        download = Download(source, "f", tmp_path / "part", Expected("f", hashlib.sha256(data).hexdigest(), len(data)))
        link.cut = 200_000
        with caplog.at_level(logging.DEBUG, "outstation"), pytest.raises(LinkDownError):
            download.run(5.0)

        def refused():
            try:
                with source.open("f", 0, 5.0) as stream:
                    stream.read(1)
            except AccessDeniedError as exc:
                return str(exc)
            return ""

        wait_until(refused)
        assert old[-20:] not in refused()
        link.cut = None
        file.write_text(connection(link.port, f"SharedAccessSignature={self.signature(container, 600)}"))
        download.run(5.0)
        assert (tmp_path / "part").read_bytes() == data
        assert download.received_bytes == len(data)
        assert "sig=" not in caplog.text

    def test_a_wrong_key_is_refused_and_no_secret_is_said(self, container, link, tmp_path):
        key = "d3Jvbmcga2V5IHdyb25nIGtleSB3cm9uZyBrZXkgd3Jvbmc="
        (tmp_path / "connection").write_text(connection(link.port, f"AccountKey={key}"))
        place = azure_place.AzurePlace(container.uri, str(tmp_path / "connection"))
        for call in (
            lambda: place.read("f"),
            lambda: place.create("g", b""),
            lambda: place.open("f", 0, 5.0).__enter__(),
        ):
            with pytest.raises(AccessDeniedError) as caught:
                call()
            assert key not in str(caught.value) + repr(place)
            assert "sig=" not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "hello", "AccountName=a;SecretSauce=hidden;x"])
    def test_a_connection_string_that_is_none_is_an_error_without_its_text(self, container, tmp_path, text):
        (tmp_path / "connection").write_text(text)
        with pytest.raises(SettingsError) as caught:
            open_source(container.uri, None, str(tmp_path / "connection"))
        assert "hidden" not in str(caught.value)
        with pytest.raises(SettingsError, match="cannot be read"):
            open_source(container.uri, None, str(tmp_path / "gone"))
        with pytest.raises(SettingsError, match="needs a connection string"):
            open_source(container.uri, None)


class TestS3:
    @pytest.fixture
    def server(self, s3):
        return s3

    def test_without_credentials_it_says_so(self, bucket, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        place = s3_place.S3Place(bucket.uri)
        for call in (lambda: place.read("f"), lambda: place.open("f", 0, 5.0).__enter__()):
            with pytest.raises(AccessDeniedError, match="no AWS credentials"):
                call()

    def test_a_station_starts_while_nobody_gives_it_credentials(self, bucket, monkeypatch):
        """As in a container whose link is down: the credentials come over it, too."""
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{free_port()}/credentials")
        source = open_source(bucket.uri, None)
        with pytest.raises(LinkError), source.open("f", 0, 5.0):
            pass

    def test_the_example_does_what_its_readme_says(self, bucket, tmp_path):
        shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
        folder = tmp_path / "examples/models-from-a-bucket"
        settings = folder / "outstation.toml"
        settings.write_text(settings.read_text().replace("s3://BUCKET/fleet", bucket.uri))
        (commands,) = re.findall(r"^```\n(.*?)^```$", (folder / "README.md").read_text(), re.MULTILINE | re.DOTALL)
        environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        for command in commands.replace("s3://BUCKET/fleet", bucket.uri).splitlines():
            done = subprocess.run(
                command.split(), cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert "says version 1.0.0" in done.stdout
