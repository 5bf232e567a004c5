"""Create or update .venv from requirements.lock. Runs with any Python, so it uses the standard library only."""

import fcntl
import hashlib
import json
import subprocess
import sys
from pathlib import Path

VENV = Path(".venv")
PYTHON, UV = VENV / "bin" / "python", VENV / "bin" / "uv"
READY = VENV / "ready"  # hashes of what is installed; written last


def sha256(name):
    return hashlib.sha256(Path(name).read_bytes()).hexdigest()


def run(*command):
    done = subprocess.run([str(part) for part in command])
    if done.returncode:
        sys.exit("the environment could not be created: see the lines above, then run make again")


def install():
    wanted = {name: sha256(name) for name in ("requirements.lock", "pyproject.toml")}
    installed = json.loads(READY.read_text()) if READY.exists() else {}
    if installed != wanted:
        READY.unlink(missing_ok=True)
        if not UV.exists():
            print("creating .venv", flush=True)
            run(sys.executable, "-m", "venv", VENV)
            run(PYTHON, "-m", "pip", "install", "--quiet", "uv")
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
    with (VENV / "lock").open("a") as lock:  # if two `make` run at once, the second waits
        fcntl.flock(lock, fcntl.LOCK_EX)
        install()
