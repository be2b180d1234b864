from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from outstation.errors import ManifestError
from outstation.models.manifest import (
    MAX_MANIFEST_BYTES,
    Budgets,
    Golden,
    encode_manifest,
    parse_manifest,
    path_problem,
)

GOOD = {
    "format": 1,
    "name": "meter-digits",
    "version": "1.2.0",
    "model": "model.onnx",
    "files": [
        {"path": "model.onnx", "sha256": "a" * 64, "size_bytes": 12},
        {"path": "golden.npz", "sha256": "b" * 64, "size_bytes": 7},
        {"path": "labels.txt", "sha256": "c" * 64, "size_bytes": 7},
    ],
    "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 8, 8]}],
    "outputs": [{"name": "digit", "datatype": "INT64", "shape": [-1]}],
    "runtime": {"name": "onnx"},
    "labels": "labels.txt",
    "golden": {"file": "golden.npz", "absolute": 0.001, "relative": 0.0},
    "budgets": {"p95_latency": 0.02, "peak_memory_bytes": 1000},
    "requires": {"memory_bytes": 5, "instruction_sets": ["avx2"]},
    "baseline": {
        "rows": 30,
        "inputs": {"image": {"edges": [0.0, 1.0], "counts": [10, 15, 5], "missing": 0}},
        "outputs": {"digit": {"edges": [0.5], "counts": [20, 10], "missing": 0}},
    },
    "metrics": {"accuracy": 0.97},
    "provenance": {"commit": "1f2e3d"},
}


def changed(*path, to=..., without=False):
    tree = copy.deepcopy(GOOD)
    node = tree
    for key in path[:-1]:
        node = node[key]
    if without:
        del node[path[-1]]
    else:
        node[path[-1]] = to
    return json.dumps(tree).encode()


def test_a_manifest_says_what_it_was_given():
    manifest = parse_manifest(json.dumps(GOOD).encode())
    assert (manifest.name, manifest.version, manifest.model) == ("meter-digits", "1.2.0", "model.onnx")
    assert manifest.inputs[0].shape == (-1, 8, 8)
    assert manifest.golden == Golden("golden.npz", 0.001, 0.0)
    assert manifest.budgets == Budgets(0.02, 1000)
    assert manifest.size_bytes == 26
    assert manifest.file("labels.txt").sha256 == "c" * 64


def test_encoding_and_parsing_are_inverse_and_deterministic():
    manifest = parse_manifest(json.dumps(GOOD).encode())
    data = encode_manifest(manifest)
    assert parse_manifest(data) == manifest
    assert encode_manifest(parse_manifest(data)) == data


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (changed("files", 0, "sha265", to="x"), "files[0].sha265"),
        (changed("colour", to="red"), "colour"),
        (changed("golden", "files", to="x"), "golden.files"),
        (changed("name", without=True), "name"),
        (changed("files", 1, "size_bytes", without=True), "files[1].size_bytes"),
        (changed("name", to=7), "name"),
        (changed("files", 0, "size_bytes", to="12"), "files[0].size_bytes"),
        (changed("files", 0, "size_bytes", to=-1), "files[0].size_bytes"),
        (changed("files", 0, "sha256", to="A" * 64), "files[0].sha256"),
        (changed("files", 0, "sha256", to="a" * 63), "files[0].sha256"),
        (changed("files", 0, "path", to="../model.onnx"), "files[0].path"),
        (changed("files", 0, "path", to="a/../../b"), "files[0].path"),
        (changed("files", 0, "path", to="/etc/passwd"), "files[0].path"),
        (changed("files", 0, "path", to="a\\b"), "files[0].path"),
        (changed("files", 0, "path", to="a\x00b"), "files[0].path"),
        (changed("files", 0, "path", to="a//b"), "files[0].path"),
        (changed("files", 0, "path", to="a/./b"), "files[0].path"),
        (changed("files", 0, "path", to=".hidden"), "files[0].path"),
        (changed("files", 0, "path", to="mödel.onnx"), "files[0].path"),
        (changed("files", 0, "path", to="model.onnx "), "files[0].path"),
        (changed("files", 0, "path", to="C:model"), "files[0].path"),
        (changed("files", 0, "path", to=""), "files[0].path"),
        (changed("files", 0, "path", to="a" * 201), "files[0].path"),
        (changed("files", 0, "path", to="Manifest.JSON"), "files[0].path"),
        (changed("files", 1, "path", to="model.onnx"), "files[1].path"),
        (changed("files", 1, "path", to="MODEL.onnx"), "files[1].path"),
        (changed("files", 1, "path", to="model.onnx/golden.npz"), "files"),
        (changed("files", to=[]), "files"),
        (changed("files", 0, "chunks", to=["a" * 64]), "files[0].chunks"),
        (changed("files", 0, "chunk_bytes", to=4), "files[0].chunks"),
        (changed("model", to="other.onnx"), "model"),
        (changed("labels", to="names.txt"), "labels"),
        (changed("golden", "file", to="other.npz"), "golden.file"),
        (changed("golden", "absolute", to=-0.1), "golden.absolute"),
        (changed("name", to="Meter Digits"), "name"),
        (changed("name", to="../x"), "name"),
        (changed("version", to="1.2"), "version"),
        (changed("version", to="../../x"), "version"),
        (changed("inputs", to=[]), "inputs"),
        (changed("inputs", 0, "datatype", to="float32"), "inputs[0].datatype"),
        (changed("inputs", 0, "shape", to=[-2]), "inputs[0].shape[0]"),
        (changed("outputs", to=[GOOD["outputs"][0]] * 2), "outputs[1].name"),
        (changed("budgets", "p95_latency", to=0), "budgets.p95_latency"),
        (changed("runtime", "minimum_version", to="latest"), "runtime.minimum_version"),
        (changed("baseline", "rows", to=0), "baseline.rows"),
        (changed("baseline", "columns", to=3), "baseline.columns"),
        (changed("baseline", "inputs", "image", "edges", to=[0.0, 0.0]), "baseline.inputs.image.edges"),
        (changed("baseline", "inputs", "image", "edges", to=[1.0, 0.0]), "baseline.inputs.image.edges"),
        (changed("baseline", "inputs", "image", "counts", to=[1, 2]), "baseline.inputs.image"),
        (changed("baseline", "inputs", "image", "counts", to=[1, 2, -3]), "baseline.inputs[...].counts[2]"),
        (changed("baseline", "inputs", "picture", to=GOOD["baseline"]["inputs"]["image"]), "baseline.inputs.picture"),
        (changed("baseline", "outputs", "digit[x]", to={"edges": [], "counts": [1]}), "baseline.outputs.digit[x]"),
        (
            changed("baseline", "outputs", "digit", to={"edges": list(range(65)), "counts": [1] * 66}),
            "baseline.outputs.digit",
        ),
        (
            changed("baseline", "inputs", to={f"image[{n}]": {"edges": [], "counts": [1]} for n in range(1025)}),
            "baseline.inputs",
        ),
    ],
)
def test_what_is_wrong_is_named_by_the_path_of_its_field(data, field):
    with pytest.raises(ManifestError) as caught:
        parse_manifest(data)
    assert f"wrong at {field}:" in str(caught.value)


@pytest.mark.parametrize("declared", [2, 99, 2**70])
def test_a_format_of_the_future_is_refused_as_such(declared):
    with pytest.raises(ManifestError, match=r"of the future; this Outstation reads up to 1") as caught:
        parse_manifest(json.dumps({**GOOD, "format": declared, "anything": "else"}).encode())
    assert "Upgrade" in caught.value.hint


@pytest.mark.parametrize("declared", [0, -1, True, "1", None, 1.5])
def test_a_format_that_is_no_format_is_refused(declared):
    with pytest.raises(ManifestError, match="wrong at format"):
        parse_manifest(json.dumps({**GOOD, "format": declared}).encode())


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format": NaN}', b" " * (MAX_MANIFEST_BYTES + 1)],
)
def test_what_is_no_manifest_at_all_is_refused(data):
    with pytest.raises(ManifestError):
        parse_manifest(data)


def test_a_field_that_is_there_twice_is_refused():
    data = json.dumps(GOOD).encode().replace(b'"name": "meter-digits"', b'"name": "a", "name": "meter-digits"')
    with pytest.raises(ManifestError, match="wrong at name: the field is there twice"):
        parse_manifest(data)


def test_metrics_must_be_finite():
    data = json.dumps(GOOD).encode().replace(b'"accuracy": 0.97', b'"accuracy": 1e999')
    with pytest.raises(ManifestError, match=r"metrics\.accuracy"):
        parse_manifest(data)


def test_a_chunked_file_has_one_hash_for_each_chunk():
    data = changed("files", 0, to={"path": "model.onnx", "sha256": "a" * 64, "size_bytes": 9, "chunk_bytes": 4})
    with pytest.raises(ManifestError, match="must hold 3 hashes, not 0"):
        parse_manifest(data)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
TREES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))


@settings(max_examples=150, deadline=None)
@given(key=st.sampled_from(sorted(GOOD)), value=TREES)
def test_any_value_anywhere_is_taken_or_refused_but_never_crashes(key, value):
    try:
        manifest = parse_manifest(json.dumps({**GOOD, key: value}).encode())
    except ManifestError:
        return
    assert parse_manifest(encode_manifest(manifest)) == manifest


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_a_path_that_passes_stays_below_its_folder(path):
    if path_problem(path) is None:
        assert not path.startswith(("/", "."))
        assert ".." not in path.split("/")
        assert path.isascii()
