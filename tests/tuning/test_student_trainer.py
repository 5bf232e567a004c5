"""What a trial trains: students of the study's pair, with what the study searches and with seeds of its own."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from iakd import files
from iakd.config import Method, Recipe, parse
from iakd.config.search_space import KIND
from iakd.data.store import PreparedData
from iakd.distillation.assembly import StudentTask, network_of, training_macs
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, StudyJob, plan_experiment
from iakd.experiment.run_dir import MODEL, RUN, Row, Run
from iakd.models.flops import model_cost
from iakd.stages import distill, evaluate, prepare, teach
from iakd.tuning.results import write_best
from iakd.tuning.workers import SETTINGS_AT_FAULT, StudentTrainer, concrete

SETTINGS = """
teachers: [{arch: resnet8, width: 4, name: big}]
students: [{arch: resnet8, width: 4, name: small}]
methods:
  other: {method: scratch}
  mine: {method: iakd, init: teacher, iakd: {schedule: tuned, head: teacher}}
  kd-tuned: {method: kd, tune: {kd.temperature: [1, 8], recipe.lr: [0.001, 0.1], init: [random, teacher]}}
teach: {recipe: {epochs: 1, lr: 0.01}}
distill: {transfer: 100, recipe: {epochs: 4, validate_every: 1, lr: 0.01}}
tune: {seed: 5, seeds: 2, recipe: {epochs: 3}}
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


Outcome = tuple[list[Row], dict[str, float], list[int]]


def train(experiment: Experiment, number: int, params: dict[str, Any], study: int = 0, seed: int = 0) -> Outcome:
    """One seed of a trial: history without times, metrics, and the epochs that were validated."""
    job = experiment.studies[study]
    trainer = StudentTrainer(experiment, job, "key-of-study")
    tried = concrete(job, params)
    run = trainer.run(number, tried, seed)
    seen: list[int] = []
    with run.open():
        history, metrics = trainer.train(run, tried, lambda epoch, row: seen.append(epoch))
    times = ("seconds", "cpu_seconds", "images_per_s")
    timeless = [{k: v for k, v in row.items() if k not in times} for row in history]
    return timeless, metrics, seen


def uniform(p0: float) -> dict[str, Any]:
    """Parameters of a trial."""
    return {KIND: "uniform", "iakd.schedule.p0": p0, "iakd.schedule.student_only": 0.0}


def test_a_trial_follows_its_schedule_and_its_own_recipe(experiment: Experiment) -> None:
    history, metrics, seen = train(experiment, 3, uniform(0.25))
    assert seen == [1, 2, 3] and metrics["epochs"] == 3  # tune.recipe
    assert metrics["val_top1"] == history[-1]["val_top1"]
    assert [row["p_planned_0"] for row in history] == [0.25] * 3


def test_trials_differ_in_nothing_but_their_settings(experiment: Experiment) -> None:
    one, other = train(experiment, 0, uniform(0.5)), train(experiment, 1, uniform(0.5))
    assert one == other
    assert train(experiment, 2, uniform(0.1))[0] != one[0]
    assert train(experiment, 3, uniform(0.5), seed=1)[0] != one[0]


def test_a_trial_has_the_settings_that_it_tries(experiment: Experiment) -> None:
    own = {"kd.temperature": 4.0, "recipe.lr": 0.01, "init": "random"}
    assert experiment.studies[1].first == [own]
    histories = [
        train(experiment, number, own | changes, study=1)[0]
        for number, changes in enumerate([{}, {"kd.temperature": 2.0}, {"recipe.lr": 0.05}, {"init": "teacher"}])
    ]
    assert histories[2][0]["lr"] == 0.05 and histories[0][0]["lr"] == 0.01
    losses = [history[0]["loss"] for history in histories]
    assert len(set(losses)) == 4


def test_the_run_of_a_seed_says_what_it_trains_and_names_its_study(experiment: Experiment) -> None:
    job = experiment.studies[1]
    assert [study.label for study in experiment.studies] == ["mine", "kd-tuned"]
    trainer = StudentTrainer(experiment, job, "key-of-study")

    def run(number: int, seed: int, **changes: Any) -> Run:
        params = {"kd.temperature": 2.0, "recipe.lr": 0.05, "init": "teacher", **changes}
        return trainer.run(number, concrete(job, params), seed)

    made = run(7, 1)
    assert made.path == "digits/tune/big-small/kd-tuned/trials/0007/seed1"
    assert made.stage == "trial_seed"
    assert made.about == {
        "dataset": "digits",
        "teacher": "big",
        "student": "small",
        "method": "kd-tuned",
        "trial": 7,
        "trial_seed": 1,
        "study": "key-of-study",
    }
    assert made.seed == 2 * 2**31 + 5 and run(7, 0).seed == 2**31 + 5
    assert set(made.inputs) == {"data", "teacher"}
    used = made.params["method"], made.params["recipe"]
    assert (used[0]["kd"]["temperature"], used[0]["init"]) == (2.0, "teacher")
    assert (used[1]["lr"], used[1]["epochs"]) == (0.05, 3) and "tune" not in used[0]
    assert len({made.key, run(8, 1).key, run(7, 0).key, run(7, 1, init="random").key}) == 4


@pytest.mark.parametrize(
    ("method", "recipe", "message"),
    [
        ({"method": "hints", "hints": {"points": 9}}, {}, "the teacher has only 3 blocks"),
        ({"method": "fitnet", "fitnet": {"level": 9}}, {}, "this pair has 3 levels"),
        ({"method": "kd"}, {"augment": {"crop": "resized"}}, "augment.crop: resized needs"),
        ({"method": "kd"}, {"lr": 1e30}, "no longer finite"),
    ],
)
def test_what_a_trial_s_settings_cause_is_told_from_what_is_broken(
    experiment: Experiment, method: dict[str, Any], recipe: dict[str, Any], message: str
) -> None:
    job = experiment.studies[1]
    changed = Recipe.model_validate({**job.recipe.model_dump(), **recipe})
    tried = replace(job, method=Method.model_validate(method), recipe=changed)
    trainer = StudentTrainer(experiment, job, "key-of-study")
    run = trainer.run(50, tried, 0)
    with pytest.raises(SETTINGS_AT_FAULT, match=message), run.open():
        trainer.train(run, tried, lambda epoch, row: None)


def test_a_damaged_teacher_is_nothing_that_settings_cause(experiment: Experiment) -> None:
    job = experiment.studies[1]
    trainer = StudentTrainer(experiment, job, "key-of-study")
    tried = concrete(job, job.first[0])
    run = trainer.run(51, tried, 0)
    weights = job.teacher.folder / MODEL
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    try:
        with pytest.raises(UserError, match="damaged") as raised:
            trainer.train(run, tried, lambda epoch, row: None)
    finally:
        weights.write_bytes(content)
    assert not isinstance(raised.value, SETTINGS_AT_FAULT)


def test_the_winner_is_trained_with_its_settings_and_other_seeds(experiment: Experiment) -> None:
    """The whole way: study, best.yaml, student, run.json, evaluation."""
    job = experiment.studies[1]
    changed = {"kd.temperature": 2.0, "recipe.lr": 0.05, "init": "teacher"}
    write_best(job.folder, job.label, job.space.entry(changed), "by hand")
    (student,) = (each for each in experiment.students if each.label == "kd-tuned" and each.seed == 0)
    distill.run(experiment, student)
    record = files.read_json(student.folder / RUN, "")
    used = record["params"]
    assert (used["method"]["kd"]["temperature"], used["method"]["init"], used["recipe"]["lr"]) == (2.0, "teacher", 0.05)
    assert used["recipe"]["epochs"] == 4, "tune.recipe is for trials only"
    assert record["params"].items() >= student.settings.items(), "so that the result counts as current"
    assert record["seed"] in experiment.params.distill.seeds
    evaluate.evaluate_run(experiment, student.folder)
    write_best(job.folder, job.label, job.space.entry(changed | {"kd.temperature": 3.0}), "by hand")
    distill.run(experiment, student)
    assert files.read_json(student.folder / RUN, "")["key"] != record["key"], "trained again for other settings"


def test_multiply_adds_of_a_training_are_counted(experiment: Experiment) -> None:
    """Without a teacher: three times the student's forward pass, less the first layer's gradient by its input."""
    kd = experiment.studies[1]
    store = PreparedData.open(experiment.data.folder)
    plain = experiment.params.method(experiment.params.paired[0], "other")

    def count(job: StudyJob) -> int:
        run = StudentTrainer(experiment, job, "key").run(99, job, 0)
        return training_macs(StudentTask(run, job), experiment, store)

    tried = concrete(kd, kd.first[0])
    steps = tried.recipe.epochs * 2  # of 64 and 36 images
    student = model_cost(network_of(tried, store), store.image_shape)["macs"]
    first = student_stem_macs(network_of(tried, store), store.image_shape)
    scratch = count(replace(tried, method=plain))
    assert scratch == steps // 2 * 100 * (3 * student - first)
    whole = steps * tried.recipe.batch_size  # the teacher, as large as the student, computes whole batches
    assert count(tried) == count(tried) == scratch + whole * student


def student_stem_macs(network: Any, shape: tuple[int, int, int]) -> int:
    """The multiply-adds of the first convolution."""
    convolution = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    return convolution.weight.numel() * shape[1] * shape[2]
