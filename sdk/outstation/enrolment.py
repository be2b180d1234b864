"""How a device gets its certificate from a hub, and a newer one before that expires.

The key is made on the device and never leaves it. Certificate and key lie in one file, so that replacing both is
one atomic step; after a cut at any moment the pair fits.
"""

from __future__ import annotations

import hashlib
import socket
import ssl
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import (
    InvalidInputError,
    LinkDownError,
    MissingExtraError,
    SettingsError,
    UntrustedError,
    mapped,
    mapped_os_errors,
)
from outstation.types import STATION_NAME, checked_name
from outstation.wire import convert
from outstation.wire.channel import HUB_NAME, Tls
from outstation.wire.client import Client
from outstation.wire.messages import EnrollRequest, IssuedCertificate

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID
except ImportError as exc:
    raise MissingExtraError("signing", "Enrolment") from exc

# A certificate is renewed when less than this part of its life is left: months before the end, since a device may be
# away for months.
RENEW_BELOW = 1 / 3


@dataclass(frozen=True, slots=True)
class Credentials:
    """The files that an enrolled device has: ``station`` holds certificate and key."""

    name: str
    station: Path
    ca: Path


def enroll(address: str, token: str, folder: Path, timeout: float) -> Credentials:
    """Redeem *token* at the hub's enrolment port *address*, and write the files into *folder*.

    The hub is believed because its certificate is the one that the token names; no other trust is needed before.
    Raises InvalidInputError, UntrustedError, AccessDeniedError (the token is used up), LinkError, StorageError.
    """
    station, pin, secret = _parsed(token)
    make_directories(folder)
    with mapped_os_errors(doing="protect the folder", path=folder):
        folder.chmod(0o700)
    hub = _pinned_certificate(address, pin, timeout)
    pinned = folder / "hub.pem"
    write_atomically(pinned, hub.encode())
    key_pem, request = _request(station)
    with Client(address, tls=Tls(ca=pinned), server_name=HUB_NAME) as client:
        issued = client.unary(convert.ENROLL)(EnrollRequest(station, request, secret), timeout)
    credentials = Credentials(station, folder / "station.pem", folder / "ca.pem")
    write_atomically(credentials.ca, issued.authority.encode())
    _write(credentials.station, issued, key_pem)
    pinned.unlink(missing_ok=True)
    return credentials


def is_due(certificate: Path, clock: Clock) -> bool:
    """Whether less than a third of the certificate's life is left. SettingsError when it is no certificate."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{certificate} holds no certificate: {exc}.") from exc
    begin, end = found.not_valid_before_utc, found.not_valid_after_utc
    now = datetime.fromtimestamp(clock.time_unix_nano() / 1e9, timezone.utc)
    return (end - now) < (end - begin) * RENEW_BELOW


def renew(client: Client, station: str, path: Path, timeout: float) -> None:
    """Replace the pair in *path* by a new one, over a connection that the old one opened. LinkError, StorageError."""
    key_pem, request = _request(station)
    issued = client.unary(convert.RENEW)(EnrollRequest(station, request), timeout)
    _write(path, issued, key_pem)


def _parsed(token: str) -> tuple[str, str, bytes]:
    try:
        station, pin, secret = token.strip().split(":")
        if len(pin) != 64:
            raise ValueError
        return checked_name(STATION_NAME, station, "station"), pin.lower(), bytes.fromhex(secret)
    except ValueError as exc:
        raise InvalidInputError(
            "That is no enrolment token.", hint="`outstation hub enroll STATION` prints one, to be copied whole."
        ) from exc


def _pinned_certificate(address: str, pin: str, timeout: float) -> str:
    """The hub's certificate, if it is the one with that fingerprint."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise InvalidInputError(f"{address!r} is no HOST:PORT.")
    with mapped({OSError: LinkDownError, socket.timeout: LinkDownError}, doing=f"reach the hub at {address}"):
        found = ssl.get_server_certificate((host.strip("[]"), int(port)), timeout=timeout)
    if hashlib.sha256(ssl.PEM_cert_to_DER_cert(found)).hexdigest() != pin:
        raise UntrustedError(
            f"{address} is not the hub that made this token: its certificate is another one.",
            hint="Check the address. If the hub's certificate was made anew, make a new token.",
        )
    return found


def _request(station: str) -> tuple[bytes, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, station)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    encoding = serialization.Encoding.PEM
    key_pem = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return key_pem, request.public_bytes(encoding).decode()


def _write(path: Path, issued: IssuedCertificate, key_pem: bytes) -> None:
    # The folder is closed to others (0700), so the moment before chmod shows nobody anything. (A umask would be the
    # whole process's, with all its threads.)
    write_atomically(path, issued.certificate.encode() + key_pem)
    with mapped_os_errors(doing="protect the key", path=path):
        path.chmod(0o600)
