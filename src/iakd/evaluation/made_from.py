"""What evaluations, the comparison and the report were made from.

They say so beside themselves, as trainings do in their run.json, so that a workflow can tell by content whether they
are current where dates mean nothing: after a checkout, or with a wrong clock.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from iakd import files
from iakd.data.store import MANIFEST
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, in_the_clear
from iakd.experiment.provenance import source_sha
from iakd.experiment.run_dir import BEST, EVALUATION, EXPORTED, LATENCY, METRICS, RUN, TRIALS, damaged_files

RECORD = "made_from.json"


def watched(experiment: Experiment, section: str, module: str) -> list[str]:
    """Return what is compared for products without jobs: `name=value` texts of a section, and a module's sources."""
    values = getattr(experiment.params, section).model_dump(mode="json")
    return in_the_clear({section: values}, source_sha(f"iakd.{module}"))


def evaluation_key(experiment: Experiment, model_sha256: str, data_sha256: str) -> str:
    """Return the identity of an evaluation: of its settings, source code, model and data."""
    return files.digest([watched(experiment, "evaluate", "evaluation.measure"), model_sha256, data_sha256])


@dataclass(frozen=True)
class Summary:
    """The comparison or the report, as it would be made now: its settings, and a hash of all that it shows."""

    folder: Path
    settings: list[str]
    inputs: str

    def record(self) -> None:
        """Write the record, after all other files of the folder, whose hashes it has."""
        paths = [path for path in sorted(self.folder.glob("**/*")) if path.is_file() and not path.name.startswith(".")]
        hashes = {str(path.relative_to(self.folder)): files.sha256_file(path) for path in paths if path.name != RECORD}
        record = {"settings": self.settings, "inputs": self.inputs, "sha256": hashes}
        files.write_record(self.folder / RECORD, record)

    @property
    def is_there(self) -> bool:
        """Whether the folder holds this very summary, undamaged."""
        try:
            record = files.read_object(self.folder / RECORD, "", "settings", "inputs")
        except (UserError, OSError):
            return False
        this = (record["settings"], record["inputs"]) == (self.settings, self.inputs)
        return this and not damaged(self.folder)

    @property
    def is_of_others(self) -> bool:
        """Whether the folder holds, by its record, a summary of other models than those on disk."""
        try:
            return bool(files.read_object(self.folder / RECORD, "", "inputs")["inputs"] != self.inputs)
        except (UserError, OSError):
            return False


def comparison(experiment: Experiment) -> Summary:
    """Return what the comparison is made from."""
    settings = watched(experiment, "report", "stages.evaluate")
    return Summary(experiment.evaluation, settings, _hash(_models(experiment)))


def report(experiment: Experiment) -> Summary:
    """Return what the report is made from."""
    exports = [*(job.folder / EXPORTED for job in experiment.exports), experiment.export_folder / LATENCY]
    inputs = [
        experiment.data.folder / MANIFEST,
        *(job.folder / name for job in experiment.studies for name in (BEST, TRIALS, METRICS)),
        *_models(experiment),
        *exports,
    ]
    return Summary(experiment.report, watched(experiment, "report", "stages.report"), _hash(inputs))


def damaged(folder: Path) -> list[str]:
    """Return the files of the comparison or the report in `folder` that are not those of its record, or the record."""
    try:
        return damaged_files(folder, files.read_object(folder / RECORD, "", "sha256")["sha256"])
    except (UserError, OSError, TypeError, AttributeError):
        return [RECORD]


def _models(experiment: Experiment) -> Iterator[Path]:
    """Yield the records of all models; a run.json has the hashes of the files beside it."""
    for job in experiment.trained:
        yield job.folder / RUN
        yield job.folder / EVALUATION


def _hash(paths: Iterable[Path]) -> str:
    return files.digest([[str(path), files.sha256_file(path) if path.is_file() else None] for path in paths])
