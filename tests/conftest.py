"""Where chance comes from: random examples on a developer's machine and in `make soak`, the same ones every time in CI.

A landing must not hang on luck; what a random run finds becomes an example or a mended bug on a developer's machine.
"""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
