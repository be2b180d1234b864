"""A repository behind a real HTTP server on loopback, and servers that misbehave."""

from __future__ import annotations

import hashlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from model_parts import Desk, Device
from outstation.errors import (
    AccessDeniedError,
    DeadlineError,
    LinkDownError,
    ModelNotFoundError,
    ProviderUnavailableError,
    UntrustedError,
)
from outstation.models.bundle import describe_file
from outstation.models.fetch import Download, Expected
from outstation.models.sources import open_source
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
        if server.status or data is None:
            self.send_response(server.status or 404)
            if server.status == 302:
                self.send_header("Location", "ftp://elsewhere/")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range", server.etag) == server.etag:
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
