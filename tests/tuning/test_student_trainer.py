"""What a trial trains: a student of the study's pair, with a schedule and a seed of its own."""

from collections.abc import Iterator

import pytest
import yaml

from iakd.config import Schedule, parse
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.experiment.run_dir import Row
from iakd.stages import prepare, teach
from iakd.tuning.workers import StudentTrainer

SETTINGS = """
teachers: [{arch: resnet8, width: 4, name: big}]
students: [{arch: resnet8, width: 4, name: small}]
methods: {other: {method: scratch}, mine: {method: iakd, init: teacher, iakd: {schedule: tuned, head: teacher}}}
teach: {recipe: {epochs: 1, lr: 0.01}}
distill: {transfer: 100, recipe: {epochs: 4, validate_every: 1, lr: 0.01}}
tune: {seed: 5, recipe: {epochs: 3}}
"""


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Experiment]:
    """Settings whose data and teacher are there; these tests run in the folder that has them."""
    experiment = plan_experiment(parse(yaml.safe_load(SETTINGS), "test"))
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(tmp_path_factory.mktemp("trainer"))
        prepare.run(experiment)
        teach.run(experiment, experiment.teachers[0])
        yield experiment


def train(experiment: Experiment, number: int, schedule: Schedule) -> tuple[list[Row], dict[str, float], list[int]]:
    """One trial: history without times, metrics, and the epochs that were validated."""
    trainer = StudentTrainer(experiment, experiment.studies[0], "key-of-study")
    run = trainer.run(number, schedule)
    seen: list[int] = []
    with run.open():
        history, metrics = trainer.train(run, schedule, lambda epoch, row: seen.append(epoch))
    timeless = [
        {k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history
    ]
    return timeless, metrics, seen


def test_a_trial_follows_its_schedule_and_its_own_recipe(experiment: Experiment) -> None:
    history, metrics, seen = train(experiment, 3, Schedule(kind="uniform", p0=0.25, student_only=0.0))
    assert seen == [1, 2, 3] and metrics["epochs"] == 3  # tune.recipe
    assert metrics["val_top1"] == history[-1]["val_top1"]
    assert [row["p_planned_0"] for row in history] == [0.25] * 3


def test_trials_differ_in_nothing_but_their_schedules(experiment: Experiment) -> None:
    schedule = Schedule(kind="uniform", p0=0.5, student_only=0.0)
    one, other = train(experiment, 0, schedule), train(experiment, 1, schedule)
    assert one == other
    assert train(experiment, 2, Schedule(kind="uniform", p0=0.1, student_only=0.0))[0] != one[0]


def test_the_run_of_a_trial_names_its_study(experiment: Experiment) -> None:
    trainer = StudentTrainer(experiment, experiment.studies[0], "key-of-study")
    run = trainer.run(7, Schedule())
    assert run.path == "digits/tune/big-small/trials/0007"
    assert run.stage == "trial"
    assert run.about == {
        "dataset": "digits",
        "teacher": "big",
        "student": "small",
        "method": "mine",
        "trial": 7,
        "study": "key-of-study",
    }
    assert run.seed == 2**31 + 5
    assert set(run.inputs) == {"data", "teacher"}
    keys = {
        run.key,
        trainer.run(8, Schedule()).key,
        trainer.run(7, Schedule(p0=0.4)).key,
    }
    assert len(keys) == 3
