"""A real nats-server for tests."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
from importlib.util import find_spec

from support import wait_until


def _missing() -> str:
    if os.environ.get("CI"):
        return ""  # there nothing may be missing: the tests fail
    if shutil.which("nats-server") is None:
        return "needs nats-server (apt install nats-server)"
    return "" if find_spec("nats") else "needs nats-py"


MISSING = _missing()  # why tests of NATS cannot run here; "" when they can


class NatsServer:
    """A real nats-server with JetStream, which may be stopped and started again."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder = folder
        self.url = f"nats://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        command = ["nats-server", "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers)
        return self

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def __enter__(self):
        return self.start()

    def __exit__(self, *exc):
        if self.process.poll() is None:
            self.stop()

    def _answers(self):
        with socket.socket() as end:
            return end.connect_ex(("127.0.0.1", self.port)) == 0

    def messages(self):
        """Every message of the stream: (subject, headers, payload)."""
        import nats  # noqa: PLC0415  an extra that most tests do without

        async def read():
            client = await nats.connect(self.url)
            jetstream = client.jetstream()
            count = (await jetstream.stream_info("OUTSTATION")).state.messages
            found = []
            if count:
                subscription = await jetstream.subscribe("outstation.>", ordered_consumer=True)
                for _ in range(count):
                    message = await subscription.next_msg(5)
                    found.append((message.subject, message.headers, message.data))
            await client.close()
            return found

        return asyncio.run(read())

    def make_stream(self, **config):
        self._manage(lambda jetstream: jetstream.add_stream(name="OUTSTATION", subjects=["outstation.>"], **config))

    def purge_ids(self):
        """Let the duplicate window pass: what came before it is no longer known by its id."""

        async def shrink(jetstream):
            config = (await jetstream.stream_info("OUTSTATION")).config
            config.duplicate_window = 0.1
            await jetstream.update_stream(config)
            await asyncio.sleep(0.3)  # the server's own clock

        self._manage(shrink)

    def _manage(self, change):
        import nats  # noqa: PLC0415  an extra that most tests do without

        async def run():
            client = await nats.connect(self.url)
            await change(client.jetstream())
            await client.close()

        asyncio.run(run())
