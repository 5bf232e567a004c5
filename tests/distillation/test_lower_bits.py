"""Students of several bit-widths: each learns from the next higher one, whatever the method."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from digit_training import fixed_batch
from references import kl, softmax

from iakd import config, models
from iakd.config import METHODS, Method, Params, shortest_sum
from iakd.models.quantisation import at_bits, bit_widths, each_bits
from iakd.training.trainer import Trainer
from iakd.training.validation import validate

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]
STUDENT = config.Network(arch="resnet8", width=8, bits=[2, 4, 8])


def logits_at(training: Trainer, bits: int) -> np.ndarray:
    """Float64 logits of a fixed batch in training mode."""
    with at_bits(training.objective.student, bits), torch.no_grad():
        return training.objective.student.train()(fixed_batch(training).images).double().numpy()


@pytest.mark.parametrize("method", ["kd", "scratch", "kd+standardize"])
def test_terms_are_their_formulas(make_training: Make, method: str) -> None:
    """KL of the plain outputs, whatever the method does to its own."""
    training = make_training(method, student=STUDENT)
    training.objective.train()
    terms, logits = training.objective(fixed_batch(training), 0)
    outputs = {bits: softmax(logits_at(training, bits)) for bits in (8, 4, 2)}
    assert softmax(logits.detach().double().numpy()) == pytest.approx(outputs[8], rel=1e-5)
    assert terms["bits_4"].item() == pytest.approx(kl(outputs[8], outputs[4]), rel=1e-3)
    assert terms["bits_2"].item() == pytest.approx(kl(outputs[4], outputs[2]), rel=1e-3)
    own = make_training(method, "digits/students/single", student=config.Network(arch="resnet8", width=8, bits=8))
    own.objective.train()
    expected, _ = own.objective(fixed_batch(own), 0)
    assert set(terms) == {*expected, "bits_4", "bits_2"}
    assert all(torch.equal(terms[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("term", "learning", "teaching"), [("bits_4", 4, 8), ("bits_2", 2, 4)])
def test_the_higher_bit_width_does_not_learn_from_the_lower(
    make_training: Make, term: str, learning: int, teaching: int
) -> None:
    training = make_training("kd", student=STUDENT)
    training.objective.train()
    terms, _ = training.objective(fixed_batch(training), 0)
    terms[term].backward()
    learned = {name for name, p in training.objective.student.named_parameters() if p.grad is not None}
    norms = {name for name in learned if "bn" in name}
    assert norms and all(f"lower_bits.{learning}." in name for name in norms)
    assert not any(f"lower_bits.{teaching}." in name for name in learned)


def test_all_bit_widths_learn_and_the_highest_is_validated(make_training: Make) -> None:
    training = make_training("kd", student=STUDENT, epochs=8)
    history, metrics = training.fit()
    student = training.objective.student
    for bits in each_bits(student):
        found = validate(student, training.validation, 40)
        suffix = "" if bits == 8 else f"_{bits}bit"
        assert metrics[f"val_top1{suffix}"] == found["val_top1"] > 30
        assert metrics[f"val_nll{suffix}"] == found["val_nll"]
    assert history[-1]["val_top1"] == metrics["val_top1"]
    assert {"loss_bits_4", "loss_bits_2"} <= set(history[-1])


@pytest.mark.parametrize("student_bn", ["batch", "separate", "shared"])
def test_hybrid_paths_leave_the_lower_bit_widths_alone(make_training: Make, student_bn: str) -> None:
    """In the two-path form the student's own path teaches them: their terms are those of kd."""
    options = {"iakd": {"form": "two_path", "student_bn": student_bn, "warmup": 0.0}}
    training = make_training("iakd+kd", student=STUDENT, options=options)
    alone = make_training("kd", "digits/students/alone", student=STUDENT)
    for each in (training, alone):
        each.objective.train()
    step = next(step for step in range(20) if training.objective.losses["iakd"].paths(step))
    terms, expected = (each.objective(fixed_batch(each), step)[0] for each in (training, alone))
    assert "iakd_teacher" in terms
    assert all(torch.equal(terms[name], expected[name]) for name in ("kd", "bits_4", "bits_2"))
    found, own = (dict(each.objective.student.named_buffers()) for each in (training, alone))
    lower = [name for name in own if "lower_bits" in name]
    assert lower and all(torch.equal(found[name], own[name]) for name in lower)


@pytest.mark.parametrize("method", ["iakd+kd", "kd", "ab"])
def test_interrupted_equals_uninterrupted(make_training: Make, fit_until: FitUntil, method: str) -> None:
    whole = make_training(method, student=STUDENT, ema=0.9)
    _, metrics = whole.fit()
    part = make_training(method, "digits/students/part", student=STUDENT, ema=0.9)
    fit_until(part, 10)
    resumed = make_training(method, "digits/students/part", student=STUDENT, ema=0.9)
    assert resumed.fit()[1] == metrics
    assert models.save_weights(resumed.objective.student) == models.save_weights(whole.objective.student)


@pytest.mark.parametrize("method", ["ab", "fsp"])
def test_lower_bit_widths_wait_while_a_first_phase_leaves_the_outputs_alone(make_training: Make, method: str) -> None:
    training = make_training(method, student=STUDENT)
    training.objective.train()
    first = round(0.125 * training.timeline.total)
    before, _ = training.objective(fixed_batch(training), first - 1)
    after, _ = training.objective(fixed_batch(training), first)
    assert not any(name.startswith("bits") for name in before)
    assert {"bits_4", "bits_2"} <= set(after)


def test_reestimated_statistics_are_those_of_each_bit_width(make_training: Make) -> None:
    training = make_training("iakd", student=STUDENT, options={"iakd": {"bn_reestimate": True}}, epochs=2)
    training.fit()
    means = {name: b for name, b in training.objective.student.named_buffers() if name.endswith("running_mean")}
    stem = [means[f"stem.1.{part}running_mean"] for part in ("", "lower_bits.4.", "lower_bits.2.")]
    assert torch.allclose(stem[0], stem[1]) and stem[0].any()  # the first layer has eight bits at least
    last = [means[f"stages.2.0.bn2.{part}running_mean"] for part in ("", "lower_bits.4.", "lower_bits.2.")]
    assert all(mean.any() for mean in last) and not torch.allclose(last[0], last[2])


ALL_BUT_THE_REFUSED = [name for name, spec in METHODS.items() if not (spec.one_bit_width or spec.full_precision)]


@pytest.mark.parametrize("name", ALL_BUT_THE_REFUSED)
def test_every_method_trains_such_a_student(make_training: Make, name: str) -> None:
    options = {"crd": {"crd": {"negatives": 128}}, "kcd": {"kcd": {"every": 2}}}.get(name, {})
    training = make_training(shortest_sum(name), student=STUDENT, options=options)
    training.objective.train()
    before = {k: v.clone() for k, v in training.objective.student.named_parameters()}
    for epoch in range(3):  # past the first phase of those that have one
        training.train_step(fixed_batch(training, epoch))
        training.step += training.timeline.steps_per_epoch
    moved = {k for k, v in training.objective.student.named_parameters() if not torch.equal(v, before[k])}
    assert {"stages.1.0.bn1.lower_bits.4.weight", "stages.1.0.bn1.lower_bits.2.bias", "head.2.weight"} <= moved
    assert bit_widths(training.objective.student) == [8, 4, 2]


def test_a_method_that_changes_the_student_is_refused_in_one_line() -> None:
    settings = {
        "teachers": [{"arch": "resnet14"}],
        "students": [{"arch": "resnet8", "bits": [4, 2]}],
        "methods": {"mine": {"method": "simkd"}},
    }
    with pytest.raises(ValueError, match=r"resnet14-resnet8_2_4bit: simkd cannot train a student of bits \[2, 4\]"):
        Params.model_validate(settings)
    assert Params.model_validate({**settings, "methods": {"kd": {}}}).students[0].bit_widths == [4, 2]
    assert Method(method="simkd")
