"""The loss class of a method, imported on first use, and what depends on it: timelines and deployed students."""

from functools import cache

import torch

from iakd import config
from iakd.config import METHODS
from iakd.data.loader import last_batch, steps_per_epoch
from iakd.distillation.loss import DistillationLoss
from iakd.errors import UnsuitableSettings, UserError
from iakd.models import Network, build
from iakd.models.quantisation import bit_widths
from iakd.models.shapes import Shape
from iakd.plugins import import_object
from iakd.seeding import derive
from iakd.training.timeline import Timeline


@cache
def loss_class(name: str) -> type[DistillationLoss]:
    """Return the loss class of a method; the base class, which adds no term, if it has none of its own."""
    reference = METHODS[name].loss
    if reference is None:
        return DistillationLoss
    loss = import_object(reference)
    if not (isinstance(loss, type) and issubclass(loss, DistillationLoss)):
        raise UserError(f"method {name}: {reference} is not a DistillationLoss")
    return loss


def timeline_of(recipe: config.Recipe, method: config.Method, n: int) -> Timeline:
    """Return the timeline of a training on `n` images. Raises UserError if an epoch would have no step."""
    classes = {name: loss_class(name) for name in method.names}
    images = [n]  # in each epoch, or in all
    if any(loss.images_per_epoch is not DistillationLoss.images_per_epoch for loss in classes.values()):
        images = [
            min(loss.images_per_epoch(method.options(name), n, epoch) for name, loss in classes.items())
            for epoch in range(recipe.epochs)
        ]
    return Timeline.of(
        recipe,
        steps_per_epoch(n, recipe.batch_size),
        [steps_per_epoch(count, recipe.batch_size) for count in images],
        [last_batch(count, recipe.batch_size) for count in images],
    )


def changes_student(method: config.Method) -> bool:
    """Return whether the deployed student differs from the network that the settings name."""
    return any(loss_class(name).deploy is not DistillationLoss.deploy for name in method.names)


def build_deployed(
    student: config.Network, teacher: config.Network | None, method: config.Method | None, image: Shape, classes: int
) -> Network:
    """Build the network that a training by `method` leaves, without its weights, for images of shape `image` (C, H, W).

    `teacher` and `method` None: that of the settings.
    """
    network = build(student, image[0], classes)
    if method and teacher and changes_student(method):
        deploy(network, build(teacher, image[0], classes), method, image)
    return network


def deploy(student: Network, teacher: Network, method: config.Method, image: Shape, seed: int = 0) -> None:
    """Turn `student` into the network that `method` deploys, for images of shape `image` (channels, height, width).

    If trained weights are loaded afterwards, the teacher's weights do not matter. Raises UserError if the method cannot
    be used with these networks.
    """
    if bit_widths(student):
        raise UnsuitableSettings(
            f"{method.method} adds layers to the student, so it cannot train one of several bit-widths"
        )
    for name in method.names:
        generator = torch.Generator().manual_seed(derive("deployed", name, seed))
        loss_class(name).deploy(student, teacher, method.options(name), image, generator)
