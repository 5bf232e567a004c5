"""Learning rates against their formulas."""

import math

import pytest

from iakd.config import LrSchedule, Recipe
from iakd.errors import UserError
from iakd.training.timeline import Timeline


def rates(**schedule: object) -> list[float]:
    timeline = Timeline(20, 5, 0.4, LrSchedule.model_validate(schedule), 64)
    return [timeline.lr(step) for step in range(timeline.total)]


def test_multistep_drops_at_the_milestones_epochs() -> None:
    lr = rates(kind="multistep", milestones=[0.5, 0.75], gamma=0.1)
    assert lr == pytest.approx([0.4] * 50 + [0.04] * 25 + [0.004] * 25)


def test_the_published_cifar_recipe_drops_at_150_180_210_of_240() -> None:
    timeline = Timeline(240, 782, 0.05, LrSchedule(), 64)
    assert timeline.drops == [150 * 782, 180 * 782, 210 * 782]
    assert timeline.total == 187_680


def test_cosine_with_warm_up() -> None:
    lr = rates(kind="cosine", warmup=0.1)
    assert lr[:10] == pytest.approx([0.04 * (i + 1) for i in range(10)])
    assert lr[10:] == pytest.approx([0.4 * (1 + math.cos(math.pi * i / 90)) / 2 for i in range(90)])


def test_onecycle_rises_and_falls_linearly() -> None:
    lr = rates(kind="onecycle", warmup=0.3)
    assert max(lr) == pytest.approx(0.4) and lr.index(max(lr)) in (29, 30)
    assert lr[30:] == pytest.approx([0.4 * (1 - i / 70) for i in range(70)])


def test_constant() -> None:
    assert set(rates(kind="constant")) == {0.4}


def test_a_set_without_a_step_is_refused() -> None:
    with pytest.raises(UserError, match="one image"):
        Timeline.of(Recipe(), 0)


def test_epochs_of_different_lengths() -> None:
    lengths = [5, 5, 3, 2, 4, 1]
    recipe = Recipe.model_validate({"epochs": 6, "batch_size": 8, "lr": 0.4, "lr_schedule": {"milestones": [0.5]}})
    timeline = Timeline.of(recipe, 5, lengths)
    places = [(epoch, position) for epoch, length in enumerate(lengths) for position in range(length)]
    assert timeline.total == len(places) == 20
    assert [timeline.locate(step) for step in range(20)] == places
    assert [timeline.first_step(epoch) for epoch in range(7)] == [0, 5, 10, 13, 15, 19, 20]
    assert [timeline.steps_in(epoch) for epoch in range(6)] == lengths
    assert timeline.drops == [13]
    assert [timeline.lr(step) for step in (12, 13)] == pytest.approx([0.4, 0.04])
    with pytest.raises(UserError, match="one image"):
        Timeline.of(recipe, 5, [5, 5, 0, 1, 1, 1])


def test_lengths_that_are_all_equal_are_the_plain_timeline() -> None:
    recipe = Recipe(epochs=3)
    plain, same = Timeline.of(recipe, 7), Timeline.of(recipe, 7, [7, 7, 7])
    assert plain == same
    assert [plain.locate(step) for step in range(21)] == [divmod(step, 7) for step in range(21)]


def test_milestones_fall_on_the_nearest_epoch() -> None:
    timeline = Timeline(7, 10, 0.1, LrSchedule(milestones=[0.25, 0.5, 0.8]), 64)
    assert timeline.drops == [20, 40, 60]  # epochs 1.75, 3.5 and 5.6; a half goes to the even one


def test_a_smooth_rate_has_no_drops() -> None:
    for kind in ("cosine", "onecycle", "constant"):
        assert Timeline(7, 10, 0.1, LrSchedule(kind=kind, milestones=[0.5]), 64).drops == []


@pytest.mark.parametrize("kind", ["multistep", "cosine", "onecycle", "constant"])
def test_a_warm_up_is_rounded_to_the_nearest_step(kind: str) -> None:
    """Of ten steps, 0.17 are two: half the highest rate, then all of it."""
    timeline = Timeline(2, 5, 0.4, LrSchedule.model_validate({"kind": kind, "warmup": 0.17, "milestones": []}), 64)
    assert [timeline.lr(step) for step in range(3)] == pytest.approx([0.2, 0.4, 0.4])


def test_a_warm_up_may_last_the_whole_training() -> None:
    timeline = Timeline(2, 5, 0.4, LrSchedule(kind="cosine", warmup=1.0), 64)
    assert [timeline.lr(step) for step in range(10)] == pytest.approx([0.04 * (i + 1) for i in range(10)])


def test_a_warm_up_does_not_move_the_drops() -> None:
    timeline = Timeline(10, 3, 0.4, LrSchedule(milestones=[0.5], gamma=0.5, warmup=0.1), 64)
    expected = [0.4 / 3, 0.8 / 3, 0.4, *[0.4] * 12, *[0.2] * 15]
    assert [timeline.lr(step) for step in range(30)] == pytest.approx(expected)


def test_the_last_step_of_an_epoch_may_have_fewer_images() -> None:
    recipe = Recipe(epochs=3, batch_size=8)
    assert {Timeline.of(recipe, 2).images_in(step) for step in range(6)} == {8}
    alike = Timeline.of(recipe, 2, last_batches=[5])
    assert [alike.images_in(step) for step in range(6)] == [8, 5, 8, 5, 8, 5]
    varying = Timeline.of(recipe, 3, [3, 2, 1], [8, 3, 2])
    assert [varying.images_in(step) for step in range(6)] == [8, 8, 8, 8, 3, 2]
