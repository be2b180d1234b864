"""Read many scans in one call, with the scans and the answers in shared memory."""

from __future__ import annotations

import os
import sys

import numpy as np
from tritonclient import grpc
from tritonclient.utils import shared_memory as shm


def main(address: str) -> None:
    with np.load("examples/meter-reading/digits.npz") as file:
        scans, labels = file["images"].astype(np.float32), file["labels"]
    answers_bytes = len(scans) * np.dtype(np.int64).itemsize
    key = f"/scans-{os.getpid()}"
    memory = shm.create_shared_memory_region("scans", key, scans.nbytes + answers_bytes)
    try:
        with grpc.InferenceServerClient(address) as client:
            client.register_system_shared_memory("scans", key, scans.nbytes + answers_bytes)
            image = grpc.InferInput("image", list(scans.shape), "FP32")
            image.set_shared_memory("scans", scans.nbytes)
            digit = grpc.InferRequestedOutput("digit")
            digit.set_shared_memory("scans", answers_bytes, offset=scans.nbytes)

            shm.set_shared_memory_region(memory, [scans])
            client.infer("meter-digits", [image], outputs=[digit])
            digits = shm.get_contents_as_numpy(memory, np.int64, [len(scans)], offset=scans.nbytes)
            print(f"{len(scans)} scans, {np.mean(digits == labels):.1%} of them read rightly")
            del digits  # it lies in the memory, too
            client.unregister_system_shared_memory("scans")
    finally:
        shm.destroy_shared_memory_region(memory)


if __name__ == "__main__":
    main(sys.argv[1])
