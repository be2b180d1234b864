"""docs/models.md says what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from outstation.models.bundle import MIN_CHUNK_BYTES
from outstation.models.manifest import encode_manifest, parse_manifest
from outstation.models.publish import DAY, LIFETIMES
from outstation.models.trust import Trust
from outstation.types import ModelPhase

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text()


def test_the_manifest_shown_is_a_manifest_with_every_field():
    shown = re.search(r"```json\n(.*?)```", PAGE, re.DOTALL)[1]
    whole = re.sub(r'"([0-9a-f]{4})…"', lambda found: json.dumps(found[1] * 16), shown)
    manifest = parse_manifest(whole.encode())
    assert json.loads(encode_manifest(manifest)) == json.loads(whole)


def test_every_phase_and_every_answer_is_explained():
    for word in [*ModelPhase, *Trust]:
        assert word.value in PAGE


def test_the_numbers_are_those_of_the_code():
    assert (LIFETIMES["timestamp"], LIFETIMES["targets"], LIFETIMES["root"]) == (90 * DAY, 730 * DAY, 3650 * DAY)
    assert "good for 90 days, targets and snapshot for two years, the root for ten" in PAGE
    assert MIN_CHUNK_BYTES == 256 << 10
    assert "256 KiB" in PAGE
