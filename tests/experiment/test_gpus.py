"""Which GPU a process gets. No GPU is needed: devices are names, and locks are files."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from iakd.config import Compute
from iakd.experiment import gpus

AUTO = Compute(device="auto")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with four GPUs on which nobody works, no cluster, and nothing assigned."""
    for name in (gpus.VISIBLE, gpus.ASSIGNED, *gpus.TASK, gpus.NEIGHBOURS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(gpus, "installed", lambda: 4)


def child(seconds: float, share: int = 1, **environment: str) -> "subprocess.Popen[str]":
    """A process that claims a GPU of those in its environment, prints it and keeps it for a while."""
    code = (
        "import os, time; from iakd.experiment import gpus; from iakd.config import Compute\n"
        f"with gpus.claim(Compute(gpu_share={share})):\n"
        f" print(os.environ['{gpus.VISIBLE}'], flush=True); time.sleep({seconds})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )


def first_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    return process.stdout.readline().strip()


def test_claims_in_turn_differ_and_the_environment_is_restored() -> None:
    assert gpus.gpus(AUTO) == ["0", "1", "2", "3"]
    with gpus.claim(AUTO) as name:
        assert name == os.environ[gpus.VISIBLE] == "0"
    assert gpus.VISIBLE not in os.environ
    with gpus.claim(AUTO) as name:  # given back
        assert name == "0"


def test_every_process_has_a_gpu_of_its_own_among_those_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "5,GPU-7f3a,2")
    processes = [child(30), child(30)]
    try:
        others = {first_line(process) for process in processes}
        with gpus.claim(AUTO) as mine:
            assert {mine, *others} == {"5", "GPU-7f3a", "2"}
        assert os.environ[gpus.VISIBLE] == "5,GPU-7f3a,2"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_waits_for_a_gpu_and_gets_that_of_a_killed_process(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "0")
    monkeypatch.setattr(gpus, "SECONDS_BETWEEN_LOOKS", 0.02)
    holder = child(60)
    assert first_line(holder) == "0"
    looks = []

    def look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 3:
            holder.kill()
            holder.communicate()

    monkeypatch.setattr(time, "sleep", look)
    with caplog.at_level("INFO"), gpus.claim(AUTO) as name:
        assert name == "0"
    assert len(looks) >= 3
    assert [record.getMessage() for record in caplog.records] == [
        "waiting for a GPU: all 1 are used by other trainings"
    ]


def test_shared_gpus_are_filled_evenly_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    processes: list[subprocess.Popen[str]] = []

    def look(seconds: float) -> None:
        raise TimeoutError

    monkeypatch.setattr(time, "sleep", look)
    try:
        taken = []
        for _ in range(4):
            processes.append(child(60, share=2))
            taken.append(first_line(processes[-1]))
        assert taken == ["0", "1", "0", "1"]
        with pytest.raises(TimeoutError), gpus.claim(Compute(gpu_share=2)):
            pass
        ended = processes.pop(1)
        ended.kill()
        ended.communicate()
        with gpus.claim(Compute(gpu_share=2)) as name:
            assert name == "1"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_children_of_a_claim_share_its_gpu() -> None:
    with gpus.claim(AUTO) as mine:
        process = child(0)
        assert first_line(process) == mine
        process.communicate()


@pytest.mark.parametrize(
    ("environment", "compute"),
    [
        ({}, Compute(device="cpu")),
        ({gpus.VISIBLE: ""}, AUTO),
        ({gpus.VISIBLE: "-1"}, AUTO),
        ({"SLURM_JOB_ID": "17", gpus.VISIBLE: "NoDevFiles"}, AUTO),
    ],
)
def test_nothing_to_choose(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], compute: Compute) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with gpus.claim(compute) as name:
        assert name is None
        assert os.environ.get(gpus.VISIBLE) == environment.get(gpus.VISIBLE)


def slurm(job: str, task: str = "0") -> dict[str, str]:
    return {"SLURM_JOB_ID": job, "SLURM_STEP_ID": "0", "SLURM_PROCID": task, "SLURM_LOCALID": task}


def test_processes_of_a_slurm_job_share_its_gpus_among_themselves_and_not_with_other_jobs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two jobs on a node may both see their GPU as 0, and mean two GPUs."""
    monkeypatch.setenv(gpus.VISIBLE, "0,1")
    of_17, of_18 = [child(30, **slurm("17")) for _ in range(2)], child(30, **slurm("18"))
    try:
        assert {first_line(process) for process in of_17} == {"0", "1"}
        assert first_line(of_18) == "0"
    finally:
        for process in (*of_17, of_18):
            process.kill()
            process.communicate()


def test_tasks_that_see_all_gpus_of_their_slurm_job_take_different_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "4,5,6")
    processes = [child(30, **slurm("17", task)) for task in "0123"]
    try:
        assert [first_line(process) for process in processes] == ["4", "5", "6", "4"]
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_gpus_that_slurm_has_not_assigned_are_shared_by_all_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a cluster that does not count GPUs, the jobs of a node see all of them."""
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with gpus.claim(AUTO) as mine:
        assert mine == "0"
        monkeypatch.setenv("SLURM_JOB_ID", "18")
        mine_alone = {name: os.environ.pop(name) for name in (gpus.ASSIGNED, gpus.VISIBLE)}
        with gpus.claim(AUTO) as other:
            assert other == "1"
        os.environ.update(mine_alone)  # as the outer block left them


def test_names_after_an_invalid_one_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VISIBLE, "3, 1,-1,2")
    assert gpus.gpus(AUTO) == ["3", "1"]
