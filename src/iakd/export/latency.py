"""How fast ONNX Runtime runs a model, and how much memory it takes: `python -m iakd.export.latency MODEL THREADS`.

It is a process of its own, which loads nothing besides numpy and onnxruntime, so that the memory is the model's.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

BATCHES = (1, 8, 32)
WARM_UP_RUNS = 2  # not timed: memory is allocated
SECONDS, LEAST_RUNS, MOST_RUNS = 0.3, 5, 300  # timed, of each batch size


def measure(path: str, threads: int) -> dict[str, Any]:
    """Return `memory_mib`, what loading and running the model adds to the process, and `batches` by size.

    Of each batch size: `median_ms` and `p95_ms` of a whole batch, `images_per_s` from the median, and the number of
    timed `runs`. The images are noise: the time does not depend on them.
    """
    before = _peak_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    batches = {}
    for size in BATCHES:
        images = np.random.default_rng(0).random((size, *entry.shape[1:]), dtype=np.float32)
        seconds = _times(session, {entry.name: images})
        median = statistics.median(seconds)
        batches[str(size)] = {
            "median_ms": 1000 * median,
            "p95_ms": 1000 * float(np.percentile(seconds, 95)),
            "images_per_s": size / median,
            "runs": len(seconds),
        }
    return {"memory_mib": (_peak_memory() - before) / 1024, "batches": batches}


def _times(session: Any, feed: dict[str, Any]) -> list[float]:
    for _ in range(WARM_UP_RUNS):
        session.run(None, feed)
    seconds: list[float] = []
    while len(seconds) < LEAST_RUNS or (sum(seconds) < SECONDS and len(seconds) < MOST_RUNS):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    return seconds


def _peak_memory() -> int:
    """Return the most memory that this process had so far, in KiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # elsewhere than on Linux, where getrusage starts with what the parent process had
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
