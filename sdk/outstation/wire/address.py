"""Addresses that processes of ours listen on: "host:port" and "unix:/path". Imports no gRPC."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import stat
from pathlib import Path

from outstation.errors import ConfigurationError, mapped_os_errors


def is_loopback(address: str) -> bool:
    """Whether *address* ("host:port" or "unix:/path") can only be reached from this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def claim_socket(path: Path, *, whose: str) -> None:
    """Make room for a unix socket at *path*: its folder is made, and what a killed process left there is removed.

    ConfigurationError when something else is in the way, or when a living process listens there.
    """
    with mapped_os_errors(doing=f"make the socket of {whose}", path=path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_socket():
            raise ConfigurationError(f"{path} is in the way of the socket of {whose} and is no socket.")
        if _answers(path):
            raise ConfigurationError(f"Somebody listens on {path} already.", hint="Stop it, or choose another path.")
        path.unlink(missing_ok=True)


def share_socket(path: Path) -> None:
    """Let this user and this group connect to the socket at *path*, and nobody else."""
    with mapped_os_errors(doing="set the rights of a socket", path=path):
        path.chmod(stat.S_IRUSR | stat.S_IWUSR | stat.S_IRGRP | stat.S_IWGRP)


def release_socket(path: Path) -> None:
    """Remove the socket at *path*; nothing happens when it is gone."""
    with contextlib.suppress(OSError):
        path.unlink()


def _answers(path: Path) -> bool:
    """Whether a living process listens on the socket *path*; one that was killed leaves a file that nobody answers."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
