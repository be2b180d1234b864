"""ONNX Runtime tells nobody anything."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[2] / "examples/meter-reading/models/v1.onnx"


def test_loading_and_running_a_model_leaves_no_trace_of_telemetry(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; import numpy as np\n"
        "from outstation.inference.loading import load_file\n"
        "from outstation.inference.runtime import RuntimeOptions\n"
        f"load_file(Path({str(MODEL)!r}), RuntimeOptions())\n"
    )
    environ = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    subprocess.run([sys.executable, "-c", script], check=True, env={**environ, "TMPDIR": str(tmp_path)}, timeout=60)
    assert list(tmp_path.iterdir()) == []
