"""Listening sockets, and how many the process may have."""

from __future__ import annotations

import contextlib
import resource
import socket
from pathlib import Path

from outstation.errors import SettingsError

# Connections that the kernel holds until they are accepted.
_BACKLOG = 512


def bound(address: str) -> tuple[socket.socket, str]:
    """A socket that listens on *address* (port 0: any free one), and the address with its real port. OSError."""
    return _unix(address) if address.startswith("unix:") else _tcp(address)


def _tcp(address: str) -> tuple[socket.socket, str]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65_535:
        raise SettingsError(f"{address!r} is no address.", hint="It must be host:port.")
    host = host.strip("[]")
    info = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    sock = socket.socket(info[0], info[1])
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(info[4])
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock, f"{address.rpartition(':')[0]}:{sock.getsockname()[1]}"


def _unix(address: str) -> tuple[socket.socket, str]:
    path = Path(address.removeprefix("unix:"))
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock, address


def file_limit() -> int:
    """How many files this process may have open; the soft limit is raised to the hard one first."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
    return soft if soft != resource.RLIM_INFINITY else 1 << 20
