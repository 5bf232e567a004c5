"""What is asked of Slurm, with programs that only write down how they were called. On a real one: services/."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iakd import cli, slurm
from iakd.errors import RunFailed, UserError
from iakd.orchestration.snakemake_hooks import set_up
from iakd.tracking.follower import FOLLOWED
from iakd.training.trainer import Trainer

SETTINGS = """
dataset: {name: toy, source: digits, val: 100, test: 1000}
teachers: [{arch: resnet8, width: 4}]
students: [{arch: resnet8, width: 4, name: small}]
methods: {scratch: {}}
teach: {recipe: {epochs: 2, augment: {pad: 1}}}
tracking: {enabled: false}
compute: {device: cpu, checkpoint_seconds: 1000}
"""
SECONDS = 86413  # like no other process sleeps
Program = Callable[[str, str], None]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    """`program("scontrol", SCRIPT)` is on the path; each call of it is a line in `called`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def add(name: str, script: str) -> None:
        path = tmp_path / name
        path.write_text(f'#!/bin/sh\necho {name} "$@" >> {tmp_path}/called\n{script}\n')
        path.chmod(0o755)

    return add


def called() -> list[str]:
    return Path("called").read_text().splitlines() if Path("called").exists() else []


@pytest.mark.parametrize(
    ("number", "job", "accepted", "asked", "said"),
    [
        (
            signal.SIGUSR1,
            "17",
            True,
            True,
            "interrupted before the time limit; Slurm runs this job again, which resumes",
        ),
        (signal.SIGUSR1, "17", False, True, "interrupted; run the same command again to resume"),
        (signal.SIGUSR1, None, True, False, "interrupted; run the same command again to resume"),
        (signal.SIGTERM, "17", True, False, "interrupted; run the same command again to resume"),
    ],
)
def test_a_job_that_slurm_warns_saves_its_state_and_asks_to_be_run_again(
    program: Program,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    job: str | None,
    accepted: bool,
    asked: bool,
    said: str,
) -> None:
    program(
        "scontrol", "test -e .state/toy/teachers/resnet8w4/seed0/checkpoint.pt && " + ("true" if accepted else "false")
    )
    Path("params.yaml").write_text(SETTINGS)
    if job:
        monkeypatch.setenv(slurm.JOB, job)
    original = Trainer.train_step

    def step_and_signal(self: Trainer, batch: Any) -> None:
        original(self, batch)
        if self.step == 2:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Trainer, "train_step", step_and_signal)
    for command, code in (("prepare", 0), ("teach", 1)):
        monkeypatch.setattr(sys, "argv", ["iakd", command])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert int(end.value.code or 0) == code
    assert capfd.readouterr().err.splitlines()[-1] == f"iakd: {said}"
    assert called() == (["scontrol requeue 17"] if asked else [])


def test_jobs_that_have_not_ended_are_cancelled_and_waited_for(program: Program) -> None:
    """The queue also has jobs of others, and one that is not to be touched."""
    program("squeue", "cat queue; test -e ending && rm -f ending || sed -i /^12$/d queue")
    program("scancel", "sed -i /^14$/d queue; touch ending")
    Path("queue").write_text("12\n13\n14\n")
    slurm.cancel(["11", "12", "14"])
    assert [line for line in called() if line.startswith("scancel")] == ["scancel 12 14"]
    assert Path("queue").read_text() == "13\n"


def test_jobs_that_cannot_be_cancelled_are_one_line(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "SECONDS_TO_CANCEL", 0.0)
    program("squeue", "echo 12")
    program("scancel", "exit 1")
    with pytest.raises(UserError, match="cannot cancel the Slurm jobs 12 of a killed workflow"):
        slurm.cancel(["12"])


def test_the_other_tasks_of_a_job_run_beside_this_process_and_end_with_it(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Slurm says about the step of this process must not hold for theirs."""
    program("srun", f"env > environment; exec sleep {SECONDS}")
    for name, value in {slurm.JOB: "17", "SLURM_NNODES": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert not slurm.is_idle_task()
    with pytest.raises(RunFailed), slurm.in_tasks(["iakd", "tune", "--join"], tasks=8, threads=2):
        while not Path("environment").exists() or "PATH" not in Path("environment").read_text():
            pass
        raise RunFailed("the study")
    assert subprocess.run(["pgrep", "-f", f"sleep {SECONDS}"], capture_output=True).returncode == 1
    assert called() == ["srun --overlap --ntasks=8 --cpus-per-task=2 --kill-on-bad-exit=0 iakd tune --join"]
    told = dict(line.split("=", 1) for line in Path("environment").read_text().splitlines() if "=" in line)
    assert {name: value for name, value in told.items() if name.startswith("SLURM_")} == {slurm.JOB: "17"}
    monkeypatch.setenv(slurm.FIRST_IS_IDLE, told[slurm.FIRST_IS_IDLE])
    assert slurm.is_idle_task()
    monkeypatch.setenv("SLURM_PROCID", "1")
    assert not slurm.is_idle_task()


def test_tasks_that_end_by_themselves_are_waited_for(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    program("srun", "sleep 0.5; touch ended")
    monkeypatch.setenv(slurm.JOB, "17")
    with slurm.in_tasks(["true"], tasks=2, threads=1):
        pass
    assert Path("ended").exists()


def test_tasks_need_a_job(program: Program) -> None:
    with pytest.raises(UserError, match="--tasks is for a Slurm job"), slurm.in_tasks(["true"], 2, 1):
        pass


def test_jobs_on_other_machines_start_no_follower_and_outlive_a_warning(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All processes of a job are warned. If Snakemake ended then, Slurm would end what it waits for."""
    Path("params.yaml").write_text(SETTINGS)
    for name in ("IAKD_PARAMS", "IAKD_WITH_PARENT", "PATH", FOLLOWED):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.delenv(FOLLOWED)
    before = signal.getsignal(signal.SIGUSR1)
    try:
        set_up([Path("params.yaml")], {}, main=False, remote=True)
        os.kill(os.getpid(), signal.SIGUSR1)
        child = subprocess.run([sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)"])
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert child.returncode == -signal.SIGUSR1, "a command decides for itself"
    assert os.environ[FOLLOWED]
