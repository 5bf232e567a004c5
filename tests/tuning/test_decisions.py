"""What a study proposes and prunes depends on its settings and results, not on timing."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from optuna.storages import InMemoryStorage
from toy_study import ToyTrainer, settings

from iakd.config import Schedule
from iakd.experiment.jobs import plan_experiment
from iakd.tuning.decisions import Search, propose
from iakd.tuning.results import TrialRecord, best
from iakd.tuning.storage import StoredStudy
from iakd.tuning.study import Study
from iakd.tuning.workers import run_trial

HYPERBAND = {"kind": "hyperband", "reduction": 3}
Trials = Callable[..., list[TrialRecord]]


@pytest.fixture
def run_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    """Return a function that runs a study in this process, in a new folder, and returns its trials.

    `order` shuffles the trials of a generation; `lost` loses each trial's result once, after its files are published.
    """
    count = 0

    def run(
        accuracy: Callable[..., float] = ToyTrainer.accuracy,
        order: random.Random | None = None,
        lost: bool = False,
        **tune: Any,
    ) -> list[TrialRecord]:
        nonlocal count
        count += 1
        folder = tmp_path / f"study{count}"
        folder.mkdir()
        monkeypatch.chdir(folder)
        params = settings(**tune)
        experiment = plan_experiment(params)
        job = experiment.studies[0]
        trainer = ToyTrainer(experiment, job, "key")
        trainer.checkpoints = False
        trainer.accuracy = accuracy
        study = Study(Search(params.tune, job.recipe, job.first), StoredStudy(InMemoryStorage(), "inline"))
        for start in range(0, params.tune.trials, params.tune.generation):
            numbers = study.propose(start, min(start + params.tune.generation, params.tune.trials))
            if order:
                order.shuffle(numbers)
            for number in numbers:
                for last in (False, True) if lost else (True,):
                    schedule = study.start(number)
                    # the trainer refuses to train what is published
                    result = run_trial(trainer, number, schedule, partial(study.should_prune, number))
                    if last:
                        study.finish(number, result)
        return study.trials()

    return run


@pytest.mark.parametrize("pruner", [{}, HYPERBAND], ids=["median", "hyperband"])
@pytest.mark.parametrize("sampler", [{}, {"multivariate": False}, {"kind": "random"}], ids=["tpe", "single", "random"])
def test_the_order_in_which_trials_end_changes_nothing(
    run_trials: Trials, pruner: dict[str, Any], sampler: dict[str, Any]
) -> None:
    one = run_trials(pruner=pruner, sampler=sampler)
    other = run_trials(order=random.Random(1), pruner=pruner, sampler=sampler)
    assert one == other
    states = Counter(trial.state for trial in one)
    assert states["pruned"] >= 2 and states["complete"] >= 4
    assert set(states) == {"pruned", "complete"}


def test_another_seed_is_another_study(run_trials: Trials) -> None:
    one = run_trials(seed=0)
    other = run_trials(seed=1)
    assert [r.params for r in one[:3]] == [r.params for r in other[:3]]
    assert all(a.params != b.params for a, b in zip(one[3:], other[3:], strict=True))


def test_the_papers_schedules_come_first_and_are_never_pruned(run_trials: Trials) -> None:
    """Although each of them is worse here than those before it."""
    heights = {"uniform": 90.0, "linear": 80.0, "review": 70.0}
    hasty = {"startup": 0, "warmup": 0.0}
    trials = run_trials(lambda schedule, *epoch: heights.get(schedule.kind, 75.0), generation=1, pruner=hasty)
    assert [trial.params["kind"] for trial in trials[:3]] == ["uniform", "linear", "review"]
    assert [trial.origin for trial in trials] == ["first"] * 3 + ["sampler"] * 7
    assert {trial.state for trial in trials[:3]} == {"complete"}
    assert "pruned" in {trial.state for trial in trials[3:]}


def test_proposals_do_not_repeat_within_a_generation(run_trials: Trials) -> None:
    trials = run_trials(trials=24, generation=8)
    assert len({str(trial.params) for trial in trials}) == 24


def test_a_trial_learns_from_earlier_generations_only(run_trials: Trials) -> None:
    """Outcomes of generation 1 change generation 2, and nothing before it."""
    one = run_trials(pruner={"kind": "none"})
    student_only = one[5].params["student_only"]

    def accuracy(schedule: Schedule, *epoch: int) -> float:
        return ToyTrainer.accuracy(schedule, *epoch) + 50 * (schedule.student_only == student_only)

    other = run_trials(accuracy, pruner={"kind": "none"})
    assert [r.params for r in one[:8]] == [r.params for r in other[:8]]
    assert (other[5].value or 0) > (one[5].value or 0)
    assert [r.params for r in one[8:]] != [r.params for r in other[8:]]


def test_a_trial_keeps_away_from_what_its_generation_tries_already(run_trials: Trials) -> None:
    trials = run_trials()
    params = settings()
    job = plan_experiment(params).studies[0]
    search = Search(params.tune, job.recipe, job.first)
    values, _ = propose(search, trials, 9)
    assert values == trials[9].params
    moved = replace(
        trials[8], params={**trials[8].params, **{name: values[name] for name in ("p0", "slope", "student_only")}}
    )
    assert propose(search, [*trials[:8], moved], 9)[0] != values


def test_a_trial_that_falls_behind_in_its_last_epoch_is_complete(run_trials: Trials) -> None:
    """Pruning it would save nothing, and its value is useful."""

    def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
        first = (schedule.p0, schedule.slope) == (0.5, 0.0)
        return (90.0 if epoch == epochs else 10.0) if first else 50.0

    trials = run_trials(accuracy, generation=3, pruner={"startup": 2, "warmup": 0.0})
    assert [trial.value for trial in trials] == [90.0] * 3 + [50.0] * 7
    assert {trial.state for trial in trials} == {"complete"}


def test_the_earliest_of_equals_is_the_best() -> None:
    values = [70.0, 90.0, 90.0, 95.0]
    trials = [TrialRecord(number, "complete", {}, "sampler", value) for number, value in enumerate(values)]
    assert best(trials[:3]) == trials[1]
    assert best([*trials[:3], replace(trials[3], state="pruned")]) == trials[1]
    assert best([]) is None


def test_tpe_finds_better_schedules_than_the_first_ones(run_trials: Trials) -> None:
    trials = run_trials(trials=24, pruner={"kind": "none"})
    values = [trial.value or 0.0 for trial in trials]
    assert sum(values[16:]) / 8 > sum(values[3:8]) / 5 + 1


def test_the_median_is_that_of_complete_trials_at_the_same_epoch(run_trials: Trials) -> None:
    trials = run_trials(trials=24, pruner={"startup": 3, "warmup": 0.3})
    seen = {"pruned": 0, "complete": 0}
    for trial in trials:
        start = trial.number - trial.number % 4
        before = [t for t in trials[:start] if t.state == "complete"]
        should = None
        best = 0.0
        for epoch, value in sorted(trial.intermediate_values.items()):
            best = max(best, value)
            peers = sorted(t.intermediate_values[epoch] for t in before)
            middle = len(peers) // 2
            median = (peers[middle] if len(peers) % 2 else sum(peers[middle - 1 : middle + 1]) / 2) if peers else 0.0
            if len(before) >= 3 and 2 <= epoch < 8 and best < median:
                should = epoch
                break
        assert (trial.state == "pruned") == (should is not None), trial
        assert max(trial.intermediate_values) == (should or 8)
        seen[trial.state] += 1
    assert min(seen.values()) >= 3


def test_hyperband_prunes_the_worse_part_of_a_rung(run_trials: Trials) -> None:
    trials = run_trials(trials=24, pruner=HYPERBAND)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert len(pruned) >= 4
    for trial in pruned:
        rung = f"completed_rung_{len(trial.pruner_state) - 1}"
        start = trial.number - trial.number % 4
        rivals = [t.pruner_state[rung] for t in trials[:start] if rung in t.pruner_state]
        assert any(value > trial.pruner_state[rung] for value in rivals)
    assert max(t.value or 0.0 for t in pruned) < max(t.value or 0.0 for t in trials if t.state == "complete")


def test_no_pruner_prunes_nothing(run_trials: Trials) -> None:
    assert {t.state for t in run_trials(pruner={"kind": "none"})} == {"complete"}


def test_a_trial_that_was_published_but_not_recorded_is_read_back(run_trials: Trials) -> None:
    """The study died between the two, at each trial."""
    assert run_trials(lost=True) == run_trials()
