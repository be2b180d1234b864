"""gRPC by method path: servers and clients of :class:`outstation.wire.method.Method`, without generated services.

The only file beside ``providers/hub.py`` that imports grpc. Errors of ours cross the wire whole: a server sends the
class, the sentence and the hint in the trailing metadata, a client raises that class again. Any other failure of
gRPC becomes the error of ours that fits its status code, around iteration too.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Literal

from outstation import errors
from outstation.errors import (
    AccessDeniedError,
    ClosedError,
    ConfigurationError,
    DeadlineError,
    InferenceError,
    InvalidInputError,
    LinkDownError,
    MissingExtraError,
    ModelNotFoundError,
    OutstationError,
    ProviderUnavailableError,
    RefusedError,
    SettingsError,
    WireError,
)
from outstation.wire.method import Method, Request, Response

try:
    import grpc
except ImportError as exc:
    raise MissingExtraError("hub", "gRPC") from exc

log = logging.getLogger("outstation.wire")

# A block's body is at most 64 MiB (outstation.wire.block), plus its header and the fields around it.
MAX_MESSAGE_BYTES = (64 << 20) + (64 << 10)
# Both travel in HTTP/2 headers, of which most peers take 8 KiB in all.
MAX_DETAILS = 2000
MAX_HINT_BYTES = 1000
# A wait on gRPC's future cannot be interrupted, so whoever waits looks up this often (seconds).
_LOOK_INTERVAL = 0.05
_NO_METHOD = "/outstation.Nobody/Nothing"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
# A name that every hub's certificate holds, so that stations need not care by which address they reach it.
HUB_NAME = "outstation-hub"
_ERROR_KEY, _HINT_KEY = "outstation-error", "outstation-hint-bin"

# Which status a server answers with; the first that matches wins.
_STATUS_OF: tuple[tuple[type[OutstationError], Any], ...] = (
    (ModelNotFoundError, grpc.StatusCode.NOT_FOUND),
    (InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (WireError, grpc.StatusCode.INVALID_ARGUMENT),
    (AccessDeniedError, grpc.StatusCode.PERMISSION_DENIED),
    (DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (RefusedError, grpc.StatusCode.FAILED_PRECONDITION),
    (InferenceError, grpc.StatusCode.INTERNAL),
    (OutstationError, grpc.StatusCode.UNAVAILABLE),
)
# What a status means when the server said nothing more.
_ERROR_OF: Mapping[Any, type[OutstationError]] = {
    grpc.StatusCode.UNAVAILABLE: LinkDownError,
    grpc.StatusCode.CANCELLED: LinkDownError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.PERMISSION_DENIED: AccessDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: AccessDeniedError,
    grpc.StatusCode.NOT_FOUND: ModelNotFoundError,
    grpc.StatusCode.INVALID_ARGUMENT: RefusedError,
    grpc.StatusCode.FAILED_PRECONDITION: RefusedError,
    grpc.StatusCode.OUT_OF_RANGE: RefusedError,
    grpc.StatusCode.UNIMPLEMENTED: RefusedError,
}


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files: the authority that signs the other side, and our own certificate and key (None: we show none)."""

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


@dataclass(frozen=True, slots=True)
class Keepalive:
    """A connection that swallows everything is given up after ``interval`` + ``timeout`` seconds."""

    interval: float = 7.0
    timeout: float = 3.0

    def options(self) -> tuple[tuple[str, int], ...]:
        """As channel arguments."""
        return (
            ("grpc.keepalive_time_ms", round(self.interval * 1000)),
            ("grpc.keepalive_timeout_ms", round(self.timeout * 1000)),
            # gRPC also pings to measure the link. While such a ping is out no keepalive is sent, and it would be
            # waited for a minute: a link that dies just then must be noticed as soon as any other.
            ("grpc.http2.ping_timeout_ms", round((self.interval + self.timeout) * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
        )


def is_loopback(address: str) -> bool:
    """Whether *address* ("host:port" or "unix:/path") can only be reached from this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


# -- server ------------------------------------------------------------------------------------------------------


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


def handler(service: str, functions: Mapping[Method[Any, Any], Function]) -> Any:
    """*functions* as one gRPC service of the full name *service*, for :class:`Server`.

    A function takes (request, caller), or (iterator of requests, caller), and returns the response, or an iterator
    of responses, as values of the method's codecs. An OutstationError that it raises reaches the caller as itself.
    """
    prefix = f"/{service}/"
    bound = {}
    for method, function in functions.items():
        if not method.path.startswith(prefix):
            raise InvalidInputError(f"{method.path} is no method of the service {service}.")
        bound[method.path[len(prefix) :]] = _bound(method, function)
    return grpc.method_handlers_generic_handler(service, bound)


def _bound(method: Method[Any, Any], function: Function) -> Any:
    decode, encode = method.request.decode, method.response.encode

    def one(request: Any, context: Any) -> bytes:
        with _aborting(context, method.path):
            value = _requests(request, decode) if method.streams_requests else decode(request)
            return encode(function(value, Caller(context)))

    def many(request: Any, context: Any) -> Iterator[bytes]:
        with _aborting(context, method.path):
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
def _aborting(context: Any, path: str) -> Iterator[None]:
    try:
        yield
    except OutstationError as exc:
        status = next(status for kind, status in _STATUS_OF if isinstance(exc, kind))
        metadata = ((_ERROR_KEY, type(exc).__name__), (_HINT_KEY, exc.hint.encode()[:MAX_HINT_BYTES]))
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
        keepalive: Keepalive = Keepalive(),
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
    ca = None if tls.ca is None else _pem(tls.ca)
    pair = (_pem(tls.key), _pem(tls.certificate))
    return grpc.ssl_server_credentials((pair,), root_certificates=ca, require_client_auth=ca is not None)


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise SettingsError(f"Could not read {path}: {exc.strerror}.", hint="It must be a PEM file.") from exc


# -- client ------------------------------------------------------------------------------------------------------


class Client:
    """Calls to one server. Thread-safe. Nothing is connected before the first call; a lost link is found again.

    *target* is "host:port" or "unix:/path". After an outage gRPC tries again within ``reconnect_ceiling`` seconds.
    """

    def __init__(
        self,
        target: str,
        *,
        tls: Tls | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        keepalive: Keepalive = Keepalive(),
        reconnect_ceiling: float = 2.0,
        server_name: str = "",
    ) -> None:
        options: list[tuple[str, str | int]] = [
            ("grpc.max_receive_message_length", max_message_bytes),
            ("grpc.max_send_message_length", max_message_bytes),
            *keepalive.options(),
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", round(reconnect_ceiling * 1000)),
            ("grpc.enable_retries", 0),  # the caller decides what is sent again
            ("grpc.use_local_subchannel_pool", 1),  # this client's connection is its own, and so is its backoff
        ]
        if is_loopback(target):
            options.append(("grpc.enable_http_proxy", 0))
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        self.target = target
        if tls is None or target.startswith("unix:"):
            self._channel = grpc.insecure_channel(target, options)
        else:
            self._channel = grpc.secure_channel(target, _channel_credentials(tls), options)
        self._closed = threading.Event()

    def wait_ready(self, timeout: float, stop: threading.Event | None = None) -> None:
        """Block until the server answers; when it does not within *timeout* seconds, a LinkError that says why.

        Ends early, with ClosedError, when *stop* is set or the client is closed.
        """
        # Any answer will do, so the method asked for need not exist. (gRPC's own watch of the connection polls on
        # a thread that dies with a traceback when the channel is closed.)
        with self._open():
            ask = self._channel.unary_unary(_NO_METHOD)
            waiting = ask.future(b"", timeout, wait_for_ready=True)
        try:
            while not _answered(waiting):
                if self._closed.is_set() or (stop is not None and stop.is_set()):
                    raise ClosedError(f"Nobody waits for {self.target} any more.")
        except grpc.RpcError as exc:
            if self._closed.is_set():
                raise ClosedError(f"The client of {self.target} is closed.") from exc
            raise self._reason(ask) from exc
        finally:
            waiting.cancel()

    def _reason(self, ask: Any) -> OutstationError:
        """Why the server does not answer: a call that does not wait fails with gRPC's last attempt."""
        try:
            ask(b"", 5 * _LOOK_INTERVAL)
        except grpc.RpcError as exc:
            if exc.code() in _NO_ANSWER:
                error = from_rpc_error(exc, self.target)
                return (
                    error if not isinstance(error, DeadlineError) else LinkDownError(f"{self.target} does not answer.")
                )
        except ValueError as exc:
            return ClosedError(str(exc))
        return LinkDownError(f"{self.target} answered too late.")

    def unary(self, method: Method[Request, Response]) -> Callable[[Request, float | None], Response]:
        """The method as a function of (request, timeout); keep it, making it costs more than calling it."""
        with self._open():
            call = self._channel.unary_unary(method.path)
        encode, decode = method.request.encode, method.response.decode

        def invoke(request: Request, timeout: float | None) -> Response:
            try:
                return decode(call(encode(request), timeout))
            except grpc.RpcError as exc:
                raise from_rpc_error(exc, self.target) from exc
            except ValueError as exc:  # gRPC's word for a closed channel
                raise self._unusable(exc) from exc

        return invoke

    def stream(
        self, method: Method[Request, Response], request: Request | Iterator[Request], timeout: float | None = None
    ) -> Responses[Response]:
        """Begin a call with many responses; *request* is an iterator where the method streams requests.

        gRPC drains that iterator on a thread of its own, which ends when the iterator does.
        """
        with self._open():
            make = self._channel.stream_stream if method.streams_requests else self._channel.unary_stream
            encode: Any = method.request.encode
            argument = map(encode, request) if method.streams_requests else encode(request)  # type: ignore[arg-type]
            return Responses(make(method.path)(argument, timeout), method, self.target)

    def close(self) -> None:
        """End every call and the connection. Idempotent."""
        self._closed.set()
        self._channel.close()

    @contextmanager
    def _open(self) -> Iterator[None]:
        try:
            if self._closed.is_set():
                raise ClosedError(f"The client of {self.target} is closed.")
            yield
        except ValueError as exc:
            raise self._unusable(exc) from exc

    def _unusable(self, exc: ValueError) -> Exception:
        return ClosedError(f"The client of {self.target} is closed.") if self._closed.is_set() else exc

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False


class Responses(Generic[Response]):
    """The responses of one call, in order. Iterate on one thread; :meth:`cancel` from any. A context manager."""

    def __init__(self, call: Any, method: Method[Any, Response], target: str) -> None:
        self._call = call
        self._decode = method.response.decode
        self._target = target

    def __iter__(self) -> Iterator[Response]:
        return self

    def __next__(self) -> Response:
        try:
            data = next(self._call)
        except grpc.RpcError as exc:
            raise from_rpc_error(exc, self._target) from exc
        return self._decode(data)

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when the call has ended, on a thread of gRPC; at once if it has ended."""
        if not self._call.add_callback(callback):
            callback()

    def cancel(self) -> None:
        """End the call now. Idempotent; an iteration in progress ends with LinkDownError."""
        self._call.cancel()

    def __enter__(self) -> Responses[Response]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.cancel()
        return False


def _answered(waiting: Any) -> bool:
    """Whether the server has said anything, be it no. Raises grpc.RpcError when it did not within the deadline."""
    try:
        waiting.result(_LOOK_INTERVAL)
    except grpc.FutureTimeoutError:
        return False
    except grpc.FutureCancelledError as exc:
        raise ClosedError("The client was closed.") from exc
    except grpc.RpcError as exc:
        if exc.code() in _NO_ANSWER:
            raise
    return True


def _channel_credentials(tls: Tls) -> Any:
    if (tls.certificate is None) != (tls.key is None):
        raise SettingsError("A certificate and its key belong together: give both or none.")
    ca = None if tls.ca is None else _pem(tls.ca)
    if tls.certificate is None or tls.key is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, _pem(tls.key), _pem(tls.certificate))


def from_rpc_error(exc: Any, target: str) -> OutstationError:
    """The error of ours for a failed call: the very one that our server raised, else what the status says."""
    details = exc.details() or exc.code().name
    metadata = dict(exc.trailing_metadata() or ())
    kind = getattr(errors, str(metadata.get(_ERROR_KEY, "")), None)
    if isinstance(kind, type) and issubclass(kind, OutstationError) and kind is not MissingExtraError:
        hint = metadata.get(_HINT_KEY, b"")
        return kind(details, hint=hint.decode("utf-8", "replace"))
    code = exc.code()
    if code is grpc.StatusCode.UNAVAILABLE:
        if "CERTIFICATE" in details.upper() and "HANDSHAKE" in details.upper():
            return AccessDeniedError(f"{target} and this side do not trust each other's certificates: {details}")
        return LinkDownError(f"{target} does not answer: {details}")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return RefusedError(f"{target} does not take messages of that size: {details}")
    return _ERROR_OF.get(code, ProviderUnavailableError)(f"{target}: {details}")
