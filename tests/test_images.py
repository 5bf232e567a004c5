"""Dockerfile, apptainer.def and the lock of what images hold besides: checked by reading them, as hadolint would."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
DEFINITION = (ROOT / "apptainer.def").read_text()
SCRIPT = ROOT / "tools/image.sh"


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions and their arguments, without comments, with continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments_of(word: str) -> list[str]:
    return [rest for name, rest in instructions() if name == word]


def sections() -> dict[str, str]:
    """The sections of apptainer.def by their names; the header has none."""
    text = re.sub(r"^#.*\n", "", DEFINITION, flags=re.MULTILINE)
    head, *parts = re.split(r"^%(\w+)\n", text, flags=re.MULTILINE)
    return {"": head, **dict(zip(parts[::2], parts[1::2], strict=True))}


def steps(text: str) -> list[str]:
    """The commands of a section or of RUN instructions, in one spelling for both files."""
    text = text.replace("{{ VARIANT }}", "$VARIANT").replace("VIRTUAL_ENV", "\nVIRTUAL_ENV")
    return [" ".join(shlex.split(step)) for step in re.split(r"\s*(?:&&|\n)\s*", text) if step.strip()]


def test_the_base_is_one_version_of_pythons_slim_image_by_its_short_name() -> None:
    assert arguments_of("FROM") == ["python:${PYTHON}-slim"]
    python = dict(argument.split("=") for argument in arguments_of("ARG"))["PYTHON"]
    assert re.search(r"Bootstrap: docker\nFrom: python:{{ PYTHON }}-slim\n", sections()[""])
    assert f"PYTHON={python}\n" in sections()["arguments"]
    bound = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert python in Requirement(f"python{bound}").specifier


def test_packages_of_the_system_are_few_and_leave_no_lists_behind() -> None:
    for installs in [run for run in arguments_of("RUN") if "apt-get" in run]:
        assert "--yes --no-install-recommends" in installs and "rm -rf /var/lib/apt/lists/*" in installs
    assert not re.search(r"\b(sudo|curl|wget|upgrade|latest)\b", DOCKERFILE + DEFINITION)
    assert not arguments_of("ADD")


def test_the_image_runs_without_rights_in_an_absolute_folder() -> None:
    assert arguments_of("USER") == ["1000:1000"]
    assert all(folder.startswith("/") for folder in arguments_of("WORKDIR"))
    last = [name for name, _ in instructions()][-2:]
    assert last == ["USER", "CMD"], "nothing is installed as this user"
    assert json.loads(arguments_of("CMD")[0]) == ["snakemake", "--cores", "all"]
    assert " LOGNAME=" in " ".join(arguments_of("ENV")), "Snakemake asks for it, and /etc/passwd does not have the user"


def test_libraries_are_installed_before_the_sources_are_copied() -> None:
    """Or every change of a source would install them again."""
    order = [f"{name} {rest}" for name, rest in instructions()]
    assert order.index('RUN sh tools/image.sh "$VARIANT"') < order.index("COPY src src")


def test_what_is_copied_exists_and_reaches_the_builder() -> None:
    ignored, *kept = (line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#"))
    assert ignored == "*"
    reaching = {line.removeprefix("!") for line in kept if line.startswith("!")}
    sources = {source for rest in arguments_of("COPY") for source in rest.split()[:-1]}
    assert sources == reaching
    assert {line.split()[0] for line in sections()["files"].splitlines() if line.strip()} == sources
    for source in sources:
        assert (ROOT / source).exists(), source
        listed = subprocess.run(["git", "ls-files", "--error-unmatch", source], cwd=ROOT, capture_output=True)
        assert listed.returncode == 0, f"{source} is not in git"


def test_apptainer_runs_the_steps_of_the_dockerfile() -> None:
    docker = [step for run in arguments_of("RUN") for step in steps(run)]
    apptainer = steps(sections()["post"])
    assert [step for step in docker if "/home/iakd" not in step] == [s for s in apptainer if s != "cd /opt/source"]


def test_both_put_the_environment_and_the_folders_own_sources_first() -> None:
    assert "PATH=/opt/iakd/bin:$PATH" in DOCKERFILE and "PATH=/opt/iakd/bin:$PATH" in sections()["environment"]
    assert "PYTHONPATH=/workdir/src" in DOCKERFILE and 'PYTHONPATH="$PWD/src"' in sections()["environment"]


def test_no_file_names_an_address() -> None:
    for text in (DOCKERFILE, DEFINITION, SCRIPT.read_text(), (ROOT / "requirements-image.lock").read_text()):
        assert "://" not in text and "index-url" not in text
        assert not re.search(r"\b[\w-]+\.(?:io|com|org|dev)\b", text)


def test_the_script_is_for_a_plain_shell_and_refuses_other_variants(tmp_path: Path) -> None:
    subprocess.run(["sh", "-n", SCRIPT], check=True)
    done = subprocess.run(["sh", SCRIPT, "rocm", tmp_path / "made"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "VARIANT is rocm; choose cuda or cpu\n")
    assert not (tmp_path / "made").exists()


FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && cp "$0" "$3/bin/uv" ;;
    *" download "*) mkdir -p wheels && touch wheels/boto3.whl wheels/snakemake_storage_plugin_s3-0.whl ;;
esac
"""


@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_what_is_installed_has_the_locked_versions(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a clean folder with the two lock files, by programs that only note how they are called."""
    for name in ("requirements.lock", "requirements-image.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "fake").mkdir()
    (tmp_path / "fake/python").write_text(FAKE)
    (tmp_path / "fake/python").chmod(0o755)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("PATH", f"{tmp_path}/fake:/usr/bin:/bin")
    subprocess.run(["sh", SCRIPT, variant, "."], cwd=tmp_path, check=True)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert [path.name for path in (tmp_path / "wheels").iterdir()] == ["snakemake_storage_plugin_s3-0.whl"]
    installs = [call for call in calls if call.startswith("uv ")]
    assert "--require-hashes --requirement requirements.lock" in installs[0]
    if variant == "cuda":
        assert len(installs) == 1 and "--excludes" not in installs[0]
        return
    left_out = set((tmp_path / "not-installed.txt").read_text().split())
    lock = (ROOT / "requirements.lock").read_text()
    locked = dict(re.findall(r"^([\w.-]+)==([\w.]+)", lock, re.MULTILINE))
    assert {"torch", "torchvision", "triton", "nvidia-cudnn-cu13", "cuda-bindings"} <= left_out <= set(locked)
    assert not {"numpy", "nvidia-ml-py", "sympy", "hatchling"} & left_out
    pair = f"torch=={locked['torch']} torchvision=={locked['torchvision']}"
    assert installs[1:] == [f"uv pip install --no-deps --torch-backend cpu {pair}"]


def test_the_second_lock_agrees_with_the_first() -> None:
    """On the Python of the images, where both are installed into one environment."""
    from test_project import locked

    first, second = locked("3.12"), locked("3.12", "requirements-image.lock")
    assert {"uv", "boto3", canonicalize_name("snakemake-storage-plugin-s3")} <= set(second)
    assert {name: version for name, version in second.items() if first.get(name, version) != version} == {}


def test_condas_environment_of_jobs_is_made_from_the_present_lock() -> None:
    """Snakemake makes another one only when these two files change."""
    folder = ROOT / "workflow/envs"
    assert yaml.safe_load((folder / "iakd.yaml").read_text())["dependencies"] == ["python =3.12", "pip"]
    script = (folder / "iakd.post-deploy.sh").read_text()
    check = next(line for line in script.splitlines() if "sha256sum" in line)
    done = subprocess.run(["bash", "-c", check], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, "requirements.lock has changed: `make lock` writes its hash into the script"
