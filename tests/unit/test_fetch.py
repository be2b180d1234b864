from __future__ import annotations

import hashlib
import io
from contextlib import contextmanager

import pytest

from model_parts import Endless
from outstation.errors import DiskFullError, LinkDownError, ModelNotFoundError, SettingsError, UntrustedError
from outstation.models.bundle import MIN_CHUNK_BYTES, describe_file
from outstation.models.fetch import Download, Expected, FolderSource, fetch_bytes
from outstation.models.sources import ProviderSource, open_source

CHUNK = 1000
DATA = bytes(range(256)) * 40  # 10,240 bytes, 11 chunks


def sha(data):
    return hashlib.sha256(data).hexdigest()


def expected(data=DATA, *, chunked=True, name="pump/1.0.0/model.onnx"):
    chunks = tuple(sha(data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)) if chunked else ()
    return Expected(name, sha(data), len(data), CHUNK if chunked else 0, chunks)


class Link:
    """A source of one file whose connection breaks after *cut* bytes, each time."""

    def __init__(self, data=DATA, cut=None):
        self.data = data
        self.cut = cut
        self.offsets = []
        self.sent = 0

    @contextmanager
    def open(self, path, offset, timeout):
        self.offsets.append(offset)
        yield _Stream(self, io.BytesIO(self.data[offset:]), self.cut)


class _Stream:
    def __init__(self, link, rest, left):
        self.link, self.rest, self.left = link, rest, left

    def read(self, size):
        size = min(size, 700)
        if self.left is not None:
            if self.left == 0:
                raise LinkDownError("the link broke")
            size = min(size, self.left)
            self.left -= size
        data = self.rest.read(size)
        self.link.sent += len(data)
        return data


@pytest.fixture
def part(tmp_path):
    return tmp_path / "part"


@pytest.mark.parametrize("chunked", [True, False])
def test_a_download_is_whole_and_as_signed(part, chunked):
    Download(Link(), "x", part, expected(chunked=chunked)).run(5.0)
    assert part.read_bytes() == DATA


def test_an_empty_file_is_a_file(part):
    Download(Link(b""), "x", part, expected(b"")).run(5.0)
    assert part.read_bytes() == b""


@pytest.mark.parametrize("chunked", [True, False])
def test_a_link_that_breaks_costs_no_byte_twice(part, chunked):
    link = Link(cut=1700)
    for _ in range(20):
        try:
            Download(link, "x", part, expected(chunked=chunked)).run(5.0)
            break
        except LinkDownError:
            continue
    assert part.read_bytes() == DATA
    assert link.sent == len(DATA)
    assert len(link.offsets) == 7


def test_a_stump_with_wrong_bytes_is_kept_as_far_as_its_chunks_are_right(part):
    part.write_bytes(DATA[:3500] + b"\0" * 2000)  # after a power cut: blocks of zeros
    link = Link()
    Download(link, "x", part, expected()).run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == [3000]


def test_a_stump_without_chunks_is_fetched_again_when_the_whole_is_wrong(part):
    part.write_bytes(b"\0" * 2000)
    link = Link()
    Download(link, "x", part, expected(chunked=False)).run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == [2000, 0]


def test_a_stump_longer_than_the_file_is_cut(part):
    part.write_bytes(DATA + b"more")
    link = Link()
    Download(link, "x", part, expected()).run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == []


@pytest.mark.parametrize("chunked", [True, False])
def test_flipped_bytes_are_refused_with_the_file_and_both_hashes(part, chunked):
    wrong = bytearray(DATA)
    wrong[4321] ^= 1
    with pytest.raises(UntrustedError) as caught:
        Download(Link(bytes(wrong)), "x", part, expected(chunked=chunked)).run(5.0)
    reason = str(caught.value)
    signed, found = (DATA[4000:5000], wrong[4000:5000]) if chunked else (DATA, wrong)
    assert "pump/1.0.0/model.onnx" in reason
    assert sha(signed)[:12] in reason
    assert sha(found)[:12] in reason


def test_flipped_bytes_cost_one_more_chunk_not_one_more_file(part):
    wrong = bytearray(DATA)
    wrong[9500] ^= 1
    link = Link(bytes(wrong))
    with pytest.raises(UntrustedError):
        Download(link, "x", part, expected()).run(5.0)
    assert link.offsets == [0, 9000]


@pytest.mark.parametrize("chunked", [True, False])
def test_a_file_that_is_longer_than_signed_is_refused_soon(part, chunked):
    link = Link(DATA + b"x" * 100_000)
    with pytest.raises(UntrustedError, match="longer than the 10240 bytes"):
        Download(link, "x", part, expected(chunked=chunked)).run(5.0)
    assert link.sent <= 2 * (len(DATA) + 700)


def test_endless_data_is_refused(part):
    class Source:
        @contextmanager
        def open(self, path, offset, timeout):
            yield Endless()

    with pytest.raises(UntrustedError):
        Download(Source(), "x", part, expected()).run(5.0)
    assert part.stat().st_size <= len(DATA)
    with pytest.raises(UntrustedError, match="longer than"):
        fetch_bytes(Source(), "x", expected(), 5.0)


def test_a_file_that_ends_early_is_a_matter_of_the_link(part):
    with pytest.raises(LinkDownError, match="after 5000 of 10240 bytes"):
        Download(Link(DATA[:5000]), "x", part, expected()).run(5.0)
    assert part.read_bytes() == DATA[:5000]


def test_a_pulse_can_stop_a_download_which_goes_on_later(part):
    class StopError(Exception):
        pass

    pulses = []

    def pulse():
        pulses.append(1)
        if len(pulses) == 5:
            raise StopError

    link = Link()
    with pytest.raises(StopError):
        Download(link, "x", part, expected()).run(5.0, pulse)
    kept = part.stat().st_size
    Download(link, "x", part, expected()).run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == [0, kept]
    assert kept > 0


def test_a_disk_without_room_is_seen_before_the_first_byte(part, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: _Usage())
    link = Link()
    with pytest.raises(DiskFullError, match="needs 10240 bytes more"):
        Download(link, "x", part, expected()).run(5.0)
    assert link.offsets == []


class _Usage:
    free = 100


def test_a_small_file_is_fetched_whole_and_checked(tmp_path):
    (tmp_path / "a").write_bytes(b"hello")
    assert fetch_bytes(FolderSource(tmp_path), "a", Expected("a", sha(b"hello"), 5), 5.0) == b"hello"
    with pytest.raises(UntrustedError, match="sha256"):
        fetch_bytes(FolderSource(tmp_path), "a", Expected("a", sha(b"hullo"), 5), 5.0)


def test_a_folder_is_a_source_from_any_offset(tmp_path):
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "timestamp.json").write_bytes(b"0123456789")
    source = FolderSource(tmp_path)
    with source.open("metadata/timestamp.json", 4, 5.0) as stream:
        assert [stream.read(4), stream.read(100), stream.read(1)] == [b"4567", b"89", b""]
    with pytest.raises(ModelNotFoundError, match="has no file metadata/nothing"), source.open("metadata/nothing", 0, 5):
        pass


def test_a_folder_that_is_not_there_is_a_link_that_is_down(tmp_path):
    with pytest.raises(LinkDownError, match="not there") as caught, FolderSource(tmp_path / "usb").open("a", 0, 5.0):
        pass
    assert caught.value.retryable


class Artifacts:
    def __init__(self):
        self.asked = []

    @contextmanager
    def open(self, uri, offset, timeout):
        self.asked.append((uri, offset, timeout))
        yield io.BytesIO(b"bytes")


def test_the_hub_is_a_source_of_the_provider():
    artifacts = Artifacts()
    source = open_source("hub:", artifacts)
    assert isinstance(source, ProviderSource)
    with source.open("metadata/timestamp.json", 3, 7.0) as stream:
        assert stream.read(9) == b"bytes"
    assert artifacts.asked == [("metadata/timestamp.json", 3, 7.0)]


def test_sources_are_named_by_path_or_uri(tmp_path):
    assert open_source(str(tmp_path), None).root == tmp_path
    assert open_source(f"file://{tmp_path}/a%20b", None).root == tmp_path / "a b"


@pytest.mark.parametrize(("uri", "says"), [("hub:", "brings no files"), ("ftp://x/y", "scheme")])
def test_a_source_that_cannot_be_is_a_settings_error(uri, says):
    with pytest.raises(SettingsError, match=says):
        open_source(uri, None)


@pytest.mark.parametrize(("size", "chunks"), [(0, 0), (100, 0), (MIN_CHUNK_BYTES, 0), (MIN_CHUNK_BYTES + 1, 2)])
def test_only_files_of_more_than_a_chunk_have_chunk_hashes(tmp_path, size, chunks):
    (tmp_path / "f").write_bytes(b"x" * size)
    entry = describe_file(tmp_path, "f")
    assert (entry.size_bytes, len(entry.chunks)) == (size, chunks)
    assert entry.sha256 == sha(b"x" * size)


def test_a_download_that_goes_on_does_not_read_its_stump_again(part, monkeypatch):
    link = Link(cut=4000)
    download = Download(link, "x", part, expected())
    with pytest.raises(LinkDownError):
        download.run(5.0)
    monkeypatch.setattr(Download, "_take_up", None)
    with pytest.raises(LinkDownError):
        download.run(5.0)
    download.run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == [0, 4000, 8000]


def test_a_stump_that_another_process_changed_is_read_again(part):
    link = Link(cut=4000)
    download = Download(link, "x", part, expected())
    with pytest.raises(LinkDownError):
        download.run(5.0)
    part.write_bytes(DATA[:1500])
    link.cut = None
    download.run(5.0)
    assert part.read_bytes() == DATA
    assert link.offsets == [0, 1500]
