"""A real Slurm of two nodes on this machine: a chain of jobs, and a study whose workers are its tasks.

The chain loses its submitting process, a node and a training that Slurm requeues, and ends with what one machine makes.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SCRIPT = HERE / "slurm.sh"
TIMES = {"latency_ms", "images_per_s"}
TRIALS = int(os.environ.get("STUDY_TRIALS", 12))
EPOCHS = float(os.environ.get("EXPERIMENT_EPOCHS", 0.1))  # of those of params.yaml
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
SETTINGS: dict[str, Any] = {
    "dataset": {"name": "toy", "source": "digits", "val": 60, "test": 200},
    "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
    "methods": {"kd": {}, "kd-tuned": {"method": "kd", "tune": {"recipe.lr": [0.01, 0.1]}}},
    "teach": {"recipe": {"epochs": 20, "batch_size": 128, "validate_every": 5}},
    "distill": {"seeds": [0, 1], "transfer": 60, "recipe": {"epochs": 30, "batch_size": 32, "validate_every": 10}},
    "tune": {
        "trials": 8,
        "seeds": 1,
        "workers": 4,
        "generation": 4,
        "sampler": {"startup": 4},
        "recipe": {"epochs": 10},
    },
    "evaluate": {"latency_runs": 2},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu", "checkpoint_seconds": 0},
}
SNAKEMAKE = (
    *("snakemake", "--workflow-profile", "workflow/profiles/slurm", "--configfile", "toy.yaml", "--cores", "2"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "20"),
)

pytestmark = pytest.mark.services
if Path("/etc/slurm/slurm.conf").exists():
    pytest.skip("this machine belongs to a Slurm cluster", allow_module_level=True)
if os.geteuid() != 0:
    pytest.skip("only root can give this machine a configuration of Slurm", allow_module_level=True)
if missing := [program for program in PROGRAMS if not shutil.which(program)]:
    pytest.skip(f"Slurm is not installed ({', '.join(missing)})", allow_module_level=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A cluster that all commands use, of two nodes with four pretend cores."""
    folder = tempfile.mkdtemp(prefix="slurm")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_PORT", str(port))
        try:
            log = Path(folder) / "up.log"  # the daemons would keep a pipe open
            with log.open("w") as out:
                started = subprocess.run([SCRIPT, "up", folder, "4"], timeout=60, stdout=out, stderr=out)
            if started.returncode:
                pytest.skip(f"Slurm does not start on this machine: {log.read_text()}")
            environment.setenv("CLUSTER", folder)
            yield
        finally:
            subprocess.run([SCRIPT, "down", folder], check=True, timeout=60)
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def project(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what runs a workflow, with settings for very short trainings."""
    for name in ("src", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "environment.yml", tmp_path)
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(SETTINGS))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "src"), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def postgres(what: str) -> None:
    subprocess.run([HERE / "postgres.sh", what, *os.environ["POSTGRES"].split()], check=True, capture_output=True)


@pytest.fixture
def database(monkeypatch: pytest.MonkeyPatch) -> Iterator[str | None]:
    """A database for studies; None where PostgreSQL is not installed: the study then has its journal."""
    if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")) or not importlib.util.find_spec("psycopg"):
        yield None
        return
    folder = tempfile.mkdtemp(prefix="pg")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("POSTGRES", f"{folder} {port}")
    postgres("up")
    try:
        yield f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    finally:
        postgres("down")
        shutil.rmtree(folder)


def output(*command: str) -> str:
    """What a command prints. On a busy machine, Slurm's controller does not always answer in time."""
    for _ in range(5):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return done.stdout.strip()
        time.sleep(1)
    raise AssertionError(f"{' '.join(command)}: {done.stderr}")


def wait_for(what: Callable[[], Any], seconds: float = 240) -> Any:
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return found


def running(rule: str) -> str:
    """The id of a job of `rule` (or of a group with it) that is running; empty without one."""
    listed = output("squeue", "--noheader", "--states=running", "--format=%i %k")
    return next((line.split()[0] for line in listed.splitlines() if rule in line), "")


def node(what: str, name: str) -> None:
    """Lose a node, or have it return."""
    subprocess.run([SCRIPT, what, os.environ["CLUSTER"], name], check=True, capture_output=True, timeout=60)


def lose_node_of(job: str) -> str:
    """Lose the node on which a job is running, until it runs on the other one; return the job's first node."""
    lost = output("squeue", "--noheader", "--format=%N", "--jobs", job)
    node("lose", lost)
    wait_for(lambda: release() or output("squeue", "--noheader", "--format=%N", "--jobs", job) not in ("", lost))
    return lost


def results(*patterns: str) -> dict[str, Any]:
    """What is in the records of results, except times and what depends on them."""
    found = sorted(path for pattern in patterns for path in Path("results").glob(pattern))
    kept = {str(path): json.loads(path.read_text()) for path in found}
    return {path: {k: v for k, v in record.items() if k not in TIMES} for path, record in kept.items()}


def release() -> None:
    """Let requeued jobs start now, and not after the two minutes that Slurm has them wait."""
    for job in output("squeue", "--noheader", "--states=pending", "--format=%i").split():
        subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False, capture_output=True)


class Workflow:
    """A `snakemake` that submits jobs, and is killed at the end."""

    def __init__(self, log: str, *arguments: str) -> None:
        self.log = Path(log)
        with self.log.open("wb") as out:
            self.process = subprocess.Popen([*SNAKEMAKE, *arguments], stdout=out, stderr=out, start_new_session=True)

    def __enter__(self) -> "Workflow":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def finish(self, seconds: float) -> None:
        """Wait until it has succeeded."""
        wait_for(lambda: release() or self.process.poll() is not None, seconds)
        assert self.process.returncode == 0, self.log.read_text()

    @property
    def jobs(self) -> int:
        """How many jobs it has submitted."""
        return len(re.findall("SLURM jobid", self.log.read_text()))


@pytest.fixture
def submitted(cluster: None) -> Iterator[None]:
    """Afterwards both nodes are there, and no job."""
    yield
    subprocess.run(["scancel", "--me"], check=False)
    for line in output("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines():
        if "down" in line:
            node("return", line.split()[0])


needs_plugin = pytest.mark.skipif(
    not importlib.util.find_spec("snakemake_executor_plugin_slurm"), reason="iakd[slurm] is not installed"
)


@needs_plugin
def test_what_slurm_is_asked_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without GPUs. Five students and their evaluations share two jobs, which ask for those of one."""
    settings = {**SETTINGS, "methods": {"scratch": {}}, "compute": {"device": "cuda"}}
    settings["distill"] = {**SETTINGS["distill"], "seeds": [0, 1, 2, 3, 4]}
    Path("toy.yaml").write_text(yaml.safe_dump(settings))
    subprocess.run(["iakd", "prepare", "--params", "toy.yaml"], check=True, capture_output=True)
    Path("bin").mkdir()
    Path("bin/sbatch").write_text(f'#!/bin/sh\necho "$@" >> {project}/asked\nexit 1\n')
    Path("bin/sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{project}/bin{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run([*SNAKEMAKE, "--", "students"], capture_output=True, text=True)
    assert done.returncode != 0
    asked = [line for line in Path("asked").read_text().splitlines() if "--comment rule_student" in line]
    minutes = sorted(int(found[1]) for line in asked if (found := re.search(r" -t (\d+) ", line)))
    assert minutes == [70, 280]
    for line in asked:
        for option in ("--mem 4000", "--cpus-per-task=1", "--gpus=1", "--requeue", "--signal=USR1@120"):
            assert option in line


@needs_plugin
def test_a_chain_with_mishaps_ends_with_what_one_machine_makes(project: Path, submitted: None) -> None:
    """The teacher's node is lost; then the process that submits jobs is killed, and started again."""
    Path("toy.yaml").write_text(yaml.safe_dump({**SETTINGS, "methods": {"kd": {}}}))
    for stage in ("prepare", "teach", "distill", "evaluate"):
        subprocess.run(["iakd", stage, "--params", "toy.yaml"], check=True, capture_output=True)
    made = ("toy/students/*/kd/seed*/evaluation.json", "toy/teachers/big/seed0/evaluation.json")
    expected = results(*made)
    assert len(expected) == 1 + 2
    for folder in ("results/toy/teachers", "results/toy/students", "results/toy/evaluation", ".state"):
        shutil.rmtree(folder)

    with Workflow("first.log", "--", "teachers", "students") as first:
        wait_for(lambda: Path(".state/toy/teachers/big/seed0/checkpoint.pt").exists())
        lost = lose_node_of(wait_for(lambda: running("teach")))
        wait_for(lambda: Path("results/toy/teachers/big/seed0/run.json").exists())
        assert "resuming at step" in Path("logs/toy/teachers/big/seed0.log").read_text()
        node("return", lost)
        wait_for(lambda: next(Path(".state").glob("toy/students/*/kd/seed*/checkpoint.pt"), None))
        abandoned = wait_for(lambda: running("student"))
    with Workflow("second.log", "--", "teachers", "students") as second:
        wait_for(lambda: running("student") not in ("", abandoned))
        assert abandoned not in output("squeue", "--noheader", "--format=%i").split()
        second.finish(240)
    assert results(*made) == expected
    assert not list(Path(".state").glob("fork_server*"))
    assert (first.jobs, second.jobs) == (2, 1)

    manifest, *trained = Path("results/toy/data/manifest.json"), *sorted(Path("results/toy").glob("**/seed*/run.json"))
    before = {path: path.read_bytes() for path in trained}
    manifest.write_bytes(manifest.read_bytes()[:99])
    with Workflow("third.log", "--", "teachers", "students") as third:
        third.finish(240)
    assert before == {path: path.read_bytes() for path in trained} and len(trained) == 3, "only the data are made again"


@needs_plugin
@pytest.mark.slow
def test_the_default_experiment_is_the_same_on_two_nodes(
    project: Path, submitted: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though a node is lost, a job requeued, and the process that submits jobs killed."""
    settings = yaml.safe_load((ROOT / "params.yaml").read_text())
    recipes = [settings[section]["recipe"] for section in ("teach", "distill", "tune")]
    recipes += [method["recipe"] for method in settings["methods"].values() if "recipe" in method]
    for recipe in recipes:
        recipe["epochs"] = max(2, round(EPOCHS * recipe["epochs"]))
        recipe |= (
            {"validate_every": min(recipe["validate_every"], recipe["epochs"])} if "validate_every" in recipe else {}
        )
    if EPOCHS < 1:
        settings["distill"]["seeds"] = [0, 1]
    settings |= {"tracking": {"enabled": False}, "compute": {"device": "cpu", "checkpoint_seconds": 2}}
    made = ("digits/**/evaluation.json", "digits/tune/**/metrics.json")

    alone = tmp_path_factory.mktemp("alone")
    for name in ("workflow", "src"):
        shutil.copytree(project / name, alone / name)
    for folder in (alone, project):
        (folder / "toy.yaml").write_text(yaml.safe_dump(settings))
    with monkeypatch.context() as patch:
        patch.chdir(alone)
        begun = time.monotonic()
        local = ["snakemake", "--cores", "2", "--configfile", "toy.yaml", "--quiet", "all"]
        subprocess.run([*local, "--", "evaluation"], check=True, capture_output=True)
        seconds_alone, expected = time.monotonic() - begun, results(*made)
    assert sum("/students/" in path for path in expected) == 13 * len(settings["distill"]["seeds"])

    begun, patience = time.monotonic(), 3600.0
    with Workflow("first.log", "--", "evaluation") as first:
        wait_for(lambda: running("tune"), patience)
        output("scontrol", "requeue", running("tune"))
        lost = lose_node_of(wait_for(lambda: release() or running("student"), patience))
        node("return", lost)
        wait_for(lambda: release() or len(list(Path("results").glob("digits/students/**/run.json"))) > 8, patience)
    with Workflow("second.log", "--", "evaluation") as second:
        second.finish(patience)
    seconds = time.monotonic() - begun
    print(f"{first.jobs} + {second.jobs} jobs, {seconds:.0f} s; on one machine without mishaps {seconds_alone:.0f} s")
    assert results(*made) == expected


def test_a_warning_saves_a_checkpoint_and_requeues(project: Path) -> None:
    """As Slurm does before a time limit, it is sent to all processes that srun has started."""
    settings = {**SETTINGS, "teach": {"recipe": {"epochs": 4000, "batch_size": 64, "validate_every": 2000}}}
    settings["compute"] = {"device": "cpu", "checkpoint_seconds": 1000}
    Path("toy.yaml").write_text(yaml.safe_dump(settings))
    subprocess.run(["iakd", "prepare", "--params", "toy.yaml"], check=True, capture_output=True)
    command = "srun iakd teach --params toy.yaml >> teach.log 2>&1"
    job = output("sbatch", "--parsable", "--requeue", "--output=job.log", "--open-mode=append", "--wrap", command)
    live = Path(".state/toy/teachers/big/seed0")
    try:
        wait_for((live / "history.csv").exists)
        assert not (live / "checkpoint.pt").exists()
        subprocess.run(["scancel", "--signal=USR1", job], check=True)
        wait_for(lambda: "Restarts=1" in output("scontrol", "show", "job", job))
        assert (live / "checkpoint.pt").exists()
        wait_for(lambda: release() or "resuming at step" in Path("teach.log").read_text())
    finally:
        subprocess.run(["scancel", job], check=True)
    assert "Slurm runs this job again, which resumes\n" in Path("teach.log").read_text()


def test_processes_of_a_job_use_the_gpus_that_slurm_has_assigned(project: Path) -> None:
    code = (
        "import os, time\nfrom iakd.config import Compute\nfrom iakd.experiment import gpus\n"
        "with gpus.claim(Compute(device='auto')) as name:\n"
        " os.write(1, f'{name}\\n'.encode()); time.sleep(3)\n"  # at once: the other process writes into the same pipe
    )
    Path("claim.py").write_text(code)
    assert output("srun", "--gpus=2", "sh", "-c", "python claim.py & python claim.py & wait").split() in (
        ["0", "1"],
        ["1", "0"],
    )
    assert sorted(output("srun", "--ntasks=2", "--gpus=2", "python", "claim.py").split()) == ["0", "1"]


def test_workers_of_a_study_are_tasks_on_both_nodes(project: Path, database: str | None) -> None:
    """More than a node has cores; two of them are killed, and so is the study's database."""
    for stage in ("prepare", "teach"):
        subprocess.run(["iakd", stage, "--params", "toy.yaml"], check=True, capture_output=True)
    study = Path("results/toy/tune/big-small/kd-tuned")
    options = f"--params toy.yaml --set tune.trials={TRIALS} --set tune.generation=8"
    seconds = time.monotonic()
    subprocess.run(["iakd", "tune", *options.split(), "--set", "tune.workers=1"], check=True, capture_output=True)
    alone, seconds_alone = outcome(study), time.monotonic() - seconds
    shutil.rmtree(study)
    shutil.rmtree(".state/toy/tune")

    options += f" --set tune.storage={database}" if database else ""
    run = f"srun -n1 --cpus-per-task=1 iakd tune {options} --tasks 8"
    seconds = time.monotonic()
    job = output("sbatch", "--parsable", "--ntasks=8", "--cpus-per-task=1", "--output=job.log", "--wrap", run)
    try:
        nodes = wait_for(lambda: output("squeue", "--noheader", "--states=running", "--jobs", job, "--format=%D"))
        assert nodes == "2"
        wait_for(lambda: len(joined()) == 7 and len(list(study.glob("trials/*/run.json"))) >= 4)
        for process in joined()[:2]:
            os.kill(process, signal.SIGKILL)
        if database:
            postgres("kill")
            time.sleep(2)
            postgres("up")
        wait_for((study / "run.json").exists, 60 + 10 * TRIALS)
        seconds = time.monotonic() - seconds
        wait_for(lambda: not joined())
    finally:
        subprocess.run(["scancel", job], check=True)
    print(f"{TRIALS} trials: {seconds_alone:.0f} s with one worker, {seconds:.0f} s with eight and the mishaps")
    printed = Path("job.log").read_text()
    assert outcome(study) == alone
    assert len(set(re.findall(r"trial (\d+) (?:complete|pruned)$", printed, re.MULTILINE))) > 1, "others have helped"
    assert ("trying again for ten minutes" in printed) == bool(database)


def joined() -> list[int]:
    """The processes that join a study in this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
            here = (path.parent / "cwd").readlink() == Path.cwd()
        except OSError:
            continue
        if here and b"--join" in arguments and b"iakd" in arguments and b"srun" not in arguments[0]:
            found.append(int(path.parent.name))
    return found


def outcome(study: Path) -> dict[str, Any]:
    """All results of a study except times."""
    trials = [line.split(",") for line in (study / "trials.csv").read_text().splitlines()]
    kept = [i for i, name in enumerate(trials[0]) if name not in ("seconds", "started", "finished")]
    keys = {str(path): json.loads(path.read_text())["key"] for path in sorted(study.glob("**/run.json"))}
    return {
        "trials": [[row[i] for i in kept] for row in trials],
        "best": (study / "best.yaml").read_text(),
        "keys": keys,
    }
