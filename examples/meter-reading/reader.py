"""A meter reader in the field: classifies scans and records an event for each. Uses the public SDK only.

    python examples/meter-reading/reader.py --rate 100 --log readings.jsonl

Runs until SIGTERM, then waits until the agent has every event on its disk. It never waits for the network. The log
holds one line a reading, so that what arrived can be compared with what was produced.
"""

from __future__ import annotations

import argparse
import itertools
import json
import signal
import threading
import time
from pathlib import Path

import numpy as np

import outstation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=100.0, help="readings per second")
    parser.add_argument("--log", type=Path, required=True, help="where to write one JSON line a reading")
    parser.add_argument("--model", default="meter-digits")
    arguments = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        scans, truths = file["images"][file["held_out"]].astype(np.float32), file["labels"][file["held_out"]]

    with outstation.connect() as station, arguments.log.open("w", buffering=1) as log:
        reader = station.models.get(arguments.model, timeout=60.0)
        print("reader ready", flush=True)
        begin = time.monotonic()
        for number in itertools.count(1):
            scan = number % len(scans)
            reading = {"number": number, "scan": scan, "truth": int(truths[scan])}
            try:
                result = reader.run({"image": scans[scan : scan + 1]}, timeout=5.0)
                reading |= {"digit": int(result["digit"][0]), "version": result.model_version}
                station.telemetry.event("reading", reading)
            except outstation.OutstationError as exc:
                reading["failed"] = str(exc)
            log.write(json.dumps(reading | {"time": time.time()}) + "\n")
            if stop.wait(max(0.0, begin + number / arguments.rate - time.monotonic())):
                break


if __name__ == "__main__":
    main()
