"""What grpcio alone can do: a server that takes a stream of bytes and answers each message with its number."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

PATH = "/bench.Bare/Push"


def push(requests: Iterator[bytes], _context: Any) -> Iterator[bytes]:
    for number, _ in enumerate(requests, 1):
        yield number.to_bytes(8, "little")


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.max_receive_message_length", 64 << 20)])
    methods = {"Push": grpc.stream_stream_rpc_method_handler(push)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bench.Bare", methods),))
    server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}")
    server.start()
    server.wait_for_termination()
