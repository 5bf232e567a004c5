"""Copies of this project in which a workflow can run and sources can be changed."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Project:
    """A working copy whose own sources are on the path of every process."""

    path: Path

    @classmethod
    def copy(cls, path: Path) -> "Project":
        """Copy the tracked files, and new ones that are not ignored, to `path`."""
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
        done = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True)
        for name in filter(None, done.stdout.split("\0")):
            if (ROOT / name).exists():
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, path / name, follow_symlinks=False)
        return cls(path)

    @property
    def environment(self) -> dict[str, str]:
        """Its processes' variables: no user's caches or settings, the copy's sources, this interpreter's programs."""
        home = self.path.parent / "home"
        who = {
            f"GIT_{role}_{what}": "test@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        kept = {name: os.environ[name] for name in ("LANG", "TMPDIR", "OMP_NUM_THREADS") if name in os.environ}
        return {
            **kept,
            **who,
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.path / "src"),
            "HOME": str(home),
            "DVC_SITE_CACHE_DIR": str(home / "dvc"),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }

    def start(self, *command: str, log: Path | None = None) -> "subprocess.Popen[str]":
        """Start a command in its own process group."""
        out = log.open("w") if log else subprocess.PIPE
        return subprocess.Popen(
            command,
            cwd=self.path,
            env=self.environment,
            text=True,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, *command: str, code: int = 0) -> str:
        """Run a command and return what it printed; it has to exit with `code`."""
        done = subprocess.run(
            command, cwd=self.path, env=self.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == code, f"{' '.join(command)}: {done.returncode}\n{done.stdout}"
        return done.stdout


Copy = Callable[[Path], Project]


@pytest.fixture(scope="session")
def copy_project() -> Copy:
    """Copy this project to a folder."""
    return Project.copy
