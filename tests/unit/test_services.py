"""gRPC by method path: errors of ours cross whole, around iteration too."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from outstation.errors import (
    ClosedError,
    ConfigurationError,
    DeadlineError,
    LinkDownError,
    LinkError,
    ModelNotFoundError,
    ProviderUnavailableError,
    RefusedError,
    WireError,
)
from outstation.wire.address import is_loopback
from outstation.wire.channel import from_rpc_error
from outstation.wire.client import Client
from outstation.wire.method import Codec, Method
from outstation.wire.services import Server, handler


def _decode(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as exc:
        raise WireError("That is no text.") from exc


TEXT = Codec(str.encode, _decode)
RAW = Codec(bytes, bytes)
ECHO = Method("/test.Echo/Echo", TEXT, TEXT)
COUNT = Method("/test.Echo/Count", TEXT, TEXT, streams_responses=True)
CHAT = Method("/test.Echo/Chat", TEXT, TEXT, streams_requests=True, streams_responses=True)
JOIN = Method("/test.Echo/Join", TEXT, TEXT, streams_requests=True)
release = threading.Event()


def echo(request, caller):
    if request == "missing":
        raise ModelNotFoundError("There is no such model: häß.", hint="Ask the öperator.")
    if request == "broken":
        raise RuntimeError("a secret of the inside")
    if request == "slow":
        gone = threading.Event()
        caller.on_end(gone.set)
        gone.wait(10)
    return request


def count(request, caller):
    for number in range(int(request)):
        yield str(number)
    raise RefusedError("No more.")


@pytest.fixture
def server() -> Iterator[str]:
    server = Server(
        [
            handler(
                "test.Echo",
                {
                    ECHO: echo,
                    COUNT: count,
                    CHAT: lambda requests, caller: (text.upper() for text in requests),
                    JOIN: lambda requests, caller: ",".join(requests),
                },
            )
        ],
        workers=4,
        max_message_bytes=10_000,
    )
    address = server.listen("127.0.0.1:0")
    server.start()
    yield address
    server.close(0)


def test_all_four_shapes_of_a_call_work(server):
    with Client(server) as client:
        assert client.unary(ECHO)("hello", 5) == "hello"
        assert list(client.stream(CHAT, iter(["a", "b"]), 5)) == ["A", "B"]
        assert list(client.stream(JOIN, iter(["a", "b"]), 5)) == ["a,b"]
        numbers = client.stream(COUNT, "3", 5)
        assert [next(numbers) for _ in range(3)] == ["0", "1", "2"]
        with pytest.raises(RefusedError, match="No more"):
            next(numbers)


def test_an_error_of_ours_arrives_as_itself_with_its_hint(server):
    with Client(server) as client, pytest.raises(ModelNotFoundError, match="no such model: häß") as caught:
        client.unary(ECHO)("missing", 5)
    assert caught.value.hint == "Ask the öperator."


def test_a_failure_inside_the_server_does_not_tell_how_it_is_built(server, caplog):
    with Client(server) as client, pytest.raises(ProviderUnavailableError) as caught:
        client.unary(ECHO)("broken", 5)
    assert "secret" not in str(caught.value)
    assert "a secret of the inside" in caplog.text


def test_bytes_that_are_no_message_are_refused_and_the_server_lives(server):
    raw = Method(ECHO.path, RAW, TEXT)
    with Client(server) as client:
        with pytest.raises(WireError):
            client.unary(raw)(b"\xff\xfe", 5)
        assert client.unary(ECHO)("still here", 5) == "still here"


def test_a_message_over_the_bound_is_refused(server):
    with Client(server) as client, pytest.raises(RefusedError):
        client.unary(ECHO)("x" * 20_000, 5)


def test_a_deadline_and_an_absent_server_are_told_apart(server):
    with Client(server) as client, pytest.raises(DeadlineError):
        client.unary(ECHO)("slow", 0.1)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with Client(f"127.0.0.1:{free.getsockname()[1]}") as client:
            with pytest.raises(LinkDownError):
                client.unary(ECHO)("hello", 5)
            with pytest.raises(LinkDownError):
                client.wait_ready(0.2)


def test_a_closed_client_says_so(server):
    client = Client(server)
    call = client.unary(ECHO)
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        call("hello", 5)
    with pytest.raises(ClosedError):
        client.stream(COUNT, "1")


def test_cancelling_ends_an_iteration_on_another_thread(server):
    hold = threading.Event()

    def requests():
        yield "one"
        hold.wait(10)

    with Client(server) as client, client.stream(CHAT, requests()) as responses:
        assert next(responses) == "ONE"
        ended = threading.Event()
        responses.on_end(ended.set)
        responses.cancel()
        hold.set()
        with pytest.raises(LinkError):
            next(responses)
        assert ended.wait(5)


def test_a_second_server_on_the_same_port_fails(server):
    second = Server([], workers=1)
    with pytest.raises(ConfigurationError, match="Could not listen"):
        second.listen(server)
    second.close(0)


def test_a_unix_socket_works(tmp_path: Path):
    address = f"unix:{tmp_path}/s"
    server = Server([handler("test.Echo", {ECHO: echo})], workers=1)
    assert server.listen(address) == address
    server.start()
    with Client(address) as client:
        client.wait_ready(5)
        assert client.unary(ECHO)("hello", 5) == "hello"
    server.close(0)


@pytest.mark.parametrize(
    ("address", "loopback"),
    [("127.0.0.1:1", True), ("[::1]:1", True), ("localhost:1", True), ("unix:/x", True), ("10.0.0.1:1", False),
     ("hub.example:1", False), ("0.0.0.0:1", False)],
)  # fmt: skip
def test_loopback_is_recognised(address, loopback):
    assert is_loopback(address) is loopback


def test_unknown_classes_from_the_far_end_become_errors_by_status():
    class Failure:
        def code(self):
            return grpc.StatusCode.UNAVAILABLE

        def details(self):
            return "down"

        def trailing_metadata(self):
            return (("outstation-error", "Path"),)

    assert isinstance(from_rpc_error(Failure(), "x"), LinkDownError)
