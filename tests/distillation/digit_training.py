"""Small trainings on real images: scikit-learn's digits, by a teacher that was trained on them for a moment."""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F

from iakd import config, models
from iakd.config import Compute, Recipe
from iakd.data.loader import Batch, BatchFormat, DeviceLoader, EpochData
from iakd.data.sources import digits
from iakd.distillation.distiller import make_distiller
from iakd.distillation.loss import DistillationLoss, ForwardOutputs, LossContext
from iakd.distillation.registry import loss_class, timeline_of
from iakd.distillation.teacher_cache import CacheDir
from iakd.distillation.warm_start import add_warm_start
from iakd.experiment.run_dir import Run
from iakd.models.features import forward_features
from iakd.models.network import initialise
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

STUDENT, TEACHER = config.Network(arch="resnet8", width=8), config.Network(arch="resnet14", width=8)
IMAGES = 5 * 32 + 2  # the last batch of an epoch has two images
EPOCHS = 5  # of six steps


@cache
def digit_images(first: int, n: int) -> DeviceLoader:
    """Return `n` digits, starting with number `first`."""
    raw = digits.read(config.Dataset())
    part = slice(first, first + n)
    return DeviceLoader(raw.train_images[part], raw.train_labels[part], [0.305], [0.376], "cpu")


def network(chosen: config.Network, seed: int) -> models.Network:
    net = models.build(chosen, 1, 10)
    initialise(net, torch.Generator().manual_seed(seed))
    return net


@cache
def teacher_weights() -> bytes:
    """Return the weights of a teacher after a hundred steps of plain training, better than an untrained student."""
    torch.set_num_threads(1)
    net, data = network(TEACHER, 2).train(), digit_images(500, 640)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(10):
        for batch in data.epoch(0, epoch, BatchFormat(64)):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(batch.images), batch.labels).backward()
            optimizer.step()
    return models.save_weights(net)


def teacher() -> models.Network:
    """Return the frozen teacher of the tests."""
    net = network(TEACHER, 2).eval().requires_grad_(False)
    models.load_weights(net, teacher_weights(), "the teacher of the tests")
    return net


def make_training(
    expression: str,
    path: str = "digits/students/run",
    options: dict[str, Any] | None = None,
    cache_dir: CacheDir | None = None,
    student: config.Network = STUDENT,
    **recipe: Any,
) -> Trainer:
    """Return a training of a tiny student by a sum of methods, ready to fit, with files in the working folder."""
    torch.set_num_threads(1)
    settings = {"epochs": EPOCHS, "batch_size": 32, "lr": 0.1, "validate_every": 5, **recipe}
    chosen = Recipe.model_validate(settings)
    method = config.Method(method=expression, **(options or {}))
    train = digit_images(0, IMAGES)
    timeline = timeline_of(chosen, method, len(train))
    distillation = make_distiller(
        network(student, 1),
        teacher(),
        method,
        timeline=timeline,
        seed=0,
        data=train,
        label_smoothing=chosen.label_smoothing,
        cache_dir=cache_dir,
    )
    run = Run(path, "distill", "key", {}, 0, {}, {})
    machine = Compute(device="cpu", checkpoint_seconds=1e9)
    training = Trainer(run, distillation, train, digit_images(1200, 40), chosen, machine)
    if method.init == "blockwise":
        add_warm_start(training, method.blockwise, machine)
    return training


def fixed_batch(training: Trainer, epoch: int = 0) -> Batch:
    """Return the first batch of an epoch of a training."""
    recipe = training.recipe
    wanted = EpochData(second_view=training.objective.epoch_data(0, recipe.augment).second_view)
    return next(training.data.epoch(0, epoch, BatchFormat(recipe.batch_size, recipe.augment), data=wanted))


class Images:
    """What most losses need of a data set: the shape of its images."""

    def __init__(self, side: int) -> None:
        self.image_shape = (1, side, side)


def loss_between(
    name: str, student: str, teacher: str, side: int = 32, **options: Any
) -> tuple[DistillationLoss, ForwardOutputs]:
    """Return the loss of method `name` with `options`, its weights drawn, and the outputs of a step with two images."""
    networks = [network(config.Network(arch=arch), seed) for seed, arch in enumerate((student, teacher))]
    networks[1].eval()
    method = config.Method(method=name, **({name: options} if options else {}))
    timeline = Timeline.of(config.Recipe(), 10)
    loss = loss_class(name)(LossContext(method.options(name), *networks, Images(side), timeline, 0))  # type: ignore[arg-type]
    loss.initialise(torch.Generator().manual_seed(0))
    batch = next(digit_images(0, 2).plain(2))
    images = F.interpolate(batch.images, size=(side, side))
    features = forward_features(networks[0], images, loss.student_features)
    with torch.no_grad():
        taught = forward_features(networks[1], images, loss.teacher_features)
    return loss, ForwardOutputs(0, batch, features, taught)
