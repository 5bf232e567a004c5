"""What the Snakefile needs: the experiment of its settings, a lock, and the reason for a failure."""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import IO, Any, NoReturn, cast

import yaml

from iakd import files
from iakd.config import SOURCES, merged, parse
from iakd.data.earlier_results import refuse_other_data
from iakd.data.sources.download import fingerprint
from iakd.data.store import KINDS, MANIFEST, SPLITS, file_name
from iakd.errors import UserError
from iakd.experiment.jobs import STATE, Experiment, plan_experiment
from iakd.orchestration import stale_results
from iakd.processes import WITH_PARENT

LOCK = STATE / "workflow.lock"
_held: list[IO[str]] = []  # the open lock file: it must live as long as the process


def stop(error: UserError) -> NoReturn:
    """End the process with the error's one line and exit code 2; Snakemake would print a traceback."""
    print(f"iakd: {error}", file=sys.stderr)
    sys.exit(2)


def set_up(config: dict[str, Any], given: dict[str, Any], origins: list[Path], main: bool) -> Experiment:
    """Check the settings and pass them to the jobs: $IAKD_PARAMS names them, `iakd` is this environment's.

    `given` is the part of `config` that came from the command line, values of a file named there included; `main` is
    true in the process that decides what is out of date. Raises UserError for a mistake in the settings, and for
    results that only seem to be made with them.
    """
    settings = json.loads(json.dumps(config, default=str))  # Snakemake's ordered dictionaries as plain ones
    settings = merged(settings, _typed(given))
    experiment = plan_experiment(parse(settings, ", ".join(os.path.relpath(path) for path in origins)))
    if main:
        refuse_other_data(experiment)  # before Snakemake deletes what it would make again
        stale_results.check(experiment, _Records())
        for job in experiment.teachers:
            job.check_file()  # before Snakemake, which would need many lines to say it
    os.environ["IAKD_PARAMS"] = str(_settings_file(settings))
    os.environ[WITH_PARENT] = "1"
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return experiment


class _Records:
    """Snakemake's records of its results; `workflow.persistence` is set only after the rules are read."""

    def __init__(self) -> None:
        from snakemake.persistence.file import FilePersistence

        self._persistence = FilePersistence(nolock=True)

    def params(self, path: Path) -> list[str] | None:
        from snakemake.io import IOFile

        return cast("list[str] | None", self._persistence.params(IOFile(str(path))))

    def forget(self, path: Path) -> None:
        from snakemake.io import IOFile

        self._persistence.cleanup_metadata(IOFile(str(path)))


def accept_clocks_set_back() -> None:
    """Have Snakemake date inputs that seem newer than what a job has just made from them, instead of failing the job.

    They seem so if the clock was set back before the job ended. Snakemake would delete what it made, and has no option
    for this.
    """
    from snakemake.dag import DAG

    async def date_inputs(dag: Any, job: Any, outputs: list[str]) -> None:
        made = min((Path(path).stat().st_mtime_ns for path in outputs if Path(path).exists()), default=0)
        for path in map(Path, job.input):
            if made and path.exists() and path.stat().st_mtime_ns > made:
                os.utime(path, ns=(made, made))

    DAG.check_output_mtime = date_inputs


def _typed(value: Any) -> Any:
    """Parse the numbers and switches of a section from the command line, all of which Snakemake leaves as strings."""
    if isinstance(value, dict):
        return {str(name): _typed(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if not isinstance(value, str):
        return value
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    return parsed if parsed is None or isinstance(parsed, bool | int | float) else value  # other text is text


def data_products(experiment: Experiment) -> list[str]:
    """Return the arrays that `iakd prepare` always writes; storage auto decides about images while it reads them."""
    dataset = experiment.params.dataset
    storage = dataset.storage if "storage" in SOURCES[dataset.source].settings else "array"
    return [file_name(split, kind) for split in SPLITS for kind in KINDS.get(storage, ("labels",))]


def data_files(experiment: Experiment) -> str | None:
    """Return a hash of the user's files at `dataset.path`; if they are gone, the hash of those that were read."""
    manifest = experiment.data.folder / MANIFEST
    with contextlib.suppress(OSError, UserError):
        return fingerprint(experiment.params.dataset) or files.read_object(manifest, "").get("fingerprint")
    return None


def _settings_file(settings: dict[str, Any]) -> Path:
    """Write the settings to a file named after their content, so that jobs read exactly these and no other run's."""
    path = STATE / "params" / f"{files.digest(settings)[:12]}.yaml"
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    if not path.exists() or path.read_bytes() != text.encode():
        files.write_text(path, text)
    return path


def take_lock() -> None:
    """Lock this folder until the process ends. Raises UserError if another workflow is running in it.

    Unlike Snakemake's own lock, this one cannot outlive a killed process.
    """
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    file = files.try_lock(LOCK)
    if file is None:
        raise UserError(f"another workflow is running in {Path.cwd()}; wait for it to end")
    _held.append(file)


def last_line(logs: list[str]) -> str:
    """Return the log and its last line, which states why a job failed."""
    for log in map(Path, logs):
        lines = log.read_text(errors="replace").split("\n") if log.exists() else []
        return f"{log}: {next((line for line in reversed(lines) if line.strip()), 'ended without a message')}"
    return "a job without a log failed"
