"""The operator's own certificate authority: a folder that `outstation hub init` makes.

::

    ca.pem ca.key          the authority; the key never leaves the folder
    hub.pem                the hub's certificate and key
    tokens/HASH            one-time enrolment tokens, by the hash of their secret: {"station", "expires_unix_nano"}
    issued/STATION/FINGERPRINT.pem      every certificate that was given out
    revoked/FINGERPRINT    certificates that are no longer believed

One file a fact, each made or removed atomically, so that the command line and a running hub may both work on it.
Stations' certificates are good for clients only: with one, nobody can pose as the hub.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import secrets
import ssl
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from pathlib import Path

import msgspec

from outstation.clock import Clock
from outstation.durable import make_directories, write_atomically
from outstation.errors import (
    AccessDeniedError,
    ConfigurationError,
    InvalidInputError,
    MissingExtraError,
    SettingsError,
    mapped_os_errors,
)
from outstation.shapes import learn
from outstation.types import STATION_NAME, checked_name
from outstation.wire.channel import HUB_NAME
from outstation.wire.messages import IssuedCertificate

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as exc:
    raise MissingExtraError("signing", "The hub's certificate authority") from exc

AUTHORITY_YEARS = 20
HUB_DAYS = 10 * 365
# Long, as devices may be away for months; renewed from a third before the end on, whenever they are not.
STATION_DAYS = 365
TOKEN_HOURS = 48.0
SECRET_BYTES = 16
MAX_NAME = 64  # X.520's bound of a common name
_SLACK = timedelta(days=1)  # a device's clock may be behind
_MAX_REQUEST = 16 << 10
_LOOK_INTERVAL = 1.0  # seconds between looks at the folder of revoked certificates

PEM = serialization.Encoding.PEM


class _Token(msgspec.Struct, frozen=True):
    station: str
    expires_unix_nano: int


def fingerprint(pem: bytes | str) -> str:
    """SHA-256 of a certificate's DER, in hexadecimal; of the first one in *pem*. Needs no parsing of the inside."""
    text = pem.decode("ascii", "replace") if isinstance(pem, bytes) else pem
    begin = text.find("-----BEGIN CERTIFICATE-----")
    end = text.find("-----END CERTIFICATE-----", begin)
    if begin < 0 or end < 0:
        raise InvalidInputError("There is no certificate in the text.")
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(text[begin : end + 25])).hexdigest()


class Authority:
    """Issues and revokes. Thread-safe; several processes may work on one folder."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        """Open the authority in *folder*. SettingsError when there is none, or a file of it is broken."""
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._revoked: frozenset[str] = frozenset()
        self._look_at = clock.monotonic()
        try:
            self.ca_pem = (folder / "ca.pem").read_text()
            self._ca = x509.load_pem_x509_certificate(self.ca_pem.encode())
            key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        except (OSError, ValueError) as exc:
            raise SettingsError(
                f"There is no certificate authority in {folder}: {exc}.", hint="Make one with `outstation hub init`."
            ) from exc
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key

    @classmethod
    def create(cls, folder: Path, names: Iterable[str], clock: Clock) -> Authority:
        """Make an authority and the hub's certificate, good for *names* (host names and addresses)."""
        if (folder / "ca.key").exists():
            raise ConfigurationError(
                f"{folder} holds an authority already.",
                hint="Every certificate would be worthless; move it away first.",
            )
        make_directories(folder)
        with mapped_os_errors(doing="protect the folder", path=folder):
            folder.chmod(0o700)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Outstation authority")])
        now = _now(clock)
        builder = _builder(name, name, key.public_key(), now, timedelta(days=365 * AUTHORITY_YEARS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        write_private(folder / "ca.key", _key_pem(key))
        write_atomically(folder / "ca.pem", builder.sign(key, hashes.SHA256()).public_bytes(PEM))
        authority = cls(folder, clock)
        authority.issue_hub(names)
        return authority

    def issue_hub(self, names: Iterable[str]) -> None:
        """Make the hub's certificate anew."""
        key = ec.generate_private_key(ec.SECP256R1())
        hosts = x509.SubjectAlternativeName([_general_name(name) for name in (HUB_NAME, *names)])
        builder = self._leaf(HUB_NAME, key.public_key(), HUB_DAYS, ExtendedKeyUsageOID.SERVER_AUTH)
        builder = builder.add_extension(hosts, critical=False)
        write_private(self._folder / "hub.pem", self._signed(builder) + _key_pem(key))

    def issue_with_key(self, name: str) -> bytes:
        """A certificate and its new key, in one PEM: for operators, who have no device that makes its own."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._issue(name, key.public_key()) + _key_pem(key)

    def issue(self, station: str, request_pem: str) -> IssuedCertificate:
        """Sign the request of *station*. InvalidInputError when it is none, or is not signed by its own key."""
        try:
            if len(request_pem) > _MAX_REQUEST:
                raise ValueError("it is too long")
            request = x509.load_pem_x509_csr(request_pem.encode())
            key = request.public_key()
            if not request.is_signature_valid or not isinstance(key, ec.EllipticCurvePublicKey):
                raise ValueError("it is not signed by an elliptic-curve key of its own")
        except ValueError as exc:
            raise InvalidInputError(f"That is no certificate request: {exc}.") from exc
        # Of the request only the key counts: names and extensions are the authority's to give.
        return IssuedCertificate(self._issue(station, key).decode(), self.ca_pem)

    # -- tokens --------------------------------------------------------------------------------------------------

    def make_token(self, station: str, hours: float = TOKEN_HOURS) -> str:
        """A one-time token for *station*: its name, the fingerprint of the hub's certificate, a secret."""
        _checked(station)
        secret = secrets.token_bytes(SECRET_BYTES)
        token = _Token(station, self._clock.time_unix_nano() + round(hours * 3600e9))
        make_directories(self._folder / "tokens")
        write_atomically(self._token_path(secret), msgspec.json.encode(token))
        hub = fingerprint((self._folder / "hub.pem").read_bytes())
        return f"{station}:{hub}:{secret.hex()}"

    def redeem(self, station: str, secret: bytes) -> None:
        """Use up the token of *station*, or AccessDeniedError. Of two who try at once, one gets it."""
        path = self._token_path(secret)
        refused = AccessDeniedError(
            "The enrolment token is wrong, used up or too old.", hint="Make a new one with `outstation hub enroll`."
        )
        try:
            token = msgspec.json.decode(path.read_bytes(), type=_Token)
            if token.station != station:
                raise refused
            path.unlink()
        except (OSError, msgspec.DecodeError) as exc:
            raise refused from exc
        if token.expires_unix_nano < self._clock.time_unix_nano():
            raise refused

    def _token_path(self, secret: bytes) -> Path:
        return self._folder / "tokens" / hashlib.sha256(secret).hexdigest()

    # -- revocation ----------------------------------------------------------------------------------------------

    def revoke(self, station: str) -> int:
        """Believe no certificate that *station* was given so far; how many they are."""
        checked_name(STATION_NAME, station, "station")
        issued = list((self._folder / "issued" / station).glob("*.pem"))
        make_directories(self._folder / "revoked")
        for path in issued:
            write_atomically(self._folder / "revoked" / path.stem, station.encode())
        self._look_at = self._clock.monotonic()
        return len(issued)

    def is_revoked(self, certificate_fingerprint: str) -> bool:
        """Whether that certificate was revoked; a second late at most."""
        with self._lock:
            now = self._clock.monotonic()
            if now >= self._look_at:
                self._look_at = now + _LOOK_INTERVAL
                with suppress(FileNotFoundError):
                    self._revoked = frozenset(path.name for path in (self._folder / "revoked").iterdir())
            return certificate_fingerprint in self._revoked

    # -- signing -------------------------------------------------------------------------------------------------

    def _issue(self, name: str, key: ec.EllipticCurvePublicKey) -> bytes:
        _checked(name)
        pem = self._signed(self._leaf(name, key, STATION_DAYS, ExtendedKeyUsageOID.CLIENT_AUTH))
        folder = self._folder / "issued" / name
        make_directories(folder)
        write_atomically(folder / f"{fingerprint(pem)}.pem", pem)  # before it is given out, or it could not be revoked
        return pem

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, days: int, usage: x509.ObjectIdentifier
    ) -> x509.CertificateBuilder:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _builder(subject, self._ca.subject, key, _now(self._clock), timedelta(days=days))
        return builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=True).add_extension(
            x509.BasicConstraints(ca=False, path_length=None), critical=True
        )

    def _signed(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(PEM)


def _checked(name: str) -> None:
    checked_name(STATION_NAME, name, "station")
    if len(name) > MAX_NAME:
        raise InvalidInputError(f"A certificate's common name has at most {MAX_NAME} characters.")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SLACK)
        .not_valid_after(now + life)
    )


def _now(clock: Clock) -> datetime:
    return datetime.fromtimestamp(clock.time_unix_nano() // 1_000_000_000, timezone.utc)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def write_private(path: Path, data: bytes) -> None:
    """Write *path* so that nobody but its owner can ever read it. DiskError. For the command line: sets the umask."""
    before = os.umask(0o077)
    try:
        write_atomically(path, data)
    finally:
        os.umask(before)


learn(_Token)
