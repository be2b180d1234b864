"""A station that takes its model from a bucket, or from a folder when the bucket cannot be reached."""

import numpy as np

import outstation

with np.load("examples/meter-reading/digits.npz") as file:
    scan = file["images"][:1].astype(np.float32)

with outstation.open(path="examples/models-from-a-bucket/outstation.toml") as station:
    reader = station.models.get("meter-digits", timeout=60)  # signatures are checked, wherever it comes from
    result = reader.run({"image": scan})
    print(f"{int(result['digit'][0])} says version {result.model_version}")
