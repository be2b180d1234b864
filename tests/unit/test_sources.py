"""Several sources of one repository, in order: who is asked, who serves, and what is said of it."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import pytest

from model_parts import Desk, Device, SimulatedRepository
from outstation.clock import SystemClock
from outstation.errors import (
    AccessDeniedError,
    FileChangedError,
    LinkDownError,
    ModelNotFoundError,
    ProviderUnavailableError,
)
from outstation.models.fetch import FolderSource
from outstation.models.sources import REST, SourcesInOrder, each_source, open_sources
from outstation.models.trust import Trust
from outstation.settings import ModelsSettings
from outstation.testing import FakeClock
from support import wait_until


class Site:
    """A source with files in memory, or an error for whoever asks; *breaks* after so many bytes."""

    def __init__(self, name, error=None, breaks=None, **files):
        self.name, self.error, self.breaks, self.files = name, error, breaks, files
        self.asked = []

    def __repr__(self):
        return f"<{self.name}>"

    @contextmanager
    def open(self, path, offset, timeout):
        self.asked.append((path, offset))
        if self.error is not None:
            raise self.error
        if path not in self.files:
            raise ModelNotFoundError(f"{self.name} has no {path}.")
        yield Body(self.files[path][offset:], self.breaks)


class Body:
    def __init__(self, data, breaks):
        self.data, self.left = data, breaks

    def read(self, size):
        if self.left is not None:
            if self.left == 0:
                raise LinkDownError("broke")
            size = min(size, self.left)
            self.left -= size
        piece, self.data = self.data[:size], self.data[size:]
        return piece


@pytest.fixture
def clock():
    return FakeClock()


def read(source, path="f", offset=0):
    with source.open(path, offset, 5.0) as stream:
        return stream.read(100)


def test_the_first_one_serves_as_long_as_it_can(clock):
    first, second = Site("first", f=b"first"), Site("second", f=b"second")
    sources = SourcesInOrder([first, second], clock)
    assert [read(sources), read(sources, offset=2)] == [b"first", b"rst"]
    assert second.asked == []


@pytest.mark.parametrize(
    "error", [LinkDownError("down"), ProviderUnavailableError("503"), AccessDeniedError("403"), ModelNotFoundError("x")]
)
def test_the_next_one_is_tried_when_one_cannot_give_a_file_and_the_log_says_which_serves(clock, caplog, error):
    first, second = Site("first", error), Site("second", f=b"second")
    sources = SourcesInOrder([first, second], clock)
    with caplog.at_level(logging.INFO):
        assert read(sources) == b"second"
        assert read(sources) == b"second"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"Models: files come from <second> ({error})."


def test_one_that_was_not_reached_is_asked_last_for_a_while(clock):
    first, second = Site("first", LinkDownError("down"), f=b"first"), Site("second", f=b"second")
    sources = SourcesInOrder([first, second], clock)
    read(sources)
    first.error = None
    assert read(sources) == b"second"
    clock.advance(REST + 1)
    assert read(sources) == b"first"


def test_one_that_refuses_a_file_is_not_asked_last_for_others(clock):
    """A bucket that may not be listed refuses what is not there."""
    first, second = Site("first", AccessDeniedError("403"), f=b"first"), Site("second", f=b"second")
    sources = SourcesInOrder([first, second], clock)
    assert read(sources) == b"second"
    first.error = None
    assert read(sources) == b"first"


def test_one_that_breaks_off_while_it_is_read_is_asked_last_for_a_while(clock):
    first, second = Site("first", breaks=0, f=b"first"), Site("second", f=b"second")
    sources = SourcesInOrder([first, second], clock)
    with pytest.raises(LinkDownError):
        read(sources)
    assert read(sources, offset=3) == b"ond"


def test_one_that_lacks_a_file_is_not_asked_last_for_others(clock):
    first, second = Site("first", g=b"first"), Site("second", f=b"second", g=b"second")
    sources = SourcesInOrder([first, second], clock)
    assert [read(sources, "f"), read(sources, "g")] == [b"second", b"first"]


def test_when_nobody_has_it_the_error_says_what_each_answered_and_that_it_may_come(clock):
    sources = SourcesInOrder([Site("first"), Site("second", LinkDownError("down"))], clock)
    with pytest.raises(LinkDownError, match=r"first has no f\. down"):
        read(sources)
    with pytest.raises(ModelNotFoundError, match=r"first has no f\. second has no f\."):
        read(SourcesInOrder([Site("first"), Site("second")], clock))


def test_a_file_that_was_replaced_is_begun_again_with_the_same_source(clock):
    second = Site("second", f=b"second")
    with pytest.raises(FileChangedError):
        read(SourcesInOrder([Site("first", FileChangedError("new")), second], clock))
    assert second.asked == []


def test_sources_come_from_the_settings_in_their_order(tmp_path, clock):
    one = open_sources(ModelsSettings(repository=str(tmp_path)), None, clock)
    assert isinstance(one, FolderSource)
    both = open_sources(ModelsSettings(repository=("a", "https://x/y?sig=secret")), None, clock)
    assert repr(both) == "<SourcesInOrder <FolderSource a>, <HttpSource https://x/y>>"
    assert len(each_source(both)) == 2
    assert each_source(one) == (one,)


# -- a device ------------------------------------------------------------------------------------------------------


def test_a_device_goes_on_with_the_second_source_in_mid_download(tmp_path):
    """The first has the metadata and a part of the file, then it is gone."""
    far = SimulatedRepository()
    far.add("1.0.0", b"weights" * 100_000)
    far.publish()
    place = far.place("pump/1.0.0/model.onnx")
    got = []

    class First:
        def open(self, path, offset, timeout):
            if path == place:
                return self.short(offset)
            return far.open(path, offset, timeout)

        @contextmanager
        def short(self, offset):
            got.append(offset)
            yield Body(far.files[place][offset:], 300_000)

    second = Site("second", **{place: far.files[place]})
    sources = SourcesInOrder([First(), second], SystemClock())
    with Device(tmp_path / "device", sources, far.first_root) as device:
        wait_until(lambda: device.active() == "1.0.0")
    assert got == [0]
    assert (place, 300_000) in second.asked


def test_a_mirror_that_lags_behind_or_is_wrong_is_passed_over_for_one_that_is_right(tmp_path):
    """Metadata of two sources is never mixed: each is asked for all of it."""
    desk = Desk(tmp_path)
    desk.publish("1.0.0")
    other = SimulatedRepository()
    other.add("9.0.0")
    other.publish()
    sources = SourcesInOrder([other, FolderSource(desk.repository)], SystemClock())
    with Device(tmp_path / "device", sources, desk.root.read_bytes()) as device:
        wait_until(lambda: device.active() == "1.0.0")
        wait_until(lambda: device.reconciler.standing().trust is Trust.FRESH)
        assert device.phase("9.0.0") is None
