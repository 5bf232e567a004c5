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
    assert [timeline.place(step) for step in range(20)] == places
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
    assert [plain.place(step) for step in range(21)] == [divmod(step, 7) for step in range(21)]
