"""Mutual TLS: the certificate names the station, and nobody speaks for another."""

from __future__ import annotations

import pytest

from certificates import Authority
from hub_parts import hub_provider, hub_settings
from outstation.errors import AccessDeniedError, LinkError, SettingsError
from outstation.testing.contract import Ear, message
from outstation.types import DesiredModel, Reported
from outstation.wire import convert, fleet
from outstation.wire.channel import Tls
from outstation.wire.client import Client
from outstation.wire.messages import StationsRequest, Wish
from outstation_hub import Hub


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture
def hub(tmp_path, authority):
    (tmp_path / "repository").mkdir()
    (tmp_path / "repository" / "file").write_bytes(b"model")
    certificate, key = authority.issue("hub")
    settings = hub_settings(
        tmp_path,
        certificate=str(certificate),
        key=str(key),
        ca=str(authority.ca),
        repository=str(tmp_path / "repository"),
    )
    with Hub(settings) as hub:
        yield hub


@pytest.fixture
def station(hub, authority, tmp_path):
    """A provider for *station* that shows the certificate of *shown*."""
    providers = []

    def station(name, shown=None, signer=authority, ca=authority.ca):
        certificate, key = signer.issue(shown or name)
        files = {"ca": str(ca), "certificate": str(certificate), "key": str(key)}
        providers.append(hub_provider(hub.address, tmp_path, station=name, **files))
        return providers[-1]

    yield station
    for provider in providers:
        provider.close()


def test_a_station_with_its_certificate_is_served(hub, station):
    provider, ear = station("press-7"), Ear()
    provider.uplink.connect(ear.listener, 5)
    provider.uplink.send(message(1, 2), 5)
    ear.wait(lambda ear: ear.through("events") == 2, 5)
    provider.desired.report(Reported(revision=1), 5)
    with provider.artifacts.open("file", 0, 5) as stream:
        assert stream.read(100) == b"model"
    assert provider.desired.current(5).models == ()


def test_a_certificate_of_another_name_is_refused_everywhere(hub, station):
    provider = station("press-7", shown="press-8")
    with pytest.raises(AccessDeniedError, match="press-8"):
        provider.uplink.connect(Ear().listener, 5)
    with pytest.raises(AccessDeniedError):
        provider.desired.report(Reported(), 5)
    with pytest.raises(AccessDeniedError):
        provider.desired.current(5)
    with pytest.raises(AccessDeniedError), provider.artifacts.open("file", 0, 5):
        pass
    assert hub.stations.list() == ()


def test_a_certificate_of_another_authority_does_not_get_in(hub, station, tmp_path):
    with pytest.raises(LinkError):
        station("press-7", signer=Authority(tmp_path / "forger")).uplink.connect(Ear().listener, 1)


def test_a_hub_of_another_authority_is_not_believed(hub, station, tmp_path):
    with pytest.raises(AccessDeniedError, match="certificate"):
        station("press-7", ca=Authority(tmp_path / "other").ca).uplink.connect(Ear().listener, 1)


def test_plain_text_does_not_get_in(hub, tmp_path):
    provider = hub_provider(hub.address, tmp_path)
    with pytest.raises(LinkError):
        provider.uplink.connect(Ear().listener, 1)
    provider.close()


def test_only_operators_see_and_steer_the_fleet(hub, authority):
    def client(name):
        certificate, key = authority.issue(name)
        return Client(hub.address, tls=Tls(authority.ca, certificate, key))

    wish = Wish("", (DesiredModel("digits"),))
    with client("press-7") as mine:
        with pytest.raises(AccessDeniedError, match="operator"):
            mine.unary(convert.SET_DESIRED)(wish, 5)
        with pytest.raises(AccessDeniedError):
            mine.unary(fleet.LIST_STATIONS)(StationsRequest(), 5)
        with pytest.raises(AccessDeniedError):
            mine.unary(convert.GET_DESIRED)("press-8", 5)
    with client("operator") as operator:
        assert operator.unary(convert.SET_DESIRED)(wish, 5).revision == 1
        assert operator.unary(convert.GET_DESIRED)("press-8", 5).revision == 1
        assert operator.unary(fleet.LIST_STATIONS)(StationsRequest(), 5).stations == ()


def test_half_a_pair_of_certificate_and_key_is_said_so(hub, authority):
    certificate, _ = authority.issue("press-7")
    with pytest.raises(SettingsError, match="belong together"):
        Client(hub.address, tls=Tls(authority.ca, certificate))
