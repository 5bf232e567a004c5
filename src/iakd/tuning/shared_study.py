"""The study that all processes share, in a journal file or PostgreSQL; Optuna's own tools can read it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.pruners import NopPruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, Trial, TrialState

from iakd.tuning.results import TrialRecord
from iakd.tuning.storage import open_journal

STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
NAMES = {
    **{state: name for name, state in STATES.items()},
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


class SharedStudy:
    """The trials of a study; decides nothing (see `proposals`)."""

    def __init__(self, storage: BaseStorage, name: str) -> None:
        # the sampler and the pruner of this study are never asked
        self._study = optuna.load_study(
            study_name=name, storage=storage, sampler=RandomSampler(seed=0), pruner=NopPruner()
        )
        self.name = name
        self._storage = storage
        self._id = storage.get_study_id_from_name(name)

    @property
    def notes(self) -> dict[str, Any]:
        """What was noted about the study as a whole."""
        return self._study.user_attrs

    def note(self, name: str, value: Any) -> None:
        """Note something about the study as a whole."""
        self._study.set_user_attr(name, value)

    def records(self) -> list[TrialRecord]:
        """All trials in order of their numbers."""
        return [_record(trial) for trial in self._study.get_trials(deepcopy=False)]

    def enqueue(self, values: dict[str, Any], origin: str) -> None:
        """Append a waiting trial with these parameters."""
        self._study.enqueue_trial(values, user_attrs={"values": values, "origin": origin})

    def claim(self, number: int) -> Trial:
        """Mark trial `number` as running and return it; who runs which trial is the pool's decision."""
        self._study.get_trials(deepcopy=False)  # a trial can only be named once its study was read
        trial_id = self._trial_id(number)
        self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        return Trial(self._study, trial_id)

    def requeue(self, number: int) -> None:
        """Mark a running trial as waiting: its process is gone."""
        if self.records()[number].state == "running":
            self._storage.set_trial_state_values(self._trial_id(number), TrialState.WAITING)

    def tell(self, trial: Trial, state: str, value: float | None, reason: str | None, memory: dict[str, Any]) -> None:
        """Finish a trial."""
        if memory:
            trial.set_user_attr("memory", memory)
        if reason:
            trial.set_user_attr("reason", reason)
        self._study.tell(trial, value if state == "complete" else None, state=STATES[state])

    def copy_to(self, path: Path, name: str) -> None:
        """Write all of the study to a new journal file, under this name."""
        optuna.copy_study(
            from_study_name=self.name, from_storage=self._storage, to_storage=open_journal(path), to_study_name=name
        )

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)


def _record(trial: FrozenTrial) -> TrialRecord:
    return TrialRecord(
        number=trial.number,
        state=NAMES[trial.state],
        values=trial.user_attrs["values"],
        origin=trial.user_attrs["origin"],
        value=trial.value,
        reports=trial.intermediate_values,
        memory=trial.user_attrs.get("memory", {}),
        reason=trial.user_attrs.get("reason"),
    )


@contextlib.contextmanager
def study_storage(address: str | None, journal: Path, own: str | None = None) -> Iterator[BaseStorage]:
    """The storage at `address`, or in the file `journal`.

    The one process that conducts a study gives its name as `own`; the study is made if it does not exist. Raises
    UserError where the address is unusable, RunFailed where the database fails.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with contextlib.ExitStack() as stack:
        if address is None:
            storage: BaseStorage = open_journal(journal)
        else:
            from iakd.tuning.storage import database_storage

            storage = stack.enter_context(database_storage(address, own))
        if own:
            optuna.create_study(
                study_name=own,
                storage=storage,
                direction="maximize",
                sampler=RandomSampler(seed=0),
                pruner=NopPruner(),
                load_if_exists=True,
            )
        yield storage
