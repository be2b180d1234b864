"""The link that fails on command does what its methods say, and nothing else."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from outstation.testing import FlakyLink


@pytest.fixture
def echo():
    """The address of a server that sends back what it gets, and ends when its caller has ended."""
    listener = socket.create_server(("127.0.0.1", 0))
    threads = []

    def serve(end):
        with end:
            try:
                while data := end.recv(65536):
                    end.sendall(data)
            except OSError:
                pass

    def accept():
        while True:
            try:
                end, _ = listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=serve, args=(end,))
            thread.start()
            threads.append(thread)

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    yield f"127.0.0.1:{listener.getsockname()[1]}"
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    acceptor.join()
    for thread in threads:
        thread.join()


@pytest.fixture
def link(echo):
    with FlakyLink(echo) as link:
        yield link


def call(link, timeout=5.0):
    host, port = link.address.split(":")
    return socket.create_connection((host, int(port)), timeout)


def receive(end, size):
    data = b""
    while len(data) < size and (piece := end.recv(65536)):
        data += piece
    return data


def test_bytes_pass_in_both_directions_and_ends_are_told(link):
    with call(link) as end:
        sent = bytes(range(256)) * 8000  # more than the link may hold
        thread = threading.Thread(target=lambda: (end.sendall(sent), end.shutdown(socket.SHUT_WR)))
        thread.start()
        assert receive(end, len(sent)) == sent
        assert end.recv(1) == b""
        thread.join()
    assert link.bytes_forwarded == (len(sent), len(sent))


def test_down_cuts_what_is_open_and_refuses_what_is_new(link):
    with call(link) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        link.down()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    with pytest.raises(ConnectionRefusedError):
        call(link)
    link.up()
    with call(link) as end:
        end.sendall(b"b")
        assert end.recv(1) == b"b"


def test_cut_spares_the_next_connection(link):
    with call(link) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        link.cut()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    with call(link) as end:
        end.sendall(b"b")
        assert end.recv(1) == b"b"


def test_a_black_hole_swallows_without_closing_and_heals(link):
    with call(link, 0.2) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        link.black_hole()
        end.sendall(b"b")
        with pytest.raises(TimeoutError):
            end.recv(1)
        link.up()
        end.settimeout(5)
        assert end.recv(1) == b"b"


def test_a_black_hole_may_have_one_direction(link):
    with call(link, 0.2) as end:
        link.black_hole(upward=False)
        end.sendall(b"abc")
        with pytest.raises(TimeoutError):
            end.recv(1)
        assert link.bytes_forwarded == (3, 0)


def test_latency_and_rate_take_their_time(link):
    link.up(latency=0.1)
    with call(link) as end:
        begin = time.monotonic()
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        assert time.monotonic() - begin >= 0.2
        link.up(bytes_per_second=100_000)
        begin = time.monotonic()
        end.sendall(bytes(20_000))
        assert len(receive(end, 20_000)) == 20_000
        assert 0.15 <= time.monotonic() - begin < 2.0


def test_corrupt_flips_one_bit_going_up(link):
    link.corrupt()
    with call(link) as end:
        end.sendall(b"aaaa")
        assert receive(end, 4) == b"aaa`"
        end.sendall(b"aaaa")
        assert receive(end, 4) == b"aaaa"


def test_corrupt_flips_one_bit_coming_down(link):
    link.corrupt(downward=True)
    with call(link) as end:
        end.sendall(b"aaaa")
        assert receive(end, 4) == b"aaa`"
        end.sendall(b"aaaa")
        assert receive(end, 4) == b"aaaa"


@pytest.mark.parametrize("downward", [False, True])
def test_what_is_swallowed_is_missing_and_the_rest_arrives(link, downward):
    with call(link, 0.2) as end:
        end.sendall(b"a")
        assert receive(end, 1) == b"a"
        link.swallow(downward=downward)
        end.sendall(b"b")
        with pytest.raises(TimeoutError):
            end.recv(1)
        end.settimeout(5)
        end.sendall(b"c")
        assert receive(end, 1) == b"c"


def test_half_close_downward_ends_the_other_direction(link):
    with call(link) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        link.half_close(downward=True)
        assert end.recv(1) == b""  # as if the server had said all it has to say
        end.sendall(b"b")


def test_half_close_ends_one_direction(link):
    with call(link) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        link.half_close()
        assert end.recv(1) == b""  # the echo server has ended its side


def test_a_target_that_is_not_there_cuts_the_caller():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        # The reset may reach the caller before its connect() returns.
        with (
            FlakyLink(f"127.0.0.1:{free.getsockname()[1]}") as link,
            pytest.raises(OSError),  # noqa: PT011
            call(link) as end,
        ):
            assert end.recv(1)


def test_closing_twice_leaves_no_thread_and_no_connection(echo):
    link = FlakyLink(echo)
    with call(link) as end:
        end.sendall(b"a")
        assert end.recv(1) == b"a"
        assert link.connections == 1
        link.close()
        link.close()
        with pytest.raises(ConnectionResetError):
            end.recv(1)
    assert link.connections == 0
    assert not any(thread.name == "outstation-flaky-link" for thread in threading.enumerate())
