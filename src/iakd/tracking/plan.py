"""The settings that the view belongs to: which runs are of them, and under which names models are registered.

The last command that was started with an experiment leaves its settings in the address's folder. The follower reads
them there, so that it also knows settings that are newer than itself.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from iakd import files
from iakd.config import Params, load, params_text
from iakd.experiment.jobs import plan_experiment
from iakd.tracking.address import MlflowAddress

SETTINGS_FILE = "params.yaml"


@dataclass(frozen=True)
class Plan:
    """What an experiment trains, as far as the view depends on it."""

    settings: dict[str, dict[str, Any]]  # of trainings and studies, by path
    registered: dict[str, str]  # names in MLflow's model registry, by pair

    @cached_property
    def digest(self) -> str:
        """A hash of it."""
        return files.digest([self.settings, self.registered])

    def has(self, path: str, settings: dict[str, Any]) -> bool:
        """Whether a run with these settings is one of the experiment's trainings or studies."""
        wanted = self.settings.get(path)
        return wanted is not None and settings.items() >= wanted.items()


def planned(params: Params) -> Plan:
    """Return the plan of an experiment."""
    experiment = plan_experiment(params)
    name = params.tracking.register
    pairs = [pair.name for pair in params.paired]
    registered = {pair: f"{name}-{pair}" if len(pairs) > 1 else name for pair in pairs} if name else {}
    return Plan({job.path: job.settings for job in (*experiment.studies, *experiment.trained)}, registered)


def save_settings(address: MlflowAddress, params: Params) -> Path:
    """Write the settings where the follower reads them, and return the file."""
    path = address.folder / SETTINGS_FILE
    text = params_text(params)
    if not path.exists() or path.read_text() != text:
        files.write_text(path, text)
    return path


class SavedPlan:
    """The plan of the settings that were saved last, which is computed again when they change.

    If none were saved yet, `params` are.
    """

    def __init__(self, address: MlflowAddress, params: Params) -> None:
        self._path = address.folder / SETTINGS_FILE
        if not self._path.exists():
            save_settings(address, params)
        self._stamp: tuple[int, int] | None = None
        self._plan: Plan | None = None

    def get(self) -> Plan:
        """Return it. Raises FileNotFoundError if the results tree is gone."""
        status = self._path.stat()
        stamp = status.st_ino, status.st_mtime_ns
        if self._plan is None or stamp != self._stamp:
            self._plan, self._stamp = planned(load(self._path)), stamp
        return self._plan
