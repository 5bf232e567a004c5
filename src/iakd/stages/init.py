"""`iakd init`: a new folder in which an experiment runs with the installed package, without a clone."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import yaml

from iakd import __version__, shipped
from iakd.config import load
from iakd.config.base import LONGEST_NAME, did_you_mean
from iakd.errors import UserError
from iakd.files import refuse_braces, write_text

SCHEMA = "params.schema.json"
DEFAULT = "params.yaml"
OWN_IMAGES = "own_images"  # the experiment that `images` changes, unless another is chosen
ADDED_TO = (".gitignore", ".dvcignore")  # which may be there already
KEPT = ("README.md",)
ONLY_IN_A_CLONE = ("kubernetes",)  # profiles: pods get the sources that are below the folder of the experiment
HIDDEN = {"gitignore": ".gitignore", "dvcignore": ".dvcignore", "dvc": ".dvc"}  # by its own name, git would obey it
OF_A_CLONE = {  # what a clone has, and what is there instead
    "`make run` (or `snakemake --cores all`, or `dvc repro`)": "`snakemake --cores all` (or `dvc repro`)",
    "`make mlflow`": "`iakd track ui`",
    "hence `make experiments`": "hence its options `--only-changed --drop '.*:'`",
    "workflow/profiles/": "profiles/",
    " Ready-made experiments: experiments/*.yaml.": " `iakd init --experiment list` lists ready-made ones.",
    "Copy this file, change name and path, and first check": "First check",
}
SOFTWARE = """\
stages:
  software:
    desc: which iakd is installed
    cmd: python -m iakd.shipped > software.txt
    always_changed: true
    outs:
      - software.txt:
          cache: false

"""


def experiments() -> list[str]:
    """Return the names of the ready-made experiments."""
    return sorted(path.stem for path in (shipped.folder() / "experiments").glob("*.yaml"))


def run(folder: Path, experiment: str | None = None, images: Path | None = None) -> list[Path]:
    """Write the files of an experiment to `folder`, and start a git repository unless the folder is in one.

    `experiment` names ready-made settings; without it, those of the digits, or with `images`, a folder with a subfolder
    per class, those for own images. Files that are there and equal are left alone, so an interrupted `run` can be
    repeated. Returns the new files.

    Raises UserError for an unknown experiment, for `images` that is no folder, for a folder that Snakemake cannot use,
    and where another file is in the way.
    """
    refuse_braces(folder.absolute())
    texts = _texts(folder, experiment, images)
    for name, text in texts.items():
        path = folder / name
        if path.exists() and name not in (*ADDED_TO, *KEPT) and _read(path) != text:
            raise UserError(f"{path} exists already and is another one: choose another folder, or rename it")
    new = []
    for name, text in texts.items():
        path = folder / name
        if path.exists():
            old = path.read_text()
            if name not in ADDED_TO:
                continue
            missing = [line for line in text.splitlines() if line not in old.splitlines()]
            if not missing:
                continue
            text = "\n".join([*old.splitlines(), *missing, ""])
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, text)
        new.append(path)
    load(folder / "params.yaml")
    _start_repository(folder)
    return new


def _texts(folder: Path, experiment: str | None, images: Path | None) -> dict[str, str]:
    """Return the text of each file, params.yaml last: with it, the folder is complete."""
    root = shipped.folder()
    template = root / "workflow/template"
    texts = {}
    for path in _files(template):
        texts["/".join(HIDDEN.get(part, part) for part in path.relative_to(template).parts)] = path.read_text()
    for path in _files(root / "workflow/profiles"):
        if path.parent.name in ONLY_IN_A_CLONE:
            continue
        texts[path.relative_to(root / "workflow").as_posix()] = path.read_text()
    texts[SCHEMA] = (root / "workflow/schemas" / SCHEMA).read_text()
    texts["README.md"] = texts["README.md"].replace("{version}", __version__)
    texts["dvc.yaml"] = _stages(texts["dvc.yaml"])
    if shutil.which("git") is None:
        texts[".dvc/config"] = texts[".dvc/config"].replace("[core]\n", "[core]\n    no_scm = true\n")
    settings = texts.pop(DEFAULT)
    if experiment or images:
        settings = _experiment(experiment or OWN_IMAGES)
    if images:
        settings = _with_images(settings, folder, images)
    texts[DEFAULT] = re.sub(r"\$schema=\S+", f"$schema={SCHEMA}", settings)
    for name, text in texts.items():
        for old, new in OF_A_CLONE.items():
            text = text.replace(old, new)
        texts[name] = text
    return texts


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _stages(text: str) -> str:
    """Return dvc.yaml for a folder without sources: its stages depend on a file that says which iakd is installed."""
    text = text.replace("- workflow/Snakefile\n", "- Snakefile\n").replace("- workflow/rules\n", "- software.txt\n")
    text = re.sub(r"      - src/iakd/.*\n", "", text)
    return text.replace("stages:\n", SOFTWARE, 1)


def _experiment(name: str) -> str:
    known = experiments()
    if name not in known:
        raise UserError(f"unknown experiment {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}")
    return (shipped.folder() / f"experiments/{name}.yaml").read_text()


def _with_images(settings: str, folder: Path, images: Path) -> str:
    """Return settings for own images with their folder, and its name for the data set."""
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; --images wants one with a subfolder for each class")
    inside, base = images.resolve(), folder.resolve()
    if base.is_relative_to(inside):
        raise UserError(f"{folder} is among the images, where it would be a class: choose a folder outside {images}")
    path = images.absolute()
    shown = inside.relative_to(base) if inside.is_relative_to(base) else path
    name = re.sub(r"[^A-Za-z0-9_.]+", "_", path.name).strip("._")[:LONGEST_NAME] or OWN_IMAGES
    is_text = re.match(r"[A-Za-z]", name) and yaml.safe_load(name) == name  # `2024` and `no` are not
    texts = {"name": name if is_text else json.dumps(name), "path": json.dumps(os.fspath(shown), ensure_ascii=False)}
    for key, value in texts.items():
        lines = settings.splitlines()
        place = next((n for n, line in enumerate(lines) if line.startswith(f"  {key}: ")), None)
        if place is None:
            raise UserError("--images goes with experiments on own images: " + ", ".join(_on_own_images()))
        old = lines[place].split()[1]
        lines[place] = lines[place].replace(f"{key}: {old}", f"{key}: {value}", 1)
        settings = "\n".join([*lines, ""])
    return settings


def _on_own_images() -> list[str]:
    return [name for name in experiments() if name.startswith(OWN_IMAGES)]


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return None


def _start_repository(folder: Path) -> None:
    """Have git look after the folder, where there is git."""
    if (
        shutil.which("git") is None
        or subprocess.run(["git", "rev-parse"], cwd=folder, capture_output=True).returncode == 0
    ):
        return
    done = subprocess.run(["git", "init", "--quiet"], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"git init in {folder}: {done.stderr.strip()}")
