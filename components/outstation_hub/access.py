"""Who may do what: decided from the certificate that a caller proved to hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from outstation.errors import AccessDeniedError
from outstation.types import STATION_NAME, checked_name
from outstation.wire.services import Caller

_LOCAL_PEERS = ("unix:", "ipv4:127.", "ipv6:[::1]", "ipv6:%5B::1%5D")


class Access:
    """With mutual TLS the certificate's common name decides; in plain text only nearness can."""

    def __init__(
        self, operators: Iterable[str], is_revoked: Callable[[bytes], bool] = lambda certificate: False
    ) -> None:
        """*is_revoked* is asked with the caller's certificate in PEM."""
        self._operators = frozenset(operators)
        self._is_revoked = is_revoked

    def believed(self, caller: Caller) -> None:
        """The caller's certificate, if it has one, is not revoked. AccessDeniedError."""
        certificate = caller.certificate
        if certificate is not None and self._is_revoked(certificate):
            raise AccessDeniedError(
                f"The certificate of {caller.common_name!r} was revoked.", hint="Enrol the device again."
            )

    def station(self, caller: Caller, station: str) -> None:
        """*caller* is *station*. InvalidNameError or AccessDeniedError."""
        checked_name(STATION_NAME, station, "station")
        self.believed(caller)
        name = caller.common_name
        if name is not None and name != station:
            raise AccessDeniedError(
                f"The certificate is of {name!r}, and it speaks for {station!r}.",
                hint="The station's name must be the common name of its certificate.",
            )

    def reader(self, caller: Caller, station: str) -> None:
        """*caller* is *station*, or an operator. *station* may be "" for an operator."""
        self.believed(caller)
        if caller.common_name in self._operators or (caller.common_name is None and not station):
            return
        self.station(caller, station)

    def operator(self, caller: Caller) -> None:
        """*caller* may see and steer the fleet. AccessDeniedError."""
        self.believed(caller)
        name = caller.common_name
        if name in self._operators or (name is None and caller.peer.startswith(_LOCAL_PEERS)):
            return
        who = "A caller from another machine, in plain text," if name is None else f"{name!r}"
        raise AccessDeniedError(
            f"{who} is no operator of this hub.",
            hint="Use a certificate whose common name the hub lists as an operator, or ask on the hub's own machine.",
        )
