"""Multi-level logit distillation: its formula as a whole, and the second view of a training."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from digit_training import fixed_batch
from pydantic import ValidationError
from references import gram_of_classes, gram_of_images, kd, softmax

from iakd import config
from iakd.config import Augment
from iakd.data.loader import Batch
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]


def test_the_loss_is_its_formula(make_training: Make) -> None:
    """Of the four outputs that it is made of, in float64, with the weights that docs/methods/mlkd.md gives."""
    training = make_training("mlkd")
    method, batch = training.objective, fixed_batch(training)
    method.train()
    with torch.no_grad():
        terms, weak = method(batch, 0)
        strong = training.objective.student(batch.second_view)
        outputs = weak, method.teacher(batch.images), strong, method.teacher(batch.second_view)
    s, t, strong_s, strong_t = (logits.double().numpy() for logits in outputs)
    y = batch.labels.numpy()
    own = np.arange(len(y)), y
    own_kd = {T: kd(s, t, y, T) for T in (2, 3, 4, 5, 6)}
    on_strong = sum(kd(strong_s, strong_t, y, T) for T in (3, 4, 5)) + own_kd[2] + own_kd[6]
    expected = {
        "ce": -0.1 * np.log(softmax(s)[own]).mean(),
        "mlkd_ce": -0.1 * np.log(softmax(strong_s)[own]).mean(),
        "mlkd_kd": 0.9 * (0.5 * sum(own_kd.values()) + on_strong),
        "mlkd_images": 0.45 * sum(gram_of_images(s, t, y, T) for T in (2, 3, 4, 5, 6)),
        "mlkd_classes": 0.45 * sum(gram_of_classes(s, t, y, T) for T in (2, 3, 4, 5, 6)),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def seen_batches(training: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    seen: list[Batch] = []
    original = training.objective.forward

    def loss(batch: Batch, step: int) -> Any:
        seen.append(batch)
        return original(batch, step)

    monkeypatch.setattr(training.objective, "forward", loss)
    training.fit()
    return seen


def test_the_training_loop_adds_a_second_view_if_a_loss_asks_for_it(
    make_training: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    augment = {"pad": 1, "flip": True}
    two = seen_batches(make_training("mlkd", epochs=1, augment=augment), monkeypatch)
    one = seen_batches(make_training("kd", epochs=1, augment=augment), monkeypatch)
    assert len(two) == len(one) == 6
    for batch, other in zip(two, one, strict=True):
        assert other.second_view is None
        assert torch.equal(batch.images, other.images)  # the first view is that of every other method
        assert batch.second_view is not None and batch.second_view.shape == batch.images.shape
        assert not torch.equal(batch.second_view, batch.images)


def test_the_strong_view_is_the_recipe_s_with_more_on_top(make_training: Make) -> None:
    options = {"mlkd": {"operations": 3, "magnitude": 7, "erase": None}}
    part = next(iter(make_training("mlkd", options=options).objective.losses.values()))
    mixed = Augment.model_validate({"pad": 2, "flip": True, "cutout": 3, "cutmix": {"alpha": 1.0}})
    strong = Augment(pad=2, flip=True, cutout=3, policy="randaugment", operations=3, magnitude=7)
    assert part.epoch_data(0, mixed).second_view == strong


def test_the_second_view_takes_the_path_that_is_taught(make_training: Make) -> None:
    """With every block swapped, what the hybrid's outputs teach cannot reach the student's blocks, in either view."""
    for form, reached in (("single_path", False), ("two_path", True)):
        schedule = {"kind": "uniform", "p0": 0.0, "student_only": 0.0}
        training = make_training("iakd+mlkd", options={"iakd": {"form": form, "schedule": schedule}})
        training.objective.train()
        terms, _ = training.objective(fixed_batch(training), 0)
        terms["mlkd_ce"].backward()
        assert any(p.grad is not None for p in training.objective.student.blocks[0].parameters()) == reached


def test_a_strong_temperature_is_one_of_the_temperatures() -> None:
    with pytest.raises(ValidationError, match="strong_temperatures: 7 is not one of the temperatures"):
        config.Method.model_validate({"method": "mlkd", "mlkd": {"strong_temperatures": [3, 7]}})
