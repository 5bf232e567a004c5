"""Knowledge condensation: which images are ranked, dropped and mixed, and what shorter epochs do to a training."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from digit_training import IMAGES
from numpy.typing import NDArray

from iakd import config, models
from iakd.config import Method
from iakd.config.method_options import KcdOptions
from iakd.data.loader import Batch, steps_per_epoch
from iakd.distillation.losses.kcd import KCDLoss, entropy, mixing_weights, rank
from iakd.distillation.registry import timeline_of
from iakd.distillation.teacher_cache import CacheDir
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]
OPTIONS = {"every": 2, "drop": 0.1, "keep": 0.75}


def reference_entropy(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = e / e.sum(axis=1, keepdims=True)
    return -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=1)


@pytest.mark.parametrize("batch", [1, 6])
@pytest.mark.parametrize("classes", [2, 10, 100])
def test_entropy_of_outputs(batch: int, classes: int) -> None:
    logits = np.random.default_rng(batch * classes).normal(0, 3, (batch, classes))
    assert entropy(torch.tensor(logits)).numpy() == pytest.approx(reference_entropy(logits), rel=1e-4, abs=1e-6)


def test_entropy_is_log_n_for_uniform_and_0_for_certain_outputs() -> None:
    logits = torch.zeros(2, 6)
    logits[1, 3] = 1e4
    values = entropy(logits.bfloat16())
    assert values.dtype == torch.float32
    assert values.tolist() == pytest.approx([np.log(6), 0.0], abs=1e-6)


def test_rank_by_mean_entropy_and_how_often_an_image_was_shown() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 81, 50)
    sums = rng.random(50) * counts
    score = sums / counts * (counts / 40) ** 0.03
    order = rank(torch.tensor(sums).float(), torch.tensor(counts).float(), 40, 0.03)
    assert order.tolist() == np.argsort(-score, kind="stable").tolist()
    often = rank(torch.tensor([40.0, 80.0, 10.0]), torch.tensor([40.0, 80.0, 0.0]), 40, 0.03)
    assert often.tolist() == [2, 1, 0]  # never shown, then the one that was shown more often at equal means


def test_an_image_that_is_twice_in_a_batch_counts_twice(make_training: Make) -> None:
    """As a balanced sampler may show one."""
    part = next(iter(make(make_training).objective.losses.values()))
    logits = torch.randn(3, 10)
    indices = torch.tensor([5, 7, 5])
    outputs = SimpleNamespace(batch=SimpleNamespace(indices=indices), student=SimpleNamespace(logits=logits))
    part(outputs)
    expected = entropy(logits)
    assert part.counts[[5, 7, 6]].tolist() == [2, 1, 0]
    assert torch.allclose(part.entropies[[5, 7]], torch.stack([expected[0] + expected[2], expected[1]]))


def test_mixing_weights_decrease_linearly() -> None:
    assert mixing_weights(3, 0.7).tolist() == pytest.approx([1.0, 0.9, 0.8])
    assert mixing_weights(1, 0.7).tolist() == [1.0]
    assert mixing_weights(0, 0.7).tolist() == []


def test_the_published_setting_keeps_95_90_85_80_and_75_percent() -> None:
    counts = [KCDLoss.images_per_epoch(KcdOptions(), 50_000, epoch) for epoch in range(240)]
    assert counts == [n for n in (50_000, 47_500, 45_000, 42_500, 40_000, 37_500) for _ in range(40)]
    assert KCDLoss.images_per_epoch(KcdOptions(), 50_000, 400) == 35_000
    assert KCDLoss.images_per_epoch(KcdOptions(keep=0.1, drop=1.0), 3, 40) == 2


def test_alone_it_is_kcd_with_kd() -> None:
    alone, both = Method(method="kcd"), Method(method="kcd+kd")
    assert alone.names == both.names == ["kcd", "kd"] and alone.needs_teacher
    assert Method(method="iakd+kcd").names == ["iakd", "kcd", "kd"]
    assert Method(method="kcd+crd").names == ["kcd", "crd"]
    assert Method(method="kcd+standardize").names == ["kcd", "standardize", "kd"]
    assert set(alone.settings()) == {"method", "init", "kcd", "kd"}
    assert Method.model_validate({"method": "kcd", "kd": {"temperature": 2}}).kd.temperature == 2
    with pytest.raises(ValueError, match="has options for 'kd'"):
        Method.model_validate({"method": "kcd+crd", "kd": {"temperature": 2}})


def make(make_training: Make, expression: str = "kcd", path: str = "digits/students/run", **more: Any) -> Trainer:
    return make_training(expression, path, {"kcd": OPTIONS, **more.pop("options", {})}, batch_size=16, **more)


def watch(training: Trainer) -> dict[int, list[Batch]]:
    """Run the training and return the batches of each epoch."""
    seen: dict[int, list[Batch]] = {}
    original = training.train_step

    def step(batch: Batch) -> None:
        seen.setdefault(training.timeline.locate(training.step)[0], []).append(batch)
        original(batch)

    training.train_step = step  # type: ignore[method-assign]
    training.fit()
    return seen


def test_epochs_show_the_images_that_are_kept_and_mix_the_dropped_into_them(make_training: Make) -> None:
    """From the batches and the student's outputs alone, with everything else recomputed in float64."""
    training = make(make_training, epochs=8)
    sums, counts = np.zeros(IMAGES), np.zeros(IMAGES)
    snapshots: dict[int, NDArray[np.float64]] = {}
    part = next(iter(training.objective.losses.values()))
    original = part.forward

    def terms(step: Any) -> Any:
        epoch = training.timeline.locate(step.step)[0]
        snapshots.setdefault(epoch, sums / np.maximum(counts, 1) * (counts / 2) ** 0.03)
        sums[step.batch.indices.numpy()] += reference_entropy(step.student.logits.detach().double().numpy())
        counts[step.batch.indices.numpy()] += 1
        return original(step)

    part.forward = terms
    seen = watch(training)
    sizes = [162, 162, 146, 146, 130, 130, 122, 122]  # 0.1·162 ≈ 16 fewer, down to 0.75·162 ≈ 122
    assert [len(seen[epoch]) for epoch in range(8)] == [steps_per_epoch(n, 16) for n in sizes]
    weights, partners = np.ones(IMAGES), np.arange(IMAGES)
    images = training.data.images.numpy().astype(np.float64)
    for epoch in (2, 4, 6):
        order = np.argsort(-snapshots[epoch], kind="stable")
        kept, dropped = order[: sizes[epoch]], order[sizes[epoch] : sizes[epoch - 1]]
        for place, (image, partner) in enumerate(zip(kept[-len(dropped) :], dropped, strict=True)):
            weights[image], partners[image] = 1 - 0.3 * place / len(dropped), partner
        for again in (epoch, epoch + 1):
            for batch in seen[again]:
                for index, image in zip(batch.indices.tolist(), batch.images.numpy(), strict=True):
                    assert index in kept
                    mixed = weights[index] * images[index] + (1 - weights[index]) * images[partners[index]]
                    shown = (image * 0.376 + 0.305) * 255
                    assert np.abs(shown - np.round(mixed)).max() < 0.01 + (weights[index] < 1)
    assert (weights < 1).sum() > 20


def test_mixed_images_keep_the_labels_of_the_kept_image(make_training: Make) -> None:
    training = make(make_training)
    labels = training.data.labels
    for batches in watch(training).values():
        assert all(torch.equal(batch.labels, labels[batch.indices]) for batch in batches)


def test_before_the_first_ranking_it_is_kd_bit_by_bit(make_training: Make) -> None:
    kcd, kd = make(make_training, epochs=2), make_training("kd", "digits/students/kd", batch_size=16, epochs=2)
    kcd.fit(), kd.fit()
    assert models.save_weights(kcd.objective.student) == models.save_weights(kd.objective.student)  # type: ignore[arg-type]


@pytest.mark.parametrize("expression", ["kcd", "iakd+kcd", "kcd+crd"])
def test_interrupted_in_shorter_epochs_equals_uninterrupted(
    make_training: Make, fit_until: FitUntil, expression: str
) -> None:
    options = {"crd": {"negatives": 32}} if "crd" in expression else {}
    whole = make(make_training, expression, "digits/students/whole", options=options)
    expected, metrics = whole.fit()
    starts = [whole.timeline.first_step(epoch) for epoch in range(6)]
    assert whole.timeline.total == starts[-1] < 5 * whole.timeline.steps_per_epoch
    for stop in (starts[2], starts[3] + 4, starts[4], starts[4] + 1):
        part = make(make_training, expression, "digits/students/part", options=options)
        fit_until(part, stop)
    resumed = make(make_training, expression, "digits/students/part", options=options)
    history, again = resumed.fit()
    for row in (*history, *expected):
        del row["seconds"], row["cpu_seconds"], row["images_per_s"]
    assert history == expected and again == metrics
    assert models.save_weights(resumed.objective.student) == models.save_weights(whole.objective.student)  # type: ignore[arg-type]
    assert [row["step"] for row in history] == starts[1:]


def test_the_learning_rate_drops_at_the_start_of_an_epoch(make_training: Make) -> None:
    schedule = {"kind": "multistep", "milestones": [0.8], "gamma": 0.1}
    training = make(make_training, lr_schedule=schedule, validate_every=1)
    history, _ = training.fit()
    assert [row["lr"] for row in history] == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.01])
    assert training.timeline.drops == [training.timeline.first_step(4)]


def test_swaps_are_drawn_for_the_steps_of_shorter_epochs(make_training: Make) -> None:
    training = make(make_training, "iakd+kcd")
    draws = training.objective.sampler
    for epoch in range(5):
        first, n = training.timeline.first_step(epoch), training.timeline.steps_in(epoch)
        assert len(draws.drawn(epoch)) == len(draws.planned(epoch)) == n
        assert [list(draws.masks(first + i, 16)) for i in range(n)] == draws.drawn(epoch).tolist()


def test_images_that_are_not_mixed_come_from_the_cache(make_training: Make) -> None:
    augment = config.Augment(pad=1)
    plain = make(make_training, augment=augment.model_dump())
    plain.fit()
    for path in ("cold", "warm"):
        cache_dir = CacheDir(plain.run.live.parent / "views", "digits", augment, 2**30)
        training = make(
            make_training, path=f"digits/students/{path}", augment=augment.model_dump(), cache_dir=cache_dir
        )
        training.fit()
        assert models.save_weights(training.objective.student) == models.save_weights(plain.objective.student)  # type: ignore[arg-type]
    outputs = training.objective._outputs
    assert 0 < outputs.computed < 0.2 * outputs.reused


@pytest.mark.parametrize(("n", "size"), [(15, 4), (17, 4), (9, 2), (14, 8)])
def test_the_timeline_knows_how_many_images_each_step_has(n: int, size: int) -> None:
    method = config.Method.model_validate({"method": "kcd", "kcd": {"every": 1, "drop": 0.1, "keep": 0.3}})
    recipe = config.Recipe(epochs=7, batch_size=size)
    timeline, counts = timeline_of(recipe, method, n), set()
    for epoch in range(7):
        images = KCDLoss.images_per_epoch(method.options("kcd"), n, epoch)
        steps = range(timeline.first_step(epoch), timeline.first_step(epoch + 1))
        assert sum(map(timeline.images_in, steps)) == images - (images % size == 1)
        counts.add(images)
    assert len(counts) > 2
