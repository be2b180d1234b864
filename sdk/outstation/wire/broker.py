"""A broker's address and how each side knows the other, made into clients of awscrt: the one file that imports it.

Secrets come from files or the environment, and stand in no message and no ``repr``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from outstation.errors import MissingExtraError, SettingsError
from outstation.wire.address import is_loopback

try:
    from awscrt import io, mqtt5
    from awscrt.exceptions import AwsCrtError
except ImportError as exc:
    raise MissingExtraError("mqtt", "MQTT") from exc

__all__ = ["AwsCrtError", "Broker", "Credentials", "Transport", "mqtt5", "secret"]

# A password is a line; more is some other file.
_MAX_SECRET_BYTES = 4096
# A certificate, a key, a list of authorities: PEM files of a few KB.
_MAX_PEM_BYTES = 1 << 20
_CERTIFICATES = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL)
_KEY = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----\n?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who this side is, and whom it believes. Empty = nothing of the kind. Paths are PEM files."""

    ca: str = ""  # who signed the broker's certificate; "" = the authorities this machine trusts
    certificate: str = ""
    key: str = ""
    user: str = ""
    password: str = ""  # "env:NAME" or "file:PATH"
    insecure: bool = False  # plain text to another machine

    def tls_for(self, address: str, where: str) -> bool:
        """Whether the broker at *address* is spoken to with TLS; SettingsError when nothing proves who is who.

        *where* names the table or flags that the credentials came from.
        """
        if not re.fullmatch(r".+:\d{1,5}", address):
            raise SettingsError(f"{where}: {address!r} is no host:port.")
        if bool(self.certificate) != bool(self.key):
            raise SettingsError(f"{where}: a certificate and its key belong together.")
        if self.insecure or (is_loopback(address) and not self.ca and not self.certificate):
            return False
        if not self.certificate and not self.user:
            raise SettingsError(
                f"The broker at {address} is another machine, and {where} has nothing to show it.",
                hint="Set a certificate and its key, or a user and password, or insecure on a network that you trust.",
            )
        return True


def secret(source: str, where: str, environ: Mapping[str, str] | None = None) -> str:
    """What "env:NAME" or "file:PATH" holds, without the line's end. SettingsError, which never holds the secret."""
    kind, _, name = source.partition(":")
    if kind == "env":
        text = (os.environ if environ is None else environ).get(name, "")
        if not text:
            raise SettingsError(f"The environment has no {name}, which {where} names.")
    elif kind == "file":
        text = _read(name, where, _MAX_SECRET_BYTES).decode(errors="replace")
    else:
        raise SettingsError(f"{where} names no secret.", hint="Write file:PATH or env:NAME.")
    return text.rstrip("\r\n")


@dataclass(frozen=True, slots=True)
class Broker:
    """Where a broker is and how to speak to it. Seconds, bytes."""

    address: str  # host:port
    client_id: str
    credentials: Credentials = Credentials()
    tls: bool = False
    keepalive_interval: float = 7.0  # whole seconds on the wire, at least one
    keepalive_timeout: float = 3.0
    session_expiry: int = 0  # seconds that the broker keeps the session and holds back the will
    max_packet_bytes: int = 2 << 20  # what this side takes in one packet; the broker drops what is larger
    receive_maximum: int = 64  # deliveries that may wait for `settle`
    iot_core_limits: bool = False  # let awscrt also keep AWS IoT Core's limits: slashes, topics a SUBSCRIBE, rates

    @property
    def host(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])


class Transport:
    """The event loop (one native thread, from the first client on) of one owner; its connections come and go."""

    def __init__(self, broker: Broker, where: str) -> None:
        """SettingsError when a certificate, a key or a secret cannot be read."""
        self.broker = broker
        credentials = broker.credentials
        self._password = secret(credentials.password, f"{where} password") if credentials.password else None
        if broker.tls:
            _tls_context(credentials, where)  # a wrong file is an error of the settings, not of the first connection
        self._where = where
        self._bootstrap: io.ClientBootstrap | None = None

    def client(self, callbacks: Mapping[str, Callable[[Any], None]], will: mqtt5.PublishPacket | None) -> mqtt5.Client:
        """A client that is not started yet; one caller at a time. SettingsError when a file can no longer be read."""
        if self._bootstrap is None:
            group = io.EventLoopGroup(1)
            self._bootstrap = io.ClientBootstrap(group, io.DefaultHostResolver(group))
        broker = self.broker
        # Read anew for each connection: a certificate that was renewed meanwhile is used.
        tls = _tls_context(broker.credentials, self._where) if broker.tls else None
        connect = mqtt5.ConnectPacket(
            client_id=broker.client_id,
            keep_alive_interval_sec=max(1, round(broker.keepalive_interval)),
            username=broker.credentials.user or None,
            password=self._password,
            session_expiry_interval_sec=broker.session_expiry or None,
            receive_maximum=broker.receive_maximum,
            maximum_packet_size=broker.max_packet_bytes,
            will=will,
            will_delay_interval_sec=(broker.session_expiry or None) if will is not None else None,
        )
        sessions = mqtt5.ClientSessionBehaviorType
        options = mqtt5.ClientOptions(
            host_name=broker.host,
            port=broker.port,
            bootstrap=self._bootstrap,
            tls_ctx=tls,
            connect_options=connect,
            session_behavior=sessions.REJOIN_ALWAYS if broker.session_expiry else sessions.CLEAN,
            extended_validation_and_flow_control_options=(
                mqtt5.ExtendedValidationAndFlowControlOptions.AWS_IOT_CORE_DEFAULTS
                if broker.iot_core_limits
                else mqtt5.ExtendedValidationAndFlowControlOptions.NONE
            ),
            offline_queue_behavior=mqtt5.ClientOperationQueueBehaviorType.FAIL_ALL_ON_DISCONNECT,
            # The first failure stops the client; these only keep it from trying again before that order arrives.
            min_reconnect_delay_ms=60_000,
            max_reconnect_delay_ms=60_000,
            # awscrt takes a timeout shorter than the interval only.
            ping_timeout_ms=round(1000 * min(broker.keepalive_timeout, 0.9 * max(1.0, broker.keepalive_interval))),
            disable_metrics=True,  # they would be appended to the user's name
            **callbacks,
        )
        return mqtt5.Client(options)


def _tls_context(credentials: Credentials, where: str) -> io.ClientTlsContext:
    if credentials.certificate:
        # Enrolment writes both into one file; each side gets its own part.
        certificate = b"".join(_CERTIFICATES.findall(_read(credentials.certificate, where, _MAX_PEM_BYTES)))
        key = b"".join(_KEY.findall(_read(credentials.key, where, _MAX_PEM_BYTES))[:1])
        if not certificate or not key:
            raise SettingsError(
                f"{where}: {credentials.certificate} and {credentials.key} hold no certificate and key."
            )
        options = io.TlsContextOptions.create_client_with_mtls(certificate, key)
    else:
        options = io.TlsContextOptions()
    if credentials.ca:
        options.override_default_trust_store(_read(credentials.ca, where, _MAX_PEM_BYTES))
    try:
        return io.ClientTlsContext(options)
    except (RuntimeError, AwsCrtError) as exc:
        raise SettingsError(f"{where}: the certificate, key or authority cannot be used: {exc}") from exc


def _read(path: str, where: str, max_bytes: int) -> bytes:
    try:
        with Path(path).open("rb") as file:
            return file.read(max_bytes)
    except OSError as exc:
        raise SettingsError(f"{where}: {path} cannot be read: {exc.strerror}.") from exc
