"""What every method has to do: each name that `iakd methods` lists is tried on real images.

A method that needs other settings to be quick on tiny networks has them in OPTIONS.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from digit_training import STUDENT, fixed_batch, make_training
from pydantic import ValidationError
from torch import Tensor, nn

from iakd import config, models
from iakd.config import METHODS, shortest_sum
from iakd.errors import UnsuitableSettings
from iakd.training.trainer import Trainer

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]

OPTIONS: dict[str, dict[str, Any]] = {  # by method
    # its loss rises until the memories are no longer random, at its own temperature for longer than these trainings
    "crd": {"negatives": 128, "temperature": 0.2},
    "kcd": {"every": 2},
}
RECIPE: dict[str, dict[str, Any]] = {  # by method, where the common one is too hard on it
    "sp": {"clip_norm": 5.0},  # their weights are made for batches of 64, and grow as batches shrink
    "pkt": {"clip_norm": 5.0},
    "ft": {"clip_norm": 5.0},  # its weight is 200: without, thirty steps lower its loss on some processors only
}
OWN_TERMS_MAY_RISE: dict[str, str] = {}  # method: why
STUDENT_GROWS: set[str] = {"simkd"}  # methods whose student keeps something beside its own network


def options(name: str) -> dict[str, Any]:
    return {name: OPTIONS[name]} if name in OPTIONS else {}


@dataclass
class Whole:
    """A training that ran from its first step to its last."""

    name: str
    training: Trainer
    history: list[dict[str, float | int | None]]
    metrics: dict[str, Any]
    teacher: bytes  # before
    before: dict[str, float]  # terms of a fixed batch, weighted as in the last step
    after: dict[str, float]


def terms_at_the_end(training: Trainer) -> dict[str, float]:
    training.objective.train()
    terms, _ = training.objective(fixed_batch(training), training.timeline.total - 1)
    return {name: float(term.detach()) for name, term in terms.items()}


FORMS: dict[str, tuple[str, dict[str, Any]]] = {  # further forms of a method: its name and options
    "iakd two-path": ("iakd", {"form": "two_path"}),
    "iakd two-path, separate": (
        "iakd",
        {"form": "two_path", "paths_per_step": 3, "label_weight": 0.5, "student_bn": "separate", "seam_weight": 0.02},
    ),
    "ot of batches": ("ot", {"sets": "images"}),
    "mutual in turns": ("mutual", {"turns": "steps", "peer_lr": 0.02}),
}


def train(name: str, path: str = "digits/students/run") -> Trainer:
    if name in FORMS:
        method, chosen = FORMS[name]
        return make_training(method, path, {method: chosen})
    return make_training(shortest_sum(name), path, options(name), **RECIPE.get(name, {}))


@pytest.fixture(scope="module", params=[*METHODS, *FORMS])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    """One training per method, which the tests below look at from several sides. It leaves them in its folder."""
    name = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("method"))
        before = terms_at_the_end(train(name))
        training = train(name)
        teacher = models.save_weights(training.objective.teacher)
        history, metrics = training.fit()
        yield Whole(name, training, history, metrics, teacher, before, terms_at_the_end(train_again(training, name)))


def train_again(training: Trainer, name: str) -> Trainer:
    """Return a copy of a training, so that tests do not change the state of its losses."""
    copy = train(name, "digits/students/copy")
    copy.objective.finish(copy.data, copy.recipe.batch_size)  # the trained student is as it is deployed
    copy.objective.student.load_state_dict(training.objective.student.state_dict())
    copy.objective.load_state_dict(training.objective.state_dict())
    return copy


def test_thirty_steps_lower_its_loss(whole: Whole) -> None:
    assert whole.training.step == whole.training.timeline.total <= 30
    assert sum(whole.after.values()) < 0.9 * sum(whole.before.values())
    own = [term for term in whole.before if term != "ce"]
    name = FORMS[whole.name][0] if whole.name in FORMS else whole.name
    if not (METHODS[name].joins or METHODS[name].base):  # so that no loss of a sum overwrites another's term
        assert all(term == name or term.startswith(f"{name}_") for term in own)
    if own and whole.name not in OWN_TERMS_MAY_RISE:
        assert sum(whole.after[term] for term in own) < sum(whole.before[term] for term in own)


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries and lists."""
    match state:
        case Tensor():
            yield state
        case dict():
            for value in state.values():
                yield from tensors(value)
        case list():
            for value in state:
                yield from tensors(value)


def test_interrupted_equals_uninterrupted(whole: Whole, fit_until: FitUntil) -> None:
    """Killed in the middle of an epoch, then at the end of one: same student, same history, same memories."""
    torch.manual_seed(1234)  # nothing may depend on what the process drew before
    for stop in (4, 18):
        part = train(whole.name, "digits/students/part")
        fit_until(part, stop)
    resumed = train(whole.name, "digits/students/part")
    history, metrics = resumed.fit()
    assert models.save_weights(resumed.objective.student) == models.save_weights(whole.training.objective.student)
    assert metrics == whole.metrics
    for row in (*history, *whole.history):
        del row["seconds"], row["cpu_seconds"], row["images_per_s"]
    assert history == whole.history
    remembered = list(tensors(whole.training.objective.state_dict()))
    assert all(map(torch.equal, tensors(resumed.objective.state_dict()), remembered))


def test_the_student_is_a_plain_student_afterwards(whole: Whole) -> None:
    plain = models.build(STUDENT, 1, 10)
    student = whole.training.objective.student
    if whole.name not in STUDENT_GROWS:
        shapes = {key: value.shape for key, value in student.state_dict().items()}
        assert shapes == {key: value.shape for key, value in plain.state_dict().items()}
        assert [type(module) for module in student.modules()] == [type(module) for module in plain.modules()]
    for module in [*student.modules(), *whole.training.objective.teacher.modules()]:
        assert not (module._forward_hooks or module._forward_pre_hooks or module._backward_hooks)
        assert "forward" not in vars(module)


def test_the_teacher_is_left_byte_identical(whole: Whole) -> None:
    teacher: nn.Module = whole.training.objective.teacher
    assert models.save_weights(teacher) == whole.teacher
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())


def test_losses_are_float32_and_finite_under_bf16_and_huge_weights(whole: Whole) -> None:
    training = train_again(whole.training, whole.name)
    training.objective.train()
    with torch.no_grad():
        for parameter in training.objective.student.head.parameters():
            parameter.mul_(1000)
    with torch.autocast("cpu", torch.bfloat16):
        terms, _ = training.objective(fixed_batch(training), 20)
    assert {term.dtype for term in terms.values()} == {torch.float32}
    assert all(torch.isfinite(term) and term.shape == () for term in terms.values())
    torch.stack(list(terms.values())).sum().backward()
    gradients = [p.grad for p in training.objective.parameters() if p.grad is not None]
    assert gradients and all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("form", ["single_path", "two_path"])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "iakd"])
def test_it_can_be_added_to_iakd_or_says_why_not(make_training: Make, name: str, form: str) -> None:
    expression = f"iakd+{shortest_sum(name)}"
    try:
        config.Method(method=expression)
    except ValidationError as error:
        assert METHODS[name].alone or METHODS[name].refuses.get("iakd") or METHODS["iakd"].refuses.get(name)
        assert "cannot be added" in str(error)
        return
    training = make_training(expression, options={**options(name), "iakd": {"form": form}})
    training.objective.train()
    for epoch in range(3):
        training.train_step(fixed_batch(training, epoch))
        training.step += training.timeline.steps_per_epoch
    means = training.sums.means()
    assert math.isfinite(means["loss"])
    own = make_training(shortest_sum(name), options=options(name))
    own.objective.train()
    terms, _ = own.objective(fixed_batch(own), 0)
    assert {f"loss_{term}" for term in terms} <= set(means)


@pytest.mark.parametrize("name", [*METHODS, *FORMS])
def test_batches_of_two_and_three_images_on_maps_of_one_pixel(make_training: Make, name: str) -> None:
    """The smallest that a training may have, where BatchNorm has the fewest values."""
    method = FORMS[name][0] if name in FORMS else name
    chosen = {method: FORMS[name][1]} if name in FORMS else options(name)
    expression = method if name in FORMS else shortest_sum(name)
    try:
        training = make_training(expression, options=chosen, student=config.Network(arch="vgg8", width=8), batch_size=3)
    except UnsuitableSettings:
        assert name in ("fsp", "rcn")  # which need networks of one kind
        return
    training.objective.train()
    for step, size in enumerate((2, 3, 2)):
        batch = next(training.data.plain(size))
        batch = dataclasses.replace(batch, second_view=batch.images if name == "mlkd" else None)
        training.step = 20 * step  # in both phases of methods that have two
        training.train_step(batch)
    assert math.isfinite(training.sums.loss())


@pytest.mark.parametrize("name", list(METHODS))
def test_it_has_a_page(name: str) -> None:
    """And the index of docs/methods leads there, with the line that `iakd methods` shows."""
    folder = Path(__file__).parents[2] / "docs" / "methods"
    line = re.search(rf"^\| \[`{name}`\]\((.+?)\) \| (.+) \|$", (folder / "README.md").read_text(), re.MULTILINE)
    assert line, f"docs/methods/README.md does not list {name}"
    assert (folder / line[1]).exists()
    assert line[2] == METHODS[name].summary
