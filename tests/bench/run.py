"""Run the benchmarks of this folder: ``make bench``, or one by name with ``make bench ONLY=buffer``.

Each benchmark is a file with a ``main`` of its own that prints a table and writes ``build/bench/NAME.json``. They run
one after the other, each in a process of its own, so that none warms another's caches.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "build" / "bench"
NOT_BENCHMARKS = {"run", "report"}


def main(names: list[str]) -> int:
    known = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS)
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"No benchmark {unknown[0]!r}; there are: {', '.join(known)}.", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name in names or known:
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(OUT / f"{name}.json")]
        failed |= subprocess.run(command, check=False).returncode
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
