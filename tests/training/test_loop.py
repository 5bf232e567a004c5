"""The training loop by meaning."""

import math
import os
import signal
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from iakd import models
from iakd.config import Schedule
from iakd.data.loader import BatchFormat
from iakd.errors import RunFailed, UserError
from iakd.processes import Interrupt
from iakd.training import checkpoint
from iakd.training.trainer import EpochSums, Trainer

Make = Callable[..., Trainer]
FitUntil = Callable[[Trainer, int], None]


def weights(training: Trainer) -> bytes:
    return models.save_weights(training.objective.student)  # type: ignore[arg-type]


def stripped(history: list[dict[str, float | int | None]]) -> list[dict[str, float | int | None]]:
    return [{k: v for k, v in row.items() if k not in ("seconds", "cpu_seconds", "images_per_s")} for row in history]


def first_epoch(training: Trainer) -> None:
    for _ in training.epoch(Interrupt()):
        pass
    training.checkpoints.wait()


def test_the_loop_is_plain_sgd_written_out(make_training: Make) -> None:
    """Scratch training equals a few lines of PyTorch, bit for bit."""
    training = make_training(epochs=3, augment={}, label_smoothing=0.1)
    plain = make_training(epochs=3, augment={}, label_smoothing=0.1)
    training.fit()
    net, data, timeline = plain.objective.student.train(), plain.data, plain.timeline
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, fused=True)
    step = 0
    for epoch in range(3):
        for batch in data.epoch(0, epoch, BatchFormat(16, channels_last=True)):
            optimizer.param_groups[0]["lr"] = timeline.lr(step)
            optimizer.zero_grad()
            F.cross_entropy(net(batch.images), batch.labels, label_smoothing=0.1).backward()
            optimizer.step()
            step += 1
    assert weights(training) == weights(plain)


def test_p_1_equals_plain_training_bit_for_bit(make_training: Make) -> None:
    plain, interactive = make_training("scratch"), make_training("iakd", schedule=Schedule(p0=1.0))
    plain_history, _ = plain.fit()
    history, _ = interactive.fit()
    assert weights(plain) == weights(interactive)
    assert [row["loss"] for row in plain_history] == [row["loss"] for row in history]


def test_below_p_1_the_training_differs(make_training: Make) -> None:
    plain, interactive = make_training("scratch"), make_training("iakd")
    plain.fit(), interactive.fit()
    assert weights(plain) != weights(interactive)


@pytest.mark.parametrize(
    ("expression", "settings"),
    [
        ("scratch", {}),
        ("kd", {"optimizer": "adamw", "lr": 0.005}),
        ("iakd", {"ema": 0.9, "lr_schedule": {"kind": "cosine", "warmup": 0.1}}),
        ("iakd+kd", {"precision": "bf16", "clip_norm": 1.0}),
        ("iakd", {"options": {"iakd": {"bn_reestimate": True, "teacher_bn": "batch"}}}),
    ],
)
@pytest.mark.parametrize("stops", [[3], [1, 5, 6, 18]])
def test_interrupted_equals_uninterrupted(
    make_training: Make, fit_until: FitUntil, expression: str, settings: dict[str, object], stops: list[int]
) -> None:
    """Killed after any step, in the middle of an epoch or at its end: same weights, same history, same metrics."""
    whole = make_training(expression, path="whole", **settings)
    expected_history, expected_metrics = whole.fit()
    torch.manual_seed(1234)  # nothing may depend on what the process drew before
    for stop in stops:
        part = make_training(expression, path="part", **settings)
        fit_until(part, stop)
        assert part.step == stop
    resumed = make_training(expression, path="part", **settings)
    history, metrics = resumed.fit()
    assert weights(resumed) == weights(whole)
    assert stripped(history) == stripped(expected_history)
    assert metrics == expected_metrics


def test_a_cluster_may_send_its_signals_several_times(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning before a time limit, then those that end the job, while the step is still running."""
    whole, part = make_training(path="whole"), make_training(path="part", compute={"checkpoint_seconds": 1e9})
    whole.fit()
    original = part.train_step

    def step_and_signals(batch: object) -> None:
        if part.step + 1 == 4:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
        original(batch)

    monkeypatch.setattr(part, "train_step", step_and_signals)
    with pytest.raises(KeyboardInterrupt, match="SIGUSR1"):
        part.fit()
    resumed = make_training(path="part")
    resumed.fit()
    assert part.step == 4 and (part.run.live / "checkpoint.pt").exists()
    assert weights(resumed) == weights(whole)


def test_a_second_interrupt_from_the_keyboard_ends_a_training_at_once() -> None:
    with pytest.raises(KeyboardInterrupt, match="SIGINT"), Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.name == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)


def test_validations_before_an_interruption_are_told_again_in_order(make_training: Make) -> None:
    seen: list[int] = []
    part = make_training(
        epochs=6, on_validation=lambda epoch, row: os.kill(os.getpid(), signal.SIGINT) if epoch == 4 else None
    )
    with pytest.raises(KeyboardInterrupt):
        part.fit()
    make_training(epochs=6, on_validation=lambda epoch, row: seen.append(epoch)).fit()
    assert seen == [2, 4, 6]


def test_a_checkpoint_of_other_settings_is_not_resumed(make_training: Make) -> None:
    part = make_training(compute={"checkpoint_seconds": 0})
    first_epoch(part)
    assert checkpoint.load(part.run.live, "key") is not None
    other = make_training()
    other.run.key = "another"
    other._restore()
    assert other.step == 0


def test_a_damaged_checkpoint_is_one_clear_line(make_training: Make) -> None:
    part = make_training(compute={"checkpoint_seconds": 0})
    first_epoch(part)
    path = part.run.live / checkpoint.NAME
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged; delete it"):
        make_training().fit()
    path.write_bytes(bytes(content[:100]))
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        make_training().fit()


def test_a_loss_that_is_no_longer_finite_stops_the_run(make_training: Make) -> None:
    training = make_training(lr=1e20, epochs=6)
    with pytest.raises(
        RunFailed, match=r"toy/students/run: the loss is no longer finite in epoch 1 .*lower recipe\.lr"
    ):
        training.fit()


def test_no_checkpoint_is_made_of_a_loss_that_is_not_finite(make_training: Make) -> None:
    training = make_training(lr=1e20, compute={"checkpoint_seconds": 0})
    with pytest.raises(RunFailed):
        training.fit()
    state = checkpoint.load(training.run.live, "key")
    assert state is None or all(torch.isfinite(values).all() for _, values in state["sums"]["terms"])


@pytest.mark.parametrize("expression", ["scratch", "kd", "iakd", "iakd+kd", "label_smoothing"])
def test_modes_in_every_step(make_training: Make, monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    """The student trains in training mode after every validation; the teacher never leaves evaluation mode."""
    training = make_training(expression, validate_every=1)
    original = training.train_step

    def check(batch: object) -> None:
        assert all(module.training for module in training.objective.student.modules())
        assert not any(module.training for module in training.objective.teacher.modules())
        original(batch)

    monkeypatch.setattr(training, "train_step", check)
    training.fit()


@pytest.mark.parametrize("expression", ["kd", "iakd", "iakd+kd"])
def test_a_training_leaves_its_teacher_byte_identical(make_training: Make, expression: str) -> None:
    training = make_training(expression)
    before = models.save_weights(training.objective.teacher)
    training.fit()
    assert models.save_weights(training.objective.teacher) == before


@pytest.mark.parametrize("expression", ["scratch", "label_smoothing", "kd", "iakd", "iakd+kd"])
def test_every_method_lowers_its_loss_and_learns(make_training: Make, expression: str) -> None:
    history, metrics = make_training(expression, epochs=25, n=160).fit()
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    if "kd" not in expression.split("+"):  # the teacher in this test knows nothing worth imitating
        assert metrics["val_top1"] > 60  # chance is 25


def test_history_has_one_row_an_epoch_with_the_sums_of_its_terms(make_training: Make) -> None:
    history, metrics = make_training("iakd+kd", epochs=5).fit()
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]
    assert [row["step"] for row in history] == [5, 10, 15, 20, 25]
    assert ["val_top1" in row for row in history] == [False, True, False, True, True]
    for row in history:
        assert row["loss"] == pytest.approx(row["loss_ce"] + row["loss_kd"], rel=1e-5)
        assert {"p_planned_0", "p_drawn_2", "train_top1", "images_per_s", "lr"} <= row.keys()
    assert metrics["val_top1"] == history[-1]["val_top1"]
    assert history[-1]["p_drawn_0"] == 1.0


def test_drawn_rates_are_those_of_the_blocks_that_ran(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training("iakd", schedule=Schedule(kind="uniform", p0=0.4, student_only=0.0), n=200)
    calls = [0, 0, 0]
    for position, block in enumerate(training.objective.student.blocks):

        def count(module: object, inputs: object, output: object, position: int = position) -> None:
            if torch.is_grad_enabled():
                calls[position] += 1

        block.register_forward_hook(count)
    history, _ = training.fit()
    steps = training.timeline.steps_per_epoch
    assert calls == [round(sum(row[f"p_drawn_{i}"] * steps for row in history)) for i in range(3)]


def test_ema_is_the_moving_average_of_the_weights(make_training: Make) -> None:
    training = make_training(epochs=1, ema=0.5, augment={})
    name, expected = "head.2.weight", None
    original = training.train_step

    def step(batch: object) -> None:
        nonlocal expected
        original(batch)
        now = training.objective.student.state_dict()[name].clone()
        expected = now if expected is None else 0.5 * expected + 0.5 * now

    training.train_step = step
    training.fit()
    assert torch.allclose(training.objective.student.state_dict()[name], expected, atol=1e-6)


def test_clipping_bounds_the_whole_gradient(make_training: Make) -> None:
    training = make_training(clip_norm=0.01, momentum=0.0, weight_decay=0.0, lr=1.0, epochs=1)
    before = [p.detach().clone() for p in training.objective.student.parameters()]
    training.objective.train()
    training.train_step(next(training.data.epoch(0, 0, BatchFormat(16))))
    moved = math.sqrt(
        sum(((p - q) ** 2).sum().item() for p, q in zip(training.objective.student.parameters(), before, strict=True))
    )
    assert moved == pytest.approx(0.01, rel=1e-3)


def test_bf16_keeps_weights_and_losses_in_float32(make_training: Make) -> None:
    training = make_training("kd", precision="bf16", epochs=1)
    training.objective.train()
    batch = next(training.data.epoch(0, 0, BatchFormat(16)))
    with torch.autocast("cpu", torch.bfloat16):
        terms, logits = training.objective(batch, 0)
    assert logits.dtype == torch.bfloat16
    assert {term.dtype for term in terms.values()} == {torch.float32}
    training.fit()
    assert {p.dtype for p in training.objective.student.parameters()} == {torch.float32}


def test_terms_of_parts_are_computed_outside_autocast(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training("kd", precision="bf16", epochs=1)
    product: list[torch.Tensor] = []
    monkeypatch.setattr(
        next(iter(training.objective.losses.values())),
        "forward",
        lambda step: product.append(step.student_logits @ step.teacher_logits.T) or {"kd": product[0].mean()},
    )
    with torch.autocast("cpu", torch.bfloat16):
        training.objective(next(training.data.epoch(0, 0, BatchFormat(16))), 0)
    assert product[0].dtype == torch.float32


def test_batchnorm_statistics_can_be_gathered_anew(make_training: Make) -> None:
    training = make_training("iakd", options={"iakd": {"bn_reestimate": True}}, batch_size=70, epochs=1)
    training.fit()
    captured: list[torch.Tensor] = []
    training.objective.student.stem[0].register_forward_hook(lambda module, inputs, output: captured.append(output))
    training.objective.student.eval()
    order = next(training.data.plain(70)).images
    training.objective.student(order)
    bn = training.objective.student.stem[1]
    assert torch.allclose(bn.running_mean, captured[0].mean((0, 2, 3)), atol=1e-5)
    assert bn.momentum == 0.1


@pytest.mark.parametrize("recipe", [{}, {"optimizer": "adamw", "lr": 0.005}])
def test_a_training_may_go_on_in_another_memory_layout(make_training: Make, recipe: dict[str, object]) -> None:
    """The optimiser's state follows the weights: otherwise momenta would be added to other weights than their own."""
    before = {"channels_last": False, "checkpoint_seconds": 0}
    whole = make_training("iakd", path="whole", compute=before, **recipe)
    whole.fit()
    first_epoch(make_training("iakd", path="part", compute=before, **recipe))
    part = make_training("iakd", path="part", compute={"channels_last": True}, **recipe)
    part.fit()
    assert part.objective.student.stem[0].weight.is_contiguous(memory_format=torch.channels_last)
    for name, value in whole.objective.student.state_dict().items():
        torch.testing.assert_close(part.objective.student.state_dict()[name], value, rtol=1e-3, atol=1e-4)


def test_sums_go_on_where_a_checkpoint_left_them() -> None:
    device, generator = torch.device("cpu"), torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(2, generator=generator), torch.randn(n, 3, generator=generator), torch.arange(n) % 3)
        for n in (4, 4, 2)
    ]
    whole, part = EpochSums(device), EpochSums(device)
    for position, (values, logits, labels) in enumerate(batches):
        if position == 2:
            saved = part.state_dict()
            part = EpochSums(device)
            part.load_state_dict(saved)
        for sums in (whole, part):
            sums.add(("ce", "kd"), values, (logits.argmax(1) == labels).sum(), len(labels))
            sums.images += len(labels)
    assert part.means() == whole.means()
    expected = sum(len(labels) * values.double().sum().item() for values, _, labels in batches) / 10
    assert whole.means()["loss"] == pytest.approx(expected, rel=1e-6)
    right = sum(int((logits.argmax(1) == labels).sum()) for _, logits, labels in batches)
    assert whole.means()["train_top1"] == pytest.approx(10.0 * right)
    whole.reset()
    assert whole.loss() == 0.0
