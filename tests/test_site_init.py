"""`iakd init`, and the wheel: an experiment in a new folder, without a clone of the repository."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from dvc.repo import Repo
from PIL import Image

from iakd import shipped
from iakd.config import load
from iakd.stages import init

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent
Iakd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def iakd(iakd: Iakd, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iakd:
    """The command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return iakd


def written(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file() and ".git" not in path.relative_to(folder).parts)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def photos(folder: Path) -> Path:
    """Two classes of ten images."""
    for number, name in enumerate(("cups", "plates")):
        (folder / name).mkdir(parents=True)
        for i in range(10):
            pixels = np.random.default_rng(10 * number + i).integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    return folder


def test_a_new_folder_has_what_snakemake_dvc_and_git_want(iakd: Iakd) -> None:
    code, out, err = iakd("init", "mine")
    assert (code, out) == (0, "mine\n")
    assert err == "next: cd mine, look at params.yaml, run snakemake --cores all --logger iakd\n"
    files = written(Path("mine"))
    assert {"Snakefile", "params.yaml", "dvc.yaml", "README.md", ".gitignore", ".dvcignore", ".dvc/config"} <= set(
        files
    )
    profiles = {path.parent.name: path for path in (ROOT / "workflow/profiles").glob("*/config.yaml")}
    assert profiles.pop("kubernetes"), "needs the sources in the folder"
    assert {path.name for path in Path("mine/profiles").iterdir()} == set(profiles) == {"default", "gpu", "slurm"}
    for name, path in profiles.items():
        assert yaml.safe_load(files[f"profiles/{name}/config.yaml"]) == yaml.safe_load(path.read_text())
    assert {Path(name).name for name in files if name.startswith(".dvc/plots/")} == {
        path.name for path in (ROOT / ".dvc/plots").iterdir()
    }
    assert load(Path("mine/params.yaml")) == load(ROOT / "params.yaml")
    assert Path("mine/.git").is_dir()


def test_nothing_in_a_new_folder_speaks_of_what_only_a_clone_has(iakd: Iakd) -> None:
    for name in init.experiments():
        assert iakd("init", name, "--experiment", name)[0] == 0
        texts = (Path(name) / "params.yaml", ROOT / f"experiments/{name}.yaml")
        new, original = ([line for line in path.read_text().splitlines() if line[:1] != "#"] for path in texts)
        assert new == original
        for file, text in written(Path(name)).items():
            for only_there in ("`make ", "workflow/profiles", "workflow/schemas", "src/iakd", "experiments/*"):
                assert only_there not in text, (file, only_there)
            if file == "params.yaml":
                assert "$schema=" not in text.replace("$schema=params.schema.json", "")


def test_dvc_s_stages_are_those_of_the_clone_after_one_that_follows_the_package(iakd: Iakd) -> None:
    iakd("init", "mine")
    stages = yaml.safe_load(Path("mine/dvc.yaml").read_text())["stages"]
    software, *names = stages
    original = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    assert (software, names) == ("software", list(original))
    made = {
        str(name)
        for stage in stages.values()
        for out in stage["outs"]
        for name in ([out] if isinstance(out, str) else out)
    }
    for name in names:
        of_clone = {dep for dep in original[name].pop("deps") if not dep.startswith(("workflow/", "src/iakd/"))}
        assert {*stages[name].pop("deps")} == {"Snakefile", "software.txt", *of_clone}
        assert of_clone <= made
        assert stages[name] == original[name]
    with Repo("mine") as repo:
        assert len(repo.index.stages) == len(stages)


def test_dvc_works_where_there_is_no_git(iakd: Iakd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert iakd("init", "mine")[0] == 0
    assert not Path("mine/.git").exists()
    with Repo("mine") as repo:
        assert repo.config["core"]["no_scm"] is True


def test_a_folder_in_a_repository_stays_a_part_of_it(iakd: Iakd) -> None:
    subprocess.run(["git", "init", "--quiet"], check=True)
    assert iakd("init", "mine")[0] == 0
    assert not Path("mine/.git").exists()


def test_own_images_are_named_in_the_settings(iakd: Iakd, tmp_path: Path) -> None:
    odd = photos(tmp_path / 'my "cups" & plätes')
    assert iakd("init", "mine", "--images", odd.name)[0] == 0
    dataset = load(Path("mine/params.yaml")).dataset
    assert (dataset.name, dataset.source, dataset.path) == ("my_cups_pl_tes", "image_folder", str(odd))
    photos(tmp_path / "inside/photos")
    assert iakd("init", "inside", "--images", "inside/photos", "--experiment", "own_images")[0] == 0
    dataset = load(Path("inside/params.yaml")).dataset
    assert (dataset.name, dataset.path) == ("photos", "photos")
    for name in ("2024", "1e3", "no"):
        photos(tmp_path / name)
        assert iakd("init", f"of_{name}", "--images", name)[0] == 0
        assert load(Path(f"of_{name}/params.yaml")).dataset.name == name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--experiment", "digit"), "unknown experiment 'digit' (did you mean 'digits'?); known: cifar10, "),
        (("--images", "nowhere"), "nowhere: no such folder; --images wants one with a subfolder for each class"),
        (("--images", "photos", "--experiment", "digits"), "--images goes with experiments on own images: own_images"),
        (("--images", "."), "mine is among the images, where it would be a class: choose a folder outside ."),
        (("--images", "link"), "mine is among the images, where it would be a class: choose a folder outside"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(iakd: Iakd, arguments: tuple[str, ...], said: str) -> None:
    Path("photos").mkdir()
    Path("link").symlink_to(".")
    code, out, err = iakd("init", "mine", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert not Path("mine").exists()


def test_a_folder_that_snakemake_cannot_use_is_not_made(iakd: Iakd) -> None:
    code, _, err = iakd("init", "{mine}")
    assert (code, err.count("\n")) == (2, 1) and "/{mine}: Snakemake takes braces in the name of a folder" in err
    assert not Path("{mine}").exists()


def test_it_can_be_repeated_and_overwrites_nothing(iakd: Iakd) -> None:
    Path("mine").mkdir()
    Path("mine/.gitignore").write_text("*.bak")
    Path("mine/README.md").write_text("my own\n")
    assert iakd("init", "mine")[0] == 0
    first = written(Path("mine"))
    assert first["README.md"] == "my own\n"
    ignored = first[".gitignore"].splitlines()
    assert ignored[0] == "*.bak" and set((ROOT / ".gitignore").read_text().splitlines()) < set(ignored)
    Path("mine/Snakefile").unlink()  # as if it had been killed
    assert iakd("init", "mine")[0] == 0
    assert written(Path("mine")) == first
    Path("mine/params.yaml").write_text("mine: 1\n")
    Path("mine/Snakefile").unlink()
    code, _, err = iakd("init", "mine")
    assert (code, err) == (
        2,
        "iakd: mine/params.yaml exists already and is another one: choose another folder, or rename it\n",
    )
    assert not Path("mine/Snakefile").exists()


def test_the_list_of_experiments_and_the_folder_of_the_documentation(iakd: Iakd) -> None:
    code, out, _ = iakd("init", "mine", "--experiment", "list")
    assert (code, out.split()) == (0, sorted(path.stem for path in (ROOT / "experiments").iterdir()))
    assert not Path("mine").exists()
    assert iakd("docs")[:2] == (0, f"{ROOT / 'docs'}\n")


def test_sources_without_a_workflow_say_what_is_missing(iakd: Iakd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", Path("elsewhere/src/iakd"))
    code, _, err = iakd("init", "mine")
    assert (code, err.count("\n")) == (2, 1)
    assert "elsewhere/src/iakd has no workflow beside it: install iakd from its wheel" in err


def build(source: Path, folder: Path, target: str) -> Path:
    """Build the wheel or the source archive from a clone or a source archive."""
    command = [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", folder]
    subprocess.run(command, cwd=source, check=True, capture_output=True)
    (made,) = folder.glob("iakd-*.whl" if target == "wheel" else "iakd-*.tar.gz")
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built and installed in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    with zipfile.ZipFile(build(ROOT, folder, "wheel")) as file:
        file.extractall(folder / "installed")
    return folder / "installed"


def test_the_wheel_has_what_the_clone_has(installed: Path) -> None:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "workflow", "experiments", "docs", "src"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in names:
        if not (ROOT / name).is_file():  # a link to a folder
            continue
        copy = installed / (name.removeprefix("src/") if name.startswith("src/") else f"iakd/project/{name}")
        assert copy.read_bytes() == (ROOT / name).read_bytes(), name
    assert {path.name for path in installed.iterdir()} == {
        "iakd", "iakd-0.1.0.dist-info", "snakemake_logger_plugin_iakd"
    }  # fmt: skip


def test_the_source_archive_makes_the_same_wheel(installed: Path, tmp_path: Path) -> None:
    with tarfile.open(build(ROOT, tmp_path, "sdist")) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()
    with zipfile.ZipFile(build(source, tmp_path / "again", "wheel")) as wheel:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        assert names == {
            str(path.relative_to(installed))
            for path in installed.rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }
        assert wheel.read("iakd/project/workflow/template/dvc.yaml") == (ROOT / "dvc.yaml").read_bytes()


SHORT = """\
dataset: {name: photos, source: image_folder, path: photos, size: 16, test: 0.3}
teachers: [{arch: resnet8, width: 4, name: big}]
students: [{arch: resnet8, width: 4, name: small}]
methods: {kd: {}}
teach: {recipe: {epochs: 1}}
distill: {seeds: [0, 1], recipe: {epochs: 1}}
evaluate: {latency_runs: 2}
report: {references: [kd]}
tracking: {enabled: false}
compute: {device: cpu}
"""


@pytest.mark.workflow
def test_the_wheel_runs_an_experiment_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    kept = {name: os.environ[name] for name in ("LANG", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(installed), "HOME": str(tmp_path / "home")}
    own |= {"DVC_SITE_CACHE_DIR": str(tmp_path / "home/dvc"), "DVC_NO_ANALYTICS": "1", **kept}

    def run(*command: str, cwd: Path = tmp_path / "mine") -> str:
        done = subprocess.run(command, cwd=cwd, env=own, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        assert done.returncode == 0, f"{command}\n{done.stdout}"
        return done.stdout

    photos(tmp_path / "mine/photos")
    run("iakd", "init", "mine", "--images", "mine/photos", cwd=tmp_path)
    assert "prepare" in run("snakemake", "-n", "--quiet", "rules")
    (tmp_path / "mine/params.yaml").write_text(SHORT)
    printed = run("snakemake", "--cores", "all", "--logger", "iakd")
    assert "The report: results/photos/report/report.html" in printed
    assert list((tmp_path / "mine/results/photos/export").rglob("model.onnx"))
    record = yaml.safe_load((tmp_path / "mine/results/photos/teachers/big/seed0/run.json").read_text())
    assert record["versions"]["iakd"] == "0.1.0"
    assert "Nothing to be done" in run("snakemake", "-n")
    run("dvc", "repro", "prepare")
    first, second = (tmp_path / "mine/software.txt").read_text().splitlines()
    assert first == "iakd 0.1.0"
    assert second.removeprefix("sources ") == shipped.fingerprint()


def test_the_fingerprint_follows_modules_and_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "src/iakd"
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow", symlinks=True)
    package.mkdir(parents=True)
    (package / "code.py").write_text("one = 1\n")
    monkeypatch.setattr(shipped, "PACKAGE", package)
    seen = {shipped.fingerprint()}
    for path in (package / "code.py", tmp_path / "workflow/Snakefile", tmp_path / "workflow/rules/teach.smk"):
        path.write_text(path.read_text() + "# changed\n")
        seen.add(shipped.fingerprint())
    assert len(seen) == 4
    (tmp_path / "workflow/profiles/default/config.yaml").write_text("cores: 1\n")
    assert shipped.fingerprint() in seen
