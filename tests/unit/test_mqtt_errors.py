"""What a broker answers, as errors of ours: named by what the caller can do."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace

import pytest
from awscrt import mqtt5
from awscrt.exceptions import AwsCrtError

from outstation.errors import AccessDeniedError, LinkDownError, LinkError, ProviderUnavailableError, RefusedError
from outstation.wire import mqtt
from outstation.wire.mqtt import Publication


def answered(code: int | None, *, needs_subscriber: bool = False) -> LinkError | None:
    future: Future = Future()
    reason = None if code is None else mqtt5.PubackReasonCode(code)
    future.set_result(SimpleNamespace(puback=SimpleNamespace(reason_code=reason)))
    return mqtt._publish_error(future, Publication("t", b"", needs_subscriber=needs_subscriber))


def test_what_was_taken_is_no_error():
    assert answered(0) is None
    assert answered(16) is None


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (135, AccessDeniedError),
        (144, RefusedError),
        (153, RefusedError),
        (151, ProviderUnavailableError),
        (128, ProviderUnavailableError),
        (131, ProviderUnavailableError),
        (145, ProviderUnavailableError),
        (None, ProviderUnavailableError),
    ],
)
def test_a_puback_that_says_no_is_an_error_by_what_can_be_done(code, error):
    assert type(answered(code)) is error


def test_a_broker_that_tells_of_no_subscriber_took_nothing_that_needs_one():
    assert type(answered(16, needs_subscriber=True)) is LinkDownError


def test_what_cannot_be_encoded_will_never_pass_and_what_was_cut_off_may():
    for name, error in (("AWS_ERROR_MQTT5_PACKET_VALIDATION", RefusedError), ("AWS_ERROR_MQTT_TIMEOUT", LinkDownError)):
        future: Future = Future()
        future.set_exception(AwsCrtError(1, name, "why"))
        assert type(mqtt._publish_error(future, Publication("t", b""))) is error


@pytest.mark.parametrize(
    ("code", "error"),
    [(134, AccessDeniedError), (135, AccessDeniedError), (138, AccessDeniedError), (136, ProviderUnavailableError)],
)
def test_a_connack_that_says_no_is_an_error_by_what_can_be_done(code, error):
    packet = SimpleNamespace(reason_code=mqtt5.ConnectReasonCode(code))
    assert type(mqtt._connect_error("b:1", SimpleNamespace(connack_packet=packet, exception=None))) is error


@pytest.mark.parametrize(
    ("code", "error", "says"),
    [
        (142, ProviderUnavailableError, "same client id"),
        (149, ProviderUnavailableError, "packet too large"),
        (135, AccessDeniedError, "not authorized"),
        (139, ProviderUnavailableError, "shutting down"),
    ],
)
def test_a_disconnect_says_why(code, error, says):
    packet = SimpleNamespace(reason_code=mqtt5.DisconnectReasonCode(code))
    found = mqtt._disconnect_error("b:1", SimpleNamespace(disconnect_packet=packet, exception=None))
    assert type(found) is error
    assert says in str(found)
