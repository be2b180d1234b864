"""A link that breaks after so many bytes, again and again."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress


class CuttingLink:
    """A TCP proxy on loopback that ends each connection after ``cut`` bytes downwards; None = never.

    ``bytes_per_second`` bounds each connection downwards: a link is slower than whoever reads from it.
    """

    def __init__(self, port):
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.cut = None
        self.bytes_per_second = None
        self.bytes_down = 0
        self._ends = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for end in self._ends:
            _shut(end)
        for thread in self._threads:
            thread.join()
        for end in self._ends:
            end.close()

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target)
            self._ends += [near, far]
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink, down in ((near, far, False), (far, near, True)):
                thread = threading.Thread(target=self._carry, args=(source, sink, down))
                self._threads.append(thread)
                thread.start()

    def _carry(self, source, sink, down):
        left = self.cut if down else None
        try:
            while left != 0 and (data := source.recv(1 << 16)):
                data = data[:left]
                sink.sendall(data)
                if down:
                    self.bytes_down += len(data)
                    if self.bytes_per_second is not None:
                        time.sleep(len(data) / self.bytes_per_second)
                if left is not None:
                    left -= len(data)
        except OSError:
            pass
        for end in (source, sink):
            _shut(end)


def _shut(end):
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
