"""What a student sees of the training images, and that its run says so."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from iakd.config import parse
from iakd.data.store import PreparedData
from iakd.distillation import assembly
from iakd.errors import UserError
from iakd.experiment.jobs import Experiment, plan_experiment
from iakd.stages import prepare


def plan_of(**distill: Any) -> Experiment:
    networks = [{"arch": "resnet8", "width": 4}]
    settings = {"teachers": networks, "students": networks, "methods": {"scratch": {}}, "distill": distill}
    return plan_experiment(parse(settings, "test"))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedData]:
    """The digits, prepared in the folder that these tests run in."""
    with pytest.MonkeyPatch.context() as inside:
        inside.chdir(tmp_path_factory.mktemp("students"))
        prepare.run(plan_of())
        yield PreparedData.open(plan_of().data.folder)


@pytest.mark.parametrize(("wanted", "n"), [(None, None), (100, 100), (0.1, None)])
def test_a_run_says_which_images_its_student_sees(store: PreparedData, wanted: float | None, n: int | None) -> None:
    experiment = plan_of(transfer=wanted)
    run = assembly.student_run(experiment, experiment.students[0], "here", 0, store)
    seen = assembly.transfer_set(experiment, store)
    if wanted is None:
        assert seen is None and "transfer_indices" not in run.about
        return
    assert seen is not None and run.about["transfer_indices"] == seen.tolist()
    labels = store.labels("train")
    counts = np.bincount(labels[seen], minlength=10)
    assert len(seen) == (n or counts.sum()) and np.abs(counts - len(seen) / len(labels) * np.bincount(labels)).max() < 1


def test_a_smaller_share_is_part_of_a_larger_one(store: PreparedData) -> None:
    small, large = (assembly.transfer_set(plan_of(transfer=share), store) for share in (0.05, 0.5))
    assert small is not None and large is not None and set(small.tolist()) < set(large.tolist())


@pytest.mark.parametrize(
    ("wanted", "words"),
    [(0, "greater than 0"), (1.0, "must be a whole number of images, or a share below 1"), ("x", "integer")],
)
def test_mistakes(wanted: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"distill\.transfer: .*{words}"):
        plan_of(transfer=wanted)


def test_more_than_there_are_is_told_before_the_training(store: PreparedData) -> None:
    experiment = plan_of(transfer=100_000)
    with pytest.raises(UserError, match=r"^distill\.transfer: 100000 images asked for where there are 650"):
        assembly.student_run(experiment, experiment.students[0], "here", 0, store)
