"""gRPC by method path: servers of :class:`outstation.wire.method.Method`, without generated services.

Clients are in :mod:`outstation.wire.client`. ``channel.py`` is the one file that imports grpc, and says which extra
brings it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

from outstation.errors import ConfigurationError, InvalidInputError, LinkDownError, OutstationError, SettingsError
from outstation.wire.channel import (
    DEFAULT_KEEPALIVE,
    ERROR_KEY,
    HINT_KEY,
    MAX_DETAILS,
    MAX_HINT_BYTES,
    MAX_MESSAGE_BYTES,
    STATUS_OF,
    Keepalive,
    Tls,
    grpc,
    pem,
)
from outstation.wire.method import Method

log = logging.getLogger("outstation.wire")


class Caller:
    """What a server's function may know of who calls it."""

    def __init__(self, context: Any) -> None:
        self._context = context

    @property
    def peer(self) -> str:
        """The address, as "ipv4:10.0.0.7:51234" or "unix:"."""
        return str(self._context.peer())

    @property
    def common_name(self) -> str | None:
        """The name in the certificate that the caller proved to hold; None without mutual TLS."""
        names = self._context.auth_context().get("x509_common_name")
        return names[0].decode("utf-8", "replace") if names else None

    @property
    def certificate(self) -> bytes | None:
        """The caller's certificate in PEM; None without mutual TLS."""
        values = self._context.auth_context().get("x509_pem_cert")
        return values[0] if values else None

    @property
    def is_active(self) -> bool:
        """False once the call has ended or was cancelled."""
        return bool(self._context.is_active())

    @property
    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline; None without one."""
        remaining = self._context.time_remaining()
        return None if remaining is None else float(remaining)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the call ends for whatever reason, on a thread of gRPC; at once if it has ended."""
        if not self._context.add_callback(callback):
            callback()


# (request, caller) -> response; iterators in place of either where the method streams.
Function = Callable[[Any, Caller], Any]


def _nobody(_: OutstationError) -> None: ...


def handler(
    service: str,
    functions: Mapping[Method[Any, Any], Function],
    *,
    on_refused: Callable[[OutstationError], None] = _nobody,
) -> Any:
    """*functions* as one gRPC service of the full name *service*, for :class:`Server`.

    A function takes (request, caller), or (iterator of requests, caller), and returns the response, or an iterator
    of responses, as values of the method's codecs. An OutstationError that it raises reaches the caller as itself;
    *on_refused* hears of it too, be it of a request that could not be read. It is called on the call's thread.
    """
    prefix = f"/{service}/"
    bound = {}
    for method, function in functions.items():
        if not method.path.startswith(prefix):
            raise InvalidInputError(f"{method.path} is no method of the service {service}.")
        bound[method.path[len(prefix) :]] = _bound(method, function, on_refused)
    return grpc.method_handlers_generic_handler(service, bound)


def _bound(method: Method[Any, Any], function: Function, on_refused: Callable[[OutstationError], None]) -> Any:
    decode, encode = method.request.decode, method.response.encode

    def one(request: Any, context: Any) -> bytes:
        with _aborting(context, method.path, on_refused):
            value = _requests(request, decode) if method.streams_requests else decode(request)
            return encode(function(value, Caller(context)))

    def many(request: Any, context: Any) -> Iterator[bytes]:
        with _aborting(context, method.path, on_refused):
            value = _requests(request, decode) if method.streams_requests else decode(request)
            for response in function(value, Caller(context)):
                yield encode(response)

    kinds = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }
    return kinds[method.streams_requests, method.streams_responses](many if method.streams_responses else one)


def _requests(requests: Iterator[bytes], decode: Callable[[bytes], Any]) -> Iterator[Any]:
    try:
        for request in requests:
            yield decode(request)
    except grpc.RpcError as exc:
        raise LinkDownError("The caller has gone.") from exc


@contextmanager
def _aborting(context: Any, path: str, on_refused: Callable[[OutstationError], None]) -> Iterator[None]:
    try:
        yield
    except OutstationError as exc:
        on_refused(exc)
        status = next(status for kind, status in STATUS_OF if isinstance(exc, kind))
        metadata = ((ERROR_KEY, type(exc).__name__), (HINT_KEY, exc.hint.encode()[:MAX_HINT_BYTES]))
        context.set_trailing_metadata(metadata)
        context.abort(status, str(exc)[:MAX_DETAILS])
    except Exception:
        if not context.is_active():
            raise
        # The other side learns that it failed, not how we are built; the log knows the rest.
        log.exception("%s failed", path)
        context.abort(grpc.StatusCode.INTERNAL, f"{path} failed inside the server; its log says why.")


class Server:
    """One gRPC server. Made, told where to listen, started, closed; ``workers`` calls run at once.

    A streaming call holds its worker until it ends. Beyond ``workers`` as many calls as ``queue`` says wait for one;
    further calls are turned away at once (ProviderUnavailableError at the caller) instead of waiting unseen.
    """

    def __init__(
        self,
        services: Iterable[Any],
        *,
        workers: int,
        queue: int = 0,
        tls: Tls | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        keepalive: Keepalive = DEFAULT_KEEPALIVE,
        name: str = "rpc",
    ) -> None:
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix=f"outstation-{name}")
        options = (
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            ("grpc.max_metadata_size", 16 << 10),
            ("grpc.so_reuseport", 0),  # two servers on one port would take turns; the second must fail
            *keepalive.options(),
            ("grpc.keepalive_permit_without_calls", 1),
            # Clients look after their link with pings of their own; the default of 5 minutes would call that abuse.
            ("grpc.http2.min_ping_interval_without_data_ms", 500),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 500),
            ("grpc.http2.max_ping_strikes", 0),
        )
        self._server = grpc.server(
            self._pool, tuple(services), options=options, maximum_concurrent_rpcs=workers + queue
        )
        self._credentials = None if tls is None else _server_credentials(tls)

    def listen(self, address: str) -> str:
        """Listen on "host:port" (port 0: any free one) or "unix:/path"; the address with its real port.

        May be called more than once, before :meth:`start`. A unix socket is always plain. ConfigurationError when
        the address is taken or is not ours.
        """
        try:
            if self._credentials is None or address.startswith("unix:"):
                port = self._server.add_insecure_port(address)
            else:
                port = self._server.add_secure_port(address, self._credentials)
        except (RuntimeError, ValueError) as exc:
            raise ConfigurationError(
                f"Could not listen on {address}.",
                hint="Another process may hold the port, or the address is not of this machine.",
            ) from exc
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def start(self) -> None:
        self._server.start()

    def close(self, grace: float = 1.0) -> None:
        """Take no more calls, give those that run *grace* seconds, cancel the rest, join the workers. Idempotent."""
        self._server.stop(grace).wait()
        self._pool.shutdown(wait=True)


def _server_credentials(tls: Tls) -> Any:
    if tls.certificate is None or tls.key is None:
        raise SettingsError("A server with TLS needs a certificate and its key.")
    ca = None if tls.ca is None else pem(tls.ca)
    pair = (pem(tls.key), pem(tls.certificate))
    return grpc.ssl_server_credentials((pair,), root_certificates=ca, require_client_auth=ca is not None)
