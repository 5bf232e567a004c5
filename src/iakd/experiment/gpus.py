"""Assign GPUs to processes: each gets one of its own, or a few share one. Does not import torch.

Snakemake counts GPUs but does not assign them. A process locks a file per GPU, in a folder shared by all projects of a
user on a machine. Slurm assigns GPUs to a job: its processes share those among themselves, in a folder of their task.
"""

import contextlib
import itertools
import logging
import os
import random
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from iakd import files
from iakd.config import Compute
from iakd.errors import UserError

VISIBLE = "CUDA_VISIBLE_DEVICES"
ASSIGNED = "IAKD_GPU"  # set where a parent process has assigned the devices
TASK = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_PROCID")  # one process that Slurm has started, with all its children
NEIGHBOURS = "SLURM_LOCALID"  # counts the tasks of a job on a node
NONE = ("", "-1", "NoDevFiles")  # the last: Slurm's word for a job without GPUs
SECONDS_BETWEEN_LOOKS = 0.5

log = logging.getLogger(__name__)


def gpus(compute: Compute) -> list[str]:
    """Return the GPUs that a training may use, as CUDA_VISIBLE_DEVICES names them; none where it runs on the CPU."""
    if compute.device == "cpu":
        return []
    listed = os.environ.get(VISIBLE)
    if listed is not None:
        names = [name.strip() for name in listed.split(",")]
        return names[: next((i for i, name in enumerate(names) if name in NONE), None)]
    return [str(index) for index in range(installed())]


def installed() -> int:
    """Return how many GPUs this machine has."""
    count = len(list(Path("/dev").glob("nvidia[0-9]*")))
    if count or not shutil.which("nvidia-smi"):
        return count
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return len(re.findall("^GPU ", listed.stdout, re.MULTILINE))


@contextlib.contextmanager
def claim(compute: Compute, count: int = 1) -> Iterator[str | None]:
    """Keep `count` GPUs for this process and its children while the block runs; wait while too few are free.

    Up to `compute.gpu_share` processes share a GPU; the least shared ones are taken first. Yields their names, or None
    where there is nothing to choose: no GPU, or already assigned. Enter it before torch looks for GPUs.

    Raises UserError if the machine, or the job of a cluster, has fewer than `count`.
    """
    names = gpus(compute)
    if not names or ASSIGNED in os.environ:
        yield None
        return
    if count > len(names):
        raise UserError(f"compute.processes is {count}, but there are {len(names)} GPUs and each process needs its own")
    before = os.environ.get(VISIBLE)
    with _lock(names, compute.gpu_share, count) as taken:
        name = ",".join(taken)
        os.environ[VISIBLE] = os.environ[ASSIGNED] = name
        try:
            yield name
        finally:
            del os.environ[ASSIGNED]
            if before is None:
                del os.environ[VISIBLE]
            else:
                os.environ[VISIBLE] = before


@contextlib.contextmanager
def _lock(names: list[str], share: int, count: int) -> Iterator[list[str]]:
    # Each job of a node may see its own GPU as 0. Tasks may all see those of the job: then each begins with its own.
    task = [os.environ.get(name, "") for name in TASK if VISIBLE in os.environ and TASK[0] in os.environ]
    first = int(os.environ.get(NEIGHBOURS, 0)) % len(names) if task else 0
    names = names[first:] + names[:first]
    folder = Path(tempfile.gettempdir(), "-".join([f"iakd-gpus-{os.getuid()}", *task]))
    folder.mkdir(mode=0o700, exist_ok=True)
    told = False
    while True:
        with contextlib.ExitStack() as stack:
            taken: list[str] = []
            for layer, name in itertools.product(range(share), names):
                lock = re.sub(r"\W", "_", name) + (f"+{layer}" if layer else "")
                if name not in taken and len(taken) < count and _locked(folder / lock, stack):
                    taken.append(name)
            if len(taken) == count:
                yield taken
                return
        if not told:
            log.info("waiting for a GPU: all %d are used by other trainings", len(names))
            told = True
        # at random times: processes that need several GPUs and wait in step could block each other for ever
        time.sleep(SECONDS_BETWEEN_LOOKS * (1 if count == 1 else random.uniform(0.5, 1.5)))


def _locked(lock: Path, stack: contextlib.ExitStack) -> bool:
    """Try to lock the file until the stack is closed."""
    file = files.try_lock(lock)
    if file:
        stack.enter_context(file)
    return file is not None
