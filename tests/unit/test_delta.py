"""A delta gives the file that was signed, to the byte, or an error of ours; its size is what tensors allow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from delta_parts import (
    applied,
    external_model,
    forged,
    made,
    memory_below,
    mobile,
    net,
    quantised,
    sha256,
    tuned,
    varints,
)
from outstation import zstd
from outstation.errors import DeltaError, DiskFullError
from outstation.models.delta import (
    BLOCK_LANES,
    DIFFERENCE,
    GAPS,
    MAX_PREFIX_BYTES,
    MAX_PROGRAM_BYTES,
    RAW,
    REST,
    STEP_COPY,
    STEP_DIFFERENCE,
    STEP_RAW,
    STEP_REST,
    STEP_SPARSE,
    VALUES,
    apply_delta,
)
from outstation.models.delta_encoder import encode_delta, tensors_of

GOLDEN = Path(__file__).parents[1] / "golden" / "delta-1"
KINDS = ["<f4", "<f2", "<f8", "i1", "u1", "<i4", "<i8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a property: each writes its files anew."""
    return tmp_path_factory.mktemp("delta")


def ways(report):
    return {step.tensor.name: step.way for step in report.steps}


# -- what goes in comes out ----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(0, 3000))
def test_any_two_files_make_a_delta_that_gives_the_second(folder, old, new, shared):
    new = old[:shared] + new
    made(folder, old, new)
    assert applied(folder, new) == new


@st.composite
def versions(draw):
    """Two nets: tensors that stay, move a little, change here and there, are new, are gone, change their type."""
    dice = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    old, new = {}, {}
    for index in range(draw(st.integers(0, 5))):
        kind = draw(st.sampled_from(KINDS))
        lanes = draw(st.sampled_from([0, 1, 63, 64, 257, 1000, BLOCK_LANES - 1, BLOCK_LANES, 2 * BLOCK_LANES + 5]))
        before = dice.integers(0, 256, lanes * np.dtype(kind).itemsize, np.uint8).view(kind)
        after = before.copy()
        fate = draw(st.sampled_from(["same", "tuned", "sparse", "other", "gone", "new", "renamed", "longer"]))
        bits = after.view(f"<u{after.itemsize}")
        if fate == "tuned":
            bits += dice.integers(0, 100, lanes).astype(bits.dtype) - bits.dtype.type(50)
        elif fate in {"sparse", "renamed"} and lanes:
            bits[dice.integers(0, lanes, draw(st.integers(1, 40)))] ^= bits.dtype.type(1)
        elif fate == "other":
            bits[:] = dice.integers(0, 256, lanes * bits.itemsize, np.uint8).view(bits.dtype)
        elif fate == "longer":
            after = np.concatenate([after, after])
        if fate != "new":
            old[f"w{index}"] = before
        if fate != "gone":
            new[f"v{index}" if fate == "renamed" else f"w{index}"] = after
    return net(old), net(new, doc=draw(st.text(max_size=20)))


@settings(max_examples=60, deadline=None)
@given(versions())
def test_any_two_nets_make_a_delta_that_gives_the_second(folder, pair):
    old, new = pair
    made(folder, old, new)
    assert applied(folder, new) == new


EDGES = [0, 254, 255, 256, 509, 510, 511, BLOCK_LANES - 1, BLOCK_LANES, 2 * BLOCK_LANES, 3 * BLOCK_LANES - 1]


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS), st.lists(st.sampled_from(EDGES)), st.integers(0, 1 << 30), st.sampled_from([1, 127, 255])
)
def test_changed_numbers_are_found_wherever_they_are(folder, kind, edges, seed, change):
    """Around the borders of blocks and of gaps that a byte holds, too."""
    dice = np.random.default_rng(seed)
    old = dice.integers(0, 256, 3 * BLOCK_LANES * np.dtype(kind).itemsize, np.uint8)
    new = old.copy()
    bits = new.view(f"<u{np.dtype(kind).itemsize}")
    bits[sorted({*edges, *dice.integers(0, 3 * BLOCK_LANES, 200).tolist()})] += bits.dtype.type(change)
    files = [net({"w": array.view(kind)}) for array in (old, new)]
    _, report = made(folder, *files)
    assert ways(report) == {"w": "sparse"}
    assert applied(folder, files[1]) == files[1]


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_differences_wrap_around_at_the_ends_of_a_number(tmp_path, width):
    """The least and the greatest of each type, so that a carry would be seen in the neighbour."""
    kind, most = f"<u{width}", (1 << (8 * width)) - 1
    edges = np.array([0, 1, most // 2, most // 2 + 1, most - 1, most], kind)
    old, new = np.repeat(edges, 60), np.tile(edges, 60)
    program = varints(0, STEP_DIFFERENCE, width, 0, len(old))
    difference = (new - old).view(f"<i{width}")
    coded = ((difference << np.int8(1)) ^ (difference >> np.int8(8 * width - 1))).view(np.uint8).reshape(-1, width)
    streams = {(DIFFERENCE, width, plane): coded[:, plane].tobytes() for plane in range(width)}
    (tmp_path / "old").write_bytes(old.tobytes())
    (tmp_path / "delta").write_bytes(forged(old.tobytes(), new.tobytes(), program, streams))
    assert applied(tmp_path, new.tobytes()) == new.tobytes()


# -- how large it is -----------------------------------------------------------------------------------------------


def test_a_new_head_costs_the_head_and_nothing_else(tmp_path):
    old = mobile(channels=(16, 32, 64))
    new = {**old, "head": mobile(9, channels=(16, 32, 64))["head"]}
    delta, report = made(tmp_path, net(old), net(new))
    assert {name for name, way in ways(report).items() if way != "same"} == {"head"}
    assert delta.stat().st_size < 0.9 * new["head"].nbytes


def test_a_fine_tune_costs_the_low_bytes_of_the_numbers(tmp_path):
    old = mobile(channels=(16, 32, 64))
    delta, report = made(tmp_path, net(old), net(tuned(old)))
    assert set(ways(report).values()) <= {"difference", "same"}  # a bias of zeros stays what it was
    assert delta.stat().st_size < 0.62 * (tmp_path / "new").stat().st_size


def test_a_few_changed_numbers_cost_some_bits_each(tmp_path):
    old, new = quantised(changes=300)
    delta, report = made(tmp_path, net(old), net(new))
    assert ways(report) == {"weights": "sparse"}
    assert delta.stat().st_size < 300 * 1.3 + 300


def test_renamed_and_moved_tensors_are_recognised(tmp_path):
    old = mobile()
    new = {f"onnx::{index}": array for index, array in enumerate(reversed(tuned(old).values()))}
    delta, report = made(tmp_path, net(old), net(new))
    assert "whole" not in ways(report).values()
    assert delta.stat().st_size < 0.7 * (tmp_path / "new").stat().st_size


def test_the_same_file_costs_nearly_nothing(tmp_path):
    data = net(mobile())
    delta, _ = made(tmp_path, data, data)
    assert delta.stat().st_size < 400
    assert applied(tmp_path, data) == data


def test_the_same_files_give_the_same_delta(tmp_path):
    old = mobile()
    first = made(tmp_path, net(old), net(tuned(old)))[0].read_bytes()
    assert made(tmp_path, net(old), net(tuned(old)))[0].read_bytes() == first


def test_external_data_is_taken_tensor_by_tensor(tmp_path):
    old = mobile()
    folders = [tmp_path / "a", tmp_path / "b"]
    for place, arrays in zip(folders, (old, tuned(old)), strict=True):
        place.mkdir()
        external_model(place, arrays)
    files = [place / "weights.bin" for place in folders]
    tensors = [tensors_of(file, file.with_name("model.onnx"), "weights.bin") for file in files]
    report = encode_delta(*files, tmp_path / "delta", base_tensors=tensors[0], result_tensors=tensors[1])
    assert "difference" in ways(report).values()
    assert report.size_bytes < 0.7 * report.result_bytes
    new = files[1].read_bytes()
    apply_delta(tmp_path / "delta", files[0], tmp_path / "c", sha256=sha256(new), size_bytes=len(new))
    assert (tmp_path / "c").read_bytes() == new


# -- what is wrong with it -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """A delta with every kind of step, small."""
    place = tmp_path_factory.mktemp("rich")
    dice = np.random.default_rng(5)
    old = {
        "same": dice.standard_normal(100).astype(np.float32),
        "tuned": dice.standard_normal(100).astype(np.float32),
        "sparse": dice.integers(-100, 100, 3000).astype(np.int8),
        "other": dice.standard_normal(70).astype(np.float32),
    }
    new = {**old, "tuned": old["tuned"] * np.float32(1.0001), "other": dice.standard_normal(90).astype(np.float32)}
    new["sparse"] = old["sparse"].copy()
    new["sparse"][dice.choice(3000, 40, replace=False)] += 1
    delta, report = made(place, net(old), net(new))
    assert ways(report) == {"same": "same", "tuned": "difference", "sparse": "sparse", "other": "whole"}
    return place, delta.read_bytes(), net(new)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_changed_byte_gives_the_right_bytes_or_an_error_of_ours(rich, data):
    place, whole, new = rich
    broken = bytearray(whole)
    broken[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    (place / "broken").write_bytes(broken)
    try:
        assert applied(place, new, place / "broken") == new
    except DeltaError:
        assert not (place / "target").exists()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_delta_that_was_cut_or_grew_is_an_error_of_ours(rich, data):
    place, whole, new = rich
    cut = data.draw(st.integers(0, len(whole) - 1))
    (place / "broken").write_bytes(whole[:cut] if data.draw(st.booleans()) else whole + whole[cut:])
    with pytest.raises(DeltaError):
        applied(place, new, place / "broken")


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=600))
def test_any_program_gives_the_right_bytes_or_an_error_of_ours(folder, program):
    old, new = bytes(range(256)) * 4, bytes(1024)
    (folder / "old").write_bytes(old)
    streams = {(kind, 1, 0): bytes(range(200)) for kind in (REST, RAW, DIFFERENCE, GAPS, VALUES)}
    (folder / "forged").write_bytes(forged(old, new, program, streams))
    with suppress(DeltaError):
        assert applied(folder, new, folder / "forged") == new


OLD = bytes(range(256)) * 4
LIES = {
    "a copy beyond the end of the base": varints(0, STEP_COPY, 1000, 100),
    "a copy of nothing": varints(0, STEP_COPY, 0, 0) * 2,
    "more than it says": varints(0, STEP_COPY, 0, 1024, STEP_COPY, 0, 1),
    "less than it says": varints(0, STEP_COPY, 0, 1000),
    "a step that is not known": varints(0, 9, 1, 1),
    "lanes of three bytes": varints(0, STEP_RAW, 3, 10),
    "more lanes than bytes": varints(0, STEP_RAW, 8, 1 << 40),
    "a number without end": b"\x80" * 40,
    "a program that is cut": varints(0, STEP_COPY, 0),
    "an empty program": b"",
    "a dictionary that is too large": varints(2, 0, 1000, 0, MAX_PREFIX_BYTES),
    "a dictionary beyond the base": varints(1, 1000, 1000),
    "a dictionary of too many parts": varints(1 << 30),
    "a dictionary smaller than zstd takes": varints(1, 0, 3, STEP_COPY, 0, 1024),
    "a stream that is not there": varints(0, STEP_RAW, 2, 512),
    "a stream that ends": varints(0, STEP_REST, 1024),
    "changed lanes beyond the block": varints(0, STEP_SPARSE, 1, 0, 100, 3, STEP_COPY, 0, 924),
    "more changed lanes than lanes": varints(0, STEP_SPARSE, 1, 0, 100, 1 << 40),
    "another file than it says": varints(0, STEP_COPY, 512, 512, STEP_COPY, 0, 256, STEP_COPY, 0, 256),
}


@pytest.mark.parametrize("what", LIES)
def test_a_delta_that_lies_is_an_error_of_ours(tmp_path, what):
    new = OLD[:-1] + b"\x01"
    (tmp_path / "old").write_bytes(OLD)
    streams = {(REST, 1, 0): b"some", (GAPS, 1, 0): b"\x32\x32\x00", (VALUES, 1, 0): b"\x01\x02\x03"}
    (tmp_path / "delta").write_bytes(forged(OLD, new, LIES[what], streams))
    with pytest.raises(DeltaError):
        applied(tmp_path, new)
    assert not (tmp_path / "target").exists()


def test_a_program_that_is_a_bomb_is_not_unpacked(tmp_path):
    bomb = zstd.compress(bytes(256 << 20), options={zstd.CompressionParameter.window_log: 18})
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "delta").write_bytes(forged(OLD, OLD, b"", packed={(0, 1, 0): bomb}))
    with memory_below(4 * MAX_PROGRAM_BYTES), pytest.raises(DeltaError, match="larger than"):
        applied(tmp_path, OLD)


def test_a_stream_that_is_a_bomb_gives_no_more_than_is_wanted(tmp_path):
    new = bytes(1024)
    bomb = zstd.compress(bytes(256 << 20), options={zstd.CompressionParameter.window_log: 18})
    (tmp_path / "old").write_bytes(OLD)
    packed = {(RAW, 1, 0): bomb}
    (tmp_path / "delta").write_bytes(forged(OLD, new, varints(0, STEP_RAW, 1, 1024), packed=packed))
    with memory_below(4 << 20):
        assert applied(tmp_path, new) == new


def test_a_stream_that_wants_a_large_window_is_refused(tmp_path):
    frame = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 27})
    huge = frame.compress(bytes(1024)) + frame.flush()
    (tmp_path / "old").write_bytes(OLD)
    packed = {(RAW, 1, 0): huge}
    (tmp_path / "delta").write_bytes(forged(OLD, bytes(1024), varints(0, STEP_RAW, 1, 1024), packed=packed))
    with pytest.raises(DeltaError, match="decompress"):
        applied(tmp_path, bytes(1024))


def test_memory_does_not_grow_with_the_file(tmp_path):
    dice = np.random.default_rng(8)
    old = dice.standard_normal(4_000_000).astype(np.float32)
    made(tmp_path, net({"w": old}), net({"w": old * np.float32(1.0001)}))
    new = (tmp_path / "new").read_bytes()
    with memory_below(3 << 20):  # 16 MB of weights
        apply_delta(tmp_path / "delta", tmp_path / "old", tmp_path / "c", sha256=sha256(new), size_bytes=len(new))


def test_another_base_is_named(tmp_path):
    old, new = net(mobile()), net(tuned(mobile()))
    made(tmp_path, old, new)
    (tmp_path / "old").write_bytes(old[:-1] + b"?")
    with pytest.raises(DeltaError, match="was made from"):
        applied(tmp_path, new)
    (tmp_path / "old").write_bytes(old + b"?")
    with pytest.raises(DeltaError, match="was made from a file of"):
        applied(tmp_path, new)


def test_a_delta_for_another_result_is_not_even_begun(tmp_path):
    made(tmp_path, OLD, OLD * 2)
    with pytest.raises(DeltaError, match="is wanted"):
        applied(tmp_path, OLD * 3)


def test_a_delta_of_the_future_says_so(tmp_path):
    (tmp_path / "old").write_bytes(OLD)
    (tmp_path / "delta").write_bytes(forged(OLD, OLD, varints(0, STEP_COPY, 0, 1024), version=2))
    with pytest.raises(DeltaError, match="version 2"):
        applied(tmp_path, OLD)


def test_a_full_disk_is_an_error_of_ours_and_leaves_nothing(tmp_path):
    old = mobile()
    made(tmp_path, net(old), net(tuned(old)))
    (tmp_path / "target").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        applied(tmp_path, net(tuned(old)))
    assert not (tmp_path / "target").is_symlink()


def test_a_pulse_may_stop_it(tmp_path):
    class StopError(Exception):
        pass

    def pulse():
        raise StopError

    new = net(tuned(mobile()))
    delta, _ = made(tmp_path, net(mobile()), new)
    with pytest.raises(StopError):
        apply_delta(delta, tmp_path / "old", tmp_path / "target", sha256=sha256(new), size_bytes=len(new), pulse=pulse)
    assert not (tmp_path / "target").exists()


# -- golden files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["net", "int8", "bytes"])
def test_deltas_of_version_1_stay_readable_for_ever(tmp_path, name):
    """``OUTSTATION_TEST_WRITE=1`` makes what is missing; what is there is never written again."""
    old, new, delta = (GOLDEN / f"{name}.{part}" for part in ("old", "new", "delta"))
    if os.environ.get("OUTSTATION_TEST_WRITE") and not delta.exists():
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for path, data in zip((old, new), golden_pair(name), strict=True):
            path.write_bytes(data)
        encode_delta(old, new, delta)
    apply_delta(delta, old, tmp_path / "new", sha256=sha256(new.read_bytes()), size_bytes=new.stat().st_size)
    assert (tmp_path / "new").read_bytes() == new.read_bytes()


def golden_pair(name):
    if name == "bytes":
        text = b"a line of labels\n" * 100
        return text, text[:800] + b"another line\n" + text[800:]
    if name == "int8":
        return tuple(net(arrays) for arrays in quantised(changes=200, lanes=2 * BLOCK_LANES + 100))
    dice = np.random.default_rng(11)
    old = {
        **mobile(channels=(4, 8)),
        "gone": dice.standard_normal(80),
        "halves": dice.standard_normal(300).astype("<f2"),
    }
    new = {**tuned(old), "0.depth": old["0.depth"], "fresh": dice.standard_normal(80)}
    del new["gone"]
    return net(old), net(new, doc="the second")
