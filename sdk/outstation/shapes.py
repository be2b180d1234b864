"""Types that are decoded, made known to msgspec before two threads can ask for one at once."""

from __future__ import annotations

from typing import Any

import msgspec


def learn(*kinds: Any) -> None:
    """Have msgspec look at *kinds* now, while the module that decodes them is imported by one thread.

    It looks at a type when that is first decoded, and a second thread that comes meanwhile reads what is not filled in
    yet and ends the process (seen with 0.22: 27 of 40 processes in which eight threads began at once).
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
