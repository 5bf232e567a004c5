"""`--sdm apptainer` and `--sdm conda`: jobs run in the container or environment, by programs that stand for the two."""

import json
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
BIN = Path(sys.executable).parent
SNAKEMAKE = ("snakemake", "--cores", "2", "--configfile", "tests/workflow/tiny.yaml")
SHORT = ("--config", "teach={recipe: {epochs: 1}}", "tracking={enabled: false}")
APPTAINER = """#!/bin/sh
[ "$1" = --version ] && echo "apptainer version 1.3.4" && exit
echo "$@" >> "$PLACE/calls"
while [ "$1" != bash ] && [ "$1" != sh ]; do shift; done
PATH="$PLACE/inside:/usr/bin:/bin" exec "$@"
"""
INSIDE = """#!/bin/sh
echo "$@" >> "$PLACE/commands"
exec {bin}/iakd "$@"
"""
CONDA = """#!/bin/sh
# Creates an environment whose Python has all libraries already, and only notes that they are asked for.
case "$*" in
    --version) echo "conda 24.7.1" ;;
    "info --json") echo '{{"conda_prefix": "{place}", "platform": "linux-64"}}' ;;
    "clean "*) ;;
    "config --get"*) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    "env create "*)
        while [ "$1" != --prefix ]; do shift; done
        {python} -m venv "$2"
        echo {packages} > "$(echo "$2"/lib/python*/site-packages)/all.pth"  # no shell expands the name of a redirection
        mv "$2/bin/python" "$2/bin/python-itself"
        cp {place}/python "$2/bin/python"
        echo created >> {place}/calls ;;
    *) echo "unexpected: $*" >&2 && exit 1 ;;
esac
"""
PYTHON = """#!/bin/sh
case "$*" in *"--requirement requirements.lock") echo "$@" >> {place}/calls && exit ;; esac
exec "$(dirname "$0")/python-itself" "$@"
"""
ACTIVATE = 'export PATH="$1/bin:$PATH"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for folder in ("bin", "inside"):
        (tmp_path / "place" / folder).mkdir(parents=True)
    return tmp_path / "place"


@pytest.fixture
def project(tmp_path: Path, copy_project: "Copy") -> Iterator["Project"]:
    yield copy_project(tmp_path / "project")
    shutil.rmtree(tmp_path / "project")


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def run(project: "Project", place: Path, *arguments: str, code: int = 0) -> str:
    """Run the workflow where the programs of `place` are found; its sources are those that are installed there."""
    path = f"{place}/bin:{project.environment['PATH']}"
    return project.run("env", f"PATH={path}", f"PLACE={place}", *SNAKEMAKE, *SHORT, *arguments, code=code)


def test_every_job_runs_in_the_container(project: "Project", place: Path) -> None:
    program(place / "bin/apptainer", APPTAINER)
    program(place / "inside/iakd", INSIDE.format(bin=BIN))
    said = run(project, place, "--sdm", "apptainer", "-n", code=2).splitlines()
    assert said[-1].startswith("iakd: iakd.sif does not exist, in which --sdm apptainer runs the jobs: build it with ")
    (project.path / "iakd.sif").touch()
    run(project, place, "--sdm", "apptainer", "--", "teachers")
    calls, commands = ((place / name).read_text().splitlines() for name in ("calls", "commands"))
    assert all(" iakd.sif " in call for call in calls)
    assert [command.split()[0] for command in commands] == ["prepare", "teach", "evaluate"]
    assert not (project.path / ".state/fork_server.socket").exists(), "it would run the jobs outside"
    assert "Nothing to be done" in run(project, place, "--sdm", "apptainer", "-n", "--", "teachers")


def test_condas_environment_runs_the_sources_of_this_folder(project: "Project", place: Path) -> None:
    """It is made from the lock, and from the project, which pip installs."""
    packages = sysconfig.get_path("purelib")
    program(place / "bin/conda", CONDA.format(place=place, python=sys.executable, packages=packages))
    program(place / "python", PYTHON.format(place=place))
    program(place / "bin/activate", ACTIVATE)
    run(project, place, "--sdm", "conda", "--", "teachers")
    (made,) = (path.parent for path in project.path.glob(".snakemake/conda/*/bin"))
    record = json.loads((project.path / "results/tiny/teachers/big/seed0/run.json").read_text())
    assert record["lock_sha256"] and (made / "bin/iakd").exists()
    install = "-m pip install --quiet --require-hashes --requirement requirements.lock"
    assert (place / "calls").read_text() == f"created\n{install}\n"
    assert not (project.path / ".state/fork_server.socket").exists(), "it would run the jobs outside"
    (editable,) = made.glob("lib/python*/site-packages/*iakd*.pth")
    assert editable.read_text().strip() == str(project.path / "src")
    with (project.path / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    (project.path / "workflow/envs/iakd.yaml").write_text((project.path / "workflow/envs/iakd.yaml").read_text() + "\n")
    said = run(project, place, "--sdm", "conda", "--conda-create-envs-only", "--", "teachers", code=1)
    assert "requirements.lock: FAILED" in said
