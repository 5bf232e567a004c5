"""The loss of a method between any two networks of the zoo, and the outputs of a first step."""

from typing import Any

import torch
import torch.nn.functional as F
from digit_training import digit_images, network

from iakd import config
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.registry import loss_class
from iakd.models.features import forward_features
from iakd.training.timeline import Timeline


class Images:
    """What most losses need of a data set: the shape of its images."""

    def __init__(self, side: int) -> None:
        self.image_shape = (1, side, side)


def loss_between(
    name: str, student: str, teacher: str, side: int = 32, **options: Any
) -> tuple[DistillationLoss, ForwardOutputs]:
    """Return the loss of method `name` with `options`, its weights drawn, and the outputs of a step with two images."""
    ours, theirs = (network(config.Network(arch=arch), seed) for seed, arch in enumerate((student, teacher)))
    method = config.Method(method=name, **({name: options} if options else {}))
    timeline = Timeline.of(config.Recipe(), 10)
    part = loss_class(name)(LossContext(method.options(name), ours, theirs.eval(), Images(side), timeline, 0))  # type: ignore[arg-type]
    part.initialise(torch.Generator().manual_seed(0))
    batch = next(digit_images(0, 2).plain(2))
    images = F.interpolate(batch.images, size=(side, side))
    features = forward_features(ours, images, part.student_features)
    with torch.no_grad():
        taught = forward_features(theirs, images, part.teacher_features)
    return part, ForwardOutputs(0, batch, features, taught, torch.zeros(2, 10), None)
