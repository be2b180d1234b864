"""``outstation.v1.Enrolment``: a token for a certificate, and a certificate for a newer one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from outstation.errors import AccessDeniedError
from outstation.wire import convert
from outstation.wire.messages import EnrollRequest, IssuedCertificate
from outstation.wire.services import Caller, handler
from outstation_hub.access import Access
from outstation_hub.authority import Authority

log = logging.getLogger("outstation.hub")
SERVICE = "outstation.v1.Enrolment"


class EnrolmentService:
    """Serves ``Enroll`` where callers have no certificate, ``Renew`` where they have. Thread-safe."""

    def __init__(self, authority: Authority, access: Access, operators: Iterable[str]) -> None:
        self._authority = authority
        self._access = access
        self._operators = frozenset(operators)

    @property
    def open_handler(self) -> Any:
        """For the port that asks for no certificate."""
        return handler(SERVICE, {convert.ENROLL: self.enroll})

    @property
    def handler(self) -> Any:
        """For the main port."""
        return handler(SERVICE, {convert.RENEW: self.renew})

    def enroll(self, request: EnrollRequest, caller: Caller) -> IssuedCertificate:
        self._refuse_operators(request.station)
        self._authority.redeem(request.station, request.secret)
        issued = self._authority.issue(request.station, request.request)
        log.info("station %r enrolled from %s", request.station, caller.peer)
        return issued

    def renew(self, request: EnrollRequest, caller: Caller) -> IssuedCertificate:
        if caller.common_name is None:
            raise AccessDeniedError("A certificate is renewed with the one that it replaces.")
        self._access.station(caller, request.station)
        self._refuse_operators(request.station)
        issued = self._authority.issue(request.station, request.request)
        log.info("station %r renewed its certificate", request.station)
        return issued

    def _refuse_operators(self, station: str) -> None:
        # An operator is known by name too: a station of that name would be one.
        if station in self._operators:
            raise AccessDeniedError(f"{station!r} is an operator of this hub, and no station.")
