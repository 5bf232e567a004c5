"""Create or update .venv from requirements.lock. Runs with any Python, so it uses the standard library only."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
PYTHON, UV = VENV / "bin" / "python", VENV / "bin" / "uv"
READY = VENV / "ready"  # hashes of what is installed; written last
LOCK = VENV / "lock"
UV_VERSION = "uv==0.13.9"


def sha256(name):
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def run(*command):
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        sys.exit("the environment could not be created: see the lines above, then run make again")


def made_elsewhere():
    """Whether .venv was copied or moved with its folder: its programs would run the first one's sources, or none."""
    program = VENV / "bin" / "iakd"
    lines = program.read_text(errors="replace").split("\n")[:3] if program.exists() else []
    # a long path, or one with spaces, is not in the first line
    found = re.search(r"""(?:^#!|exec' "?)(/.+)/python[0-9.]*(?:["\s]|$)""", "\n".join(lines), re.MULTILINE)
    return found is not None and not (Path(found[1]).exists() and Path(found[1]).samefile(VENV / "bin"))


def install():
    wanted = {name: sha256(name) for name in ("requirements.lock", "pyproject.toml")}
    if made_elsewhere():
        print(".venv was made in another folder: making it again", flush=True)
        for entry in VENV.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != LOCK:
                entry.unlink()
    installed = json.loads(READY.read_text()) if READY.exists() else {}
    if installed != wanted:
        READY.unlink(missing_ok=True)
        if not UV.exists():
            print("creating .venv", flush=True)
            run(os.path.realpath(sys.executable), "-m", "venv", VENV)  # not by a link within .venv
            run(PYTHON, "-m", "pip", "install", "--quiet", UV_VERSION)
        if installed.get("requirements.lock") != wanted["requirements.lock"]:
            print("installing requirements.lock", flush=True)
            run(UV, "pip", "sync", "--quiet", "--python", PYTHON, "--require-hashes", "requirements.lock")
        editable = ("--no-deps", "--no-build-isolation", "--editable", ".")  # hatchling is in the lock
        run(UV, "pip", "install", "--quiet", "--python", PYTHON, *editable)
        READY.write_text(json.dumps(wanted))


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - for the error message in an older one
        version = ".".join(map(str, sys.version_info[:2]))
        sys.exit("iakd needs Python 3.11 or newer, this is " + version + ": make PYTHON=/path/to/python3.12")
    VENV.mkdir(exist_ok=True)
    with LOCK.open("a") as lock:  # if two `make` run at once, the second waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        install()
