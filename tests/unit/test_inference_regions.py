"""Regions of shared memory that are what they claim to be are read and written; all others are an error each."""

from __future__ import annotations

import contextlib
import os
import uuid
from pathlib import Path

import numpy as np
import pytest

from faults.test_buffer_disk import mounted
from outstation.errors import (
    ClosedError,
    InvalidInputError,
    OutstationError,
    ProviderUnavailableError,
    RegionExistsError,
    RegionNotFoundError,
)
from outstation.wire.datatypes import object_array
from outstation.wire.shared import Region, SharedTensor, Window
from outstation_inference import regions as regions_module
from outstation_inference.regions import Regions

FOLDER = Path("/dev/shm")
X = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def memory():
    """Makes shared memory of a size and gives its key; it is gone after the test."""
    made = []

    def make(size, data=b""):
        key = f"/outstation-test-{uuid.uuid4().hex}"
        path = FOLDER / key[1:]
        made.append(path)
        path.write_bytes(data)
        os.truncate(path, size)
        return key

    yield make
    for path in made:
        path.unlink(missing_ok=True)


@pytest.fixture
def regions():
    with contextlib.closing(Regions(4, max_bytes=1 << 20)) as made:
        yield made


def content(key):
    return (FOLDER / key[1:]).read_bytes()


def read(regions, window, shape=(2, 3), datatype="FP32"):
    return regions.read({"x": SharedTensor(datatype, shape, window)})["x"]


def test_what_lies_in_a_region_is_read_and_what_is_written_lies_there(regions, memory):
    key = memory(100, b"\0" * 8 + X.tobytes())
    regions.register(Region("all", key, 0, 100))
    regions.register(Region("part", key, 8, 60))
    assert np.array_equal(read(regions, Window("all", 8, 24)), X)
    assert np.array_equal(read(regions, Window("part", 0, 24)), X)
    y = np.array([[1.5], [2.5]])
    assert regions.write({"y": Window("part", 30, 20)}, {"y": y}) == {"y": Window("part", 30, 16)}
    assert content(key)[38:54] == y.tobytes()
    assert content(key)[54:] == b"\0" * 46


def test_a_copy_is_computed_with_so_that_its_owner_may_go_on_writing(regions, memory):
    key = memory(24, X.tobytes())
    regions.register(Region("r", key, 0, 24))
    array = read(regions, Window("r", 0, 24))
    (FOLDER / key[1:]).write_bytes(b"\xff" * 24)
    assert np.array_equal(array, X)


def test_text_and_empty_tensors_lie_there_too(regions, memory):
    key = memory(64, b"\x02\0\0\0hi\0\0\0\0")
    regions.register(Region("r", key, 0, 64))
    assert read(regions, Window("r", 0, 10), (2,), "BYTES").tolist() == [b"hi", b""]
    assert read(regions, Window("r", 0, 0), (0, 3)).shape == (0, 3)
    written = regions.write({"y": Window("r", 20, 44)}, {"y": object_array(["\u00e9"])})
    assert written["y"].size_bytes == 6
    assert content(key)[20:26] == b"\x02\0\0\0\xc3\xa9"
    assert regions.write({"y": Window("r", 0, 1)}, {"y": X[:0]})["y"].size_bytes == 0


@pytest.mark.parametrize(
    "key", ["", "/", "..", "/..", "../etc/passwd", "/../etc/passwd", "a/b", "a\0b", "/sem.mutex", "x" * 300, "/nobody"]
)
def test_a_key_that_is_no_shared_memory_is_refused(regions, key):
    with pytest.raises(InvalidInputError):
        regions.register(Region("r", key, 0, 1))
    assert regions.status("") == ()


def test_links_pipes_and_folders_are_not_followed_opened_or_waited_for(regions, memory, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    for make in (lambda path: path.symlink_to(tmp_path / "secret"), os.mkfifo, os.mkdir):
        key = memory(1)
        path = FOLDER / key[1:]
        path.unlink()
        make(path)
        try:
            with pytest.raises(InvalidInputError):
                regions.register(Region("r", key, 0, 1))
        finally:
            path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("offset", "size"), [(0, 0), (0, 65), (64, 1), (60, 5), (0, 1 << 31), (1 << 63, 1), (1, (1 << 64) - 1)]
)
def test_a_region_that_lies_about_its_size_is_refused(regions, memory, offset, size):
    with pytest.raises(InvalidInputError):
        regions.register(Region("r", memory(64), offset, size))


@pytest.mark.parametrize("name", ["", "n" * 256])
def test_a_region_needs_a_name_of_sane_length(regions, memory, name):
    with pytest.raises(InvalidInputError, match="has 1 to 255"):
        regions.register(Region(name, memory(64), 0, 1))


@pytest.mark.parametrize(
    ("window", "shape", "words"),
    [
        (Window("other", 0, 24), (2, 3), "No region 'other'"),
        (Window("r", 0, 65), (2, 3), "the region 'r' has 64"),
        (Window("r", 41, 24), (2, 3), "the region 'r' has 64"),
        (Window("r", 1 << 62, 24), (2, 3), "the region 'r' has 64"),
        (Window("r", 0, 24), (2, 4), "has 24 bytes; FP32 [2, 4] needs 32"),
        (Window("r", 0, 2 << 20), (2, 3), "1048576 is the most"),
        (Window("r", 0, 0), (1 << 40,), "needs 4398046511104"),
    ],
)
def test_a_window_that_its_region_has_not_is_refused(regions, memory, window, shape, words):
    regions.register(Region("r", memory(64), 0, 64))
    with pytest.raises(InvalidInputError) as caught:
        read(regions, window, shape)
    assert words in str(caught.value)
    if window.size_bytes > 64 or window.offset or window.region != "r":
        with pytest.raises(InvalidInputError):
            regions.check({"y": window})


def test_memory_that_has_shrunk_is_an_error_and_not_the_end_of_the_process(regions, memory):
    key = memory(64, X.tobytes())
    regions.register(Region("r", key, 0, 64))
    os.truncate(FOLDER / key[1:], 8)
    with pytest.raises(InvalidInputError, match="which has 8 now"):
        read(regions, Window("r", 0, 24))
    with pytest.raises(InvalidInputError, match="which has 8 now"):
        regions.write({"y": Window("r", 0, 24)}, {"y": X})
    assert len(content(key)) == 8


def test_outputs_that_do_not_fit_or_overlap_are_refused_before_one_is_written(regions, memory):
    key = memory(64)
    regions.register(Region("one", key, 0, 64))
    regions.register(Region("two", key, 32, 32))
    outputs = {"a": X, "b": X}
    with pytest.raises(InvalidInputError, match="24 bytes; 23 were given"):
        regions.write({"a": Window("one", 0, 24), "b": Window("one", 24, 23)}, outputs)
    assert content(key) == b"\0" * 64
    for window in (Window("one", 20, 24), Window("one", 0, 31), Window("two", 0, 24), Window("one", 53, 1)):
        with pytest.raises(InvalidInputError, match="share bytes"):
            regions.check({"a": Window("one", 30, 24), "b": window})
    regions.check({"a": Window("one", 8, 24), "b": Window("two", 0, 24), "c": Window("one", 56, 8)})
    regions.write({"a": Window("one", 0, 24), "b": Window("two", 0, 24)}, outputs)
    assert content(key)[:24] == content(key)[32:56] == X.tobytes()


def test_regions_are_bounded_and_those_that_nobody_can_find_any_more_make_room(regions, memory):
    keys = [memory(8) for _ in range(5)]
    for number, key in enumerate(keys[:4]):
        regions.register(Region(f"r{number}", key, 0, 8))
    with pytest.raises(ProviderUnavailableError, match="4 regions are registered"):
        regions.register(Region("r4", keys[4], 0, 8))
    (FOLDER / keys[1][1:]).unlink()
    regions.register(Region("r4", keys[4], 0, 8))
    assert [region.name for region in regions.status("")] == ["r0", "r2", "r3", "r4"]


def test_a_name_is_taken_until_it_is_unregistered_or_its_memory_is_deleted(regions, memory):
    first, second = memory(8, b"1"), memory(8, b"2")
    regions.register(Region("r", first, 0, 8))
    with pytest.raises(RegionExistsError):
        regions.register(Region("r", second, 0, 8))
    (FOLDER / first[1:]).unlink()
    assert read(regions, Window("r", 0, 1), (1,), "UINT8").tolist() == [ord("1")]  # whoever has it open may go on
    regions.register(Region("r", second, 0, 8))
    assert read(regions, Window("r", 0, 1), (1,), "UINT8").tolist() == [ord("2")]
    regions.unregister("r")
    regions.unregister("r")
    with pytest.raises(RegionNotFoundError):
        regions.status("r")


def test_descriptors_are_given_back(regions, memory):
    def count():
        return len(list(Path("/proc/self/fd").iterdir()))

    before = count()
    key = memory(8)
    for _ in range(3):
        regions.register(Region("r", key, 0, 8))
        for claim in (Region("r", key, 0, 8), Region("s", key, 0, 9), Region("s", "/nobody", 0, 9)):
            with pytest.raises(OutstationError):
                regions.register(claim)
        with pytest.raises(OutstationError):
            read(regions, Window("r", 0, 8))
        regions.unregister("")
    assert count() == before
    regions.register(Region("r", key, 0, 8))
    regions.close()
    assert count() == before
    with pytest.raises(ClosedError):
        regions.register(Region("r", key, 0, 8))


def test_where_no_region_may_be_none_is():
    with pytest.raises(ProviderUnavailableError, match="No shared memory is taken here"):
        Regions(0, 1 << 20).register(Region("r", "/r", 0, 1))


def test_outputs_that_memory_has_no_room_for_are_an_error(regions, tmp_path, monkeypatch):
    folder = tmp_path / "shm"
    with mounted("tmpfs", "size=64k", folder):
        monkeypatch.setattr(regions_module, "_FOLDER", str(folder))
        (folder / "sparse").touch()
        os.truncate(folder / "sparse", 1 << 20)  # memory is given when it is written to, not when it is asked for
        regions.register(Region("r", "sparse", 0, 1 << 20))
        window = Window("r", 0, 1 << 20)
        for _ in range(2):  # the first fills what there is
            with pytest.raises(InvalidInputError, match="y"):
                regions.write({"y": window}, {"y": np.ones(1 << 20, np.uint8)})
        regions.close()
