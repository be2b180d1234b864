"""The wire contract stands still: golden bytes stay readable, the .proto files change by the rules of docs/format.md.

``OUTSTATION_TEST_WRITE=1`` adds what is new: golden files that are missing, and a contract that the rules allow.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from google.protobuf import descriptor_pb2

from outstation.errors import WireError
from outstation.wire import convert, fleet
from outstation.wire import station as agent
from outstation.wire.generated import enroll_pb2, fleet_pb2, open_inference_pb2, station_pb2, sync_pb2
from outstation.wire.method import Method
from outstation.wire.tensors import InferRequest
from wire_samples import SAMPLES

GOLDEN = Path(__file__).parents[1] / "golden" / "wire-1"
CONTRACT = GOLDEN / "contract.json"
WRITE = bool(os.environ.get("OUTSTATION_TEST_WRITE"))
FILES = (sync_pb2, fleet_pb2, enroll_pb2, station_pb2, open_inference_pb2)
UNKNOWN_FIELD = b"\xfa\xff\xff\xff\x0f\x02hi"  # field 536,870,911, the highest there is: two bytes


# -- golden bytes ----------------------------------------------------------------------------------------------------


def meaning(value):
    """*value* as JSON has it."""
    return json.loads(msgspec.json.encode(value))


def as_known_then(now, then):
    """*now* without the fields that a golden file does not know, which must be "not said"."""
    if isinstance(now, dict) and isinstance(then, dict):
        return {key: as_known_then(value, then.get(key)) for key, value in now.items() if key in then or value}
    if isinstance(now, list) and isinstance(then, list) and len(now) == len(then):
        return [as_known_then(*pair) for pair in zip(now, then, strict=True)]
    return now


@pytest.mark.parametrize("name", SAMPLES)
def test_golden_bytes_are_read_and_written_as_ever(name):
    codec, value = SAMPLES[name]
    data, described = GOLDEN / f"{name}.bin", GOLDEN / f"{name}.json"
    if WRITE and not data.exists():
        data.write_bytes(codec.encode(value))
        described.write_text(json.dumps(meaning(value), indent=1, ensure_ascii=False) + "\n")
    golden = data.read_bytes()
    then = json.loads(described.read_text())
    assert as_known_then(meaning(codec.decode(golden)), then) == then
    assert codec.decode(golden) == value
    assert codec.encode(value) == golden


def test_every_golden_file_is_tested():
    assert {path.stem for path in GOLDEN.glob("*.bin")} == SAMPLES.keys()


def test_every_message_of_every_method_has_a_golden_file():
    methods = [m for room in (convert, fleet, agent) for m in vars(room).values() if isinstance(m, Method)]
    shown = [codec for codec, _ in SAMPLES.values()]
    assert [m.path for m in methods for codec in (m.request, m.response) if codec not in shown] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_fields_of_a_newer_side_are_passed_over(name):
    codec, value = SAMPLES[name]
    assert codec.decode(codec.encode(value) + UNKNOWN_FIELD) == value
    assert codec.decode(UNKNOWN_FIELD + codec.encode(value)) == value


@pytest.mark.parametrize("name", SAMPLES)
def test_every_cut_of_a_message_is_a_message_or_a_wire_error(name):
    codec, value = SAMPLES[name]
    whole = codec.encode(value)
    for end in range(len(whole)):
        with suppress(WireError):
            codec.decode(whole[:end])


def infer(parameters):
    """A call of a model, all of it by hand: what is in the middle of it, and how it ends, is up to the caller."""
    message = open_inference_pb2.ModelInferRequest(model_name="digits", model_version="2.0.0")
    message.inputs.add(name="image", datatype="FP32", shape=[1, 3])
    for name, value in parameters.items():
        message.parameters[name].string_param = value
    return message.SerializeToString()


RAW_CONTENTS = b"\x3a\x0c" + np.arange(3, dtype=np.float32).tobytes()


def test_the_golden_bytes_of_a_call_are_read_slowly_and_fast_and_written_as_ever():
    golden = infer({"camera": "2"}) + RAW_CONTENTS
    path = GOLDEN / "infer-request.raw"
    if WRITE and not path.exists():
        path.write_bytes(golden)
    assert path.read_bytes() == golden
    for _ in range(3):  # the first time by protobuf, then by what was learned
        request = InferRequest.unpack(path.read_bytes())
        assert (request.model, request.version, request.parameters) == ("digits", "2.0.0", {"camera": "2"})
        assert request.inputs["image"].tolist() == [[0.0, 1.0, 2.0]]
        assert request.pack() == golden


def test_fields_of_a_newer_client_are_passed_over_slowly_and_fast():
    for unknown in (UNKNOWN_FIELD, UNKNOWN_FIELD[:-2] + b"oh", b"\xf8\xff\xff\xff\x0f\x05"):
        for data in (
            unknown + infer({}) + RAW_CONTENTS,
            infer({}) + unknown + RAW_CONTENTS,
            infer({}) + RAW_CONTENTS + unknown,
        ):
            for _ in range(3):
                request = InferRequest.unpack(data)
                assert (request.model, request.inputs["image"].tolist()) == ("digits", [[0.0, 1.0, 2.0]])


# -- the contract ----------------------------------------------------------------------------------------------------


def contract_of(files):
    """Messages with their fields and reserved numbers and names, and methods, by full name."""
    messages, methods = {}, {}
    for file in files:
        for message in file.message_type:
            _add_message(messages, f"{file.package}.{message.name}", message)
        for service in file.service:
            for method in service.method:
                streams = [method.client_streaming, method.server_streaming]
                path = f"/{file.package}.{service.name}/{method.name}"
                methods[path] = [method.input_type, method.output_type, *streams]
    return {"messages": messages, "methods": methods}


def _add_message(messages, name, message):
    oneofs = [oneof.name for oneof in message.oneof_decl]
    messages[name] = {
        "fields": {
            str(field.number): [
                field.name,
                descriptor_pb2.FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower(),
                field.type_name,
                "repeated" if field.label == field.LABEL_REPEATED else "",
                oneofs[field.oneof_index] if field.HasField("oneof_index") else "",
            ]
            for field in message.field
        },
        "reserved": sorted(n for r in message.reserved_range for n in range(r.start, r.end)),
        "reserved_names": sorted(message.reserved_name),
    }
    for nested in message.nested_type:
        _add_message(messages, f"{name}.{nested.name}", nested)


def breaks(old, new):
    """What in *new* breaks a promise of *old*, in words."""
    for name, message in old["messages"].items():
        now = new["messages"].get(name)
        if now is None:
            yield f"{name} is gone"
            continue
        names = {field[0]: number for number, field in now["fields"].items()}
        for number, field in message["fields"].items():
            present = now["fields"].get(number)
            if present is not None and present != field:
                yield f"{name} {number}: {field} became {present}"
            elif present is None and int(number) not in now["reserved"]:
                yield f"{name} {number}: {field[0]} is gone and its number not reserved"
            elif present is None and field[0] not in now["reserved_names"]:
                yield f"{name} {number}: {field[0]} is gone and its name not reserved"
            if names.get(field[0], number) != number:
                yield f"{name}: {field[0]} has another number"
        for number in message["reserved"]:
            if number not in now["reserved"]:
                yield f"{name} {number}: it was reserved"
    for path, method in old["methods"].items():
        if new["methods"].get(path) != method:
            yield f"{path}: {method} became {new['methods'].get(path)}"


def present_files():
    found = []
    for module in FILES:
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        found.append(file)
    return found


def test_the_protos_break_no_promise():
    present = contract_of(present_files())
    old = json.loads(CONTRACT.read_text()) if CONTRACT.exists() else present
    assert list(breaks(old, present)) == []
    if WRITE:
        CONTRACT.write_text(json.dumps(present, indent=1, sort_keys=True) + "\n")
    assert json.loads(CONTRACT.read_text()) == present, (
        "run this test with OUTSTATION_TEST_WRITE=1, commit the contract"
    )


def hello(files):
    return next(message for message in files[0].message_type if message.name == "Hello")


def renamed(files):
    hello(files).field[1].name = "program"


def retyped(files):
    hello(files).field[1].type = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def renumbered(files):
    hello(files).field[1].number = 9


def repeated(files):
    hello(files).field[1].label = descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED


def removed(files):
    del hello(files).field[1]


def removed_with_its_number_reserved(files):
    removed(files)
    hello(files).reserved_range.add(start=2, end=3)


def moved_out_of_its_oneof(files):
    push = next(message for message in files[0].message_type if message.name == "PushRequest")
    push.field[2].ClearField("oneof_index")


def method_retyped(files):
    files[0].service[0].method[0].client_streaming = False


def method_removed(files):
    del files[1].service[0].method[0]


def message_removed(files):
    del files[1].message_type[0]


@pytest.mark.parametrize(
    "change",
    [
        renamed, retyped, renumbered, repeated, removed, removed_with_its_number_reserved, moved_out_of_its_oneof,
        method_retyped, method_removed, message_removed,
    ],
)  # fmt: skip
def test_a_change_that_an_older_side_would_misread_is_found(change):
    files = present_files()
    old = contract_of(files)
    change(files)
    assert list(breaks(old, contract_of(files)))


def test_a_new_field_and_a_field_taken_away_by_the_rules_break_nothing():
    files = present_files()
    old = contract_of(files)
    removed_with_its_number_reserved(files)
    hello(files).reserved_name.append("software")
    hello(files).field.add(name="new", number=20, type=descriptor_pb2.FieldDescriptorProto.TYPE_STRING)
    new = contract_of(files)
    assert list(breaks(old, new)) == []
    hello(files).ClearField("reserved_range")
    assert list(breaks(new, contract_of(files)))  # nor may a reserved number come back
