"""From the name of a method to its loss class, loaded when it is first asked for."""

from functools import cache

import torch

from iakd import config
from iakd.config import METHODS
from iakd.data.loader import steps_per_epoch
from iakd.distillation.loss import DistillationLoss
from iakd.errors import UserError
from iakd.models import Network
from iakd.models.shapes import Shape
from iakd.plugins import import_object
from iakd.seeding import derive
from iakd.training.timeline import Timeline


@cache
def loss_class(name: str) -> type[DistillationLoss]:
    """The loss of a method; the base class, which adds nothing, where it has none of its own."""
    reference = METHODS[name].loss
    if reference is None:
        return DistillationLoss
    found = import_object(reference)
    if not (isinstance(found, type) and issubclass(found, DistillationLoss)):
        raise UserError(f"method {name}: {reference} is not a DistillationLoss")
    return found


def timeline_of(recipe: config.Recipe, method: config.Method, n: int) -> Timeline:
    """The timeline of a training on `n` images. Raises UserError where an epoch would have no step."""
    images = [
        min(loss_class(name).images_per_epoch(method.options(name), n, epoch) for name in method.names)
        for epoch in range(recipe.epochs)
    ]
    lengths = [steps_per_epoch(count, recipe.batch_size) for count in images]
    return Timeline.of(recipe, steps_per_epoch(n, recipe.batch_size), lengths)


def changes_student(method: config.Method) -> bool:
    """Whether it leaves anything but the student that the settings name."""
    return any(loss_class(name).deploy is not DistillationLoss.deploy for name in method.names)


def deploy(student: Network, teacher: Network, method: config.Method, image: Shape, seed: int = 0) -> None:
    """Make of `student` what `method` deploys, for images of shape `image` (channels, height, width).

    To load finished weights into, the teacher needs its architecture only. Raises UserError for networks that the
    method cannot be used with.
    """
    for name in method.names:
        generator = torch.Generator().manual_seed(derive("deployed", name, seed))
        loss_class(name).deploy(student, teacher, method.options(name), image, generator)
