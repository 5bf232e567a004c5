"""Seeds of a student trained side by side in one process: what `iakd distill` makes of them, whatever happens."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from iakd.config import parse
from iakd.distillation import assembly
from iakd.errors import RunFailed, UserError
from iakd.experiment.jobs import Experiment, StudentJob, group_seeds, plan_experiment, select
from iakd.experiment.run_dir import HISTORY, METRICS, MODEL, RUN, Run
from iakd.stages import distill, prepare, teach
from iakd.training.trainer import Trainer

SETTINGS: dict[str, Any] = {
    "dataset": {"name": "tiny", "source": "digits", "val": 60, "test": 200},
    "teachers": [{"arch": "resnet8", "width": 4, "name": "big"}],
    "students": [{"arch": "resnet8", "width": 4, "name": "small"}],
    "methods": {"hints": {"hints": {"images": 60, "points": 2}}, "iakd": {}, "scratch": {}},
    "teach": {"seeds": [0, 1], "recipe": {"epochs": 2, "batch_size": 128}},
    "distill": {"seeds": [0, 1, 2], "transfer": 60, "recipe": {"epochs": 3, "batch_size": 32}},
    "compute": {"device": "cpu", "checkpoint_seconds": 0},
}


def plan_of(**changes: Any) -> Experiment:
    return plan_experiment(parse({**SETTINGS, **changes}, "test"))


def folder_of(job: StudentJob) -> dict[str, Any]:
    """What a finished run's folder says, but for when and how fast it came about."""
    record = json.loads((job.folder / RUN).read_text())
    rows = [line.split(",") for line in (job.folder / HISTORY).read_text().splitlines()]
    lasting = [i for i, name in enumerate(rows[0]) if name not in ("seconds", "cpu_seconds", "images_per_s")]
    return {
        "model": (job.folder / MODEL).read_bytes(),
        "metrics": (job.folder / METRICS).read_text(),
        "history": [[row[i] for i in lasting] for row in rows],
        **{name: record[name] for name in ("key", "seed", "params", "inputs", "model_sha256")},
    }


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A tree with teachers and, one by one, all students."""
    tree = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(tree)
        experiment = plan_of()
        prepare.run(experiment)
        for job in experiment.teachers:
            teach.run(experiment, job)
        for student in experiment.students:
            distill.run(experiment, student)
        yield tree


@pytest.fixture
def tree(alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The same tree without students; returns what each should be, by path."""
    monkeypatch.chdir(alone)
    expected = {job.path: folder_of(job) for job in plan_of().students}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results/tiny").mkdir(parents=True)
    for name in ("data", "teachers"):
        (tmp_path / "results/tiny" / name).symlink_to(alone / "results/tiny" / name)
    return expected


def of(experiment: Experiment, method: str) -> list[StudentJob]:
    return select(experiment.students, "student", method=method)


def left_to_go_on() -> list[str]:
    return sorted(path.parent.name for path in Path(".state").glob("**/checkpoint.pt"))


def test_groups_differ_in_the_seed_alone() -> None:
    experiment = plan_of()
    groups = group_seeds(experiment.students, 2)
    assert [(group[0].label, [job.seed for job in group]) for group in groups] == [
        (label, seeds) for label in ("hints", "iakd", "scratch") for seeds in ([0, 1], [2])
    ]
    assert group_seeds(experiment.students, 1) == [[job] for job in experiment.students]


def test_seeds_together_are_the_seeds_one_by_one(tree: dict[str, dict[str, Any]]) -> None:
    """Also with teachers that take turns, and with methods that look at their teacher before the training begins."""
    experiment = plan_of()
    for group in group_seeds(experiment.students, 3):
        assert distill.run(experiment, *group) == [job.folder for job in group]
        assert {job.path: folder_of(job) for job in group} == {job.path: tree[job.path] for job in group}
    assert left_to_go_on() == []
    assert len(list(Path(".state").glob("**/run.json"))) == 0


def test_teacher_and_images_are_there_once(tree: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Trainer] = []

    def remember(trainings: list[Trainer]) -> list[Any]:
        seen.extend(trainings)
        return [RunFailed("not today")] * len(trainings)

    monkeypatch.setattr(assembly, "fit_interleaved", remember)
    experiment = plan_of()
    with pytest.raises(RunFailed, match="not today"):
        distill.run(experiment, *of(experiment, "iakd"))
    first, second, third = seen
    assert first.data is second.data is third.data and first.validation is third.validation
    assert first.objective.teacher is third.objective.teacher is not second.objective.teacher  # type: ignore[attr-defined]
    assert len({id(training.objective.student) for training in seen}) == 3


def test_one_that_fails_leaves_the_others_published_and_able_to_go_on(
    tree: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished for a reader; and if a workflow engine deletes them with the failed job, soon finished again."""
    experiment = plan_of()
    jobs = of(experiment, "iakd")
    work = Trainer.update

    def diverge(self: Trainer, batch: Any) -> None:
        work(self, batch)
        if self.run.seed == 1 and self.step == 3:
            raise RunFailed("seed 1: the loss is no longer finite")

    with monkeypatch.context() as inside:
        inside.setattr(Trainer, "update", diverge)
        with pytest.raises(RunFailed, match="seed 1: the loss"):
            distill.run(experiment, *jobs)
    assert [job.seed for job in jobs if (job.folder / RUN).exists()] == [0, 2]
    assert left_to_go_on() == ["seed0", "seed1", "seed2"]
    (jobs[2].folder / RUN).unlink()
    steps: list[int] = []

    def count(self: Trainer, batch: Any) -> None:
        work(self, batch)
        steps.append(self.run.seed)

    monkeypatch.setattr(Trainer, "update", count)
    distill.run(experiment, *jobs)
    assert set(steps) == {1}
    assert {job.path: folder_of(job) for job in jobs} == {job.path: tree[job.path] for job in jobs}
    assert left_to_go_on() == []


def test_a_kill_between_two_are_published_costs_no_training(
    tree: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = plan_of()
    jobs = of(experiment, "scratch")
    publish = Run.publish

    def killed(self: Run, *products: Any) -> None:
        if self.seed == 1:
            raise KeyboardInterrupt("SIGTERM")
        publish(self, *products)

    with monkeypatch.context() as inside:
        inside.setattr(Run, "publish", killed)
        with pytest.raises(KeyboardInterrupt):
            distill.run(experiment, *jobs)
    assert left_to_go_on() == ["seed0", "seed1", "seed2"]
    for path in jobs[0].folder.iterdir():  # what Snakemake does
        path.unlink()
    monkeypatch.setattr(Trainer, "update", None)  # no step is needed
    distill.run(experiment, *jobs)
    assert {job.path: folder_of(job) for job in jobs} == {job.path: tree[job.path] for job in jobs}


def test_live_files_of_other_settings_stay(tree: dict[str, dict[str, Any]]) -> None:
    experiment = plan_of()
    job = of(experiment, "scratch")[0]
    distill.run(experiment, job)
    attempt = Run(job.path, "distill", "another key", {}, 0, {}, {})
    with pytest.raises(KeyboardInterrupt), attempt.open():
        raise KeyboardInterrupt
    distill.run(experiment, job)
    assert (attempt.live / RUN).exists()


def test_seeds_are_chosen_by_name() -> None:
    experiment = plan_of()
    assert [job.seed for job in select(experiment.students, "student", method="iakd", seed=[2, 0])] == [0, 2]
    assert len(select(experiment.students, "student", seed=[])) == 9
    with pytest.raises(UserError, match=r"--seed 7: no such student in the settings; known: 0, 1, 2"):
        select(experiment.students, "student", seed=[0, 7])
