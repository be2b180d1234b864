"""Calls kept for retraining: which, how many, and that nobody waits for it; then files to train with."""

from __future__ import annotations

import io
import json
import threading

import msgspec
import numpy as np
import pytest
from PIL import Image

from inference_support import HandStore, scaling
from outstation.buffer import Buffer
from outstation.errors import BufferFullError, InvalidInputError, UnsupportedVersionError, WireError
from outstation.inference import captures as room
from outstation.inference.capture_export import export_images, export_npz
from outstation.inference.captured import Capture, decode_capture, encode_capture, packed, unpacked
from outstation.inference.captures import Captures, Counts
from outstation.inference.capturing import POLICY, STREAM, Budget, Rule, note_of, with_captures
from outstation.inference.host import ModelHost
from outstation.inference.loading import load_installed
from outstation.inference.model import Model
from outstation.inference.runtime import RuntimeOptions
from outstation.models.manifest import TensorSpec
from outstation.settings import BufferSettings, CaptureSettings, StreamSettings
from outstation.testing import FakeClock
from outstation.types import Record
from support import wait_until

HOUR = 3600 * 10**9
SCORES = (TensorSpec("digit", "INT64", (-1,)), TensorSpec("scores", "FP32", (-1, 3)))
LABELS = ("nought", "one", "two")
INPUTS = {"image": np.arange(8, dtype=np.float32).reshape(1, 8)}
SURE = {"digit": np.array([2]), "scores": np.array([[0.1, 0.0, 0.9]], np.float32)}
UNSURE = {"digit": np.array([1]), "scores": np.array([[0.3, 0.4, 0.3]], np.float32)}


class Kept:
    """A buffer that keeps records in a list, or refuses them."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.gate = threading.Event()
        self.gate.set()
        self.full = False

    def stream(self, name: str):
        assert name == STREAM
        return self

    def append(self, payload, *, time_unix_nano, content_type, attributes):
        self.gate.wait()
        if self.full:
            raise BufferFullError("full")
        self.records.append(Record(len(self.records) + 1, time_unix_nano, payload, content_type, attributes))

    @property
    def captures(self) -> list[Capture]:
        return [decode_capture(record.payload) for record in self.records]


def rule(chance=lambda: 0.5, outputs=SCORES, labels=LABELS, **settings) -> Rule:
    return Rule(CaptureSettings(**settings), outputs, labels, chance)


def test_a_share_of_the_calls_is_kept():
    numbers = iter(np.linspace(0, 1, 1000, endpoint=False).tolist())
    made = rule(chance=lambda: next(numbers), rate=0.25)
    assert [made.reason(SURE) for _ in range(1000)].count("rate") == 250


def test_a_low_score_is_kept_and_a_number_that_is_none_counts_as_low():
    made = rule(below=0.5)
    assert made.output == "scores"
    assert made.reason(SURE) is None
    assert made.reason(UNSURE) == "low_confidence"
    assert made.reason({"scores": np.concatenate([SURE["scores"], UNSURE["scores"]])}) == "low_confidence"
    assert made.reason({"scores": np.full((1, 3), np.nan, np.float32)}) == "low_confidence"
    assert made.reason({"digit": SURE["digit"]}) is None  # the caller asked for the other output alone
    assert made.reason({"scores": np.zeros((0, 3), np.float32)}) is None
    assert rule(below=0.5, outputs=(TensorSpec("p", "FP32", (-1,)),)).reason({"p": np.array([0.4])}) == "low_confidence"


def test_a_class_is_kept_by_its_label_its_number_or_its_word():
    assert rule(classes=("two",)).reason(SURE) == "class"
    assert rule(classes=("two",)).reason(UNSURE) is None
    assert rule(classes=("2",), labels=()).reason(SURE) == "class"
    assert rule(classes=("one",), output="digit").reason(UNSURE) == "class"
    words = rule(classes=("two",), output="word")
    assert words.reason({"word": np.array([["two", "one"]], object)}) == "class"
    assert words.reason({"word": np.array([[b"one", b"two"]], object)}) is None


def test_a_rule_without_conditions_keeps_nothing_and_asks_nobody():
    assert rule(chance=lambda: 1 / 0).reason(UNSURE) is None


def test_the_budget_is_of_the_hour_and_of_the_day():
    settings, budget = CaptureSettings(max_per_hour=2, max_per_day=3), Budget()
    start = 24 * HOUR * 20_000
    assert [budget.spend(start, settings) for _ in range(3)] == [True, True, False]
    assert [budget.spend(start + HOUR, settings) for _ in range(2)] == [True, False]
    assert not budget.spend(start + 2 * HOUR, settings)
    assert [budget.spend(start + 24 * HOUR, settings) for _ in range(3)] == [True, True, False]


def test_what_a_caller_over_the_wire_says():
    assert [note_of(said) for said in ({}, {"capture": False}, {"capture": True}, {"capture": "7"})] == [
        None,
        None,
        "",
        "7",
    ]


@pytest.fixture
def kept():
    return Kept()


def captures(kept, **settings):
    rest = {key: settings.pop(key) for key in ("state", "report", "clock", "chance") if key in settings}
    return Captures(kept, {"digits": CaptureSettings(**settings)}, **rest)


def sampler(made: Captures, model="digits"):
    return made.sampler(model, "1.0.0", SCORES, LABELS)


def test_a_kept_call_holds_everything_and_is_not_changed_by_its_caller(kept):
    made = captures(kept, below=0.5)
    picture, answer = np.ones((1, 4), np.float32), {name: array.copy() for name, array in UNSURE.items()}
    kept.gate.clear()
    assert sampler(made).offer({"image": picture}, answer)
    picture[:] = 7  # the camera's next picture
    answer["scores"][:] = 7
    kept.gate.set()
    made.close()
    (capture,) = kept.captures
    assert (capture.model, capture.version, capture.reason, capture.note) == ("digits", "1.0.0", "low_confidence", "")
    assert capture.classes == ("one",)
    assert capture.scores == pytest.approx((0.4,))
    assert unpacked(capture.inputs)["image"].tolist() == [[1, 1, 1, 1]]
    assert unpacked(capture.outputs)["scores"].tolist() == UNSURE["scores"].tolist()
    assert kept.records[0].attributes == {"model": "digits", "version": "1.0.0", "reason": "low_confidence"}
    assert kept.records[0].time_unix_nano == capture.time_unix_nano
    assert not sampler(made).offer(INPUTS, UNSURE)  # closed


def test_a_person_may_keep_any_call_of_any_model_with_a_note(kept):
    made = captures(kept, rate=1.0, max_per_hour=1)
    other = sampler(made, "other")
    assert not other.offer(INPUTS, UNSURE)
    assert other.offer(INPUTS, UNSURE, note="x" * 1000)
    made.close()
    assert kept.captures[0].reason == "manual"
    assert len(kept.captures[0].note) == room.MAX_NOTE


def test_no_rule_eats_into_what_is_kept_by_hand(kept):
    made = captures(kept, rate=1.0, max_per_hour=2)
    notes = (None, None, None, "mine", "", "one too many", None)
    assert [sampler(made).offer(INPUTS, SURE, note) for note in notes] == [True, True, False, True, True, False, False]
    made.close()


def test_bounds_hold_and_what_they_kept_out_is_counted_and_told(kept):
    told = []
    made = captures(
        kept, rate=1.0, max_per_hour=3, max_bytes=200, report=lambda name, counts: told.append((name, counts))
    )
    kept.gate.clear()
    first = sampler(made)
    assert [first.offer(INPUTS, SURE) for _ in range(5)] == [True, True, True, False, False]
    assert not first.offer({"image": np.zeros(1000, np.float32)}, SURE)
    kept.gate.set()
    made.close()
    assert len(kept.records) == 3
    assert made.counts == Counts(kept=3, over_budget=2, too_large=1)
    assert told[-1] == ("captures", {"kept": 3, "over_budget": 2, "too_large": 1, "queue_full": 0, "refused": 0})


def test_a_stuck_disk_stops_no_call(kept):
    made = captures(kept, rate=1.0, max_per_hour=1000)
    kept.gate.clear()
    taken = [sampler(made).offer(INPUTS, SURE) for _ in range(100)]
    assert taken.count(True) == room.MAX_WAITING
    kept.gate.set()
    made.close()
    assert made.counts == Counts(kept=room.MAX_WAITING, queue_full=100 - room.MAX_WAITING)


def test_what_the_buffer_refuses_is_counted_and_the_thread_goes_on(kept):
    made = captures(kept, rate=1.0)
    kept.full = True
    sampler(made).offer(INPUTS, SURE)
    wait_until(lambda: made.counts.refused == 1)
    kept.full = False
    sampler(made).offer(INPUTS, SURE)
    made.close()
    assert made.counts == Counts(kept=1, refused=1)


def test_an_output_that_the_version_has_not_is_told(kept, caplog):
    made = captures(kept, below=0.5, output="scoers")
    assert not sampler(made).offer(INPUTS, UNSURE)
    made.close()
    assert "captures of digits look at 'scoers', which 1.0.0 has not: ['digit', 'scores']" in caplog.text


def test_a_restart_begins_no_new_budget(kept, tmp_path):
    clock = FakeClock()
    state = tmp_path / "captures.json"
    for expected in (2, 2):
        made = captures(kept, rate=1.0, max_per_hour=2, state=state, clock=clock)
        for _ in range(3):
            sampler(made).offer(INPUTS, SURE)
        made.close()
        assert len(kept.records) == expected
    state.write_text("damaged")
    made = captures(kept, rate=1.0, max_per_hour=2, state=state, clock=clock)
    sampler(made).offer(INPUTS, SURE)
    made.close()
    assert len(kept.records) == 3


def test_captures_of_a_model_in_the_process_lie_in_a_stream_of_their_own(tmp_path):
    with Buffer.open(tmp_path / "buffer", with_captures(BufferSettings())) as buffer:
        made = Captures(buffer, {"tiny": CaptureSettings(rate=1.0)})
        with ModelHost(HandStore(scaling(tmp_path / "a", 2)), captures=made) as host:
            model = host.get("tiny")
            x = np.ones((1, 4), np.float32)
            model.run({"x": x})
            model.run({"x": x}, timeout=10)
            model.run_many([{"x": x}, {"x": 2 * x}])
            assert model.capture({"x": 3 * x}, "three").model_version == "2.0.0"
        made.close()
        buffer.flush()
        found = [decode_capture(record.payload) for record in buffer.stream(STREAM).read()]
        assert [capture.reason for capture in found] == ["rate"] * 4 + ["manual"]
        assert [float(unpacked(capture.inputs)["x"][0, 0]) for capture in found] == [1, 1, 1, 2, 3]
        assert found[-1].note == "three"
    assert with_captures(BufferSettings()).streams[STREAM] is POLICY
    own = StreamSettings(priority=2)
    assert with_captures(BufferSettings(streams={STREAM: own})).streams[STREAM] is own


def test_a_model_without_a_buffer_says_that_it_keeps_nothing(tmp_path):
    with (
        Model("tiny", load_installed(scaling(tmp_path / "a", 2), RuntimeOptions())) as model,
        pytest.raises(InvalidInputError, match="there is no buffer"),
    ):
        model.capture({"x": np.ones((1, 4), np.float32)})


def test_what_is_no_capture_is_refused(kept):
    made = captures(kept, rate=1.0)
    sampler(made).offer(INPUTS, SURE)
    made.close()
    data = kept.records[0].payload
    for wrong in (b"", b"\x93\x01", data[:-5], msgspec.msgpack.encode({"format": 1})):
        with pytest.raises(WireError):
            decode_capture(wrong)
    with pytest.raises(UnsupportedVersionError):
        decode_capture(encode_capture(msgspec.structs.replace(decode_capture(data), format=2)))
    honest = packed({"x": np.zeros(1000, np.float32)}, compressed=True)[0]
    for size in (10, 5000):
        with pytest.raises(WireError, match="not of the size that it claims"):
            unpacked((msgspec.structs.replace(honest, size=size),))
    with pytest.raises(WireError, match="is damaged"):
        unpacked((msgspec.structs.replace(honest, data=b"no zstd at all"),))
    with pytest.raises(InvalidInputError, match="needs 4004"):
        unpacked((msgspec.structs.replace(honest, shape=(1001,)),))


def test_no_call_is_lost_for_a_capture_that_cannot_be_made(kept, tmp_path, caplog):
    made = captures(kept, rate=1.0)
    version = load_installed(scaling(tmp_path / "a", 2), RuntimeOptions())
    version.sampler = made.sampler("digits", "1.0.0", version.signature.outputs, ())
    version.sampler.rule.reason = lambda _: 1 / 0
    with Model("tiny", version) as model:
        assert model.run({"x": np.ones((1, 4), np.float32)})["y"].tolist() == [[2.0] * 4]
    made.close()
    assert kept.records == []
    assert "was not captured" in caplog.text


def recorded(*calls, model="digits", labels=LABELS):
    kept = Kept()
    made = Captures(kept, {model: CaptureSettings(max_per_hour=10_000, max_per_day=10_000)})
    for inputs, outputs, note in calls:
        before = len(kept.records)
        assert made.sampler(model, "1.0.0", SCORES, labels).offer(inputs, outputs, note)
        wait_until(lambda before=before: len(kept.records) > before)
    made.close()
    return [(f"press-7.{record.sequence}", record) for record in kept.records]


def test_npz_files_hold_what_a_golden_file_holds(tmp_path):
    calls = [({"image": number * INPUTS["image"]}, UNSURE, f"n{number}") for number in range(3)]
    wide = ({"image": np.zeros((2, 8), np.float32)}, {name: np.repeat(a, 2, axis=0) for name, a in SURE.items()}, "w")
    done = export_npz(recorded(*calls, wide), tmp_path)
    assert (done.captures, done.unreadable) == (4, 0)
    assert [path.name for path in done.files] == [f"digits-000{n}.{end}" for n in (1, 2) for end in ("npz", "jsonl")]
    with np.load(tmp_path / "digits-0001.npz", allow_pickle=False) as file:
        assert set(file.files) == {"input/image", "output/digit", "output/scores"}
        assert (file["input/image"] == np.concatenate([call[0]["image"] for call in calls])).all()
        assert file["output/digit"].tolist() == [1, 1, 1]
    lines = [json.loads(line) for line in (tmp_path / "digits-0001.jsonl").read_text().splitlines()]
    assert [line["note"] for line in lines] == ["n0", "n1", "n2"]
    assert lines[0] | {"time_unix_nano": 0} == {
        "origin": "press-7.1",
        "row": 0,
        "version": "1.0.0",
        "reason": "manual",
        "note": "n0",
        "class": "one",
        "score": pytest.approx(0.4),
        "time_unix_nano": 0,
    }
    assert len((tmp_path / "digits-0002.jsonl").read_text().splitlines()) == 2


def test_bytes_and_text_are_written_without_pickle(tmp_path):
    words = {"word": np.array(["é"], object)}
    export_npz(recorded(({"file": np.array([b"\xff\xd8\xff"], object)}, words, "")), tmp_path)
    with np.load(tmp_path / "digits-0001.npz", allow_pickle=False) as file:
        assert file["input/file"].tolist() == [b"\xff\xd8\xff"]
        assert file["output/word"].tolist() == ["é".encode()]


def test_images_lie_in_a_folder_a_class_and_the_note_is_the_class(tmp_path):
    jpeg = io.BytesIO()
    Image.fromarray(np.full((9, 5, 3), 51, np.uint8)).save(jpeg, "JPEG")
    pixels = np.random.default_rng(3).integers(0, 256, (1, 4, 6, 3), np.uint8)
    calls = [
        ({"photo": np.array([jpeg.getvalue()], object)}, SURE, ""),
        ({"photo": pixels}, SURE, "../../one"),
        ({"photo": pixels.transpose(0, 3, 1, 2)}, SURE, "first"),
        ({"grey": np.linspace(0, 16, 64, dtype=np.float32).reshape(1, 8, 8)}, UNSURE, ""),
        ({"number": np.zeros((1, 5), np.float32)}, UNSURE, ""),
    ]
    records = recorded(*calls)
    records.append(("press-7.9", Record(9, 1, b"x")))
    done = export_images(records, tmp_path / "out")
    assert (done.captures, done.unreadable) == (4, 2)
    folder = tmp_path / "out/digits"
    assert (folder / "two/press-7.1-0.jpg").read_bytes() == jpeg.getvalue()
    for name in ("one/press-7.2-0.png", "first/press-7.3-0.png"):
        assert (np.asarray(Image.open(folder / name)) == pixels[0]).all()
    grey = np.asarray(Image.open(folder / "one/press-7.4-0.png"))
    assert (grey[0, 0], grey[-1, -1]) == (0, 255)
    lines = [json.loads(line) for line in (folder / "labels.jsonl").read_text().splitlines()]
    assert [(line["file"], line["label"]) for line in lines] == [
        ("two/press-7.1-0.jpg", "two"),
        ("one/press-7.2-0.png", "../../one"),
        ("first/press-7.3-0.png", "first"),
        ("one/press-7.4-0.png", "one"),
    ]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert export_images(records, tmp_path / "again", model="other").captures == 0
