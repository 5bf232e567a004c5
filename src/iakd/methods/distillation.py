"""Every method of this project: a sum of parts, with the hybrid network in front where `iakd` is among them."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from iakd import params
from iakd.data.batches import Batch
from iakd.data.sets import ImageSet
from iakd.interactive.hybrid import Hybrid
from iakd.methods.losses import cross_entropy
from iakd.methods.parts import PARTS, Views
from iakd.models import Network
from iakd.training.loop import LossTerms
from iakd.training.timeline import Timeline


class Distillation:
    """Trains `network` by `method`; implements `training.loop.Method`. `teacher` is frozen and never changed."""

    def __init__(
        self,
        network: Network,
        teacher: Network | None,
        method: params.Method,
        schedule: params.Schedule | None,
        timeline: Timeline,
        seed: int,
        smoothing: float = 0.0,
    ) -> None:
        self.network = network
        self.teacher = teacher.eval().requires_grad_(False) if teacher else None
        self.options = method.iakd
        self.parts = [PARTS[name](method) for name in method.parts]
        self.ce_weight = max(part.ce_weight for part in self.parts)
        self.smoothing = max(smoothing, *(part.smoothing for part in self.parts))
        self.hybrid: Hybrid | None = None
        if "iakd" in method.parts:
            assert teacher is not None and schedule is not None
            self.hybrid = Hybrid(network, teacher, method.iakd, schedule, timeline, seed)

    def loss(self, batch: Batch, step: int) -> tuple[LossTerms, Tensor]:
        """Terms of `ce_weight`·CE + Σ terms; the logits returned are those that the cross-entropy sees."""
        views = Views(batch, self.network, self.teacher)
        hybrid = self.hybrid
        logits = hybrid(batch.images, hybrid.draws.at(step)) if hybrid else views.student_logits
        terms = {"ce": self.ce_weight * cross_entropy(logits, batch.labels, self.smoothing)}
        for part in self.parts:
            for name, term in part.terms:
                taught = views.student_logits if self.options.path == "student" else logits
                terms[name] = term(views, taught)
        return terms, logits

    def parameters(self) -> Iterable[nn.Parameter]:
        """Trainable parameters of the network, then those of the adapters."""
        yield from (parameter for parameter in self.network.parameters() if parameter.requires_grad)
        if self.hybrid:
            yield from self.hybrid.parameters()

    def train(self) -> None:
        """Network in training mode; teacher and whatever was copied from it, frozen, in evaluation mode."""
        if self.hybrid:
            self.hybrid.train()
        else:
            self.network.train()

    def epoch_record(self, epoch: int) -> dict[str, float]:
        """Planned and drawn share of steps in which each student block was kept: `p_planned_<i>`, `p_drawn_<i>`."""
        if not self.hybrid:
            return {}
        planned = self.hybrid.draws.planned(epoch).mean(axis=0)
        drawn = self.hybrid.draws.drawn(epoch).mean(axis=0)
        record = {f"p_planned_{i}": round(float(p), 6) for i, p in enumerate(planned)}
        return record | {f"p_drawn_{i}": round(float(p), 6) for i, p in enumerate(drawn)}

    @torch.no_grad()
    def finish(self, data: ImageSet, batch_size: int) -> None:
        """Gather the student's BatchNorm statistics anew on its own activations, where asked for."""
        if not (self.hybrid and self.options.bn_reestimate):
            return
        self.train()
        layers = [m for m in self.network.modules() if isinstance(m, nn.BatchNorm2d) and m.training]
        momenta = [layer.momentum for layer in layers]
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over all batches instead of a moving average
        for batch in data.epoch(0, 0, batch_size, params.Augment()):
            self.network(batch.images)
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum

    def state_dict(self) -> dict[str, Any]:
        """The adapters' weights and statistics."""
        return {"swapped": self.hybrid.swapped.state_dict()} if self.hybrid else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if self.hybrid:
            self.hybrid.swapped.load_state_dict(state["swapped"])
