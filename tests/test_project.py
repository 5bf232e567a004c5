"""The files around the code agree with each other."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dvc.dependency import ParamsDependency
from dvc.repo import Repo
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from iakd.experiment.provenance import source_files

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NOT_LOCKED = {"hub", "kubernetes", "s3", "slurm", "timm"}  # extras that are installed beside the lock
DIRECT = [
    Requirement(text)
    for text in [
        *PROJECT["dependencies"],
        *(text for name, extra in PROJECT["optional-dependencies"].items() if name not in NOT_LOCKED for text in extra),
    ]
]
HEAVY = ("torch", "torchvision", "mlflow", "optuna", "sklearn", "scipy", "matplotlib", "pandas")


def locked(python: str, name: str = "requirements.lock") -> dict[str, Version]:
    """The versions in a lock file on Linux with this Python."""
    where = {"python_full_version": f"{python}.0", "python_version": python, "sys_platform": "linux"}
    found = {}
    for line in (ROOT / name).read_text().splitlines():
        match = re.fullmatch(r"([\w.-]+)==([^\s;]+)(?: ; (.+?))? \\", line)
        if match and (not match[3] or Marker(match[3]).evaluate(where)):
            assert match[1] not in found, f"{match[1]}: two versions for Python {python}"
            found[canonicalize_name(match[1])] = Version(match[2])
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_holds_every_direct_dependency_within_its_bounds(python: str) -> None:
    versions = locked(python)
    for requirement in DIRECT:
        assert versions[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_the_lock_is_hashed_and_names_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text()
    packages = re.split(r"\n(?=[\w.-]+==)", text)
    assert len(packages) > 100
    assert all("--hash=sha256:" in package for package in packages)
    assert "://" not in text
    assert "index-url" not in text


def test_environment_yml_has_this_project_and_the_versions_of_the_lock() -> None:
    text = (ROOT / "environment.yml").read_text()
    python, _, pip = yaml.safe_load(text)["dependencies"]
    project, *others = pip["pip"]
    assert project == "-e ."
    listed = {canonicalize_name(r.name): r for r in map(Requirement, others)}
    assert set(listed) == {canonicalize_name(requirement.name) for requirement in DIRECT}
    version = python.removeprefix("python =")
    assert f"{version}.0" in SpecifierSet(PROJECT["requires-python"])
    versions = locked(version)
    for name, requirement in listed.items():
        assert str(requirement.specifier) == f"=={versions[name]}", f"{name}: `make lock` changed it"
    assert f"with CUDA {'.'.join(map(str, versions['nvidia-cuda-runtime'].release[:2]))}\n" in text


def test_dvc_follows_all_settings_of_which_any_section_with_a_default_may_be_missing() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert [stage["params"] for stage in stages.values()] == [[{"params.yaml": None}]] * len(stages)


def test_dvc_s_stages_depend_on_the_sources_that_they_use_and_on_no_other_package() -> None:
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items():
        modules = [f"iakd.stages.{module}" for module in {"export": ["export", "latency"]}.get(name, [name])]
        used = {path.resolve().relative_to(ROOT) for path in source_files(*modules).values()}
        sources = [Path(dep) for dep in stage["deps"] if dep.startswith("src/")]
        assert not [path for path in used if not any(path.is_relative_to(source) for source in sources)], name
        assert not [source for source in sources if not any(path.is_relative_to(source) for path in used)], name


def test_dvc_asks_snakemake_whether_own_images_or_the_checkpoint_of_a_teacher_have_changed() -> None:
    """It cannot have them as dependencies, since the settings may name none."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert {name for name, stage in stages.items() if stage.get("always_changed")} == {"prepare", "teach"}


@pytest.mark.parametrize("settings", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_dvc_can_read_every_experiment_as_params_yaml(
    settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(settings, tmp_path / "params.yaml")
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc/config").write_text("[core]\n    no_scm = true\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "cache"))
    wanted = yaml.safe_load(settings.read_text())
    with Repo(str(tmp_path)) as repo:
        assert len(repo.index.stages) == 7
        for stage in repo.index.stages:
            (params,) = [dep for dep in stage.deps if isinstance(dep, ParamsDependency)]
            params.save()  # fails if one is missing
            assert params.hash_info.value == wanted
            assert wanted["dataset"]["name"] in str(stage.outs[0])


def make_run(arguments: str, *more: str) -> subprocess.CompletedProcess[str]:
    """What `make run ARGS=…` would do."""
    command = ["make", "--dry-run", "--assume-old=.venv/ready", "run", f"ARGS={arguments}", *more]
    own = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # of `make test`
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)


def test_make_names_a_missing_settings_file_in_one_line() -> None:
    done = make_run("-n --configfile no.yaml")
    said = "make: *** No rule to make target 'no.yaml', needed by 'run'.  Stop.\n"
    assert (done.returncode, done.stderr) == (2, said)
    done = make_run("--configfile=experiments/digits.yaml")
    assert done.stdout.strip() == "snakemake --cores all --logger iakd --configfile=experiments/digits.yaml"


def test_make_run_shows_snakemake_s_own_words_on_request() -> None:
    done = make_run("", "V=1")
    assert done.stdout.strip() == "snakemake --cores all --quiet host reason"


def test_what_a_snakefile_or_help_touches_is_imported_quickly() -> None:
    code = "import sys, iakd.cli, iakd.orchestration.snakemake_hooks, iakd.experiment.gpus, "
    code += "iakd.tracking.follower, iakd.tuning.results;"
    code += f"print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_make_lists_all_its_targets() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    assert phony
    shown = subprocess.run(["make", "-C", ROOT], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\w+)", shown, re.MULTILINE) == phony[1].split()


HEADS = [
    "#!{}/python",
    "#!{}/python3.11",
    "#!/bin/sh\n'''exec' {}/python \"$0\" \"$@\"",
    '#!/bin/sh\n\'\'\'exec\' "{}/python" "$0" "$@"',
]


@pytest.mark.parametrize("head", HEADS)
def test_a_venv_that_was_copied_or_moved_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, head: str) -> None:
    """Its programs would run the sources of the first folder, or nothing at all."""
    made_elsewhere = runpy.run_path(str(ROOT / "tools/environment.py"))["made_elsewhere"]
    first = tmp_path / "the first"
    (first / ".venv/bin").mkdir(parents=True)
    monkeypatch.chdir(first)
    assert not made_elsewhere()
    (first / ".venv/bin/iakd").write_text(head.format(first / ".venv/bin") + "\nimport sys\n")
    assert not made_elsewhere()
    shutil.copytree(first, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    assert made_elsewhere()
    shutil.rmtree(tmp_path / "copy/.venv")
    Path(".venv").symlink_to(first / ".venv")
    assert not made_elsewhere()
    first.rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved")
    assert made_elsewhere()


def test_make_works_where_the_home_folder_cannot_be_written(tmp_path: Path) -> None:
    text = f"include {ROOT / 'Makefile'}\ncache: ; @echo $$XDG_CACHE_HOME\n"
    home = tmp_path / "home"
    home.touch()
    for place, expected in ((home, tmp_path / ".cache/home"), (tmp_path, tmp_path / ".cache")):
        own = {"PATH": os.environ["PATH"], "HOME": str(place)}
        command = ["make", "--file=-", "--assume-old=.venv/ready", "cache"]
        done = subprocess.run(command, cwd=tmp_path, env=own, input=text, capture_output=True, text=True, check=True)
        assert done.stdout == f"{expected}\n"


def test_make_looks_at_the_environment_each_time() -> None:
    command = ["make", "--dry-run", "--no-print-directory", "schema"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0].endswith("tools/environment.py")
    text = (ROOT / "tools/environment.py").read_text()
    assert re.search(r'"uv==[0-9.]+"', text) and not re.search(r'"uv"[,)]', text)


def test_an_old_python_is_told_in_one_line() -> None:
    code = (
        "import runpy, sys; sys.version_info = (3, 9, 1); runpy.run_path('tools/environment.py', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr == "iakd needs Python 3.11 or newer, this is 3.9: make PYTHON=/path/to/python3.12\n"


@pytest.mark.parametrize("name", ["CITATION.cff", ".dvc/plots/methods.json", ".dvc/plots/seeds.json"])
def test_is_well_formed(name: str) -> None:
    assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict)


def test_versions_agree() -> None:
    import iakd

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert iakd.__version__ == PROJECT["version"] == citation["version"]
    assert f"## {PROJECT['version']}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_benchmark_finds_what_it_measures() -> None:
    """They are run by hand only, so a renamed function would otherwise be noticed months later."""
    names = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))
    code = f"import importlib; [importlib.import_module(name) for name in {names}]"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "bench", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
