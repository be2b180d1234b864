"""A repository behind a real HTTP server on loopback, and servers that misbehave."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model_parts import Desk, Device, run
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    FileChangedError,
    InvalidInputError,
    LinkDownError,
    ModelNotFoundError,
    ProviderUnavailableError,
    SettingsError,
    UntrustedError,
)
from outstation.models.bundle import describe_file
from outstation.models.fetch import Download, Expected
from outstation.models.sources import open_source
from outstation.wire.urls import UrlFiles
from support import wait_until

MB = 1_000_000


class Server(ThreadingHTTPServer):
    """Files from memory. ``ranges``: whether Range is honoured; ``cut``: bytes after which each answer breaks."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.ranges, self.cut, self.etag, self.silent = True, None, '"1"', False
        self.status: int | None = None
        self.minds_etags = True
        self.valid = ""  # what must stand in the address
        self.sent = 0
        self.asked: list[tuple[str, str, str]] = []
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass  # connections that were cut on purpose


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Range", ""), self.headers.get("If-Range", "")))
        if server.silent:
            server.release.wait(10.0)
            return
        data = server.files.get(self.path.partition("?")[0])
        if server.valid not in self.path:
            self.send_response(403)
            self.end_headers()
            return
        if server.status or data is None:
            self.send_response(server.status or 404)
            if server.status == 302:
                self.send_header("Location", "ftp://elsewhere/")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        same = not server.minds_etags or self.headers.get("If-Range", server.etag) == server.etag
        if wanted and server.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        body = data[start:]
        if server.cut is not None:
            body = body[: server.cut]
        server.sent += len(body)
        self.wfile.write(body)
        self.wfile.flush()


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def source(server):
    return open_source(server.url + "/repo", None)


def read(source, path="f", offset=0, timeout=5.0):
    pieces = []
    with source.open(path, offset, timeout) as stream:
        while piece := stream.read(1000):
            pieces.append(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_is_read_from_any_offset_with_and_without_ranges(server, source, ranges):
    server.ranges = ranges
    server.files["/repo/f"] = data = bytes(range(256)) * 20
    assert read(source) == data
    assert read(source, offset=777) == data[777:]
    assert read(source, offset=len(data)) == b""
    assert server.asked[1] == ("/repo/f", "bytes=777-", '"1"')


def test_a_query_in_the_address_goes_with_every_request(server):
    server.files["/repo/metadata/timestamp.json"] = b"x"
    assert read(open_source(server.url + "/repo/?sig=a%2Fb", None), "metadata/timestamp.json") == b"x"
    assert server.asked[0][0] == "/repo/metadata/timestamp.json?sig=a%2Fb"


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, ModelNotFoundError),
        (410, ModelNotFoundError),
        (401, AccessDeniedError),
        (403, AccessDeniedError),
        (429, ProviderUnavailableError),
        (500, ProviderUnavailableError),
        (503, ProviderUnavailableError),
        (302, LinkDownError),
    ],
)
def test_what_a_server_says_becomes_an_error_of_ours(server, source, status, error):
    server.status = status
    with pytest.raises(error):
        read(source)


def test_a_server_that_is_not_there_is_a_link_that_is_down():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(LinkDownError, match="cannot be reached"):
        read(open_source(f"http://127.0.0.1:{port}", None))


def test_a_server_that_says_nothing_is_given_up(server, source):
    server.silent = True
    with pytest.raises(DeadlineError):
        read(source, timeout=0.1)


def test_a_link_cut_every_three_megabytes_costs_little(server, source, tmp_path):
    data = bytes(hashlib.sha512(b"seed").digest()) * (14 * MB // 64)
    (tmp_path / "model.onnx").write_bytes(data)
    entry = describe_file(tmp_path, "model.onnx")
    server.files["/repo/f"] = data
    server.cut = 3 * MB
    expected = Expected("model.onnx", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)
    for _ in range(10):
        try:
            Download(source, "f", tmp_path / "part", expected).run(5.0)
            break
        except LinkDownError:
            continue
    assert (tmp_path / "part").read_bytes() == data
    assert server.sent <= 1.05 * len(data)


def test_a_file_that_was_replaced_in_the_middle_is_not_glued_together(server, source, tmp_path):
    good, other = b"a" * 5000, b"b" * 5000
    expected = Expected("f", hashlib.sha256(good).hexdigest(), 5000)
    server.files["/repo/f"] = good
    server.cut = 2000
    with pytest.raises(LinkDownError):
        Download(source, "f", tmp_path / "part", expected).run(5.0)
    server.files["/repo/f"], server.etag, server.cut = other, '"2"', None
    with pytest.raises(UntrustedError):
        Download(source, "f", tmp_path / "part", expected).run(5.0)
    server.files["/repo/f"], server.etag = good, '"3"'
    Download(source, "f", tmp_path / "part", expected).run(5.0)
    assert (tmp_path / "part").read_bytes() == good


@pytest.mark.parametrize(("ranges", "minds_etags"), [(True, True), (True, False), (False, False)])
def test_a_file_that_was_replaced_goes_on_from_what_was_verified(server, source, tmp_path, ranges, minds_etags):
    """Also when the server minds no If-Range, and would send the rest of the new one."""
    data = bytes(range(256)) * 2000
    (tmp_path / "model.onnx").write_bytes(data)
    entry = describe_file(tmp_path, "model.onnx", 100_000)
    expected = Expected("model.onnx", entry.sha256, entry.size_bytes, entry.chunk_bytes, entry.chunks)
    server.ranges, server.minds_etags = ranges, minds_etags
    server.files["/repo/f"], server.cut = data[:250_000] + b"?" * 262_000, 290_000
    download = Download(source, "f", tmp_path / "part", expected)
    with pytest.raises(LinkDownError):
        download.run(5.0)
    server.files["/repo/f"], server.etag, server.cut = data, '"new"', None
    download.run(5.0)
    assert (tmp_path / "part").read_bytes() == data
    assert [wanted for _, wanted, _ in server.asked] == ["", "bytes=290000-", "bytes=200000-"]
    assert download.received_bytes == 290_000 + len(data) - 200_000


def test_a_replaced_file_is_noticed_by_its_etag(server, source):
    server.files["/repo/f"] = b"a" * 5000
    read(source)
    server.etag = '"2"'
    for minds in (True, False):
        server.minds_etags = minds
        read(source)
        server.etag += "x"
        with pytest.raises(FileChangedError, match="was replaced"):
            read(source, offset=100)
        assert read(source, offset=100) == b"a" * 4900


def test_a_url_that_has_expired_is_asked_for_again_and_goes_on_at_the_same_byte(server, tmp_path):
    data = bytes(range(256)) * 100
    server.files["/f"] = data
    server.valid = "?sig=1"
    asked = []

    def ask(path, again):
        asked.append((path, again))
        return f"{server.url}/{path}?sig={2 if again else 1}"

    files = UrlFiles(ask)
    expected = Expected("f", hashlib.sha256(data).hexdigest(), len(data))
    download = Download(files, "f", tmp_path / "part", expected)
    server.cut = 10_000
    with pytest.raises(LinkDownError):
        download.run(5.0)
    server.valid, server.cut = "?sig=2", None
    download.run(5.0)
    assert (tmp_path / "part").read_bytes() == data
    assert asked == [("f", False), ("f", False), ("f", True)]
    assert server.sent == len(data)
    server.valid = "?sig=3"
    with pytest.raises(AccessDeniedError) as caught:
        read(files)
    assert "sig" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://x/f?sig=secret", "http://127.0.0.1:1/a b?sig=secret", "http://[?sig=secret"])
def test_an_address_that_is_none_is_an_error_without_what_may_be_secret(url):
    with pytest.raises(LinkDownError) as caught:
        read(UrlFiles(lambda path, again: url))
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingsError):
        open_source("http://[/repo?sig=secret", None)


def test_credentials_for_a_bucket_that_were_renewed_are_looked_up_again(server, tmp_path, monkeypatch):
    """As somebody does who writes a new token into the file every hour; the old one is refused."""
    pytest.importorskip("boto3")
    data = bytes(range(256)) * 100
    server.files["/bucket/fleet/f"] = data
    file = tmp_path / "credentials"

    def write(key):
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
    write("AKIAOLD")
    source = open_source("s3://bucket/fleet", None)
    server.valid = "AKIAOLD"
    expected = Expected("f", hashlib.sha256(data).hexdigest(), len(data))
    download = Download(source, "f", tmp_path / "part", expected)
    server.cut = 10_000
    with pytest.raises(LinkDownError):
        download.run(5.0)
    server.valid, server.cut = "AKIANEW", None
    with pytest.raises(AccessDeniedError) as caught:
        download.run(5.0)
    assert "AKIA" not in str(caught.value)
    write("AKIANEW")
    download.run(5.0)
    assert (tmp_path / "part").read_bytes() == data
    assert download.received_bytes == len(data)


def test_a_repository_on_a_web_server_is_read_at_the_desk_and_not_written(server, tmp_path):
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    for path in desk.repository.rglob("*.*"):
        if path.is_file():
            server.files[f"/repo/{path.relative_to(desk.repository)}"] = path.read_bytes()
    where = f"{server.url}/repo?sig=secret"
    said = run("list", where).stdout + run("verify", where).stdout
    assert "pump 1.0.0" in said
    assert "3 files of 1 versions are what was signed" in said
    assert "secret" not in said
    desk.repository = where
    with pytest.raises(InvalidInputError, match="can only be read") as caught:
        desk.publish("2.0.0")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("missing", [404, 403])
def test_a_device_follows_a_repository_over_http(server, tmp_path, missing):
    """Also one of a bucket that may not be listed, which says 403 of a root that does not exist yet."""
    desk = Desk(tmp_path)
    desk.publish("1.0.0")

    def serve():
        for path in desk.repository.rglob("*.*"):
            if path.is_file():
                server.files[f"/repo/{path.relative_to(desk.repository)}"] = path.read_bytes()

    serve()
    source = open_source(server.url + "/repo", None)
    if missing == 403:
        original = source._ask

        def denied(*asked):
            try:
                return original(*asked)
            except ModelNotFoundError as exc:
                raise AccessDeniedError("HTTP 403") from exc

        source._ask = denied
    with Device(tmp_path / "device", source, desk.root.read_bytes()) as device:
        wait_until(lambda: device.active() == "1.0.0")
        server.status = 503
        desk.publish("2.0.0")
        serve()
        server.status = None
        wait_until(lambda: device.active() == "2.0.0")
