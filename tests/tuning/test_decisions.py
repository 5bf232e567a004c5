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
from iakd.errors import UserError
from iakd.experiment.jobs import plan_experiment
from iakd.tuning.decisions import Search, propose
from iakd.tuning.results import TrialRecord, best, pareto_front, seeds_of, summary
from iakd.tuning.storage import StoredStudy
from iakd.tuning.study import Study
from iakd.tuning.workers import run_trial

HYPERBAND = {"kind": "hyperband", "reduction": 3}
COMMON = [f"iakd.schedule.{name}" for name in ("p0", "slope", "student_only")]
Trials = Callable[..., list[TrialRecord]]


@pytest.fixture
def run_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trials:
    """Return a function that runs a study in this process, in a new folder, and returns its trials.

    `order` shuffles the trials of a generation; `lost` loses each trial's result once, after its files are published.
    """
    count = 0

    def run(
        accuracy: Callable[..., float] = ToyTrainer.accuracy,
        luck: Callable[[int, int], float] = ToyTrainer.luck,
        cost: Callable[[float], int] = ToyTrainer.cost,
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
        trainer.luck = luck
        trainer.cost = cost
        search = Search(params.tune, job.space, job.first)
        study = Study(search, StoredStudy(InMemoryStorage(), "inline", search.directions))
        for start in range(0, params.tune.trials, params.tune.generation):
            numbers = study.propose(start, min(start + params.tune.generation, params.tune.trials))
            if order:
                order.shuffle(numbers)
            for number in numbers:
                for last in (False, True) if lost else (True,):
                    values = study.start(number)
                    report = partial(study.should_prune, number)
                    # the trainer refuses to train what is published
                    result = run_trial(trainer, job, number, values, params.tune.seeds, report)
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
    assert [trial.params["iakd.schedule.kind"] for trial in trials[:3]] == ["uniform", "linear", "review"]
    assert [trial.origin for trial in trials] == ["first"] * 3 + ["sampler"] * 7
    assert {trial.state for trial in trials[:3]} == {"complete"}
    assert "pruned" in {trial.state for trial in trials[3:]}


def test_proposals_do_not_repeat_within_a_generation(run_trials: Trials) -> None:
    trials = run_trials(trials=24, generation=8)
    assert len({str(trial.params) for trial in trials}) == 24


def test_a_trial_learns_from_earlier_generations_only(run_trials: Trials) -> None:
    """Outcomes of generation 1 change generation 2, and nothing before it."""
    one = run_trials(pruner={"kind": "none"})
    student_only = one[5].params["iakd.schedule.student_only"]

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
    search = Search(params.tune, job.space, job.first)
    values, _ = propose(search, trials, 9)
    assert values == trials[9].params
    moved = replace(trials[8], params={**trials[8].params, **{name: values[name] for name in values if name in COMMON}})
    assert propose(search, [*trials[:8], moved], 9)[0] != values


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_trial_that_falls_behind_in_the_last_epoch_is_pruned_only_if_seeds_follow(
    run_trials: Trials, seeds: int
) -> None:
    """Otherwise pruning it would save nothing, and its value is useful."""

    def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
        first = (schedule.p0, schedule.slope) == (0.5, 0.0)
        return (90.0 if epoch == epochs else 10.0) if first else 50.0

    trials = run_trials(accuracy, generation=3, seeds=seeds, pruner={"startup": 2, "warmup": 0.0})
    assert [trial.value for trial in trials] == [90.0 if seeds == 1 else 90.25] * 3 + [50.0] * 7
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["complete" if seeds == 1 else "pruned"] * 7
    assert [max(trial.intermediate_values) for trial in trials] == [8 * seeds] * 3 + [8] * 7


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
        first_seed = [(step, value) for step, value in sorted(trial.intermediate_values.items()) if step <= 8]
        for epoch, value in first_seed:
            best = max(best, value)
            peers = sorted(t.intermediate_values[epoch] for t in before)
            middle = len(peers) // 2
            median = (peers[middle] if len(peers) % 2 else sum(peers[middle - 1 : middle + 1]) / 2) if peers else 0.0
            if len(before) >= 3 and epoch >= 2 and best < median:
                should = epoch
                break
        assert (trial.state == "pruned") == (should is not None), trial
        assert max(trial.intermediate_values) == (should or 16)
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


@pytest.mark.parametrize(("seeds", "mean"), [(1, 0.0), (3, 2.0)])
def test_a_trial_is_worth_the_mean_of_its_seeds(run_trials: Trials, seeds: int, mean: float) -> None:
    offsets = [0.0, 5.0, 1.0]
    trials = run_trials(
        lambda *run: 70.0, lambda seed, number: offsets[seed] + number, seeds=seeds, pruner={"kind": "none"}
    )
    assert [trial.value for trial in trials] == pytest.approx([70.0 + mean + number for number in range(10)])
    assert [seeds_of(trial, 8) for trial in trials] == [
        [70.0 + offset + number for offset in offsets[:seeds]] for number in range(10)
    ]


def worse_seeds(worse: dict[int, int]) -> Callable[[int, int], float]:
    """Return an offset by seed and trial: `worse` has the number of seeds in which a trial is below trial 0.

    In its other seeds it is better, but not by as much.
    """

    def luck(seed: int, number: int) -> float:
        if number == 0:
            return 10.0 + seed
        return 10.0 + seed + (-1.0 - 0.1 * seed if seed < worse.get(number, 6) else 0.5)

    return luck


def test_wilcoxon_prunes_what_is_worse_seed_by_seed(run_trials: Trials) -> None:
    """Trial 7 is worse in three of four seeds only, and trial 8 in none: no test can tell these from the best one."""
    luck = worse_seeds(dict.fromkeys((0, 8), 0) | {7: 3})
    trials = run_trials(
        lambda *run: 50.0, luck, trials=9, generation=1, seeds=6, pruner={"kind": "none", "wilcoxon": 0.1}
    )
    assert [trial.state for trial in trials] == ["complete"] * 3 + ["pruned"] * 4 + ["complete"] * 2
    # the first p below 0.1 is that of four seeds, 0.0625
    assert [len(seeds_of(trial, 8)) for trial in trials] == [6] * 3 + [4] * 4 + [6] * 2
    assert trials[3].value == pytest.approx(sum(50 + luck(seed, 3) for seed in range(4)) / 4)


def test_without_wilcoxon_no_seed_is_saved(run_trials: Trials) -> None:
    trials = run_trials(lambda *run: 50.0, worse_seeds({0: 0}), trials=6, seeds=6, pruner={"kind": "none"})
    assert {len(seeds_of(trial, 8)) for trial in trials} == {6}


def test_the_test_over_seeds_sees_earlier_generations_only(run_trials: Trials) -> None:
    trials = run_trials(
        lambda *run: 50.0,
        worse_seeds({0: 0}),
        trials=8,
        generation=8,
        seeds=6,
        pruner={"kind": "none", "wilcoxon": 0.1},
    )
    assert {trial.state for trial in trials} == {"complete"}


@pytest.mark.parametrize(("seeds", "p"), [(1, 0.5), (3, 0.1), (3, 0.25), (4, 0.125)])
def test_a_test_that_can_never_prune_is_refused(seeds: int, p: float) -> None:
    with pytest.raises(UserError, match=rf"tune: pruner\.wilcoxon: {p} can never be reached with {seeds} seeds"):
        settings(seeds=seeds, pruner={"wilcoxon": p})


@pytest.mark.parametrize(("seeds", "p"), [(5, 0.1), (3, 0.26), (4, 0.13)])
def test_the_message_names_enough_seeds(seeds: int, p: float) -> None:
    settings(seeds=seeds, pruner={"wilcoxon": p})
    with pytest.raises(UserError, match=f"set seeds to {seeds} or more"):
        settings(seeds=seeds - 1, pruner={"wilcoxon": p})


def test_no_pruner_prunes_nothing(run_trials: Trials) -> None:
    assert {t.state for t in run_trials(pruner={"kind": "none"})} == {"complete"}


def test_a_trial_that_was_published_but_not_recorded_is_read_back(run_trials: Trials) -> None:
    """The study died between the two, at each trial."""
    assert run_trials(lost=True) == run_trials()


COMPROMISES = {"objective": "accuracy_and_macs", "pruner": {"kind": "none"}, "seeds": 2}


def test_a_study_with_two_objectives_learns_from_both_and_is_deterministic(run_trials: Trials) -> None:
    """Here accuracy and cost both grow with p0."""

    def accuracy(schedule: Schedule, *epoch: int) -> float:
        return 50.0 + 40 * schedule.p0

    one = run_trials(accuracy, trials=24, **COMPROMISES)
    assert one == run_trials(accuracy, order=random.Random(1), lost=True, trials=24, **COMPROMISES)
    assert [trial.macs for trial in one] == [ToyTrainer.cost(trial.params["iakd.schedule.p0"]) for trial in one]
    other = run_trials(accuracy, cost=lambda p0: 1000, trials=24, **COMPROMISES)
    start = one[:8]
    assert [t.params for t in start] == [t.params for t in other[:8]], "the start does not depend on it"
    assert [t.params for t in one[8:]] != [t.params for t in other[8:]]


def test_the_pareto_front_has_what_nothing_surpasses() -> None:
    values = [(90.0, 100), (91.0, 200), (90.5, 300), (89.0, 100), (95.0, 900), (95.0, 950), (90.0, 100)]
    trials = [
        TrialRecord(number, "complete", {}, "sampler", value, macs=macs) for number, (value, macs) in enumerate(values)
    ]
    assert pareto_front(trials) == [0, 1, 4, 6]
    assert pareto_front([*trials, replace(trials[0], number=7, value=99.0, macs=1, state="failed")]) == [0, 1, 4, 6]
    assert best(trials) == trials[4], "students get the most accurate settings"
    assert summary(trials)["pareto_front"] == [0, 1, 4, 6] and "pareto_front" not in summary(
        [replace(trials[0], macs=None)]
    )


@pytest.mark.parametrize("pruner", [{}, {"kind": "hyperband"}, {"kind": "none", "wilcoxon": 0.5}])
def test_two_objectives_cannot_be_pruned(pruner: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match=r"tune: objective: .*cannot prune with two objectives; set pruner to \{kind: none\}"
    ):
        settings(objective="accuracy_and_macs", pruner=pruner)
