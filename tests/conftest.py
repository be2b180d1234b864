"""Where chance comes from, and where servers are found. Random examples on a developer's machine and in `make soak`,
the same ones every time in CI.

A landing must not hang on luck; what a random run finds becomes an example or a mended bug on a developer's machine.
"""

from __future__ import annotations

import os

from hypothesis import settings

# Servers and tools for disks lie where a plain user of Debian does not look.
os.environ["PATH"] += os.pathsep + os.pathsep.join(("/usr/sbin", "/sbin"))

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
