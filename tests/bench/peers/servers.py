"""Servers that the benchmarks of sync speak to, each in a process of its own on a free port of loopback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent
PATIENCE = 20.0  # seconds that a server may take to come up


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    """*command* until the end of the block, ready once *port* takes connections."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + PATIENCE
        while socket.socket().connect_ex(("127.0.0.1", port)):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} did not come up")
            time.sleep(0.02)
        yield process
    finally:
        process.kill()  # nothing of it is needed any more, and a hub would first write all it has to its sinks
        process.wait()


@contextmanager
def hub(folder: Path, *arguments: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "outstation", "hub", "--listen", address, "--data", str(folder), *arguments]
    with running(command, port) as process:
        yield address, process


@contextmanager
def bare_grpc() -> Iterator[str]:
    """A grpcio server that counts the bytes of a stream of messages and answers each with its number."""
    port = free_port()
    with running([sys.executable, str(HERE / "bare_stream.py"), str(port)], port):
        yield f"127.0.0.1:{port}"


@contextmanager
def nats(folder: Path) -> Iterator[str]:
    port = free_port()
    with running(["nats-server", "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(folder)], port):
        yield f"nats://127.0.0.1:{port}"


@contextmanager
def mosquitto(folder: Path) -> Iterator[tuple[str, int]]:
    port = free_port()
    file = folder / "mosquitto.conf"
    user = "user root\n" if os.getuid() == 0 else ""
    file.write_text(f"{user}listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 100000\n")
    with running(["mosquitto", "-c", str(file)], port):
        yield "127.0.0.1", port


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
