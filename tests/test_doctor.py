"""`iakd doctor` and `iakd status`, as far as they need no workflow."""

import subprocess
import sys
from email.message import Message
from pathlib import Path

import pytest

from iakd.errors import UserError
from iakd.stages import doctor, status

SETTINGS = """
dataset: {source: digits}
teachers: [{arch: resnet8, width: 4}]
students: [{arch: resnet8, width: 4}]
methods: {scratch: {}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "params.yaml").write_text(SETTINGS)
    return tmp_path


def findings(capsys: pytest.CaptureFixture[str], *changes: str) -> tuple[bool, dict[str, str]]:
    """Whether all is good, and what is said about each thing, with its mark."""
    good = doctor.examine(Path("params.yaml"), list(changes))
    found: dict[str, str] = {}
    last = ""
    for line in capsys.readouterr().out.splitlines():
        if line[:1] in ("✓", "·", "✗"):
            last = line[2:12].strip()
            found[last] = f"{line[0]} {line[13:]}"
        elif line.strip().startswith("→"):
            found[last] += f" {line.strip()}"
    return good, found


def test_a_healthy_folder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, found = findings(capsys)
    assert good
    assert found["settings"] == "✓ params.yaml: digits, 1 methods"
    assert found["locks"].startswith("✓")
    assert found["MLflow"] == "✓ sqlite:///mlflow.db"
    assert {"iakd", "Python", "packages", "machine", "GPU", "disk"} <= set(found)


def test_a_folder_without_an_experiment_is_no_fault(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Right after the installation, there is none."""
    (here / "params.yaml").unlink()
    good, found = findings(capsys)
    assert good
    assert found["settings"] == "· no params.yaml in this folder → `iakd init FOLDER` makes an experiment"
    assert not findings(capsys, "distill.seeds=[0]")[0], "somebody means settings that are not there"


def test_what_is_missing_is_named_with_a_remedy(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    database = "tune.storage=postgresql+psycopg://me:secret@127.0.0.1:1/studies"
    good, found = findings(capsys, "tracking.uri=http://127.0.0.1:1", database)
    assert not good
    assert found["MLflow"].startswith("✗ http://127.0.0.1:1: the server does not answer")
    assert found["MLflow"].endswith("→ start it, or change tracking.uri")
    assert found["studies"].startswith("✗ postgresql+psycopg://me:…@127.0.0.1:1/studies: 127.0.0.1:1 does not answer")


def test_a_mistake_in_the_settings_is_a_finding(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, found = findings(capsys, "distil.seeds=[1]")
    assert not good
    assert "distil: unknown key (did you mean 'distill'?)" in found["settings"]


def test_a_package_that_is_too_old_and_an_extra_that_is_not_there(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["torch>=999", "nonesuch>=1; extra == 'exotic'", "nonesuch-dev>=1; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: asked)
    good, found = findings(capsys)
    assert not good
    assert found["packages"] == "✗ missing or too old: torch>=999 → pip install 'torch>=999'"
    assert "optional" not in found  # no such extra
    about = Message()
    about["Provides-Extra"], about["Provides-Extra"] = "exotic", "dev"
    monkeypatch.setattr("importlib.metadata.metadata", lambda name: about)
    _, found = findings(capsys)
    assert found["optional"] == "· nonesuch>=1 not installed; for exotic → pip install 'iakd[exotic]'"


def test_a_full_disk_is_worth_a_word(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 10 << 20

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    good, found = findings(capsys)
    assert good and found["disk"].startswith("· 0 GiB free")


def test_status_needs_a_workflow(here: Path) -> None:
    with pytest.raises(UserError, match="there is no Snakefile in"):
        status.show(None)


def test_status_passes_on_why_the_workflow_refuses(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "Snakefile").write_text(
        "import sys\nprint('iakd: made with other settings', file=sys.stderr)\nsys.exit(2)\n"
    )
    with pytest.raises(UserError, match=r"^made with other settings$"):
        status.show(None)


def test_version_and_completion() -> None:
    def iakd(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "iakd", *arguments], capture_output=True, text=True, check=True
        ).stdout

    assert iakd("--version") == "iakd 0.1.0\n"
    assert "--install-completion" in iakd("--help")
