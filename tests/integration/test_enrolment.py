"""An authority of the operator's own: init, token, certificate, renewal, revocation."""

from __future__ import annotations

import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509

from hub_parts import HubProcess, hub_provider, hub_settings, run
from outstation import enrolment
from outstation.clock import SystemClock
from outstation.errors import (
    AccessDeniedError,
    ConfigurationError,
    InvalidInputError,
    LinkDownError,
    LinkError,
    SettingsError,
    UntrustedError,
)
from outstation.testing import FakeClock
from outstation.testing.contract import Ear, message
from outstation.wire import convert
from outstation.wire.channel import HUB_NAME, Tls
from outstation.wire.client import Client
from outstation.wire.messages import EnrollRequest
from outstation_hub import Hub
from outstation_hub.authority import Authority, fingerprint, write_private
from support import wait_until

DAY = 86_400.0


@pytest.fixture
def authority(tmp_path):
    return Authority.create(tmp_path / "authority", ["127.0.0.1"], SystemClock())


@pytest.fixture
def hub(tmp_path, authority):
    settings = hub_settings(tmp_path, authority=str(tmp_path / "authority"), enroll_listen="127.0.0.1:0")
    with Hub(settings) as hub:
        yield hub


def provider_of(hub, credentials, tmp_path, **options):
    files = {"ca": str(credentials.ca), "certificate": str(credentials.station), "key": str(credentials.station)}
    return hub_provider(hub.address, tmp_path, station=credentials.name, server_name=HUB_NAME, **files, **options)


def test_a_token_gives_a_certificate_that_the_hub_takes(hub, authority, tmp_path):
    got = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "device", 10)
    assert stat.S_IMODE(got.station.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "device").stat().st_mode) == 0o700
    assert sorted(path.name for path in (tmp_path / "device").iterdir()) == ["ca.pem", "station.pem"]
    provider, ear = provider_of(hub, got, tmp_path), Ear()
    provider.uplink.connect(ear.listener, 5)
    provider.uplink.send(message(1, 2), 5)
    ear.wait(lambda ear: ear.through("events") == 2, 5)
    provider.close()


def test_a_token_is_good_once_for_its_station_and_for_a_time(hub, authority, tmp_path):
    token = authority.make_token("press-7")
    station, pin, secret = token.split(":")
    with pytest.raises(AccessDeniedError):
        enrolment.enroll(hub.enroll_address, f"press-8:{pin}:{secret}", tmp_path / "a", 10)
    with pytest.raises(AccessDeniedError):
        enrolment.enroll(hub.enroll_address, f"{station}:{pin}:{'00' * 16}", tmp_path / "a", 10)
    enrolment.enroll(hub.enroll_address, token, tmp_path / "a", 10)
    with pytest.raises(AccessDeniedError, match="used up"):
        enrolment.enroll(hub.enroll_address, token, tmp_path / "b", 10)
    with pytest.raises(AccessDeniedError, match="too old"):
        enrolment.enroll(hub.enroll_address, authority.make_token("press-7", hours=-1), tmp_path / "c", 10)
    assert not (tmp_path / "c" / "station.pem").exists()


def test_of_two_that_redeem_one_token_at_once_one_gets_it(authority):
    _, _, secret = authority.make_token("press-7").split(":")
    got = []

    def redeem():
        try:
            authority.redeem("press-7", bytes.fromhex(secret))
            got.append(1)
        except AccessDeniedError:
            pass

    threads = [threading.Thread(target=redeem) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1]


def test_a_hub_that_did_not_make_the_token_is_not_believed(hub, tmp_path):
    other = Authority.create(tmp_path / "other", [], SystemClock())
    with pytest.raises(UntrustedError, match="not the hub"):
        enrolment.enroll(hub.enroll_address, other.make_token("press-7"), tmp_path / "device", 10)


@pytest.mark.parametrize("token", ["", "press-7", "press-7:zz:00", "a:b:c:d", "../x:" + "0" * 64 + ":00"])
def test_what_is_no_token_is_said_to_be_none(tmp_path, token):
    with pytest.raises(InvalidInputError):
        enrolment.enroll("127.0.0.1:1", token, tmp_path, 1)


def test_a_hub_that_does_not_answer_is_a_link_that_is_down(authority, tmp_path):
    with pytest.raises(LinkDownError):
        enrolment.enroll("127.0.0.1:1", authority.make_token("press-7"), tmp_path / "device", 1)


@pytest.mark.parametrize("request_pem", ["", "garbage", "x" * 20_000])
def test_a_request_that_is_none_is_refused(authority, request_pem):
    with pytest.raises(InvalidInputError, match="no certificate request"):
        authority.issue("press-7", request_pem)


def test_an_operators_name_cannot_be_enrolled(hub, authority, tmp_path):
    with pytest.raises(AccessDeniedError, match="operator"):
        enrolment.enroll(hub.enroll_address, authority.make_token("operator"), tmp_path / "device", 10)


def test_a_name_that_no_certificate_can_carry_is_refused(authority):
    with pytest.raises(InvalidInputError, match="64"):
        authority.make_token("x" * 65)


def test_a_stations_certificate_cannot_pose_as_the_hub(hub, authority, tmp_path):
    thief = enrolment.enroll(hub.enroll_address, authority.make_token("thief"), tmp_path / "thief", 10)
    settings = hub_settings(tmp_path / "fake", certificate=str(thief.station), key=str(thief.station), ca=str(thief.ca))
    victim = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "victim", 10)
    with Hub(settings) as fake:
        provider = provider_of(fake, victim, tmp_path)
        with pytest.raises(LinkError):
            provider.uplink.connect(Ear().listener, 1)
        provider.close()


def test_a_revoked_station_is_cut_off_and_kept_out_and_may_enrol_again(hub, authority, tmp_path):
    got = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "device", 10)
    provider, ear = provider_of(hub, got, tmp_path), Ear()
    provider.uplink.connect(ear.listener, 5)
    assert Authority(tmp_path / "authority", SystemClock()).revoke("press-7") == 1  # another process would
    numbers = iter(range(1, 10_000))

    def cut_off():
        try:
            provider.uplink.send(message(next(numbers), 1), 1)
        except LinkError:
            return True
        return bool(ear.losses)

    wait_until(cut_off)
    assert isinstance(ear.losses[0], AccessDeniedError)
    with pytest.raises(AccessDeniedError, match="revoked"):
        provider.uplink.connect(ear.listener, 5)
    with pytest.raises(AccessDeniedError):
        provider.desired.current(5)
    provider.close()
    again = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "device", 10)
    provider = provider_of(hub, again, tmp_path)
    provider.uplink.connect(Ear().listener, 5)
    provider.close()


def test_a_certificate_is_renewed_when_a_third_of_its_life_is_left(hub, authority, tmp_path, monkeypatch):
    got = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "device", 10)
    first = got.station.read_bytes()
    certificate = x509.load_pem_x509_certificate(first)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    assert life > timedelta(days=300)
    clock = FakeClock(time_unix_nano=SystemClock().time_unix_nano())
    assert not enrolment.is_due(got.station, clock)
    clock.advance(life.total_seconds() * 0.7)
    assert enrolment.is_due(got.station, clock)
    monkeypatch.setattr(enrolment, "RENEW_BELOW", 1.0)  # rather than wait for months
    provider, ear = provider_of(hub, got, tmp_path), Ear()
    provider.uplink.connect(ear.listener, 5)
    provider.uplink.send(message(1, 1), 5)
    ear.wait(lambda ear: ear.through("events") == 1, 5)
    provider.close()
    assert got.station.read_bytes() != first
    assert stat.S_IMODE(got.station.stat().st_mode) == 0o600
    renewed = x509.load_pem_x509_certificate(got.station.read_bytes())
    assert renewed.subject == certificate.subject
    assert renewed.serial_number != certificate.serial_number
    assert authority.revoke("press-7") == 2


def test_renewing_for_another_station_is_refused(hub, authority, tmp_path):
    got = enrolment.enroll(hub.enroll_address, authority.make_token("press-7"), tmp_path / "device", 10)
    with Client(hub.address, tls=Tls(got.ca, got.station, got.station), server_name=HUB_NAME) as client:
        with pytest.raises(AccessDeniedError):
            client.unary(convert.RENEW)(EnrollRequest("press-8", "x"), 5)
        with pytest.raises(LinkError):  # enrolment is not on this port
            client.unary(convert.ENROLL)(EnrollRequest("press-8", "x", b"y"), 5)


def test_an_authority_is_made_once_and_its_absence_is_said(tmp_path, authority):
    with pytest.raises(ConfigurationError, match="already"):
        Authority.create(tmp_path / "authority", [], SystemClock())
    with pytest.raises(SettingsError, match="no certificate authority"):
        Authority(tmp_path, SystemClock())
    with pytest.raises(SettingsError, match="authority"):
        Hub(hub_settings(tmp_path, enroll_listen="127.0.0.1:0"))


def test_keys_are_for_their_owner_alone(tmp_path, authority):
    write_private(tmp_path / "operator.pem", authority.issue_with_key("ada"))
    for path in (tmp_path / "operator.pem", tmp_path / "authority" / "ca.key", tmp_path / "authority" / "hub.pem"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(fingerprint((tmp_path / "operator.pem").read_bytes())) == 64
    with pytest.raises(InvalidInputError):
        fingerprint("no certificate")


def test_an_operator_sets_it_up_from_the_command_line(tmp_path):
    data = str(tmp_path / "hub")
    assert run("hub", "init", "127.0.0.1", "--data", data).returncode == 0
    assert run("hub", "init", "--data", data).returncode == 2
    token = run("hub", "enroll", "press-7", "--data", data).stdout.strip()
    done = run("hub", "operator", "operator", str(tmp_path / "me.pem"), "--data", data)
    assert done.returncode == 0, done.stderr
    with HubProcess(tmp_path, "--enroll-listen", "127.0.0.1:0") as hub:
        line = hub.process.stdout.readline()
        assert line.startswith("enrolment on ")
        done = run("enroll", token, "--hub", line.split()[-1], "--out", str(tmp_path / "device"))
        assert done.returncode == 0, done.stderr
        assert 'name = "press-7"' in done.stdout
        credentials = enrolment.Credentials("press-7", tmp_path / "device/station.pem", tmp_path / "device/ca.pem")
        provider, ear = provider_of(hub, credentials, tmp_path), Ear()
        provider.uplink.connect(ear.listener, 5)
        keys = ["--tls-ca", str(credentials.ca), "--tls-cert", str(tmp_path / "me.pem"), "--tls-key"]
        done = run("fleet", "ls", "--hub", hub.address, *keys, str(tmp_path / "me.pem"))
        assert done.stdout.startswith("press-7\t"), done.stderr
        assert run("hub", "revoke", "press-7", "--data", data).stdout.startswith("1 certificates")
        provider.close()
        provider = provider_of(hub, credentials, tmp_path)
        with pytest.raises(AccessDeniedError):
            wait_until(lambda: provider.uplink.connect(ear.listener, 5) or provider.uplink.disconnect(), 5)
        provider.close()
    assert stat.S_IMODE(Path(data, "authority").stat().st_mode) == 0o700
