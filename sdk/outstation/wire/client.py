"""Calls to a server, by method path. See :mod:`outstation.wire.services` for the other side."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Generic, Literal

from outstation.errors import ClosedError, DeadlineError, LinkDownError, OutstationError, SettingsError
from outstation.wire.address import is_loopback
from outstation.wire.channel import (
    DEFAULT_KEEPALIVE,
    MAX_MESSAGE_BYTES,
    Keepalive,
    Tls,
    from_rpc_error,
    grpc,
    pem,
)
from outstation.wire.method import Method, Request, Response

# A wait on gRPC's future cannot be interrupted, so whoever waits looks up this often (seconds).
_LOOK_INTERVAL = 0.05
_NO_METHOD = "/outstation.Nobody/Nothing"
_NO_ANSWER = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


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
        keepalive: Keepalive = DEFAULT_KEEPALIVE,
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
    ca = None if tls.ca is None else pem(tls.ca)
    if tls.certificate is None or tls.key is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, pem(tls.key), pem(tls.certificate))
