"""fcfd and blockkd: their losses against the formulas, in float64 from the networks' blocks, and what they train."""

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from digit_training import IMAGES, TEACHER, digit_images, fixed_batch, make_training, network, teacher
from gradients import Array
from torch import Tensor, nn

from iakd import config
from iakd.config import parse
from iakd.data.loader import Batch
from iakd.distillation.distiller import Distiller, make_distiller
from iakd.errors import UserError
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

RESNETS = config.Network(arch="resnet8", width=8)
NARROW = config.Network(arch="resnet8", width=4)


def distiller(
    method: str, student: config.Network, frozen: config.Network = TEACHER, side: int = 8, **options: Any
) -> tuple[Distiller, Batch]:
    """A distiller in training mode and in float64, except for larger images, and a batch for it."""
    data = digit_images(0, IMAGES)
    theirs = teacher() if frozen is TEACHER else network(frozen, 2)
    timeline = Timeline.of(config.Recipe(epochs=30), 6)
    chosen = config.Method(method=method, **({method.split("+")[0]: options} if options else {}))
    made = make_distiller(network(student, 1), theirs, chosen, data=data, timeline=timeline, seed=0)
    batch = next(data.plain(6))
    images = F.interpolate(batch.images, size=(side, side))
    made.train()
    made._outputs = None  # no cache
    if side == 8:
        images = images.double()
        made.double()
    return made, Batch(images, batch.labels, batch.indices)


def softmax(logits: Array) -> Array:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def divergence(teacher: Tensor, other: Tensor, temperature: float) -> float:
    """T²·Σ p·log(p/q), mean over images, p and q the softened outputs."""
    p, q = (softmax(each.detach().double().numpy() / temperature) for each in (teacher, other))
    return float(temperature**2 * (p * np.log(p / q)).sum(1).mean())


def batch_statistics(net: Any) -> Any:
    """A copy whose BatchNorm normalises by the batch, without memory."""
    other = copy.deepcopy(net)
    for layer in other.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
            layer.track_running_stats, layer.running_mean, layer.running_var = False, None, None
    return other


def mse(one: Tensor, other: Tensor) -> float:
    return float(np.mean((one.detach().numpy() - other.detach().numpy()) ** 2))


@pytest.mark.parametrize("student", [RESNETS, NARROW])
@pytest.mark.parametrize("step", [0, 5, 40, 170])
def test_fcfd_is_its_formula(student: config.Network, step: int) -> None:
    options = {"temperature": 3.0, "kd_weight": 0.7, "path_weight": 0.4, "appearance_weight": 2.0}
    made, batch = distiller("fcfd", student, **options)
    hybrid, loss = made.hybrid, made.losses["fcfd"]
    to_teacher = [*(copy.deepcopy(branch.enter) for branch in hybrid.branches[1:]), copy.deepcopy(loss.last_bridge)]
    to_student = [copy.deepcopy(branch.leave) for branch in hybrid.branches[:-1]]
    own, other = batch_statistics(made.student), batch_statistics(made.teacher)
    terms, logits = made(batch, step)
    with torch.no_grad():
        s, t = own.stem(batch.images), other.stem(batch.images)
        after: dict[str, list[Tensor]] = {"s": [], "t": []}
        for ours, theirs in zip(own.stages, other.stages, strict=True):
            s, t = ours(s), theirs(t)
            after["s"].append(s)
            after["t"].append(t)
        z_t = other.head(t)
        assert torch.equal(logits, own.head(s))
        app, kl = 0.0, 0.0
        bridged = [layer(maps) for layer, maps in zip(to_teacher, after["s"], strict=True)]
        seen = list(enumerate(bridged))
        for path in loss.hybrid_paths(step):
            assert len(set(path)) == 2
            change = path.index(not path[0])
            if path[0]:
                features = bridged[change - 1]
                for slot in range(change, 3):
                    features = other.stages[slot](features)
                    seen.append((slot, features))
                z = other.head(features)
            else:
                features = to_student[change - 1](after["t"][change - 1])
                for slot in range(change, 3):
                    features = own.stages[slot](features)
                z = own.head(features)
            kl += divergence(z_t, z, 3.0)
        for slot, maps in seen:
            app += mse(maps, after["t"][slot])
            if slot == 2:
                app += mse(maps.clamp(min=0).mean((2, 3)), after["t"][slot].clamp(min=0).mean((2, 3)))
    ramp = min(1, (step // 6 + 1) / 20)
    expected = {
        "fcfd": 0.7 * divergence(z_t, logits, 3.0),
        "fcfd_paths": 0.4 * kl,
        "fcfd_appearance": ramp * 2.0 * app,
    }
    found = {name: term.item() for name, term in terms.items() if name != "ce"}
    assert found == pytest.approx(expected, rel=1e-4)


def test_fcfd_draws_two_of_the_four_paths_evenly() -> None:
    made, _ = distiller("fcfd", RESNETS)
    loss = made.losses["fcfd"]
    T, S = False, True
    assert set(loss.candidates) == {(T, S, S), (T, T, S), (S, T, T), (S, S, T)}
    drawn = [loss.hybrid_paths(step) for step in range(180)]
    assert all(len(set(paths)) == 2 for paths in drawn)
    counts = Counter(path for paths in drawn for path in paths)
    assert all(60 < counts[path] < 120 for path in loss.candidates)
    assert [loss.hybrid_paths(step) for step in reversed(range(180))][::-1] == drawn
    assert make_drawn(1) != drawn


def make_drawn(seed: int) -> list[Any]:
    data = digit_images(0, IMAGES)
    made = make_distiller(
        network(RESNETS, 1), teacher(), config.Method(method="fcfd"), data=data,
        timeline=Timeline.of(config.Recipe(epochs=30), 6), seed=seed,
    )  # fmt: skip
    return [made.losses["fcfd"].hybrid_paths(step) for step in range(180)]


def test_fcfd_computes_the_teacher_once_in_a_step() -> None:
    """For the targets and for all paths that start with it."""
    made, batch = distiller("fcfd", RESNETS)
    loss, called = made.losses["fcfd"], Counter[int]()
    for slot, part in enumerate(
        [made.hybrid.teacher_ends["stem"], *(branch.teacher for branch in made.hybrid.branches)]
    ):
        part.register_forward_hook(lambda *_, slot=slot: called.update([slot]))
    for step in range(12):
        called.clear()
        made(batch, step)
        after_student = Counter(
            slot + 1 for path in loss.hybrid_paths(step) if path[0] for slot in range(path.index(False), 3)
        )
        assert called == Counter(range(4)) + after_student


def test_fcfd_leaves_the_running_statistics_to_the_student_s_own_path() -> None:
    made, batch = distiller("fcfd", RESNETS)
    plain = copy.deepcopy(made.student)
    plain(batch.images)
    made(batch, 0)
    assert all(map(torch.equal, plain.buffers(), made.student.buffers()))


def test_bridges_end_in_a_relu_where_the_blocks_before_their_target_do() -> None:
    made, _ = distiller("fcfd", RESNETS)
    layers = [type(layer) for layer in made.hybrid.branches[1].enter]
    assert layers == [nn.Conv2d, nn.BatchNorm2d, nn.LeakyReLU]
    assert made.hybrid.branches[1].enter[0].kernel_size == (3, 3)
    wide, narrow = config.Network(arch="wrn_16_2"), config.Network(arch="wrn_16_1")
    made, _ = distiller("fcfd", narrow, wide, side=16)
    assert [type(layer) for layer in made.hybrid.branches[0].leave] == [nn.Conv2d, nn.BatchNorm2d]
    trained = {id(parameter) for parameter in made.trained_parameters()}
    for branch, other in zip(made.hybrid.branches[1:], made.hybrid.branches[:-1], strict=True):
        assert trained >= {id(p) for layer in (branch.enter, other.leave) for p in layer.parameters()}


@pytest.mark.parametrize("student", [RESNETS, NARROW])
def test_blockkd_is_its_formula(student: config.Network) -> None:
    options = {"temperature": 3.0, "ce_weight": 0.5, "kd_weight": 0.7, "stone_weight": 0.4, "label_weight": 0.2}
    made, batch = distiller("blockkd", student, **options)
    hybrid, loss = made.hybrid, made.losses["blockkd"]
    connectors = [*(copy.deepcopy(branch.enter) for branch in hybrid.branches[1:]), copy.deepcopy(loss.connector)]
    own, other = batch_statistics(made.student), made.teacher
    terms, logits = made(batch, 3)
    with torch.no_grad():
        z_t, s = other(batch.images), own.stem(batch.images)
        kl = ce = 0.0
        for i in (1, 2, 3):
            s = own.stages[i - 1](s)
            features = connectors[i - 1](s)
            for rest in other.stages[i:]:
                features = rest(features)
            z = other.head(features)
            kl += divergence(z_t, z, 3.0) / 2 ** (3 - i)
            ce -= np.log(softmax(z.numpy())[np.arange(6), batch.labels.numpy()]).mean() / 2 ** (3 - i)
    expected = {
        "ce": -0.5 * np.log(softmax(logits.detach().numpy())[np.arange(6), batch.labels.numpy()]).mean(),
        "blockkd": 0.7 * divergence(z_t, logits, 3.0),
        "blockkd_labels": 0.2 * ce,
        "blockkd_stones": 0.4 * kl,
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


def test_the_last_stone_trains_the_student_s_blocks_but_not_its_head() -> None:
    made, batch = distiller("blockkd", NARROW)
    terms, _ = made(batch, 0)
    terms["blockkd_stones"].backward()
    student = made.student
    assert all(p.grad is not None for block in student.blocks for p in block.parameters())
    assert all(p.grad is None for p in student.head.parameters())
    assert all(p.grad is not None for p in made.losses["blockkd"].connector.parameters())


@pytest.mark.parametrize("method", ["fcfd", "blockkd"])
@pytest.mark.parametrize(
    ("teacher_arch", "student"), [("wrn_40_2", "ShuffleV1"), ("vgg11", "MobileNetV2"), ("vgg11", "vgg8")]
)
def test_networks_of_different_kinds(method: str, teacher_arch: str, student: str) -> None:
    made, batch = distiller(method, config.Network(arch=student), config.Network(arch=teacher_arch), side=32)
    for step in (0, 1, 2):
        terms, _ = made(batch, step)
        loss = torch.stack([term.double() for term in terms.values()]).sum()
        assert torch.isfinite(loss)
        loss.backward()
    gradients = [p.grad for p in made.student.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in gradients)
    assert all(p.grad is None for p in made.teacher.parameters())


@pytest.mark.parametrize("expression", ["iakd+fcfd", "blockkd+fcfd", "iakd+blockkd", "simkd+fcfd", "blockkd+simkd"])
def test_sums_that_make_no_sense_are_refused(expression: str) -> None:
    with pytest.raises(UserError, match="cannot be added to"):
        parse(
            {"teachers": [{"arch": "resnet14"}], "students": [{"arch": "resnet8"}], "methods": {expression: {}}},
            "test",
        )


@pytest.mark.parametrize("expression", ["fcfd+dkd", "blockkd+at", "blockkd"])
def test_they_follow_a_warm_start_and_join_other_losses(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, expression: str
) -> None:
    monkeypatch.chdir(tmp_path)
    training: Trainer = make_training(expression, options={"init": "blockwise", "blockwise": {"epochs": 1}}, epochs=1)
    _, metrics = training.fit()
    assert metrics["warm_start"]["epochs"] == 1
    training.objective.train()
    assert all(torch.isfinite(term) for term in training.objective(fixed_batch(training), 2)[0].values())
