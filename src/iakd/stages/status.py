"""`iakd status`: asks Snakemake, in a dry run, what is done and what is not; `iakd.orchestration.status` prints it."""

import subprocess
import sys
import tempfile
from pathlib import Path

from iakd.config import Params, params_text
from iakd.errors import RunFailed, UserError

SNAKEFILES = ("Snakefile", "workflow/Snakefile")  # where Snakemake looks


def show(params: Params | None) -> None:
    """Print the state of the experiment in this folder, with the settings in params.yaml or with `params`.

    Raises UserError if there is no workflow in this folder, or if it refuses to run, RunFailed if Snakemake fails.
    """
    if not any(Path(name).exists() for name in SNAKEFILES):
        raise UserError(f"there is no Snakefile in {Path.cwd()}, and `status` asks Snakemake: run it beside one")
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "all", "--logger", "iakd"]
    with tempfile.TemporaryDirectory() as folder:
        if params is not None:
            settings = Path(folder) / "params.yaml"
            settings.write_text(params_text(params))
            command += ["--configfile", str(settings)]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        own = [line.removeprefix("iakd: ") for line in lines if line.startswith("iakd: ")]
        if own and done.returncode == 2:
            raise UserError(own[-1])
        raise RunFailed(f"snakemake --dry-run failed: {lines[-1] if lines else done.returncode}")
