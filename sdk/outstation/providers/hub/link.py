"""The one connection of the provider ``hub``, for all its parts."""

from __future__ import annotations

import logging
import secrets
import threading

from outstation.clock import Clock
from outstation.errors import (
    ClosedError,
    LinkError,
    MissingExtraError,
    StorageError,
)
from outstation.providers.hub.options import HubOptions
from outstation.wire.channel import Keepalive, Tls
from outstation.wire.client import Client

log = logging.getLogger("outstation.providers")


class Link:
    """The one client of the provider, made at the first call. After close there is none."""

    def __init__(self, station: str, options: HubOptions, tls: Tls | None, clock: Clock) -> None:
        self.address = options.address
        self.instance = secrets.token_hex(8)  # the hub tells two devices of one name by it
        self._station = station
        self._options = options
        self._tls = tls
        self._clock = clock
        self._lock = threading.Lock()
        self._client: Client | None = None
        self._closed = False

    def client(self) -> Client:
        with self._lock:
            if self._closed:
                raise ClosedError("The provider is closed.")
            if self._client is None:
                options = self._options
                self._client = Client(
                    options.address,
                    tls=self._tls,
                    max_message_bytes=options.max_message_bytes + (64 << 10),
                    keepalive=Keepalive(options.keepalive_interval, options.keepalive_timeout),
                    server_name=options.server_name,
                )
            return self._client

    def renew_if_due(self, timeout: float) -> None:
        """Replace a certificate that nears its end; the next call uses the new one. Never raises LinkError.

        Only a pair that lies in one file, as enrolment writes it, is replaced: any other is somebody else's to keep.
        """
        tls = self._tls
        if tls is None or tls.certificate is None or tls.certificate != tls.key:
            return
        try:
            # cryptography, which a device with certificates from elsewhere does not need
            from outstation import enrolment  # noqa: PLC0415

            if enrolment.is_due(tls.certificate, self._clock):
                enrolment.renew(self.client(), self._station, tls.certificate, timeout)
                self._drop_client()
        except (LinkError, StorageError, MissingExtraError) as exc:
            log.warning("the certificate could not be renewed yet: %s", exc)

    def _drop_client(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            client, self._client = self._client, None
        if client is not None:
            client.close()
