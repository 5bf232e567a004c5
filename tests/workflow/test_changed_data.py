"""Settings of the data that change after `iakd prepare`; and folders and files that cannot be written."""

import os
import shutil
from typing import TYPE_CHECKING

import pytest
import yaml

from iakd import files

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

pytestmark = pytest.mark.workflow
SETTINGS = {
    "dataset": {"name": "few", "source": "digits", "val": 100, "test": 100, "images_per_class": 5},
    "teachers": [{"arch": "resnet8", "width": 2, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 2, "name": "small"}],
    "methods": {"scratch": {}},
    "teach": {"recipe": {"epochs": 1}},
    "distill": {"seeds": [0], "recipe": {"epochs": 1}},
    "tracking": {"enabled": False},
    "compute": {"device": "cpu"},
}


@pytest.fixture(scope="module")
def project(copy_project: "Copy", tmp_path_factory: pytest.TempPathFactory) -> "Project":
    project = copy_project(tmp_path_factory.mktemp("changed") / "project")
    (project.path / "params.yaml").write_text(yaml.safe_dump(SETTINGS))
    return project


def manifest(project: "Project") -> dict:
    found: dict = files.read_json(project.path / "results/few/data/manifest.json", "")
    return found


def test_data_on_which_nothing_was_trained_are_prepared_again(project: "Project") -> None:
    project.run("iakd", "prepare")
    other = ("snakemake", "--cores", "1", "--config", "dataset={val: 50}", "--", "data")
    said = "the results of 1 job do not fit these settings, sources and inputs: made again"
    assert said in project.run(*other)
    assert manifest(project)["splits"]["val"]["n"] == 50
    project.run("snakemake", "--cores", "1", "--", "data")  # and back, of which Snakemake has a record now
    assert manifest(project)["splits"]["val"]["n"] == 100


def test_what_would_be_lost_is_said_and_lost_only_by_consent(project: "Project") -> None:
    project.run("iakd", "prepare")
    project.run("iakd", "teach")
    before = manifest(project)
    (project.path / ".snakemake").rename(project.path / "records")
    other = ("snakemake", "--cores", "1", "--config", "dataset={val: 50}", "--", "teachers")
    said = project.run(*other, code=2).splitlines()[-1]
    assert said.startswith("iakd: results/few/data (and 1 more): made with other settings (dataset.val 100 → 50); ")
    assert "to keep 1 training (0.0 h); to lose them and make all again, run with IAKD_REBUILD=1" in said
    assert manifest(project) == before
    project.run("env", "IAKD_REBUILD=1", *other)
    assert manifest(project)["splits"]["val"]["n"] == 50
    record = files.read_json(project.path / "results/few/teachers/big/seed0/run.json", "")
    assert record["data_sha256"] == manifest(project)["sha256"] != before["sha256"]


def without_rights(project: "Project", *command: str, code: int) -> list[str]:
    """Run a command for which permissions count, even if these tests are run by root; return its lines."""
    prefix = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]
    if os.geteuid() == 0 and not shutil.which("setpriv"):
        pytest.skip("root may write anywhere, and setpriv is not installed")
    said = project.run(*(prefix if os.geteuid() == 0 else []), *command, code=code)
    return [line for line in said.splitlines() if line]


def test_results_that_cannot_be_replaced_are_one_line(project: "Project") -> None:
    folder = project.path / "results/few/data"
    project.run("iakd", "prepare")
    folder.chmod(0o555)
    try:
        said = without_rights(project, "snakemake", "--cores", "1", "--forcerun", "prepare", "--", "data", code=2)
    finally:
        folder.chmod(0o755)
    assert said[-1] == "iakd: results/few/data: Permission denied; fix the permissions, then run again"
    assert not any("Traceback" in line for line in said)


def test_a_database_that_cannot_be_written_is_one_line(project: "Project") -> None:
    settings = ("--set", "tracking.enabled=true")
    database = project.path / "mlflow.db"
    database.touch(0o444)
    (line,) = without_rights(project, "iakd", "track", "sync", *settings, code=1)
    assert line == "iakd: MLflow sqlite:///mlflow.db: mlflow.db cannot be written: fix the permissions"
    database.unlink()


def test_a_workflow_in_a_folder_with_braces_is_named_as_the_reason(project: "Project") -> None:
    """The results may be elsewhere, as with --snakefile and --directory."""
    braces = project.path / "br{a}ce"
    for name in ("workflow", "profiles"):
        shutil.copytree(project.path / name, braces / name)
    shutil.copy(project.path / "Snakefile", braces)
    said = project.run("snakemake", "-n", "--snakefile", str(braces / "Snakefile"), code=2).splitlines()
    assert said[-1] == f"iakd: {braces}: Snakemake takes braces in the name of a folder for wildcards: use another name"
