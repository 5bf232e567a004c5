"""The training loop. An `Objective` computes the loss of a batch; everything else is the same for all trainings.

Interrupted = uninterrupted, bit for bit on the CPU: every random stream is a function of (name, seed, epoch), the
learning rate is a function of the step, and the rest (weights, optimizer, objective, sums of the epoch, torch's own
generators) is in the checkpoint.
"""

import contextlib
import logging
import math
import time
from collections.abc import Callable, Generator, Hashable, Iterator
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from iakd.config import Augment, Compute, Recipe
from iakd.data.loader import Batch, BatchFormat, EpochData, ImageLoader
from iakd.devices import set_memory_format, use_channels_last
from iakd.errors import Diverged, UserError
from iakd.experiment.run_dir import Row, Run
from iakd.models import Network
from iakd.models.quantisation import at_bits, bit_widths
from iakd.processes import Interrupt
from iakd.seeding import derive
from iakd.training import checkpoint
from iakd.training.cuda_graphs import make_engine
from iakd.training.data_parallel import DataParallel, data_parallel
from iakd.training.distributed import SINGLE_PROCESS, TrainingProcesses
from iakd.training.optimizer import WeightAverage, load_state, make_optimizer, set_lr
from iakd.training.progress import Progress
from iakd.training.timeline import Timeline
from iakd.training.validation import validate


class EpochSums:
    """Loss terms and correct predictions, summed over an epoch's images on the device, so that no step waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.images = 0
        self._terms: dict[tuple[str, ...], Tensor] = {}  # float32 (terms,), by their names
        self._correct = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, names: tuple[str, ...], values: Tensor, right: Tensor, images: int) -> None:
        """Add a batch of `images` images: means `values` (terms,) and the number of `right` predictions, in place."""
        if names not in self._terms:
            self._terms[names] = torch.zeros_like(values)
        self._terms[names].add_(values, alpha=images)
        self._correct.add_(right)

    def loss(self) -> float:
        """The sum of all terms; waits for the device."""
        return sum(total.sum().item() for total in self._terms.values())

    def means(self) -> dict[str, float]:
        """`loss`, `loss_<term>` and `train_top1` (percent), over the images so far; waits for the device."""
        totals: dict[str, float] = {}
        for names, values in self._terms.items():
            for name, value in zip(names, values.tolist(), strict=True):
                totals[f"loss_{name}"] = totals.get(f"loss_{name}", 0.0) + value
        means = {name: total / self.images for name, total in totals.items()}
        return {"loss": sum(means.values()), **means, "train_top1": 100.0 * self._correct.item() / self.images}

    def reset(self) -> None:
        """Begin an epoch."""
        self.images = 0
        for tensor in (*self._terms.values(), self._correct):
            tensor.zero_()

    def state_dict(self) -> dict[str, Any]:
        """All sums, for a checkpoint."""
        return {
            "images": self.images,
            "correct": self._correct,
            "terms": [[list(k), v] for k, v in self._terms.items()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.images = state["images"]
        self._correct.copy_(state["correct"])
        self._terms = {tuple(names): values.to(self.device) for names, values in state["terms"]}


LossTerms = dict[str, Tensor]
TrainingResult = tuple[list[Row], dict[str, Any]]  # history and final metrics
OnValidation = Callable[[int, Row], None]
VALIDATION_BATCH = 512  # images: more are no faster, and set the peak of a CPU training's memory
VALIDATION_VALUES = 1 << 24  # and fewer where they are large: values of a batch

log = logging.getLogger(__name__)


class Objective(nn.Module):
    """What a training minimises: `forward` computes the loss of a batch. Everything else is the same for all trainings.

    `student` is the network that is trained and saved. All that a step computes with is a submodule: what needs a
    gradient is trained, and what state_dict contains is in the checkpoint.
    """

    timeline: Timeline
    lr_setting = "recipe.lr"  # where its learning rate comes from

    @property
    def student(self) -> Network:
        """The network that is trained and saved."""
        raise NotImplementedError

    def forward(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """Named scalars whose sum is minimised, and the logits (B, classes) that the training accuracy is read from.

        For mixed images, the accuracy counts the first label.
        """
        raise NotImplementedError

    def trained_parameters(self) -> list[nn.Parameter]:
        """Those of the student, then all that are trained with it and discarded."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def lr_factors(self) -> dict[nn.Parameter, float]:
        """The learning rate of parameters that have another one than the recipe's, as a multiple of it."""
        return {}

    @property
    def peer(self) -> Network | None:
        """A second network that is trained for its own sake: validated with the student and saved beside it."""
        return None

    def epoch_data(self, epoch: int, augment: Augment) -> EpochData:
        """What it asks of an epoch's images, whose first view has the augmentation `augment`.

        Called when the epoch starts or resumes.
        """
        return EpochData()

    def begin_step(self, step: int) -> None:
        """Prepare for `forward` at a step, outside a recorded one; `forward` does it itself where nobody has."""

    def graph_key(self, step: int) -> Hashable | None:
        """Equal for two steps that do the same to the tensors they are given, so that one can replay the other.

        None for a step that is like no other.
        """
        return None

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """Further columns for an epoch's row in the history."""
        return {}

    def record(self) -> dict[str, Any]:
        """Further entries for the final metrics."""
        return {}

    def finish(self, data: ImageLoader, batch_size: int) -> None:
        """Last work on the student, after the last step."""


class Trainer:
    """One training run, from wherever its last checkpoint left it. Without `validation`, nothing is validated.

    With a `warm_start`, that training of the same student runs to its end before the first step. The two never need
    their state at the same time, so they share the run's checkpoint file, each with its own key.
    """

    def __init__(
        self,
        run: Run,
        objective: Objective,
        data: ImageLoader,
        validation: ImageLoader | None,
        recipe: Recipe,
        compute: Compute,
        on_validation: OnValidation | None = None,
        processes: TrainingProcesses = SINGLE_PROCESS,
    ) -> None:
        self.run = run
        self.objective = objective
        self.data = data
        self.validation = validation
        self.recipe = recipe
        self.checkpoint_seconds = compute.checkpoint_seconds
        self.checkpoints = checkpoint.Writer(run.live)
        self.on_validation = on_validation or (lambda epoch, row: None)
        self.processes = processes
        self.data_parallel: DataParallel | None = None  # with several processes
        self.timeline = objective.timeline
        self.device = next(objective.parameters()).device
        self.channels_last = use_channels_last(compute, self.device, objective)
        set_memory_format(objective, self.channels_last)
        self.engine = make_engine(compute, self.device, self.update, processes.count)
        self.parameters = objective.trained_parameters()
        capturable = bool(self.engine.graphs)
        self.optimizer = make_optimizer(self.parameters, recipe, capturable, objective.lr_factors())
        self.average = WeightAverage(objective.student, recipe.ema) if recipe.ema else None
        self.warm_start: Trainer | None = None
        self.warm_start_record: dict[str, Any] = {}  # its last losses and metrics, once it has ended
        self.history: list[Row] = []
        self.step = 0  # of the whole training
        self.sums = EpochSums(self.device)  # of the epoch
        self.epoch_seconds = self.epoch_cpu_seconds = 0.0
        self._resumed = self._saved = time.monotonic()

    def fit(self) -> TrainingResult:
        """Train to the end; returns the history and the final metrics.

        Raises Diverged where the loss is no longer finite, KeyboardInterrupt (after a checkpoint) at a signal.
        """
        with Interrupt() as interrupt:
            steps = self.steps(interrupt)
            while True:
                try:
                    next(steps)
                except StopIteration as end:
                    outcome: TrainingResult = end.value
                    return outcome

    def steps(self, interrupt: Interrupt) -> Generator[None, None, TrainingResult]:
        """Like `fit`, one step at a time, so that several trainings can take turns (`training.interleaved`)."""
        with contextlib.ExitStack() as stack:
            for images in (self.data, self.validation):
                if images is not None:
                    stack.enter_context(contextlib.closing(images))
            stack.callback(self.checkpoints.wait)  # before the run's results are published, or another training saves
            torch.manual_seed(derive("global", self.run.seed))
            if not self._restore() and self.warm_start:
                yield from self._run_warm_start(self.warm_start, interrupt)
            if self.processes.count > 1:
                self.data_parallel = stack.enter_context(data_parallel(self.objective))
            return (yield from self._fit(interrupt))

    def _run_warm_start(self, warm_start: "Trainer", interrupt: Interrupt) -> Generator[None, None, None]:
        """Run the warm start to its end, and save a checkpoint from which this training continues without it."""
        history, metrics = yield from warm_start.steps(interrupt)
        seconds = sum(row["seconds"] or 0.0 for row in history)
        losses = {name: value for name, value in history[-1].items() if name.startswith("loss_")}
        self.warm_start_record = {"metrics": {**metrics, **losses}, "seconds": round(seconds, 3)}
        self.run.started, self.run.seconds = warm_start.run.started, warm_start.run.seconds
        torch.manual_seed(derive("global", self.run.seed))
        self._save()

    def _fit(self, interrupt: Interrupt) -> Generator[None, None, TrainingResult]:
        for row in self.history:
            if "val_top1" in row:
                self.on_validation(int(row["epoch"] or 0), row)
        self.objective.train()  # once, and after each validation: it visits every module
        with Progress(self.run.path, self.timeline.epochs) as progress:
            while self.step < self.timeline.total:
                yield from self.epoch(interrupt)
                row = self.history[-1]
                if self.processes.is_main:
                    self.run.log(self.history)
                progress.show(row)
                if "val_top1" in row:
                    self.on_validation(int(row["epoch"] or 0), row)
        if self.average:
            self.objective.student.load_state_dict(self.average.module.state_dict())
        self.objective.finish(self.data, self.recipe.batch_size)
        last = self.history[-1]
        final = self._validate(self.objective.student)
        final |= self._validate_peer()
        for bits in bit_widths(self.objective.student)[1:]:
            with at_bits(self.objective.student, bits):
                final |= {f"{name}_{bits}bit": v for name, v in self._validate(self.objective.student).items()}
        metrics = {**final, "train_loss": last["loss"], "epochs": self.timeline.epochs, "steps": self.timeline.total}
        if self.warm_start_record:
            metrics["warm_start"] = self.warm_start_record["metrics"]
            self.run.about["warm_start_seconds"] = self.warm_start_record["seconds"]
        return self.history, metrics | self.objective.record()

    def epoch(self, interrupt: Interrupt) -> Iterator[None]:
        """Run the rest of the current epoch, one step at a time, and add its row to the history."""
        epoch, first = self.timeline.locate(self.step)
        end = self.timeline.first_step(epoch + 1)
        recipe = self.recipe
        self._resumed = time.monotonic()
        form = self._batch_format()
        wanted = self.objective.epoch_data(epoch, recipe.augment)
        cpu = time.process_time()
        for batch in self.data.epoch(self.run.seed, epoch, form, first, wanted):
            self.train_step(batch)
            self.step += 1
            self.epoch_cpu_seconds += time.process_time() - cpu
            yield
            if self.step < end:  # the epoch's last checkpoint has its row, see below
                self._checkpoint_if_due(interrupt)
            cpu = time.process_time()  # without the turns of other trainings, and without checkpoints
        self._check_finite()
        self.epoch_seconds += time.monotonic() - self._resumed
        images = self.sums.images
        row: Row = {"epoch": epoch + 1, "step": self.step, "lr": self.timeline.lr(self.step - 1), **self.sums.means()}
        if (epoch + 1) % recipe.validate_every == 0 or epoch + 1 == self.timeline.epochs:
            row |= self._validate(self.average.module if self.average else self.objective.student)
            row |= self._validate_peer()
            self.objective.train()
        row |= self.objective.epoch_record(epoch)
        row["images_per_s"] = round(images / max(self.epoch_seconds, 1e-9), 1)
        row["seconds"] = round(self.epoch_seconds, 4)
        if self.device.type == "cpu":  # the cost, however busy the machine is; of a GPU's work it would say nothing
            row["cpu_seconds"] = round(self.epoch_cpu_seconds, 4)
        self.history.append(row)
        self.sums.reset()
        self.epoch_seconds = self.epoch_cpu_seconds = 0.0
        self._resumed = time.monotonic()
        self._checkpoint_if_due(interrupt)

    def _checkpoint_if_due(self, interrupt: Interrupt) -> None:
        """Save the state every `checkpoint_seconds`, and at a signal, which then ends the training.

        One that is still being written puts off the next, unless one is wanted after every step. All processes of a
        training save after the same step; the first one, which writes, decides when.
        """
        moment = time.monotonic()
        due, ending = 1, 2
        put_off = self.checkpoint_seconds > 0 and self.checkpoints.busy
        is_due = self.processes.is_main and moment - self._saved > self.checkpoint_seconds and not put_off
        wanted = ending if interrupt.name else due * is_due
        wanted = self.processes.maximum(wanted)
        if wanted:
            self.epoch_seconds += moment - self._resumed
            self._save()
            self._resumed = self._saved = time.monotonic()
        if wanted == ending:
            self.processes.on_main(self.checkpoints.wait)  # no process ends before it exists
            raise KeyboardInterrupt(interrupt.name)

    def train_step(self, batch: Batch) -> None:
        """Take one step on a batch: the learning rate of `self.step`, then `update` by the engine."""
        if batch.shard:  # each process draws for its own images
            torch.manual_seed(derive("step", self.run.seed, self.step, batch.shard.rank if batch.shard.divided else 0))
        set_lr(self.optimizer, self.timeline.lr(self.step), self.engine.lr)
        self.objective.begin_step(self.step)
        self.engine.step(batch, lambda: self.objective.graph_key(self.step))
        self.sums.images += batch.whole_size

    def loss_at(self, step: int) -> Tensor:
        """Compute the loss of a step, a scalar, without taking the step."""
        epoch, first = self.timeline.locate(step)
        self.objective.train()
        form = self._batch_format()
        wanted = self.objective.epoch_data(epoch, self.recipe.augment)
        with contextlib.closing(self.data):
            batch = next(self.data.epoch(self.run.seed, epoch, form, first, wanted))
        terms, _ = self.objective(batch, step)
        return torch.stack(list(terms.values())).sum()

    def update(self, batch: Batch) -> None:
        """Forward, backward and optimizer step. Nothing here may wait for the device, or graphs cannot be recorded."""
        forward = self.data_parallel or self.objective
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            terms, logits = forward(batch, self.step)
        values = torch.stack(list(terms.values()))
        right = (logits.detach().argmax(1) == batch.labels).sum()
        self.optimizer.zero_grad(set_to_none=True)
        if self.data_parallel:
            values, right = self.data_parallel.backward(values, right, batch)
        else:
            values.sum().backward()
        if self.recipe.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        if self.average:
            self.average.update()
        self.sums.add(tuple(terms), values.detach(), right, batch.whole_size)

    def _batch_format(self) -> BatchFormat:
        recipe = self.recipe
        balanced = recipe.sampler == "balanced"
        return BatchFormat(recipe.batch_size, recipe.augment, self.channels_last, self.processes.shard, balanced)

    def _check_finite(self) -> None:
        if not math.isfinite(self.sums.loss()):
            self._diverged("loss")

    def _validate(self, network: nn.Module) -> dict[str, float]:
        if self.validation is None:
            return {}
        batch_size = min(VALIDATION_BATCH, VALIDATION_VALUES // math.prod(self.validation.image_shape))
        metrics = validate(network, self.validation, max(1, batch_size), self.channels_last, self.processes.shard)
        if not math.isfinite(metrics["val_nll"]):  # BatchNorm's statistics can overflow before the weights do
            self._diverged("validation loss")
        return metrics

    def _validate_peer(self) -> dict[str, float]:
        peer = self.objective.peer
        return {f"peer_{name}": value for name, value in self._validate(peer).items()} if peer else {}

    def _diverged(self, what: str) -> NoReturn:
        epoch = self.timeline.locate(self.step - 1)[0] + 1
        raise Diverged(
            f"{self.run.path}: the {what} is no longer finite in epoch {epoch} (by step {self.step}); "
            f"lower {self.objective.lr_setting}, or bound the gradient with recipe.clip_norm"
        )

    def _save(self) -> None:
        self._check_finite()
        self.processes.on_main(self._write)

    def _write(self) -> None:
        state = {
            "key": self.run.key,
            "step": self.step,
            "warm_start": self.warm_start_record,
            "history": self.history,
            "sums": self.sums.state_dict(),
            "epoch_seconds": self.epoch_seconds,
            "epoch_cpu_seconds": self.epoch_cpu_seconds,
            "started": self.run.started,
            "wall_seconds": self.run.wall_seconds(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
        }
        self.checkpoints.save(state)

    def _restore(self) -> bool:
        """Continue from the checkpoint; return whether there is one."""
        state = checkpoint.load(self.run.live, self.run.key)
        step = state["step"] if state else -1
        if self.processes.on_main(lambda: step) != step:
            raise UserError(f"{self.run.live}: all processes of a training must see the same files")
        if state is None:
            return False
        self.step = state["step"]
        self.warm_start_record = state["warm_start"]
        self.history = state["history"]
        self.sums.load_state_dict(state["sums"])
        self.epoch_seconds = state["epoch_seconds"]
        self.epoch_cpu_seconds = state["epoch_cpu_seconds"]
        self.run.started = state["started"]
        self.run.seconds = state["wall_seconds"]
        self.objective.load_state_dict(state["objective"])
        load_state(self.optimizer, state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        torch.set_rng_state(state["rng"])
        if state["cuda_rng"] is not None and self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], self.device)
        log.info("%s: resuming at step %d of %d", self.run.path, self.step, self.timeline.total)
        return True
