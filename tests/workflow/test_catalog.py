"""The workflow as others find it: the layout of Snakemake's catalog, and as a module of another workflow."""

import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from iakd.config import load

if TYPE_CHECKING:
    from tests.workflow.conftest import Copy, Project

ROOT = Path(__file__).parents[2]
MODULE = """
configfile: "config/config.yaml"


module iakd:
    snakefile:
        "{snakefile}"
    config:
        config


use rule * from iakd as iakd_*


rule mine:
    default_target: True
    input:
        rules.iakd_report.output.page,
    output:
        "mine.txt",
    shell:
        "wc -c {{input}} > {{output}}"
"""


def test_the_layout_is_the_catalog_s() -> None:
    """What the catalog asks of a workflow with standardised usage."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = done.stdout.splitlines()
    assert {"README.md", "LICENSE", "workflow/Snakefile", "config/README.md", "config/config.yaml"} <= set(listed)
    assert any(name.startswith("workflow/rules/") and name.endswith(".smk") for name in listed)
    assert any(name.startswith(".test/") for name in listed)
    readme = (ROOT / "README.md").read_text().lower()
    assert "snakemake" in readme and "workflow" in readme
    usage: dict[str, Any] = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) <= {"mandatory-flags", "software-stack-deployment", "report"}
    assert usage["report"] is True
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert set(usage["software-stack-deployment"].values()) <= {True, False}


def test_the_settings_have_the_name_that_deployed_workflows_expect() -> None:
    assert (ROOT / "config/config.yaml").samefile(ROOT / "params.yaml")
    assert load(ROOT / ".test/params.yaml").dataset.name == "tiny"


@pytest.mark.workflow
def test_the_test_case_of_the_catalog_is_planned(tmp_path: Path, copy_project: "Copy") -> None:
    project = copy_project(tmp_path / "project")
    printed = project.run("snakemake", "-n", "--directory", ".test", "--workflow-profile", "gpu", "--quiet", "rules")
    assert "workflow specific profile profiles/gpu" in printed  # by its name
    assert re.search(r"^distill +4$", printed, re.MULTILINE)


@pytest.fixture
def other(tmp_path: Path, copy_project: "Copy") -> "Project":
    """Another workflow that uses this one as a module, in a folder of its own."""
    project = copy_project(tmp_path / "source")
    folder = tmp_path / "source" / "elsewhere"
    (folder / "config").mkdir(parents=True)
    settings = yaml.safe_load((ROOT / "tests/workflow/tiny.yaml").read_text())
    settings["tracking"]["enabled"] = False
    (folder / "config/config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "Snakefile").write_text(MODULE.format(snakefile=project.path / "workflow/Snakefile"))
    return project


def snakemake(project: "Project", *options: str, code: int = 0) -> str:
    where = ("--directory", "elsewhere", "--snakefile", "elsewhere/Snakefile")
    return project.run("snakemake", "--cores", "1", *where, *options, code=code)


@pytest.mark.workflow
def test_another_workflow_can_use_it_as_a_module(other: "Project") -> None:
    printed = snakemake(other, "-n", "--quiet", "rules")
    jobs = dict(line.split() for line in printed.splitlines() if line.startswith(("iakd_", "mine")))
    assert jobs["iakd_distill"] == "4" and jobs["iakd_report"] == jobs["mine"] == "1"
    snakemake(other, "iakd_data")
    assert (other.path / "elsewhere/results/tiny/data/manifest.json").exists()
    assert "Nothing to be done" in snakemake(other, "iakd_data")


@pytest.mark.workflow
def test_a_module_s_mistakes_are_one_line(other: "Project") -> None:
    file = other.path / "elsewhere/config/config.yaml"
    text = file.read_text()
    file.write_text(text.replace("trials: 3", "trials: many"))
    printed = snakemake(other, "-n", code=2)
    assert "iakd: config of the module: tune.trials: Input should be a valid integer" in printed
    file.write_text(text)
    snakefile = other.path / "elsewhere/Snakefile"
    snakefile.write_text(snakefile.read_text().replace("    config:\n", '    prefix:\n        "sub"\n    config:\n'))
    printed = snakemake(other, "-n", code=2)
    assert "iakd: a module's prefix does not change where results are: leave it out\n" in printed
    assert "Traceback" not in printed
