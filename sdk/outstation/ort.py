"""ONNX Runtime, imported so that it keeps to itself.

Recent builds of onnxruntime (seen in 1.31) carry a telemetry client that writes a session file into the temporary
folder and sends usage data to its maker. A plant's devices tell nobody anything that their operator did not ask for,
so it is switched off before the import, which is the only moment when that can be done.
"""

from __future__ import annotations

import os
from typing import Any

from outstation.errors import MissingExtraError


def load_onnxruntime(needed_for: str) -> Any:
    """The module ``onnxruntime``; MissingExtraError, naming *needed_for*, where it is not installed.

    An operator who wants the telemetry sets ``ORT_DISABLE_TELEMETRY=0``.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime  # noqa: PLC0415  after the switch
    except ImportError as exc:
        raise MissingExtraError("onnx", needed_for) from exc
    return onnxruntime
