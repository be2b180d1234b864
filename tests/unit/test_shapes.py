"""Types are known to msgspec before two threads can ask for one at once, which would end the process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

SOURCES = [path for room in ("sdk", "components") for path in (Path(__file__).parents[2] / room).rglob("*.py")]
# Of these only types without fields are decoded.
PLAIN = {"encryption.py", "otlp_content.py"}
AT_ONCE = """
import sys, threading
import msgspec
from outstation.models.store import StoreState

sys.setswitchinterval(1e-6)
DATA = b'{"generation":1,"models":{"a":{"versions":{"1.0.0":{"phase":"active","since_unix_nano":1}}}}}'
together = threading.Barrier(8)

def decode():
    together.wait()
    msgspec.json.decode(DATA, type=StoreState)

threads = [threading.Thread(target=decode) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def test_threads_that_decode_a_type_first_at_once_do_no_harm():
    for _ in range(5):  # without: two in three end with SIGSEGV
        assert subprocess.run([sys.executable, "-c", AT_ONCE], check=False).returncode == 0


def test_every_file_that_decodes_types_has_them_learned():
    decoding = re.compile(r"msgspec\.(json|msgpack)\.decode\([^\n]*type=|msgspec\.convert\(")
    forgotten = [
        path.name
        for path in SOURCES
        if path.name not in PLAIN and decoding.search(text := path.read_text()) and "learn(" not in text
    ]
    assert not forgotten
