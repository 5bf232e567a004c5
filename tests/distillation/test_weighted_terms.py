"""What the loss of each method returns: its formula, of the features it names, times the weights of its options.

The formulas themselves are tested against float64 in the files of their kind.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import references
import torch
import torch.nn.functional as F
from digit_training import fixed_batch, loss_between, make_training
from torch import Tensor

from iakd.data.loader import Batch
from iakd.distillation.loss import DistillationLoss, ForwardOutputs
from iakd.distillation.losses.ab import boundary_loss
from iakd.distillation.losses.at import attention_loss
from iakd.distillation.losses.cc import congruence_loss
from iakd.distillation.losses.crd import contrast
from iakd.distillation.losses.dist import relations
from iakd.distillation.losses.dkd import decoupled
from iakd.distillation.losses.fsp import flows
from iakd.distillation.losses.ft import factor_loss
from iakd.distillation.losses.hints import hint_loss
from iakd.distillation.losses.kd import kd_divergence
from iakd.distillation.losses.lskd import standardised
from iakd.distillation.losses.mlkd import gram_distances
from iakd.distillation.losses.nst import selectivity_loss
from iakd.distillation.losses.ot import sinkhorn_divergence, vectors
from iakd.distillation.losses.pkt import transfer_loss
from iakd.distillation.losses.reviewkd import context_loss
from iakd.distillation.losses.rkd import angle_loss, differences, distance_loss
from iakd.distillation.losses.sp import similarity_loss
from iakd.models.features import Features

STUDENT, TEACHER = "resnet8", "resnet14"
LEVELS = ((0, 1), (1, 3), (2, 5))  # last block of each stage, in the student and in the teacher
LATE = 1999  # a step after every first phase; the timeline has 2,400


def value_of(part: DistillationLoss, outputs: ForwardOutputs) -> dict[str, float]:
    terms = part(outputs)
    assert all(term.dtype == torch.float32 and term.shape == () for term in terms.values())
    return {name: term.item() for name, term in terms.items()}


def maps(outputs: ForwardOutputs) -> list[tuple[Tensor, Tensor]]:
    """At the ends of the stages."""
    return [(outputs.student.blocks[ours], outputs.teacher.blocks[theirs]) for ours, theirs in LEVELS]


def last_maps(outputs: ForwardOutputs) -> tuple[Tensor, Tensor]:
    """At the end of the last stage."""
    ours, theirs = LEVELS[-1]
    return outputs.student.blocks[ours], outputs.teacher.blocks[theirs]


def of_levels(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, ForwardOutputs], float]:
    return lambda part, outputs: sum(loss(*pair).item() for pair in maps(outputs))


def of_pooled(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Any, ForwardOutputs], float]:
    return lambda part, outputs: loss(outputs.student.pooled, outputs.teacher.pooled).item()  # type: ignore[arg-type]


def ab_reference(part: Any, outputs: ForwardOutputs) -> float:
    values = []
    for ours, theirs in LEVELS:
        values.append(boundary_loss(outputs.student.preactivations[ours], outputs.teacher.preactivations[theirs], 2.0))
    return sum(0.003 * factor * value.item() for factor, value in zip((0.25, 0.5, 1), values, strict=True))


def fsp_reference(part: Any, outputs: ForwardOutputs) -> float:
    chains = zip((outputs.student.stem, outputs.teacher.stem), *maps(outputs), strict=True)
    ours, theirs = (flows(chain) for chain in chains)  # type: ignore[arg-type]
    return sum(F.mse_loss(*pair).item() for pair in zip(ours, theirs, strict=True))


def vid_reference(part: Any, outputs: ForwardOutputs) -> float:
    return sum(predictor(*pair).item() for predictor, pair in zip(part.predictors, maps(outputs), strict=True))


def cc_reference(part: Any, outputs: ForwardOutputs) -> float:
    assert part.student.out_features == part.teacher.out_features == 5
    return congruence_loss(part.student(outputs.student.pooled), part.teacher(outputs.teacher.pooled)).item()


def ot_reference(part: Any, outputs: ForwardOutputs) -> float:
    ours, theirs = (vectors(features) for features in last_maps(outputs))
    return sinkhorn_divergence(ours, theirs, 2.0).mean().item()


def review_reference(part: Any, outputs: ForwardOutputs) -> float:
    assert outputs.student.pooled is not None and outputs.teacher.pooled is not None
    student = [*(outputs.student.blocks[ours] for ours, _ in LEVELS), outputs.student.pooled[:, :, None, None]]
    teacher = [outputs.teacher.preactivations[theirs] for _, theirs in LEVELS]
    teacher.append(outputs.teacher.pooled[:, :, None, None])
    return sum(context_loss(*pair).item() for pair in zip(part.fused(student), teacher, strict=True))


WEIGHTED = {  # name: options beside the weight, and the formula at weight 1
    "ab": ({"margin": 2.0}, ab_reference),
    "at": ({}, of_levels(attention_loss)),
    "cc": ({"dim": 5}, cc_reference),
    "fsp": ({}, fsp_reference),
    "nst": ({}, of_levels(selectivity_loss)),
    "ot": ({"blur": 2.0}, ot_reference),
    "pkt": ({}, of_pooled(transfer_loss)),
    "reviewkd": ({"warmup_epochs": 0}, review_reference),
    "sp": ({}, lambda part, outputs: similarity_loss(*last_maps(outputs)).item()),
    "vid": ({}, vid_reference),
}


@pytest.mark.parametrize("name", WEIGHTED)
@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_a_term_is_its_formula_times_its_weight(name: str, weight: float) -> None:
    options, reference = WEIGHTED[name]
    part, outputs = loss_between(name, STUDENT, TEACHER, weight=weight, **options)
    expected = reference(part, outputs)
    assert expected != 0
    assert value_of(part, outputs) == {name: pytest.approx(weight * expected, rel=1e-4)}


def test_rkd_has_a_weight_for_distances_and_one_for_angles() -> None:
    part, outputs = loss_between("rkd", STUDENT, TEACHER, distance_weight=2.0, angle_weight=5.0)
    # two images have no angle and one distance, so four others
    generator = torch.Generator().manual_seed(0)
    ours, theirs = torch.randn(4, 64, generator=generator), torch.randn(4, 64, generator=generator)
    outputs = replace(
        outputs, student=replace(outputs.student, pooled=ours), teacher=replace(outputs.teacher, pooled=theirs)
    )
    expected = {
        "rkd_distance": 2 * distance_loss(differences(ours), differences(theirs)).item(),
        "rkd_angle": 5 * angle_loss(differences(ours), differences(theirs)).item(),
    }
    assert all(expected.values())
    assert value_of(part, outputs) == pytest.approx(expected)


def test_ft_reconstructs_first_and_transfers_factors_then() -> None:
    part, outputs = loss_between("ft", STUDENT, TEACHER, weight=2.5, rate=0.25, pretrain=0.5)
    ours, theirs = last_maps(outputs)
    factors = part.paraphraser(theirs)
    assert factors.shape == (2, 16, *theirs.shape[2:]), "a quarter of the teacher's 64 channels"
    assert part.translator(ours).shape == factors.shape and part.rebuilder(factors).shape == theirs.shape
    expected = {"ft_paraphraser": F.mse_loss(part.rebuilder(factors), theirs).item()}
    assert value_of(part, replace(outputs, step=1199)) == pytest.approx(expected)
    expected = {"ft": 2.5 * factor_loss(part.translator(ours), factors).item()}
    assert value_of(part, replace(outputs, step=1200)) == pytest.approx(expected)


def test_ft_layers_are_three_convolutions_with_leaky_relus() -> None:
    part, _ = loss_between("ft", STUDENT, TEACHER, rate=0.001)
    kinds = [type(layer).__name__ for layer in part.translator]
    assert kinds == ["Conv2d", "BatchNorm2d", "LeakyReLU"] * 3
    assert [type(layer).__name__ for layer in part.paraphraser] == ["Conv2d", "LeakyReLU"] * 3
    assert [type(layer).__name__ for layer in part.rebuilder] == ["ConvTranspose2d", "LeakyReLU"] * 3
    assert {layer.negative_slope for layer in part.translator if hasattr(layer, "negative_slope")} == {0.1}
    assert part.paraphraser[-2].out_channels == 1, "never less than one factor"


def test_vid_s_mean_is_three_convolutions_with_the_teachers_channels() -> None:
    part, _ = loss_between("vid", "wrn_16_1", "wrn_16_2")
    for predictor, (ours, theirs) in zip(part.predictors, ((16, 32), (32, 64), (64, 128)), strict=True):
        layers = [layer for layer in predictor.mean if isinstance(layer, torch.nn.Conv2d)]
        assert [(c.in_channels, c.out_channels, c.kernel_size, c.bias) for c in layers] == [
            (ours, theirs, (1, 1), None),
            (theirs, theirs, (1, 1), None),
            (theirs, theirs, (1, 1), None),
        ]
        assert [type(layer).__name__ for layer in predictor.mean] == ["Conv2d", "ReLU", "Conv2d", "ReLU", "Conv2d"]


# --- losses between outputs ---

LOGITS = np.random.default_rng(0).normal(0, 3, (2, 6, 10))
LABELS = np.array([3, 1, 4, 1, 5, 9])


def between_outputs(name: str, step: int = LATE, **options: Any) -> tuple[DistillationLoss, dict[str, float]]:
    """The part and its terms for LOGITS of student and teacher and for LABELS."""
    part, _ = loss_between(name, STUDENT, TEACHER, **options)
    student, teacher = (torch.tensor(logits, dtype=torch.float32) for logits in LOGITS)
    labels = torch.tensor(LABELS)
    batch = Batch(torch.zeros(6, 1, 8, 8), labels, torch.arange(6))
    outputs = ForwardOutputs(step, batch, Features(logits=student), Features(logits=teacher))
    return part, value_of(part, outputs)


def at_temperature(loss: Callable[..., float], t: float) -> float:
    return loss(*LOGITS, LABELS, t)


def test_kd_has_a_weight_and_a_temperature() -> None:
    part, terms = between_outputs("kd", temperature=3.0, kd_weight=2.5, ce_weight=0.3)
    assert part.ce_weight == 0.3
    assert terms == pytest.approx({"kd": 2.5 * at_temperature(references.kd, 3.0)}, rel=1e-4)


def test_lskd_has_a_weight_and_a_temperature() -> None:
    part, terms = between_outputs("lskd", temperature=3.0, kd_weight=2.5, ce_weight=0.3)
    assert part.ce_weight == 0.3
    assert terms == pytest.approx({"lskd": 2.5 * at_temperature(references.standardised_kd, 3.0)}, rel=1e-4)


def test_dist_weighs_relations_between_classes_and_between_images() -> None:
    part, terms = between_outputs("dist", temperature=3.0, inter=2.5, intra=0.7, ce_weight=0.3)
    assert part.ce_weight == 0.3
    expected = {
        "dist_inter": 2.5 * at_temperature(references.over_classes, 3.0),
        "dist_intra": 0.7 * at_temperature(references.over_images, 3.0),
    }
    assert terms == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("step", "warmup"), [(0, 0.05), (10, 0.1), (LATE, 1.0)])
def test_dkd_weighs_the_target_class_and_the_others(step: int, warmup: float) -> None:
    """And warms both up over 20 epochs of ten steps."""
    options = {"temperature": 3.0, "alpha": 0.4, "beta": 2.5, "ce_weight": 0.3, "warmup_epochs": 20}
    part, terms = between_outputs("dkd", step, **options)
    assert part.ce_weight == 0.3
    expected = {
        "dkd_target": warmup * 0.4 * at_temperature(references.target_class, 3.0),
        "dkd_others": warmup * 2.5 * at_temperature(references.other_classes, 3.0),
    }
    assert terms == pytest.approx(expected, rel=1e-4)


def test_ctkd_has_a_weight_and_bounds_of_its_temperature() -> None:
    part, terms = between_outputs("ctkd", start=2.0, span=4.0, kd_weight=2.5, ce_weight=0.3)
    assert part.ce_weight == 0.3
    temperature = 2 + 4 / (1 + np.exp(-1))
    assert terms == pytest.approx({"ctkd": 2.5 * at_temperature(references.kd, temperature)}, rel=1e-4)
    strong, _ = between_outputs("ctkd", strength=3.0, epochs=2)
    assert [strong.factor(epoch) for epoch in (0, 1, 9)] == pytest.approx([-1.5, -3.0, -3.0])


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: kd_divergence(s, t, 3.0),
        lambda s, t: decoupled(s, t, torch.tensor(LABELS), 3.0)[0],
        lambda s, t: decoupled(s, t, torch.tensor(LABELS), 3.0)[1],
        lambda s, t: relations(s, t, 3.0)[0],
        lambda s, t: relations(s, t, 3.0)[1],
        lambda s, t: gram_distances(s, t, 3.0)[0],
        lambda s, t: gram_distances(s, t, 3.0)[1],
        lambda s, t: kd_divergence(standardised(s), standardised(t), 3.0),
    ],
    ids=["kd", "dkd target", "dkd others", "dist classes", "dist images", "mlkd images", "mlkd classes", "lskd"],
)
def test_bf16_logits_are_computed_with_in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student, teacher = (torch.tensor(logits).bfloat16() for logits in LOGITS)
    value = loss(student, teacher)
    assert value.dtype == torch.float32 and torch.equal(value, loss(student.float(), teacher.float()))


# --- images of a batch ---


def changed(features: Features, change: Callable[[Tensor], Tensor]) -> Features:
    """The features with all tensors changed."""
    values: dict[str, Any] = {}
    for field in fields(features):
        value = getattr(features, field.name)
        if isinstance(value, dict):
            values[field.name] = {key: change(tensor) for key, tensor in value.items()}
        else:
            values[field.name] = None if value is None else change(value)
    return Features(**values)


RELATES = {"cc", "dist", "pkt", "rkd", "sp"}  # images of a batch to each other
BY_IMAGE = {"ab", "at", "ctkd", "dkd", "fitnet", "fsp", "ft", "kd", "lskd", "nst", "ot", "reviewkd", "vid"}


@pytest.mark.parametrize("name", sorted(RELATES | BY_IMAGE))
def test_a_loss_is_the_mean_over_its_images_or_says_that_it_relates_them(name: str) -> None:
    """Where several processes share a batch, the others' images are gathered for losses that relate them."""
    part, outputs = loss_between(name, STUDENT, TEACHER)
    part.eval()  # normalisation layers of its own would relate the images, too
    generator = torch.Generator().manual_seed(0)

    def four(tensor: Tensor) -> Tensor:
        """Two images and two like them."""
        return tensor.repeat(2, *[1] * (tensor.dim() - 1)) + torch.randn(4, *tensor.shape[1:], generator=generator)

    student, teacher = (
        replace(changed(each, four), logits=3 * torch.randn(4, 10, generator=generator))
        for each in (outputs.student, outputs.teacher)
    )
    labels, values = torch.tensor([1, 7, 3, 3]), []
    for chosen in (slice(0, 4), slice(0, 2), slice(2, 4)):
        batch = Batch(torch.zeros(len(labels[chosen]), 1, 8, 8), labels[chosen], torch.arange(4)[chosen])
        features = (changed(each, lambda tensor, chosen=chosen: tensor[chosen]) for each in (student, teacher))
        values.append(sum(term.item() for term in part(ForwardOutputs(LATE, batch, *features)).values()))
    assert part.cross_sample == (name in RELATES)
    assert (values[0] == pytest.approx((values[1] + values[2]) / 2, rel=1e-3)) == (not part.cross_sample)


# --- losses that need training images ---


def test_hints_are_weighted_and_averaged_over_the_points(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    training = make_training("hints", options={"hints": {"points": 3, "images": 64, "weight": 2.5}})
    (part,) = training.objective.losses.values()
    assert len(part.block_positions) == 3
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (
        {
            position: torch.randn(2, block.out_channels, 4, 4, generator=generator)
            for position, block in enumerate(blocks)
        }
        for blocks in (training.objective.student.blocks, training.objective.teacher.blocks)
    )
    outputs = ForwardOutputs(0, fixed_batch(training), Features(blocks=ours), Features(blocks=theirs))
    losses = [
        hint_loss(adapter(ours[place]), theirs[point]).item()
        for adapter, (place, point) in zip(part.adapters, part.block_positions, strict=True)
    ]
    assert value_of(part, outputs) == pytest.approx({"hints": 2.5 * sum(losses) / 3}, rel=1e-4)


def test_crd_contrasts_both_ways_and_then_remembers(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Student embeddings against the teacher's memories and the other way round, with the same negatives."""
    monkeypatch.chdir(tmp_path)
    options = {"negatives": 20, "weight": 2.5, "momentum": 0.25, "temperature": 0.3, "dim": 7}
    training = make_training("crd", options={"crd": options})
    (part,), batch = training.objective.losses.values(), fixed_batch(training)
    banks = {name: getattr(part, f"{name}_bank").clone() for name in ("student", "teacher")}
    lengths = torch.cat([*banks.values()]).square().sum(1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.1), "drawn so that a memory's length is about 1"
    generator = torch.Generator().manual_seed(0)
    pooled = {name: torch.randn(len(batch.labels), 32, generator=generator) for name in ("student", "teacher")}
    outputs = ForwardOutputs(5, batch, *(Features(pooled=pooled[name]) for name in ("student", "teacher")))
    drawn: list[Tensor] = []
    draw = part.negatives.draw
    part.negatives.draw = lambda *arguments: drawn.append(draw(*arguments)) or drawn[-1]
    terms = value_of(part, outputs)
    chosen = torch.cat([batch.indices[:, None], drawn[0]], dim=1)
    assert chosen.shape == (len(batch.labels), 21)
    expected = 0.0
    for own, other in (("student", "teacher"), ("teacher", "student")):
        embedded = F.normalize(getattr(part, own)(pooled[own]), dim=1)
        expected += contrast(embedded, banks[other], chosen, torch.zeros(()), 0.3).item()
        moved = F.normalize(0.25 * banks[own][batch.indices] + 0.75 * embedded, dim=1)
        assert torch.allclose(getattr(part, f"{own}_bank")[batch.indices], moved, atol=1e-6)
    assert terms == pytest.approx({"crd": 2.5 * expected}, rel=1e-4)
    part(outputs), part(replace(outputs, step=6))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2]), "by the step"
