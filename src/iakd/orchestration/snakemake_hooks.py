"""What the Snakefile asks for: the experiment of its settings, a lock, and the reason of a failure."""

import contextlib
import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml

from iakd import files
from iakd.config import SOURCES, merged, parse
from iakd.data.sources.download import fingerprint
from iakd.data.store import KINDS, MANIFEST, SPLITS, file_name
from iakd.errors import UserError
from iakd.experiment.jobs import STATE, Experiment, plan_experiment
from iakd.orchestration import stale_results
from iakd.processes import WITH_PARENT

LOCK = STATE / "workflow.lock"
_held: list[Any] = []  # the lock's open file: it must live as long as the process


def stop(error: UserError) -> NoReturn:
    """End the process with the error's one line and exit code 2; Snakemake would print a traceback."""
    print(f"iakd: {error}", file=sys.stderr)
    sys.exit(2)


def set_up(config: dict[str, Any], given: dict[str, Any], origins: list[Path], main: bool) -> Experiment:
    """Check the settings and pass them to the jobs: $IAKD_PARAMS names them, `iakd` is this environment's.

    `given` is the part of `config` that came from the command line; `main` is true in the process that decides what is
    out of date. Raises UserError for a mistake in the settings, and for results that only seem to be made with them.
    """
    settings = json.loads(json.dumps(config, default=str))  # Snakemake's ordered dictionaries as plain ones
    settings = merged(settings, _typed(given))
    experiment = plan_experiment(parse(settings, ", ".join(os.path.relpath(path) for path in origins)))
    if main:
        stale_results.check(experiment, _records())
        for job in experiment.teachers:
            job.check_file()  # before Snakemake, which would need many lines to say it
    os.environ["IAKD_PARAMS"] = str(_settings_file(settings))
    os.environ[WITH_PARENT] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return experiment


def _records() -> stale_results.Records:
    """Return Snakemake's records of its results; `workflow.persistence` is set only after the rules are read."""
    from snakemake.io import IOFile
    from snakemake.persistence.file import FilePersistence

    persistence = FilePersistence(nolock=True)
    return lambda path: persistence.params(IOFile(str(path)))


def _typed(value: Any) -> Any:
    """Numbers and so on as such: of a section on the command line Snakemake makes nothing but texts."""
    if isinstance(value, dict):
        return {str(name): _typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    return yaml.safe_load(value) if isinstance(value, str) else value


def data_products(experiment: Experiment) -> list[str]:
    """The arrays that `iakd prepare` is sure to write; with storage auto, only reading tells how images are kept."""
    dataset = experiment.params.dataset
    storage = dataset.storage if "storage" in SOURCES[dataset.source].settings else "array"
    return [file_name(split, kind) for split in SPLITS for kind in KINDS.get(storage, ("labels",))]


def data_files(experiment: Experiment) -> str | None:
    """A hash that changes with the user's files at `dataset.path`; where they are gone, that of those once read."""
    manifest = experiment.data.folder / MANIFEST
    with contextlib.suppress(OSError, ValueError):
        return fingerprint(experiment.params.dataset) or json.loads(manifest.read_text()).get("fingerprint")
    return None


def _settings_file(settings: dict[str, Any]) -> Path:
    """The settings under a name made from their content: jobs read exactly these, and no other run's."""
    path = STATE / "params" / f"{files.digest(settings)[:12]}.yaml"
    if not path.exists():
        files.write_text(path, yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return path


def take_lock() -> None:
    """Be the only workflow here until the process ends. Raises UserError where another one is at work.

    The kernel drops the lock with its process, so unlike Snakemake's own it cannot be left behind.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = LOCK.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(f"another workflow is running in {Path.cwd()}; wait for it to end") from None
    _held.append(file)


def last_line(logs: list[str]) -> str:
    """Which log says last what: the reason of a failure in one line."""
    for log in map(Path, logs):
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        return f"{log}: {next((line for line in reversed(lines) if line.strip()), 'ended without a word')}"
    return "a job without a log failed"
