"""The provider ``mqtt`` against a real mosquitto: who gets in, what a broker's word is worth, and how links end."""

from __future__ import annotations

import json
import os
import queue
import threading
from pathlib import Path

import pytest

from certificates import Authority
from mqtt_parts import Listener, Mosquitto, StationRig, heard, mqtt_hub, mqtt_provider, require_mosquitto
from outstation.errors import (
    AccessDeniedError,
    ClosedError,
    DeadlineError,
    LinkDownError,
    LinkError,
    RefusedError,
    SettingsError,
)
from outstation.provider import Message, UplinkListener
from outstation.testing import FlakyLink
from outstation.testing.contract import Ear, message
from outstation.types import Reported
from outstation.wire import Columns, encode
from support import wait_until

require_mosquitto()


class Accepting(Ear):
    """An ear that also hears what the broker took."""

    def __init__(self) -> None:
        super().__init__()
        self.accepted: list = []

    @property
    def listener(self) -> UplinkListener:
        plain = super().listener
        return UplinkListener(plain.acknowledged, plain.lost, self.accepted.append)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def broker(tmp_path):
    with Mosquitto(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def strict(tmp_path, authority):
    with Mosquitto(tmp_path / "broker", authority=authority) as broker:
        yield broker


@pytest.fixture
def provider_for(tmp_path):
    """Makes providers, and closes them."""
    made = []

    def provider_for(broker, **options):
        made.append(mqtt_provider(broker.address, tmp_path, **options))
        return made[-1]

    yield provider_for
    for provider in made:
        provider.close()


def files(authority, name: str, ca=None) -> dict[str, str]:
    certificate, key = authority.issue(name)
    return {"ca": str(ca or authority.ca), "certificate": str(certificate), "key": str(key)}


def as_hub(authority) -> dict[str, str]:
    return {f"mqtt_{name}": value for name, value in files(authority, "hub").items()}


def send_all(provider, messages, timeout: float) -> None:
    for one in messages:
        provider.uplink.send(one, timeout)


# -- who gets in -----------------------------------------------------------------------------------------------------


def test_with_certificates_everything_works_both_ways(strict, authority, provider_for, tmp_path):
    with mqtt_hub(tmp_path, strict.address, **as_hub(authority)) as hub:
        heard(hub)
        provider, ear = provider_for(strict, **files(authority, "press-7")), Ear()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(message(1, 2), 5)
        ear.wait(lambda ear: ear.through("events") == 2, 5)
        provider.uplink.probe(5)
        provider.desired.report(Reported(revision=4), 5)
        wait_until(lambda: hub.stations.knows("press-7") and hub.stations.list()[0].reported.revision == 4)
        assert hub.connected == ("press-7",)


def test_a_station_that_speaks_for_another_is_turned_away_by_the_broker(strict, authority, provider_for, tmp_path):
    with mqtt_hub(tmp_path, strict.address, **as_hub(authority)) as hub:
        heard(hub)
        provider, ear = provider_for(strict, **files(authority, "press-8")), Ear()  # and calls itself press-7
        provider.uplink.connect(ear.listener, 5)
        ear.wait(lambda ear: bool(ear.losses), 5)
        assert isinstance(ear.losses[0], AccessDeniedError)
        assert not hub.stations.knows("press-7")


def test_the_broker_lets_a_station_write_nothing_but_its_own_topics(strict, authority):
    shown = files(authority, "press-8")
    with Listener(strict.address, name="press-8", **shown) as station:
        for kind in ("up/events", "reported", "ledgers", "presence", "reply/x", "canary"):
            assert isinstance(station.publish(f"outstation/press-7/{kind}"), AccessDeniedError)
        for kind in ("ack", "desired", "cmd/x"):
            assert isinstance(station.publish(f"outstation/press-8/{kind}"), AccessDeniedError)
        assert station.publish("outstation/press-8/up/events") is None


def test_a_station_hears_nothing_that_is_meant_for_another(strict, authority):
    with (
        Listener(strict.address, "outstation/#", name="press-8", **files(authority, "press-8")) as station,
        Listener(strict.address, name="hub", **files(authority, "hub")) as hub,
    ):
        hub.publish("outstation/press-7/ack", b"secret")
        hub.publish("outstation/press-8/ack", b"mine")
        assert station.next().payload == b"mine"


def test_certificates_of_others_do_not_get_in(strict, authority, provider_for, tmp_path):
    forger = Authority(tmp_path / "forger")
    with pytest.raises(LinkError):
        provider_for(strict, **files(forger, "press-7", ca=authority.ca)).uplink.connect(Ear().listener, 5)
    # awscrt holds its answer back for long, so that nobody can measure why a certificate is refused.
    with pytest.raises((AccessDeniedError, DeadlineError)) as caught:
        provider_for(strict, **files(authority, "press-7", ca=forger.ca)).uplink.connect(Ear().listener, 0.5)
    assert "authorities" in caught.value.hint
    with pytest.raises(LinkError):
        provider_for(strict).uplink.connect(Ear().listener, 5)


def test_a_wrong_password_is_refused_and_stands_nowhere(tmp_path, provider_for, caplog):
    secret = tmp_path / "secret"
    with Mosquitto(tmp_path / "broker", passwords={"press-7": "right"}) as broker:
        secret.write_text("wrong-one\n")
        provider = provider_for(broker, user="press-7", password=f"file:{secret}")
        with pytest.raises(AccessDeniedError) as caught:
            provider.uplink.connect(Ear().listener, 5)
        assert "wrong-one" not in f"{caught.value!r} {caplog.text} {provider._link._transport.broker!r}"
        secret.write_text("right\n")
        provider = provider_for(broker, user="press-7", password=f"file:{secret}")
        provider.uplink.connect(Ear().listener, 5)
        provider.uplink.probe(5)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"address": "broker.example:8883"}, "nothing to show"),
        ({"address": "broker.example"}, "no host:port"),
        ({"certificate": "x"}, "belong together"),
        ({"certificate": "/nowhere", "key": "/nowhere"}, "cannot be read"),
        ({"password": "hunter2"}, "names no secret"),
        ({"password": "env:NOT_SET_ANYWHERE"}, "NOT_SET_ANYWHERE"),
        ({"prefix": "a/+/b"}, "no prefix"),
        ({"preset": "carrier-pigeon"}, "preset"),
        ({"prefex": "x"}, "prefex"),
    ],
)
def test_options_that_cannot_work_are_said_so(tmp_path, options, why):
    with pytest.raises(SettingsError, match=why) as caught:
        mqtt_provider(options.pop("address", "127.0.0.1:1"), tmp_path, **options)
    assert "hunter2" not in str(caught.value)


def test_presets_state_what_their_brokers_carry(tmp_path):
    core = mqtt_provider("127.0.0.1:1", tmp_path, preset="aws-iot-core").limits
    assert core.max_message_bytes <= 128 << 10
    assert core.messages_per_second == 100
    assert mqtt_provider("127.0.0.1:1", tmp_path, preset="iot-hub").limits.max_message_bytes <= 256 << 10
    own = mqtt_provider("127.0.0.1:1", tmp_path, preset="iot-hub", max_message_bytes=9999, messages_per_second=3)
    assert (own.limits.max_message_bytes, own.limits.messages_per_second) == (9999, 3)


# -- what the broker says --------------------------------------------------------------------------------------------


def test_a_puback_is_told_as_accepted_and_is_no_acknowledgement(broker, provider_for):
    with Listener(broker.address, "outstation/+/up/+") as us:
        provider, ear = provider_for(broker), Accepting()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(message(1, 3), 5)
        provider.uplink.send(message(4, 2), 5)
        assert us.next().payload == message(1, 3).block
        wait_until(lambda: [word.through for word in ear.accepted] == [3, 5])
        assert ear.acknowledgements == []


def test_a_message_that_nobody_has_subscribed_to_is_a_lost_link(broker, provider_for):
    provider, ear = provider_for(broker), Accepting()
    provider.uplink.connect(ear.listener, 5)
    provider.uplink.send(message(1, 3), 5)
    ear.wait(lambda ear: bool(ear.losses), 5)
    assert isinstance(ear.losses[0], LinkDownError)
    assert ear.accepted == []
    with pytest.raises(LinkDownError):
        provider.uplink.send(message(1, 3), 5)


def test_the_brokers_own_limit_narrows_ours_and_what_is_over_it_is_refused(tmp_path, provider_for):
    with Mosquitto(tmp_path / "small", extra="max_packet_size 20000") as broker:
        provider, ear = provider_for(broker), Ear()
        assert provider.limits.max_message_bytes == 1 << 20
        provider.uplink.connect(ear.listener, 5)
        assert provider.limits.max_message_bytes == 20_000 - 1024
        with pytest.raises(RefusedError):
            provider.uplink.send(Message("events", 7, 1, 1, bytes(19_000)), 5)
        provider.uplink.probe(5)
        with mqtt_hub(tmp_path, broker.address) as hub, StationRig(tmp_path, broker.address, station="press-8") as rig:
            heard(hub)
            rig.write(600)  # blocks of the buffer that were closed before anybody knew of the limit are cut to fit
            rig.acknowledged()


def test_more_messages_a_second_than_the_broker_bears_are_not_sent(broker, provider_for):
    with Listener(broker.address, "outstation/+/up/+"):
        provider, ear = provider_for(broker, messages_per_second=4.0), Accepting()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.send(message(1, 1), 5)
        with pytest.raises(DeadlineError, match="a second"):
            send_all(provider, [message(n, 1) for n in range(2, 100)], 0.01)
        provider.uplink.send(message(100, 1), 5)
        wait_until(lambda: ear.accepted[-1].through == 100)
        assert len(ear.accepted) <= 4


def test_a_stopped_broker_is_noticed_within_the_keepalive(broker, provider_for):
    with Listener(broker.address, "outstation/+/up/+"):
        provider, ear = provider_for(broker, keepalive_interval=1.0, keepalive_timeout=0.5), Ear()
        provider.uplink.connect(ear.listener, 5)
        broker.pause()
        try:
            provider.uplink.send(message(1, 1), 1)
            with pytest.raises(LinkError):
                provider.uplink.probe(0.1)
            ear.wait(lambda ear: bool(ear.losses), 10)
        finally:
            broker.resume()
        provider.uplink.connect(ear.listener, 5)
        provider.uplink.probe(5)
        assert len(ear.losses) == 1


def test_a_send_that_waits_for_room_ends_when_the_connection_does(broker, provider_for):
    with FlakyLink(broker.address) as link:
        provider, ear, ended = provider_for(link), Ear(), threading.Event()
        provider.uplink.connect(ear.listener, 5)
        link.black_hole()
        with pytest.raises(DeadlineError, match="confirmed nothing"):
            send_all(provider, [message(n, 1) for n in range(1, 100)], 0.01)

        def send():
            with pytest.raises(LinkDownError):
                provider.uplink.send(message(100, 1), 60)
            ended.set()

        waiting = threading.Thread(target=send)
        waiting.start()
        link.cut()
        waiting.join(10)
        assert ended.is_set()


def test_a_broker_that_never_answers_is_a_deadline_and_disconnect_ends_the_wait(broker, provider_for):
    broker.pause()
    try:
        provider = provider_for(broker)
        with pytest.raises(LinkError):
            provider.uplink.connect(Ear().listener, 0.3)
        caught = []

        def connect():
            try:
                provider.uplink.connect(Ear().listener, 60)
            except LinkError as exc:
                caught.append(exc)

        waiting = threading.Thread(target=connect)
        waiting.start()
        wait_until(lambda: provider._link._connection is not None)
        provider.uplink.disconnect()
        waiting.join(10)
        assert caught
    finally:
        broker.resume()


def test_a_lost_connection_is_told_once_and_nothing_is_left_behind(broker, provider_for):
    def native_threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    with FlakyLink(broker.address) as link:
        provider, ear = provider_for(link), Ear()
        provider.uplink.connect(ear.listener, 5)
        before = native_threads()
        for n in range(1, 11):
            link.cut()
            ear.wait(lambda ear, n=n: len(ear.losses) == n, 5)  # type: ignore[misc]
            provider.uplink.connect(ear.listener, 5)
            provider.uplink.probe(5)
        assert native_threads() <= before + 1
        assert link.connections == 1
        assert len(ear.losses) == 10


def test_two_stations_of_one_name_throw_each_other_out_and_are_told(broker, provider_for):
    first, other, ear = provider_for(broker), provider_for(broker), Ear()
    first.uplink.connect(ear.listener, 5)
    other.uplink.connect(Ear().listener, 5)
    ear.wait(lambda ear: bool(ear.losses), 5)
    other.uplink.probe(5)


# -- JSON ------------------------------------------------------------------------------------------------------------


def mixed(count: int, size: int = 10) -> Message:
    payloads = [
        json.dumps({"n": n, "text": "ä" * size}).encode() if n % 2 else os.urandom(size) for n in range(1, count + 1)
    ]
    metas = [("application/json", (("line", "3"),)), ("image/jpeg", ())]
    index = [0 if n % 2 else 1 for n in range(1, count + 1)]
    block = encode(Columns(range(1, count + 1), [10**18 + n for n in range(count)], payloads, index, metas), epoch=7)
    return Message("events", 7, 1, count, block, after=0)


def test_a_json_stream_arrives_as_documents_that_say_everything(broker, provider_for):
    with Listener(broker.address, "outstation/+/up/+") as us:
        provider = provider_for(broker, json_streams=["events"])
        provider.uplink.connect(Ear().listener, 5)
        provider.uplink.send(mixed(2), 5)
        provider.uplink.send(message(1, 2, stream="readings"), 5)
        came = us.next()
        assert came.content_type == "application/json"
        found = json.loads(came.payload)
        records = found.pop("records")
        assert found == {
            "outstation": 1,
            "station": "press-7",
            "stream": "events",
            "epoch": "0000000000000007",
            "first": 1,
            "last": 2,
        }
        assert records[0] == {
            "sequence": 1,
            "time_unix_nano": 10**18,
            "content_type": "application/json",
            "attributes": {"line": "3"},
            "payload": {"n": 1, "text": "ä" * 10},
        }
        assert set(records[1]) == {"sequence", "time_unix_nano", "content_type", "payload_base64"}
        assert us.next().payload == message(1, 2, stream="readings").block


def test_a_hub_takes_documents_as_it_takes_blocks_however_they_are_cut(broker, provider_for, tmp_path):
    with mqtt_hub(tmp_path, broker.address) as hub:
        heard(hub)
        provider, ear = provider_for(broker, json_streams=["events"], max_message_bytes=3000), Accepting()
        provider.uplink.connect(ear.listener, 5)
        sent = mixed(60)
        provider.uplink.send(sent, 5)
        ear.wait(lambda ear: ear.through("events") == 60, 5)
        wait_until(lambda: [word.through for word in ear.accepted] == [60])
        assert hub.inbox.counts.blocks > 3, "it went in one piece"
        assert not any(word.refused for word in ear.acknowledgements)
        taken = [record for stored in hub.inbox.stream.read(0) for record in decoded_records(stored.payload)]
    assert taken == decoded_records(sent.block)


def decoded_records(block: bytes) -> list:
    from outstation.wire import decode  # noqa: PLC0415

    return list(decode(block)[1].records())


def test_a_record_that_does_not_fit_as_json_goes_as_a_block(broker, provider_for, tmp_path):
    block = encode(Columns([1, 2, 3], [1, 2, 3], [b"a", os.urandom(4500), b"c"]), epoch=7)
    with Listener(broker.address, "outstation/+/up/+") as us:
        provider = provider_for(broker, json_streams=["events"], max_message_bytes=5000)
        provider.uplink.connect(Ear().listener, 5)
        provider.uplink.send(Message("events", 7, 1, 3, block, after=0), 5)
        kinds = [us.next() for _ in range(3)]
        assert [one.content_type.endswith("json") for one in kinds] == [True, False, True]
        assert [one.properties["after"] for one in kinds] == ["0", "1", "2"]


# -- commands and presence -------------------------------------------------------------------------------------------


@pytest.fixture
def caller(broker):
    with Listener(broker.address, "outstation/press-7/reply/#") as caller:
        yield caller


def ask(caller, name: str, payload: bytes = b"", answer="outstation/press-7/reply/1"):
    topic = f"outstation/press-7/cmd/{name}"
    assert caller.publish(topic, payload, response_topic=answer, correlation=b"\x00\xff7") is None


def test_a_command_is_answered_on_the_topic_it_asks_for_with_its_correlation(broker, provider_for, caller):
    provider = provider_for(broker)
    provider.commands.serve("double", lambda payload: payload * 2)
    provider.commands.serve("fail", lambda payload: 1 / 0)
    wait_until(lambda: provider._link.present)
    ask(caller, "double", b"ab")
    answer = caller.next()
    assert (answer.payload, answer.correlation) == (b"abab", b"\x00\xff7")
    assert answer.properties == {"status": "done"}
    ask(caller, "fail")
    answer = caller.next()
    assert answer.properties == {"status": "failed"}
    assert b"ZeroDivisionError" in answer.payload
    ask(caller, "nobody-serves-that")
    assert caller.next().properties == {"status": "unknown"}


def test_commands_beyond_those_that_wait_are_answered_busy(broker, provider_for, caller):
    provider, hold = provider_for(broker), threading.Event()
    provider.commands.serve("slow", lambda payload: hold.wait(10) and payload)
    wait_until(lambda: provider._link.present)
    for _ in range(20):
        ask(caller, "slow", b"x")
    states = [caller.next().properties["status"] for _ in range(3)]
    assert states == ["busy"] * 3
    hold.set()
    assert [caller.next().properties["status"] for _ in range(17)] == ["done"] * 17


def test_nobody_makes_a_station_publish_elsewhere(broker, provider_for, caller):
    provider = provider_for(broker)
    provider.commands.serve("double", lambda payload: payload * 2)
    wait_until(lambda: provider._link.present)
    for topic in ("", "outstation/press-8/reply/1", "outstation/press-7/up/events"):
        ask(caller, "double", b"ab", answer=topic)
    wait_until(lambda: provider.ignored == 3)
    with pytest.raises(queue.Empty):
        caller.next(0.1)


def test_presence_is_kept_by_the_broker_and_withdrawn_by_the_will(broker, provider_for):
    with FlakyLink(broker.address) as link:
        provider, ear = provider_for(link), Ear()
        provider.uplink.connect(ear.listener, 5)
        with Listener(broker.address, "outstation/press-7/presence") as us:
            while not json.loads(us.next().payload)["connected"]:
                pass
            link.cut()
            assert json.loads(us.next().payload) == {"connected": False}
            ear.wait(lambda ear: bool(ear.losses), 5)
            provider.uplink.connect(ear.listener, 5)
            assert json.loads(us.next().payload)["connected"]
            provider.close()
            assert json.loads(us.next().payload) == {"connected": False}


def test_a_session_that_is_kept_brings_commands_of_the_time_between(broker, provider_for, caller):
    with FlakyLink(broker.address) as link:
        provider, ear = provider_for(link, session_expiry=60), Ear()
        provider.commands.serve("double", lambda payload: payload * 2)
        provider.uplink.connect(ear.listener, 5)
        link.down()
        ear.wait(lambda ear: bool(ear.losses), 5)
        ask(caller, "double", b"ab")
        link.up()
        provider.uplink.connect(ear.listener, 5)
        assert caller.next(15).payload == b"abab"


# -- garbage ---------------------------------------------------------------------------------------------------------


def test_garbage_on_a_stations_own_topics_is_counted_and_stops_nothing(broker, provider_for, tmp_path):
    with mqtt_hub(tmp_path, broker.address) as hub, Listener(broker.address) as us:
        heard(hub)
        provider, ear = provider_for(broker), Ear()
        provider.commands.serve("x", lambda payload: payload)
        provider.uplink.connect(ear.listener, 5)
        garbage = (b"", b"{", b"[[[[", b"\xff" * 50, b'{"stream": "events"}', b"[" * 100_000, os.urandom(900_000))
        for payload in garbage:
            for kind in ("ack", "canary", "cmd/x"):
                us.publish(f"outstation/press-7/{kind}", payload)
        for payload in garbage[1:]:
            us.publish("outstation/press-7/desired", payload)
        wait_until(lambda: provider.ignored == 4 * len(garbage) - 2)  # one is a desired state with a field too many
        provider.uplink.send(message(1, 2), 5)
        ear.wait(lambda ear: ear.through("events") == 2, 5)
        provider.uplink.probe(5)
        with pytest.raises(LinkError, match="no desired state"):
            provider.desired.current(5)
        us.publish("outstation/press-7/desired", b"", retain=True)
        wait_until(lambda: provider.desired.current(5).revision == 0)


def test_a_closed_provider_is_closed_for_everything(broker, provider_for):
    provider = provider_for(broker)
    provider.close()
    for call in (
        lambda: provider.desired.current(1),
        lambda: provider.desired.report(Reported(), 1),
        lambda: provider.desired.watch(lambda _: None),
        lambda: provider.commands.serve("x", lambda payload: payload),
    ):
        with pytest.raises(ClosedError):
            call()
