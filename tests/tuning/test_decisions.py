"""What a study tries and gives up depends on its settings and outcomes, not on timing."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import studies

from iakd.config import Schedule
from iakd.experiment.jobs import plan_experiment
from iakd.tuning.decisions import Search, propose
from iakd.tuning.results import TrialRecord, best
from iakd.tuning.shared_study import SharedStudy

HYPERBAND = {"kind": "hyperband", "reduction": 3}


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def records(
    monkeypatch: pytest.MonkeyPatch, name: str, order: random.Random | None = None, **tune: Any
) -> list[TrialRecord]:
    """The trials of a study that is run in a folder of its own."""
    Path(name).mkdir()
    with monkeypatch.context() as inside:
        inside.chdir(name)
        return studies.inline(studies.settings(**tune), order).records()


@pytest.mark.parametrize("pruner", [{}, HYPERBAND], ids=["median", "hyperband"])
@pytest.mark.parametrize("sampler", [{}, {"multivariate": False}, {"kind": "random"}], ids=["tpe", "single", "random"])
def test_the_order_in_which_trials_end_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, pruner: dict[str, Any], sampler: dict[str, Any]
) -> None:
    one = records(monkeypatch, "one", pruner=pruner, sampler=sampler)
    other = records(monkeypatch, "other", random.Random(1), pruner=pruner, sampler=sampler)
    assert one == other
    states = Counter(record.state for record in one)
    assert states["pruned"] >= 2 and states["complete"] >= 4
    assert set(states) == {"pruned", "complete"}


def test_another_seed_is_another_study(monkeypatch: pytest.MonkeyPatch) -> None:
    one = records(monkeypatch, "one", seed=0)
    other = records(monkeypatch, "other", seed=1)
    assert [r.values for r in one[:3]] == [r.values for r in other[:3]]
    assert all(a.values != b.values for a, b in zip(one[3:], other[3:], strict=True))


def test_the_papers_schedules_come_first_and_are_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Although each of them is worse here than those before it."""
    heights = {"uniform": 90.0, "linear": 80.0, "review": 70.0}
    monkeypatch.setattr(studies, "accuracy", lambda schedule, *epoch: heights.get(schedule.kind, 75.0))
    hasty = {"startup": 0, "warmup": 0.0}
    trials = records(monkeypatch, "study", generation=1, pruner=hasty)
    assert [trial.values["kind"] for trial in trials[:3]] == ["uniform", "linear", "review"]
    assert [trial.origin for trial in trials] == ["first"] * 3 + ["sampler"] * 7
    assert {trial.state for trial in trials[:3]} == {"complete"}
    assert "pruned" in {trial.state for trial in trials[3:]}


def test_proposals_do_not_repeat_within_a_generation(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = records(monkeypatch, "study", trials=24, generation=8)
    assert len({str(trial.values) for trial in trials}) == 24


def test_a_trial_learns_from_earlier_generations_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes of generation 1 change generation 2, and nothing before it."""
    one = records(monkeypatch, "one", pruner={"kind": "none"})
    usual = studies.accuracy
    student_only = one[5].values["student_only"]
    monkeypatch.setattr(studies, "accuracy", lambda s, *epoch: usual(s, *epoch) + 50 * (s.student_only == student_only))
    other = records(monkeypatch, "other", pruner={"kind": "none"})
    assert [r.values for r in one[:8]] == [r.values for r in other[:8]]
    assert (other[5].value or 0) > (one[5].value or 0)
    assert [r.values for r in one[8:]] != [r.values for r in other[8:]]


def test_a_trial_keeps_away_from_what_its_generation_tries_already(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = records(monkeypatch, "study")
    params = studies.settings()
    job = plan_experiment(params).studies[0]
    search = Search(params.tune, job.recipe, job.first)
    values, _ = propose(search, trials, 9)
    assert values == trials[9].values
    moved = replace(
        trials[8], values={**trials[8].values, **{name: values[name] for name in ("p0", "slope", "student_only")}}
    )
    assert propose(search, [*trials[:8], moved], 9)[0] != values


def test_a_trial_that_falls_behind_in_its_last_epoch_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is saved by giving it up, and its value is worth having."""

    def accuracy(schedule: Schedule, epoch: int, epochs: int) -> float:
        first = (schedule.p0, schedule.slope) == (0.5, 0.0)
        return (90.0 if epoch == epochs else 10.0) if first else 50.0

    monkeypatch.setattr(studies, "accuracy", accuracy)
    trials = records(monkeypatch, "study", generation=3, pruner={"startup": 2, "warmup": 0.0})
    assert [trial.value for trial in trials] == [90.0] * 3 + [50.0] * 7
    assert {trial.state for trial in trials} == {"complete"}


def test_the_earliest_of_equals_is_the_best() -> None:
    values = [70.0, 90.0, 90.0, 95.0]
    trials = [TrialRecord(number, "complete", {}, "sampler", value) for number, value in enumerate(values)]
    assert best(trials[:3]) == trials[1]
    assert best([*trials[:3], replace(trials[3], state="pruned")]) == trials[1]
    assert best([]) is None


def test_tpe_finds_better_schedules_than_the_first_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = records(monkeypatch, "study", trials=24, pruner={"kind": "none"})
    values = [trial.value or 0.0 for trial in trials]
    assert sum(values[16:]) / 8 > sum(values[3:8]) / 5 + 1


def test_the_median_is_that_of_complete_trials_at_the_same_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = records(monkeypatch, "study", trials=24, pruner={"startup": 3, "warmup": 0.3})
    seen = {"pruned": 0, "complete": 0}
    for trial in trials:
        start = trial.number - trial.number % 4
        before = [t for t in trials[:start] if t.state == "complete"]
        should = None
        best = 0.0
        for epoch, value in sorted(trial.reports.items()):
            best = max(best, value)
            peers = sorted(t.reports[epoch] for t in before)
            middle = len(peers) // 2
            median = (peers[middle] if len(peers) % 2 else sum(peers[middle - 1 : middle + 1]) / 2) if peers else 0.0
            if len(before) >= 3 and 2 <= epoch < 8 and best < median:
                should = epoch
                break
        assert (trial.state == "pruned") == (should is not None), trial
        assert max(trial.reports) == (should or 8)
        seen[trial.state] += 1
    assert min(seen.values()) >= 3


def test_hyperband_gives_up_on_the_worse_part_of_a_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = records(monkeypatch, "study", trials=24, pruner=HYPERBAND)
    pruned = [trial for trial in trials if trial.state == "pruned"]
    assert len(pruned) >= 4
    for trial in pruned:
        rung = f"completed_rung_{len(trial.memory) - 1}"
        start = trial.number - trial.number % 4
        rivals = [t.memory[rung] for t in trials[:start] if rung in t.memory]
        assert any(value > trial.memory[rung] for value in rivals)
    assert max(t.value or 0.0 for t in pruned) < max(t.value or 0.0 for t in trials if t.state == "complete")


def test_no_pruner_prunes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {t.state for t in records(monkeypatch, "study", pruner={"kind": "none"})} == {"complete"}


def test_a_trial_that_was_published_but_not_told_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process died between the two, at each trial of the study."""
    whole = records(monkeypatch, "whole")
    tell = SharedStudy.tell
    told: set[int] = set()

    def dies_at_first(self: SharedStudy, trial: Any, *outcome: Any) -> None:
        if trial.number not in told:
            told.add(trial.number)
            raise InterruptedError
        tell(self, trial, *outcome)

    carry_out = studies.carry_out

    def again(search: Any, study: SharedStudy, trainer: Any, number: int) -> None:
        with pytest.raises(InterruptedError):
            carry_out(search, study, trainer, number)
        study.requeue(number)
        assert study.records()[number].state == "waiting"
        carry_out(search, study, trainer, number)  # the trainer refuses to train what is published

    monkeypatch.setattr(SharedStudy, "tell", dies_at_first)
    monkeypatch.setattr(studies, "carry_out", again)
    assert records(monkeypatch, "torn") == whole
    assert len(told) == len(whole)
