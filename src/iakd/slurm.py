"""What jobs on a Slurm cluster need: to be requeued before their time limit, to be cancelled, to use several tasks."""

import contextlib
import os
import subprocess
import time
from collections.abc import Iterable, Iterator

from iakd.errors import UserError
from iakd.processes import SECONDS_TO_END

JOB = "SLURM_JOB_ID"
KEPT = (JOB, "SLURM_CONF", "SLURM_CLUSTER_NAME")  # by a new step; the rest describes the step of this process
FIRST_IS_IDLE = "IAKD_FIRST_TASK_IS_IDLE"  # set for tasks of which the first has another process beside it
SECONDS_TO_CANCEL = 120.0


def requeue() -> bool:
    """Have Slurm run this job again; return whether it will."""
    if JOB not in os.environ:
        return False
    return _succeeds("scontrol", "requeue", os.environ[JOB])


def cancel(jobs: Iterable[str]) -> None:
    """Cancel those of the `jobs` that have not ended, and wait until their processes have.

    Raises UserError if they take too long.
    """
    left = _alive(jobs)
    deadline = time.monotonic() + SECONDS_TO_CANCEL
    while left:
        _succeeds("scancel", *left)
        if time.monotonic() > deadline:
            raise UserError(
                f"cannot cancel the Slurm jobs {' '.join(left)} of a killed workflow; cancel them, then run again"
            )
        time.sleep(1)
        left = _alive(left)


def _alive(jobs: Iterable[str]) -> list[str]:
    listed = subprocess.run(
        ["squeue", "--noheader", "--me", "--format=%i"], capture_output=True, text=True, check=False
    )
    return sorted(set(jobs) & set(listed.stdout.split()))


def _succeeds(*command: str) -> bool:
    with contextlib.suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


@contextlib.contextmanager
def in_tasks(command: list[str], tasks: int, threads: int) -> Iterator[None]:
    """Run `command` in each of this job's tasks but the first, which is that of this process, while the block runs.

    Raises UserError outside a job.
    """
    if JOB not in os.environ:
        raise UserError("--tasks is for a Slurm job; elsewhere, start `iakd tune --join` as often as you want")
    environment = {k: v for k, v in os.environ.items() if k in KEPT or not k.startswith(("SLURM_", "SRUN_", "SBATCH_"))}
    environment[FIRST_IS_IDLE] = "1"  # srun has no way to leave out one task
    srun = ["srun", "--overlap", f"--ntasks={tasks}", f"--cpus-per-task={threads}", "--kill-on-bad-exit=0"]
    child = subprocess.Popen([*srun, *command], env=environment, stdin=subprocess.DEVNULL)
    try:
        yield
    except BaseException:
        child.terminate()
        raise
    finally:
        for stop in (child.terminate, child.kill):  # otherwise they end by themselves
            try:
                child.wait(SECONDS_TO_END)
                break
            except subprocess.TimeoutExpired:
                stop()
        child.wait()


def is_idle_task() -> bool:
    """Whether this process is the one that `in_tasks` has no work for."""
    return FIRST_IS_IDLE in os.environ and os.environ.get("SLURM_PROCID") == "0"
