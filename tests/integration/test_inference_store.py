"""The component over the station's store: versions take over under load, and the agent hears how they do."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

import numpy as np
import pytest

from inference_support import install, put, scaling
from outstation.errors import ModelNotFoundError
from outstation.inference.remote import RemoteModels
from outstation.models.rollout import Event
from outstation.models.store import ModelStore
from outstation.settings import InferenceSettings, Settings, StationSettings
from outstation.wire.services import Server, handler
from outstation.wire.station import REPORT_HEALTH, SERVICE
from outstation_inference import InferenceProcess
from outstation_inference.grpc_speaker import GrpcSpeaker
from support import wait_until

X = np.ones((1, 4), np.float32)


@pytest.fixture
def writer(tmp_path):
    made = ModelStore(tmp_path / "data/models").claim()
    yield made
    made.close()


@pytest.fixture
def settings(tmp_path):
    return Settings(
        station=StationSettings(data_dir=str(tmp_path / "data")), inference=InferenceSettings(listen="127.0.0.1:0")
    )


@dataclass
class Agent:
    """The one call of the agent that the component makes."""

    socket: str
    heard: dict = field(default_factory=dict)

    def __enter__(self):
        service = handler(SERVICE, {REPORT_HEALTH: lambda health, _: self.heard.update({health.version: health})})
        self.server = Server([service], workers=2)
        self.server.listen(self.socket)
        self.server.start()
        return self

    def __exit__(self, *_):
        self.server.close()


def test_versions_of_the_store_take_over_under_load_and_old_folders_may_vanish(tmp_path, writer, settings):
    for number in (1, 2):
        put(writer, scaling(tmp_path / str(number), number, name="m"), prove=number == 1)
    process = InferenceProcess.from_store(settings)
    done, problems, seen = threading.Event(), [], []

    def call():
        with RemoteModels(process.addresses[0]) as models:
            model = models.get("m")
            while not done.is_set():
                result = model.run({"x": X}, timeout=10)
                if result["y"][0, 0] != float(result.model_version[0]):
                    problems.append(result)
                if not seen or seen[-1] != result.model_version:
                    seen.append(result.model_version)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        wait_until(lambda: seen == ["2.0.0"])
        writer.move("m", "2.0.0", Event.FAULT, at_unix_nano=2, reason="it failed")
        writer.collect()
        wait_until(lambda: seen == ["2.0.0", "1.0.0"])
        put(writer, scaling(tmp_path / "3", 3, name="m"))
        wait_until(lambda: seen == ["2.0.0", "1.0.0", "3.0.0"])
    finally:
        done.set()
        thread.join()
        process.close()
    assert problems == []


def test_the_agent_hears_of_calls_errors_and_versions_that_do_not_load(tmp_path, writer, settings):
    put(writer, scaling(tmp_path / "1", 1, name="m"))
    with Agent(f"unix:{settings.agent_socket}") as agent:
        process = InferenceProcess.from_store(settings)
        try:
            with RemoteModels(f"unix:{settings.inference_socket}") as models:
                for _ in range(3):
                    models.get("m").run({"x": X})
            wait_until(lambda: "1.0.0" in agent.heard and agent.heard["1.0.0"].calls == 3)
            put(writer, install(tmp_path / "2", "2.0.0", b"no model", name="m"), prove=False)
            wait_until(lambda: "2.0.0" in agent.heard)
        finally:
            process.close()
    assert (agent.heard["1.0.0"].model, agent.heard["1.0.0"].errors) == ("m", 0)
    assert (agent.heard["2.0.0"].calls, agent.heard["2.0.0"].errors) == (1, 1)


def test_without_agent_and_with_an_empty_store_the_component_waits_for_a_model(tmp_path, writer, settings):
    process = InferenceProcess.from_store(settings)
    try:
        with RemoteModels(f"unix:{settings.inference_socket}") as models:
            with pytest.raises(ModelNotFoundError, match="No model 'm' is known"):
                models.metadata("m")
            put(writer, scaling(tmp_path / "1", 1, name="m"))
            assert models.get("m", timeout=10).run({"x": X}).model_version == "1.0.0"
    finally:
        process.close()
    assert not settings.inference_socket.exists()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("outstation")] == []


def test_a_failure_of_ours_costs_one_connection_and_no_other(tmp_path, writer, settings, monkeypatch, caplog):
    put(writer, scaling(tmp_path / "1", 1, name="m"))
    process = InferenceProcess.from_store(settings)
    fails = iter([True])
    receive = GrpcSpeaker.receive

    def failing(self, data):
        if next(fails, False):
            raise RuntimeError("a bug")
        return receive(self, data)

    try:
        monkeypatch.setattr(GrpcSpeaker, "receive", failing)
        with RemoteModels(process.addresses[0]) as models:
            assert models.get("m", timeout=10).run({"x": X}, timeout=10).model_version == "1.0.0"
    finally:
        process.close()
    assert "a connection failed inside the server" in caplog.text
