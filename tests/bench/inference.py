"""Inference: what a call costs in the process and over gRPC, beside a minimal grpcio server and MLServer.

The load comes from h2load (apt: nghttp2-client), a program in C, so that no Python client is the wall; every server
gets the same bytes. perf_analyzer (`make perf-analyzer`) measures those that answer what it asks first: MLServer does
not. Servers run one after the other; each is asked once with a real client first, so that only right answers are
measured. MLServer, LitServe and BentoML are installed into environments of their own below build/bench.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np
import onnxruntime
import report
from report import Row

from outstation.inference.captures import Captures
from outstation.inference.loading import load_file
from outstation.inference.model import Model
from outstation.inference.remote import RemoteModels
from outstation.settings import CaptureSettings
from outstation.wire.client import Client
from outstation.wire.questions import SHARED_MEMORY_REGISTER
from outstation.wire.shared import Region, SharedTensor, Window
from outstation.wire.tensors import InferRequest

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent / "peers"))
import inference_peers as peers

from perf_analyzer import Measured, analyzed, runs_here

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples/meter-reading/models/v2.onnx"
INFER = "/inference.GRPCInferenceService/ModelInfer"
GRPC = ("content-type: application/grpc", "te: trailers")
JSON = ("content-type: application/json",)
PORT = 18_731
TINY = {"image": np.ones((1, 8, 8), np.float32)}
LARGE = {"image": np.ones((1, 3, 224, 224), np.float32)}


@dataclass(frozen=True)
class Server:
    """A started server: where it is, how long it took to answer, what it holds in memory."""

    port: int
    pid: int
    ready: float

    @property
    def resident_bytes(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@contextmanager
def started(command: list[str], port: int, answers: Callable[[], object]) -> Iterator[Server]:
    """The server that *command* starts, once it listens and *answers* has returned."""
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        while not listens(port):  # gRPC's own client waits ever longer between two tries
            if process.poll() is not None or time.monotonic() - begin > 60:
                raise SystemExit(f"{' '.join(command)} did not start")
            time.sleep(0.01)
        answers()
        yield Server(port, process.pid, time.monotonic() - begin)
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # some have processes of their own
        process.wait(20)


def infer(name: str, inputs: dict[str, np.ndarray]) -> None:
    with RemoteModels(f"127.0.0.1:{PORT}") as models:
        models.infer(InferRequest(name, inputs), 30.0)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def load(server: Server, body: Path, calls: int, clients: int, rest: str = "") -> tuple[float, float]:
    """Median latency in seconds, and calls a second; over gRPC, or JSON at the path *rest*."""
    with tempfile.NamedTemporaryFile() as log:
        command = ["h2load", "-n", str(calls), "-c", str(clients), "-m", "1", "-d", str(body)]
        command += ["--h1"] if rest else []
        command += [part for header in (JSON if rest else GRPC) for part in ("-H", header)]
        command += [f"--log-file={log.name}", f"http://127.0.0.1:{server.port}{rest or INFER}"]
        begin = time.monotonic()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        took = time.monotonic() - begin
        rows = [line.split("\t") for line in Path(log.name).read_text().splitlines()]
    answered = [int(latency) / 1e6 for _, status, latency in rows if status == "200"]
    if len(answered) != calls:
        raise SystemExit(f"{calls - len(answered)} of {calls} calls were not answered")
    return statistics.median(answered), calls / took


def under_analysis(server: Server, name: str, clients: int, calls: int) -> Measured:
    """What perf_analyzer sees of the digits' model: windows of so many *calls*, the mean of three that agree."""
    options = ["-i", "grpc", "--shape", "image:1,8,8", "--concurrency-range", str(clients)]
    options += ["--measurement-mode", "count_windows", "--measurement-request-count", str(calls)]
    options += ["--stability-percentage", "30", "--max-trials", "30"]  # a machine of two cores has its moods
    return analyzed(f"127.0.0.1:{server.port}", name, *options)


def medians(functions: list[Callable[[], object]], calls: int) -> list[float]:
    """The median time of each, taken in turns so that the machine's moods hit all alike."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(calls):
        for function, taken in zip(functions, times, strict=True):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return [statistics.median(taken) for taken in times]


def bare(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


class Nowhere:
    """A buffer for captures that keeps none."""

    def stream(self, _name: str) -> Nowhere:
        return self

    def append(self, *_payload: object, **_rest: object) -> None: ...


def in_process(scale: float) -> list[Row]:
    session = bare(DIGITS)
    names = [output.name for output in session.get_outputs()]
    captures = Captures(Nowhere(), {"meter-digits": CaptureSettings(rate=0.001, below=0.1)})
    version = load_file(DIGITS)
    version.sampler = captures.sampler("meter-digits", "1", version.signature.outputs, ())
    with Model("meter-digits", load_file(DIGITS)) as model, Model("meter-digits", version) as captured:
        ours, sampled, theirs = medians(
            [lambda: model.run(TINY), lambda: captured.run(TINY), lambda: session.run(names, TINY)],
            max(200, round(20_000 * scale)),
        )
    captures.close()
    more = (sampled - ours) * 1e6
    return [
        Row("Model.run over a bare run, tiny net, median", (ours - theirs) * 1e6, reach=10, smaller=True, unit="µs"),
        Row("captures by rate and low confidence, more, median", more, reach=10, smaller=True, unit="µs"),
    ]


@contextmanager
def shared(server: Server, name: str) -> Iterator[InferRequest]:
    """A call of the large net whose image lies in shared memory, and whose scores are wanted there."""
    image, scores = LARGE["image"], 4000
    path = Path(f"/dev/shm/outstation-bench-{server.pid}")
    try:
        path.write_bytes(image.tobytes() + b"\0" * scores)
        with Client(f"127.0.0.1:{server.port}") as client:
            region = Region("bench", path.name, 0, image.nbytes + scores)
            client.unary(SHARED_MEMORY_REGISTER)(region, 10.0)
        tensor = SharedTensor("FP32", image.shape, Window("bench", 0, image.nbytes))
        into = {"scores": Window("bench", image.nbytes, scores)}
        yield InferRequest(name, {}, shared={"image": tensor}, outputs=("scores",), into=into)
    finally:
        path.unlink(missing_ok=True)


def body(folder: Path, name: str, request: InferRequest) -> Path:
    data = request.pack()
    path = folder / f"{name}.bin"
    path.write_bytes(struct.pack(">BI", 0, len(data)) + data)
    return path


def ours_command(model: Path, name: str, port: int, *more: str) -> list[str]:
    command = [sys.executable, "-m", "outstation", "inference", "--model", str(model), "--name", name]
    return [*command, "--listen", f"127.0.0.1:{port}", *more]


def tiny_net(folder: Path, scale: float) -> list[Row]:
    name, calls = "meter-digits", max(500, round(10_000 * scale))
    question = body(folder, name, InferRequest(name, TINY))
    commands = {
        "ours": ours_command(DIGITS, name, PORT),
        "batched": ours_command(DIGITS, name, PORT, "--batch", "16"),
        "minimal grpcio": peers.minimal_command(DIGITS, name, PORT),
        "MLServer": peers.mlserver_command(DIGITS, name, PORT),
    }
    one: dict[str, float] = {}
    eight: dict[str, float] = {}
    ready: dict[str, float] = {}
    memory: dict[str, float] = {}
    analyzed_one: dict[str, float] = {}
    analyzed_eight: dict[str, float] = {}
    for server_name, command in commands.items():
        if command is None:
            continue
        share = calls if server_name != "MLServer" else calls // 4
        with started(command, PORT, lambda: infer(name, TINY)) as server:
            load(server, question, share // 10, 1)
            one[server_name], _ = load(server, question, share, 1)
            _, eight[server_name] = load(server, question, share * 2, 8)
            ready[server_name], memory[server_name] = server.ready, server.resident_bytes / 2**20
            if server_name != "MLServer" and runs_here():
                analyzed_one[server_name] = under_analysis(server, name, 1, share).median
                analyzed_eight[server_name] = under_analysis(server, name, 8, share).calls_per_second
    rows: list[Row] = []
    for peer, latency, throughput in (("minimal grpcio", 1.0, 1.5), ("MLServer", 0.6, 3.0)):
        if peer not in one:
            continue
        rows += [
            Row("gRPC, one client, median", one["ours"] * 1e6, peer, one[peer] * 1e6, latency, smaller=True, unit="µs"),
            Row("gRPC, eight clients", eight["ours"], peer, eight[peer], None, unit="calls/s"),
            Row("gRPC, eight clients, batched", eight["batched"], peer, eight[peer], throughput, unit="calls/s"),
            Row(
                "memory after the load",
                memory["ours"],
                peer,
                memory[peer],
                0.6 if peer == "MLServer" else None,
                True,
                "MiB",
            ),
        ]
    if (peer := "minimal grpcio") in analyzed_one:
        ours, theirs = analyzed_one["ours"] * 1e6, analyzed_one[peer] * 1e6
        rows.append(Row("perf_analyzer, one client, median", ours, peer, theirs, 1.0, smaller=True, unit="µs"))
        ours, theirs = analyzed_eight["batched"], analyzed_eight[peer]
        rows.append(Row("perf_analyzer, eight clients, batched", ours, peer, theirs, 1.5, unit="calls/s"))
    return [*rows, Row("from start to the first answer", ready["ours"], reach=1.5, smaller=True, unit="s")]


def over_rest(folder: Path, scale: float) -> list[Row]:
    """JSON over HTTP/1.1, which is all that the other servers of this kind speak."""
    image, calls = TINY["image"].tolist(), max(300, round(4000 * scale))
    plain = {"image": image}
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8], "data": image}
    servers = {
        "ours": (ours_command(DIGITS, "m", PORT), "/v2/models/m/infer", {"inputs": [tensor]}),
        "LitServe": (peers.litserve_command(DIGITS, PORT), "/predict", plain),
        "BentoML": (peers.bentoml_command(DIGITS, PORT), "/predict", plain),
    }
    one: dict[str, float] = {}
    eight: dict[str, float] = {}
    for server_name, (command, path, question) in servers.items():
        if command is None:
            continue
        body_path = folder / "rest.json"
        body_path.write_text(json.dumps(question))
        with started(command, PORT, lambda path=path, question=question: post(path, question)) as server:
            load(server, body_path, calls // 10, 1, path)
            one[server_name], _ = load(server, body_path, calls, 1, path)
            _, eight[server_name] = load(server, body_path, calls * 2, 8, path)
    rows: list[Row] = []
    for peer in [name for name in one if name != "ours"]:
        rows += [
            Row("JSON over REST, one client, median", one["ours"] * 1e6, peer, one[peer] * 1e6, None, True, "µs"),
            Row("JSON over REST, eight clients", eight["ours"], peer, eight[peer], None, unit="calls/s"),
        ]
    return rows


def post(path: str, question: object) -> None:
    """Ask until there is an answer: some listen before they can give one."""
    until = time.monotonic() + 60
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=30)
            connection.request("POST", path, json.dumps(question), {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status == 200 and b"digit" in response.read():
                return
        except (OSError, http.client.HTTPException):
            pass
        if time.monotonic() > until:
            raise SystemExit(f"nobody answers at {path}")
        time.sleep(0.05)


@contextmanager
def a_byte_asked(path: Path, port: int) -> Iterator[Callable[[], object]]:
    """One call of the process that nothing of this kind can be below: the least that two processes cost here."""
    with (
        started(peers.floor_command(path, port), port, lambda: None),
        socket.create_connection(("127.0.0.1", port)) as sock,
    ):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def ask() -> object:
            sock.send(b"?")
            return sock.recv(1)

        yield ask


@dataclass(frozen=True)
class Taken:
    """Median seconds of one piece of work, in the process itself and in others."""

    alone: float
    sent: float
    placed: float
    least: float


def by_turns(path: Path, pieces: int) -> Iterator[Taken]:
    """The large net in processes of their own for this call, in short pieces that are compared one by one."""
    name, session = "mobilenet", bare(path)
    question = body(path.parent, name, InferRequest(name, LARGE))
    with (
        started(ours_command(path, name, PORT), PORT, lambda: infer(name, LARGE)) as server,
        shared(server, name) as request,
        a_byte_asked(path, PORT + 1) as ask,
    ):
        pointer = body(path.parent, "shared", request)
        load(server, question, 10, 1)
        for _ in range(pieces):
            sent = load(server, question, 6, 1)[0]
            (alone,) = medians([lambda: session.run(["scores"], LARGE)], 6)
            placed = load(server, pointer, 6, 1)[0]
            (least,) = medians([ask], 6)
            yield Taken(alone, sent, placed, least)


def large_net(folder: Path, scale: float) -> list[Row]:
    path = folder / "mobilenet.onnx"
    peers.write_mobilenet(path)
    # Where the weights of a process happen to lie in memory moves a run by as much as what is measured: many processes.
    taken = [piece for _ in range(max(2, round(8 * scale))) for piece in by_turns(path, 6)]

    def beyond(served: Callable[[Taken], float]) -> float:
        return statistics.median(served(piece) - piece.alone for piece in taken) * 1000

    alone = statistics.median(piece.alone for piece in taken) * 1000
    sent, placed, least = (beyond(attrgetter(kind)) for kind in ("sent", "placed", "least"))
    return [
        Row("MobileNetV2-shaped net, bare run, median", alone, unit="ms"),
        Row("the same over gRPC, beyond the bare run", sent, reach=1.5, smaller=True, unit="ms"),
        Row("the same in shared memory, beyond the bare run", placed, reach=0.5, smaller=True, unit="ms"),
        Row("a byte for a byte, to a process that only computes", least, smaller=True, unit="ms"),
    ]


def run(scale: float) -> list[Row]:
    if shutil.which("h2load") is None:
        raise SystemExit("h2load makes the load: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory() as folder:
        parts = (tiny_net, over_rest, large_net)
        return in_process(scale) + [row for part in parts for row in part(Path(folder), scale)]


if __name__ == "__main__":
    report.main("inference", run)
