"""A whole station in one process: a signed model comes in, readings go out, and no outage loses one."""

import time
from collections import Counter

import numpy as np

import outstation

with np.load("examples/meter-reading/digits.npz") as file:
    scans = file["images"][:60].astype(np.float32)

with outstation.open(path="examples/first-station/outstation.toml") as station:
    reader = station.models.get("meter-digits")  # fetched, verified, checked; newer versions swap underneath
    read = Counter()
    for scan in scans:
        result = reader.run({"image": scan[None]})  # arrays in, arrays out
        receipt = station.telemetry.event("reading", {"value": int(result["digit"][0])})
        read[result.model_version] += 1
        time.sleep(0.1)
    receipt.wait()  # it is on the disk now; it goes up whenever the link allows
    print("readings by version:", dict(read))
