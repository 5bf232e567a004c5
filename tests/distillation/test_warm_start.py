"""The block-wise warm start: its errors against the formula, what learns from what, and that it leaves no trace."""

import os
import signal
from typing import Any

import pytest
import torch
from digit_training import STUDENT, TEACHER, fixed_batch, make_training, network
from pydantic import ValidationError
from torch import Tensor, nn

from iakd import config, models
from iakd.config import parse
from iakd.data.loader import BatchFormat
from iakd.distillation.warm_start import BlockwiseStart
from iakd.errors import UserError
from iakd.experiment.jobs import plan_experiment
from iakd.models.normalisation import adapt_input
from iakd.models.quantisation import SwitchableBatchNorm2d
from iakd.training.interleaved import fit_interleaved
from iakd.training.trainer import Trainer

BLOCKWISE = {"init": "blockwise", "blockwise": {"epochs": 3, "lr": 0.01}}
NARROW = config.Network(arch="resnet8", width=4)


@pytest.fixture(autouse=True)
def _in_a_temporary_folder(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def training_of(expression: str = "kd", path: str = "digits/students/run", **options: Any) -> Trainer:
    return make_training(expression, path, {**BLOCKWISE, **options})


def start_of(training: Trainer) -> BlockwiseStart:
    assert training.warm_start is not None
    objective = training.warm_start.objective
    assert isinstance(objective, BlockwiseStart)
    return objective


def between(student: str | config.Network, teacher: str | config.Network, side: int = 32) -> tuple[Any, Tensor]:
    """The objective for two networks, and two images."""
    chosen = [net if isinstance(net, config.Network) else config.Network(arch=net) for net in (student, teacher)]
    nets = [network(net, seed) for seed, net in enumerate(chosen)]
    for net in nets:
        adapt_input(net, None, [0.1], [0.5])

    class Pair:
        student, teacher, hybrid = nets[0], nets[1].eval().requires_grad_(False), None

    objective = BlockwiseStart(Pair(), (1, side, side), None, 0)  # type: ignore[arg-type]
    return objective.train(), torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))


class Images:
    def __init__(self, images: Tensor) -> None:
        self.images = images


def relative(ours: Tensor, theirs: Tensor) -> float:
    """Mean over images of ‖ours − theirs‖²/‖theirs‖², in float64, image by image."""
    ratios = []
    for a, b in zip(ours.double().detach(), theirs.double(), strict=True):
        ratios.append((((a - b) ** 2).sum() / (b**2).sum()).item())
    return sum(ratios) / len(ratios)


def test_each_part_learns_from_the_teacher_s_features_before_it() -> None:
    objective, images = between(STUDENT, TEACHER, side=8)
    student, teacher = objective.student, objective._teacher[0]
    terms, logits = objective(Images(images), 0)
    expected = {}
    with torch.no_grad():
        below = teacher.stem(images)
        expected["stem"] = relative(student.stem(images), below)
        for i, block in enumerate(student.blocks):
            above = teacher.blocks[2 * i + 1](teacher.blocks[2 * i](below))
            expected[f"block_{i + 1}"] = relative(block(below), above)
            below = above
        assert torch.equal(logits, student.head(below))
        expected["head"] = relative(logits, teacher.head(below))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert expected["stem"] > 0 and expected["block_2"] > 0.1 and expected["head"] == 0


def test_what_fits_starts_as_a_copy_and_the_blocks_at_random() -> None:
    objective, _ = between(STUDENT, TEACHER, side=8)
    student, teacher = objective.student, objective._teacher[0]
    for ours, theirs in ((student.stem, teacher.stem), (student.head, teacher.head)):
        assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))
    assert not torch.equal(student.blocks[0].conv1.weight, teacher.blocks[0].conv1.weight)
    same, _ = between(TEACHER, TEACHER, side=8)
    pairs = zip(same.student.state_dict().values(), same._teacher[0].state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_where_shapes_differ_a_block_takes_the_student_s_own_features_and_an_adapter_compares() -> None:
    objective, images = between(NARROW, TEACHER, side=8)
    student, teacher = objective.student, objective._teacher[0]
    terms, _ = objective(Images(images), 0)
    with torch.no_grad():
        own, theirs = student.stem(images), teacher.stem(images)
        expected = {"stem": relative(objective.stem_adapter(own), theirs)}
        for i, block in enumerate(student.blocks):
            own, theirs = block(own), teacher.blocks[2 * i + 1](teacher.blocks[2 * i](theirs))
            expected[f"block_{i + 1}"] = relative(objective.adapters[i](own), theirs)
        expected["head"] = relative(student.head(own), teacher.head(theirs))
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("student", [STUDENT, NARROW])
def test_no_part_is_changed_by_the_error_of_another(student: config.Network) -> None:
    objective, images = between(student, TEACHER, side=8)
    net = objective.student
    parts = {"stem": net.stem, **{f"block_{i + 1}": block for i, block in enumerate(net.blocks)}, "head": net.head}
    for name in parts:
        objective.zero_grad(set_to_none=True)
        objective(Images(images), 0)[0][name].backward()
        moved = {other for other, part in parts.items() if any(p.grad is not None for p in part.parameters())}
        assert moved == {name}


@pytest.mark.parametrize(
    ("teacher", "student"),
    [
        ("wrn_16_2", "ShuffleV1"),
        ("vgg11", "MobileNetV2"),
        ("ResNet18", "vgg8"),
        ("vgg11", "vgg8"),
        ("wrn_40_2", "wrn_16_1"),
        ("torchvision/resnet34", "torchvision/resnet18"),
    ],
)
def test_networks_of_different_kinds(teacher: str, student: str) -> None:
    objective, images = between(student, teacher)
    terms, logits = objective(Images(images), 0)
    assert logits.shape == (2, 10)
    loss = torch.stack(list(terms.values())).sum()
    assert torch.isfinite(loss) and loss.dtype == torch.float32
    loss.backward()
    missing = [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not missing


def test_it_brings_the_student_close_to_the_teacher_before_the_first_step() -> None:
    training = training_of(blockwise={"epochs": 10, "lr": 0.03})
    before = start_of(training)(fixed_batch(training), 0)[0]
    history, metrics = training.fit()
    record = metrics["warm_start"]
    assert record["epochs"] == 10 and record["steps"] == 60 and metrics["epochs"] == len(history) == 5
    errors = {name: value for name, value in record.items() if name.startswith("loss_block")}
    assert len(errors) == 3
    assert all(value < 0.5 * before[name.removeprefix("loss_")].item() for name, value in errors.items())
    assert record["val_top1"] > 50  # at random: 10
    assert training.run.about["warm_start_seconds"] > 0


def stop_at(training: Trainer, phase: Trainer, step: int) -> None:
    """Fit until a signal comes after a step of one of its phases."""
    original = phase.train_step

    def step_and_signal(batch: object) -> None:
        original(batch)
        if phase.step + 1 == step:
            os.kill(os.getpid(), signal.SIGTERM)

    phase.train_step = step_and_signal  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
        training.fit()


@pytest.mark.parametrize("expression", ["kd", "iakd"])
def test_interrupted_equals_uninterrupted(expression: str) -> None:
    """In the middle and at the end of the warm start, in its last step, and in the training itself."""
    whole = training_of(expression, "digits/students/whole")
    history, metrics = whole.fit()
    for step in (4, 6, 18):
        part = training_of(expression, "digits/students/part")
        assert part.warm_start
        stop_at(part, part.warm_start, step)
    for step in (1, 7):
        part = training_of(expression, "digits/students/part")
        stop_at(part, part, step)
    torch.manual_seed(1234)
    last = training_of(expression, "digits/students/part")
    resumed, again = last.fit()
    assert models.save_weights(last.objective.student) == models.save_weights(whole.objective.student)
    assert again == metrics
    for row in (*history, *resumed):
        del row["seconds"], row["cpu_seconds"], row["images_per_s"]
    assert history == resumed
    assert last.warm_start and last.warm_start.step == 0, "it is not repeated"


def test_side_by_side_equals_one_after_the_other() -> None:
    alone = [training_of(name, f"digits/students/alone-{name}") for name in ("kd", "iakd")]
    for training in alone:
        training.fit()
    together = [training_of(name, f"digits/students/together-{name}") for name in ("kd", "iakd")]
    assert not any(isinstance(result, Exception) for result in fit_interleaved(together))
    for one, other in zip(alone, together, strict=True):
        assert models.save_weights(one.objective.student) == models.save_weights(other.objective.student)


def test_the_training_itself_is_that_of_a_student_with_these_weights() -> None:
    """Its batches, learning rates and draws are those of a training without a warm start; no momentum is left."""
    warm = training_of("iakd+kd")
    assert warm.warm_start
    warm.warm_start.fit()
    plain = make_training("iakd+kd", "digits/students/plain")
    plain.objective.student.load_state_dict(warm.objective.student.state_dict())
    plain.fit()
    fresh = training_of("iakd+kd", "digits/students/fresh")
    fresh.fit()
    assert models.save_weights(fresh.objective.student) == models.save_weights(plain.objective.student)


def test_batch_norm_statistics_are_those_of_the_student_s_own_activations() -> None:
    training = training_of(blockwise={"epochs": 2, "lr": 0.03})
    assert training.warm_start
    training.warm_start.fit()
    student = training.objective.student.train()
    norm = student.blocks[2].bn1
    kept = norm.running_mean.clone()
    means: list[Tensor] = []
    handle = norm.register_forward_pre_hook(lambda layer, inputs: means.append(inputs[0].mean((0, 2, 3)).detach()))
    for batch in training.data.epoch(0, 0, BatchFormat(32)):
        student(batch.images)
    handle.remove()
    assert torch.allclose(kept, torch.stack(means).mean(0), atol=1e-5)
    assert norm.momentum == 0.1


@pytest.mark.parametrize(
    ("expression", "options"),
    [
        ("scratch", {}),
        ("simkd", {}),
        ("iakd", {"iakd": {"stem": "teacher", "head": "teacher"}}),
        ("iakd+kd", {"iakd": {"form": "two_path", "student_bn": "separate"}}),
        ("iakd+at", {"iakd": {"form": "two_path", "unit": "stage"}}),
        ("kcd", {"kcd": {"every": 2}}),
    ],
)
def test_any_method_can_follow(expression: str, options: dict[str, Any]) -> None:
    training = training_of(expression, **options)
    assert training.warm_start
    teacher = models.save_weights(training.objective.teacher)
    training.warm_start.fit()
    hybrid = training.objective.hybrid
    if hybrid and hybrid.options.student_bn == "separate":
        ours = [layer for layer in training.objective.student.modules() if isinstance(layer, nn.BatchNorm2d)]
        assert all(torch.equal(a.weight, b.weight) for a, b in zip(ours, hybrid.hybrid_norms, strict=True))
        assert any((layer.weight != 1).any() for layer in ours)
    history, metrics = training.fit()
    assert metrics["warm_start"]["epochs"] == 3 and len(history) == 5
    assert models.save_weights(training.objective.teacher) == teacher
    plain = models.build(STUDENT, 1, 10)
    if expression != "simkd":
        assert set(training.objective.student.state_dict()) == set(plain.state_dict())


def test_what_the_method_has_frozen_stays() -> None:
    training = training_of("iakd", iakd={"stem": "teacher", "head": "teacher"})
    before = {k: v.clone() for k, v in training.objective.student.stem.state_dict().items()}
    assert training.warm_start
    training.warm_start.fit()
    assert all(torch.equal(value, before[key]) for key, value in training.objective.student.stem.state_dict().items())


@pytest.mark.parametrize("expression", ["kd", "iakd", "fcfd"])
def test_a_student_of_several_bit_widths(expression: str) -> None:
    """The lower ones start from the highest, each with statistics of its own."""
    several = config.Network(arch="resnet8", width=8, bits=[2, 4, 8])
    options = {**BLOCKWISE, "blockwise": {"epochs": 3, "lr": 0.03}}
    training = make_training(expression, "digits/students/run", options, student=several)
    assert training.warm_start
    training.warm_start.fit()
    student = training.objective.student
    norms = [layer for layer in student.modules() if isinstance(layer, SwitchableBatchNorm2d)]
    assert norms
    for norm in norms:
        lower = list(norm.lower_bits.values())
        assert all(torch.equal(each.weight, norm.weight) for each in lower)
        assert torch.isfinite(lower[0].running_var).all() and int(lower[0].num_batches_tracked) > 0
    assert not torch.equal(norms[-1].running_var, next(iter(norms[-1].lower_bits.values())).running_var)
    history, _ = training.fit()
    assert len(history) == 5


# --- settings ---


def plan(method: dict[str, Any]) -> Any:
    settings = {"teachers": [{"arch": "resnet14"}], "students": [{"arch": "resnet8"}], "methods": {"mine": method}}
    return plan_experiment(parse(settings, "test")).students[0]


def test_its_settings_are_part_of_the_run_where_it_is_used() -> None:
    job = plan({"method": "scratch", "init": "blockwise", "blockwise": {"epochs": 2}})
    assert job.settings["method"]["blockwise"] == {"epochs": 2, "lr": 0.01}
    assert job.settings["teacher"] is not None
    assert "blockwise" not in plan({"method": "kd"}).settings["method"]
    assert plan({"method": "scratch"}).settings["teacher"] is None


def test_options_that_nothing_uses_are_refused() -> None:
    with pytest.raises(ValidationError, match="init: random does not use; set init: blockwise"):
        config.Method(method="kd", blockwise={"epochs": 3})


def test_an_impossible_pair_is_a_one_line_error() -> None:
    with pytest.raises(UserError, match="impossible pair: stage 1 of the teacher has 1 blocks"):
        between("resnet14", "resnet8")
