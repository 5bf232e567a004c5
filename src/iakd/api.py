"""What `import iakd` offers; docs/api.md explains it with examples.

Importing `iakd` costs nothing: what is here, and torch with it, is imported with the first use of one of these names.
"""

import contextlib
import operator
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.data import Dataset

from iakd.arguments import (
    check_accuracy,
    check_apart,
    check_augmentation,
    check_classes,
    check_module,
    make_folder,
    network_of,
    own_copy,
    section,
    whole_number,
)
from iakd.classifier import Classifier, Prediction, load
from iakd.config import Compute, Device, IakdOptions, LrSchedule, Method, Recipe, Schedule, merged, parse
from iakd.config import load as read_params
from iakd.config.base import plain
from iakd.data.dataset_loader import DatasetLoader, dataset_loader
from iakd.data.loader import DeviceLoader, ImageLoader
from iakd.devices import choose_device, keep_freed_memory, set_memory_format, use_channels_last
from iakd.distillation.distiller import make_distiller, weights_of
from iakd.distillation.registry import changes_student, timeline_of
from iakd.distillation.warm_start import add_warm_start
from iakd.errors import RunFailed, UserError, is_out_of_memory
from iakd.experiment.run_dir import Row, Run
from iakd.files import digest, sha256_bytes
from iakd.interactive.hybrid import Hybrid
from iakd.models import Network
from iakd.models.external.partition import Partition
from iakd.models.pairing import initialise_from_teacher
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

__all__ = [
    "Classifier",
    "Distilled",
    "Partition",
    "Prediction",
    "RunFailed",
    "SwappingStudent",
    "UserError",
    "distill",
    "hybrid",
    "load",
    "run",
]

NEVER = 1e9  # seconds between two checkpoints


@dataclass(frozen=True)
class Distilled:
    """A trained student, the history of its training and the final metrics.

    `student` is the module that was given, in evaluation mode; of the methods that add layers to it for good (simkd,
    rcn), the network that they deploy. `history` has a row per epoch: `loss`, `train_top1`, where it was validated
    `val_top1` (percent) and `val_nll` (nats), and what history.csv has besides. `metrics` has what metrics.json has.
    """

    student: nn.Module
    history: list[Row]
    metrics: dict[str, Any]


def distill(
    teacher: nn.Module | None,
    student: nn.Module,
    train_data: "Dataset[Any]",
    val_data: "Dataset[Any] | None" = None,
    *,
    method: str | Mapping[str, Any] = "iakd+kd",
    recipe: Mapping[str, Any] | Recipe | None = None,
    normalisation: tuple[Sequence[float], Sequence[float]] | None = None,
    teacher_parts: Partition | None = None,
    student_parts: Partition | None = None,
    seed: int = 0,
    device: Device = "auto",
    workers: int = 0,
    checkpoints: str | Path | None = None,
    on_epoch: Callable[[Row], None] | None = None,
) -> Distilled:
    """Train `student` in place, by any method of the pipeline and with its training loop, and return the result.

    `teacher` and `student` are classifiers, images (B, C, H, W) → logits (B, classes). The teacher is not changed; None
    suits the methods that need none. The data are torch Datasets of (image, label). Images of Pillow and uint8 tensors
    are kept in memory, augmented as `recipe` says, and normalised by `normalisation`, a mean and a standard deviation
    per channel in 0–1 units. Float tensors are taken as they are, as the Dataset has augmented and normalised them.

    `method` is a name or a sum, or a section of `methods` in params.yaml as a dictionary: `{"method": "iakd+kd",
    "kd": {"temperature": 2}}`. `recipe` has the settings of `distill.recipe`. Both are described in docs/settings.md.

    Methods that swap or compare blocks need to know them. They are found in the networks of iakd, and in the models of
    torchvision and timm whose families docs/networks.md lists. For a class of your own, describe them by a
    `Partition` of module paths: `Partition(stem=("conv",), blocks=("layer1.*", "layer2.*"), head=("pool", "fc"))`.

    With `checkpoints`, a folder, an interrupted call leaves the student as it was, and continues when it is repeated.
    The same seed gives the same result, bit for bit on the CPU, unless the Dataset or a layer draws at random by
    itself, or a layer changes buffers that it does not save; it is that of `iakd distill` for the same images, weights
    and number of threads. `on_epoch` is called with each row of the history.

    Raises UserError, in one line, for networks, data or settings that do not go together, RunFailed where the loss is
    no longer finite, KeyboardInterrupt at Ctrl-C, after the current step.
    """
    if torch.is_inference_mode_enabled():
        raise UserError("nothing can be trained in torch.inference_mode(): call iakd.distill outside")
    seed, workers = whole_number(seed, "seed", 0), whole_number(workers, "workers", 0)
    check_module(student, "student", student_parts)
    if teacher is not None:
        check_module(teacher, "teacher", teacher_parts)
        check_apart(teacher, student)
    chosen = section(Method, {"method": method} if isinstance(method, str) else method, "method")
    trained_by = recipe if isinstance(recipe, Recipe) else section(Recipe, recipe or {}, "recipe")
    trained_by = section(Recipe, merged(plain(trained_by), chosen.recipe), "method.recipe")
    if chosen.tuned:
        raise UserError("method: a study needs the pipeline (`iakd tune`); here all settings must have values")
    if teacher is None and chosen.needs_teacher:
        raise UserError(f"{chosen.method} needs a teacher")
    if on_epoch is not None and not callable(on_epoch):
        raise UserError(f"on_epoch is a {type(on_epoch).__name__}; give a function of a row of the history")
    target = choose_device(device)
    if checkpoints is not None:
        if not isinstance(checkpoints, str | Path):
            raise UserError(f"checkpoints is {checkpoints!r}; give the path of a folder")
        make_folder(Path(checkpoints))
    train = dataset_loader(train_data, normalisation, target, workers, "train_data")
    validation = dataset_loader(val_data, normalisation, target, workers, "val_data") if val_data is not None else None
    if isinstance(train, DatasetLoader):
        check_augmentation(trained_by)
    image = train.image_shape
    if validation is not None and validation.image_shape != image:
        raise UserError(f"val_data has images of {validation.image_shape}, and train_data of {image}")
    if validation is None and chosen.init == "blockwise":
        raise UserError("init: blockwise needs val_data")
    student.cpu()
    network = network_of(student, image, student_parts, "student", chosen)
    guide = network_of(own_copy(teacher), image, teacher_parts, "teacher", chosen) if teacher is not None else None
    classes = taught = check_classes(network, train, "student")
    if validation is not None and int(validation.labels.max()) >= classes:
        raise UserError(f"the student has {classes} classes, and a label in val_data is {int(validation.labels.max())}")
    if guide and chosen.needs_teacher:
        taught = check_classes(guide, train, "teacher")
    trained = [(parameter, parameter.requires_grad) for parameter in student.parameters()]
    as_given = {name: tensor.detach().clone() for name, tensor in _tensors(student)}
    networks = [each for each in (network, guide) if each]
    start = [(_state(each), repr(each)) for each in networks if checkpoints]
    compute = Compute(threads=torch.get_num_threads(), checkpoint_seconds=30.0 if checkpoints else NEVER)
    data: list[Any] = [_identity(loader) for loader in (train, validation) if loader is not None and checkpoints]
    data += [[float(value) for value in values] for values in normalisation or ()]
    needed = [learns for _, learns in trained]
    about = [chosen.settings(), trained_by.model_dump(mode="json"), seed, start, needed, data, compute.threads]
    other_classes = (
        f"the teacher has {taught} classes, the student {classes}, and {chosen.method} compares their outputs"
    )
    trainer: Trainer | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([target] if target.type == "cuda" else []))  # the caller's goes on
        stack.enter_context(torch.enable_grad())
        folder = Path(checkpoints or stack.enter_context(tempfile.TemporaryDirectory(prefix="iakd-")))
        training = _InMemory(f"{chosen.method}, seed {seed}", "distill", digest(about), {}, seed, {}, {})
        training.live, training.on_epoch = folder, on_epoch
        try:
            if chosen.init == "teacher":
                assert guide is not None
                initialise_from_teacher(network, guide)
            student.to(target)
            network.to(target)
            if guide and chosen.needs_teacher:
                check_accuracy(guide.to(target), validation or train)
            if target.type == "cpu":
                keep_freed_memory()
            distiller = make_distiller(
                network,
                guide if chosen.needs_teacher else None,
                chosen,
                data=train,
                timeline=timeline_of(trained_by, chosen, len(train)),
                seed=seed,
                label_smoothing=trained_by.label_smoothing,
                class_weights=weights_of(
                    trained_by, train, [str(label) for label in range(int(train.labels.max()) + 1)]
                ),
            )
            if taught != classes and distiller.compares_outputs:
                raise UserError(other_classes)
            trainer = Trainer(training, distiller, train, validation, trained_by, compute)
            if chosen.init == "blockwise":
                add_warm_start(trainer, chosen.blockwise, compute)
            history, metrics = trainer.fit()
        except BaseException as error:
            if checkpoints or trainer is None or trainer.step == 0:  # the same call continues, or another one begins
                _restore(student, as_given)
            if isinstance(error, RuntimeError) and classes != taught and not is_out_of_memory(error):
                raise UserError(other_classes) from error
            raise
        finally:
            for parameter, learns in trained:  # a method may have frozen some
                parameter.requires_grad_(learns)
            result = trainer.objective.student if trainer and changes_student(chosen) else student
            for module in (student, result):  # the layout of the training may be unsafe beside another network
                set_memory_format(module, channels_last=False)
        training.clear()
    return Distilled(result.eval(), history, metrics)


def _state(module: nn.Module) -> list[tuple[str, str]]:
    """The names in `state_dict`, and hashes of the tensors; what else a module may keep there, as it shows itself."""

    def shown(value: Any) -> str:
        return sha256_bytes(save({"": value.detach().cpu().contiguous()})) if isinstance(value, Tensor) else repr(value)

    return [(name, shown(value)) for name, value in module.state_dict().items()]


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())


@torch.no_grad()
def _restore(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy `tensors` back, but those whose places a method has changed."""
    for name, tensor in _tensors(module):
        if name in tensors and tensors[name].shape == tensor.shape:
            tensor.copy_(tensors[name])


class _InMemory(Run):
    """A training whose results are returned instead of published; its checkpoint is in the folder `live`."""

    on_epoch: Callable[[Row], None] | None = None

    def log(self, history: list[Row]) -> None:
        """Hand the last row on."""
        if self.on_epoch:
            self.on_epoch(history[-1])

    def clear(self) -> None:
        """Remove the checkpoint of a training that has ended."""
        from iakd.training.checkpoint import NAME

        (self.live / NAME).unlink(missing_ok=True)


def _identity(data: ImageLoader) -> list[str | None]:
    """What tells data apart for a checkpoint: labels and images, or labels alone where images are drawn at random."""
    labels = sha256_bytes(data.labels.cpu().numpy().tobytes())
    if isinstance(data, DatasetLoader):
        return [labels, data.fingerprint()]
    assert isinstance(data, DeviceLoader)
    return [labels, sha256_bytes(data.images.cpu().numpy().tobytes())]


class SwappingStudent(nn.Module):
    """A student whose blocks are swapped for a frozen teacher's at random, for a training loop of your own.

    `iakd.hybrid` returns it. In training mode, `forward(images, step)` draws which blocks are swapped in a step; in
    evaluation mode it is the student. Its trained parameters are those of the student and, where the numbers of
    channels differ, of adapters, which are discarded: `student` is the module that was given, and learns in place.
    """

    def __init__(
        self,
        student: nn.Module,
        network: Network,
        teacher: Network,
        options: IakdOptions,
        timeline: Timeline,
        seed: int,
        image: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.hybrid = Hybrid(network, teacher, options, seed)
        self._student = (student,)  # the hybrid holds its parts
        self.steps = timeline.total
        self._batch_size, self._granularity = timeline.batch_size, options.granularity
        self.sampler = self.hybrid.make_sampler(timeline, seed, image)

    @property
    def student(self) -> nn.Module:
        """The student, as it was given."""
        return self._student[0]

    def forward(self, images: Tensor, step: int | None = None) -> Tensor:
        """Return logits (B, classes) of images (B, C, H, W); `step` counts from 0, and is needed in training mode.

        What is swapped in a step depends on the seed and the step alone. Raises UserError for another step, and with
        `granularity: sample` for more images than `batch_size`.
        """
        if not self.training:
            return self.hybrid.student(images)
        if self._granularity == "sample" and len(images) > self._batch_size:
            raise UserError(f"hybrid: a batch of {len(images)} images, and batch_size is {self._batch_size}")
        return self.hybrid(images, self.sampler.masks(self._checked(step), len(images)))

    def keep_probabilities(self, step: int) -> list[float]:
        """Return p_i at a step: for each block slot, the probability that the student's blocks are kept."""
        return [float(p) for p in self.sampler.planned(0)[self._checked(step)]]

    def _checked(self, step: Any) -> int:
        try:
            number = operator.index(step)
        except TypeError:
            number = -1
        if not 0 <= number < self.steps:
            raise UserError(f"step {step}: in training mode, give the number of the step, from 0 to {self.steps - 1}")
        return number


def hybrid(
    teacher: nn.Module,
    student: nn.Module,
    steps: int,
    image: tuple[int, int, int],
    *,
    schedule: float | Mapping[str, Any] | Schedule | None = None,
    batch_size: int | None = None,
    teacher_parts: Partition | None = None,
    student_parts: Partition | None = None,
    seed: int = 0,
    **options: Any,
) -> SwappingStudent:
    """Return the hybrid network of IAKD for a training loop of your own.

    `steps` is the number of optimiser steps of the whole training, over which the swap-probability schedule runs;
    `image` the shape (channels, height, width) of the images. `schedule` has the settings of `iakd.schedule` in
    docs/settings.md; a number is a keep probability that stays the same; default: linear growth from 0.5 to 1.
    `options` are the other options of `iakd` in its single-path form: `unit`, `granularity` (`"sample"` needs the
    `batch_size`), `teacher_bn`, `stem`, `head`, `at_least_one_student`.

    The teacher is copied, and not changed; the student learns in place. How blocks are found is described at
    `distill`. Raises UserError if the networks cannot be paired, or for options that do not exist.

    >>> import torch, iakd
    >>> from torchvision.models import resnet18, resnet34
    >>> _ = torch.manual_seed(0)
    >>> teacher, student = resnet34(num_classes=10), resnet18(num_classes=10)
    >>> network = iakd.hybrid(teacher, student, steps=3, image=(3, 64, 64), schedule=0.5)
    >>> optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.01)
    >>> images, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 3])
    >>> for step in range(network.steps):
    ...     loss = torch.nn.functional.cross_entropy(network(images, step), labels)
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> network.keep_probabilities(0)
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    >>> network.eval()(images).shape == student.eval()(images).shape  # the student alone, which has learned in place
    True
    """
    seed, steps = whole_number(seed, "hybrid: seed", 0), whole_number(steps, "hybrid: steps", 1)
    if batch_size is not None:
        batch_size = whole_number(batch_size, "hybrid: batch_size", 1)
    if not isinstance(image, tuple | list) or len(image) != 3:
        raise UserError(f"hybrid: image is {image!r}; give (channels, height, width)")
    check_module(student, "student", student_parts)
    check_module(teacher, "teacher", teacher_parts)
    check_apart(teacher, student)
    if isinstance(schedule, int | float):
        schedule = {"kind": "uniform", "p0": schedule, "student_only": 0.0}
    given = {**options} if schedule is None else {**options, "schedule": schedule}
    chosen = section(IakdOptions, given, "hybrid")
    if chosen.form != "single_path" or chosen.schedule == "tuned" or chosen.bn_reestimate:
        raise UserError("hybrid: form: two_path, schedule: tuned and bn_reestimate need the pipeline's own loop")
    if chosen.granularity == "sample" and batch_size is None:
        raise UserError("hybrid: granularity: sample needs batch_size, the number of images in a step")
    method = Method.model_validate({"method": "iakd"})
    device = next((parameter.device for parameter in student.parameters()), torch.device("cpu"))
    network = network_of(student.cpu(), image, student_parts, "student", method)
    guide = network_of(own_copy(teacher).eval(), image, teacher_parts, "teacher", method)
    timeline = Timeline(1, steps, 1.0, LrSchedule(kind="constant"), batch_size or 1)
    built = SwappingStudent(student, network, guide.requires_grad_(False), chosen, timeline, seed, image)
    if not use_channels_last(Compute(), device, built):
        set_memory_format(built, channels_last=False)
    return built.to(device)


def run(params: str | Path | Mapping[str, Any], changes: Sequence[str] = ()) -> Path:
    """Run an experiment from the images to the report, in this process, and return the path of report.html.

    `params` is a settings file or its content as a dictionary, `changes` are texts such as `"distill.recipe.lr=0.1"`.
    Results are written to results/<dataset>/ in the working folder. What is there already is kept if it was made with
    the same settings, and an interrupted run continues. `snakemake --cores all` does the same with several jobs at a
    time. Raises UserError for settings that do not go together, RunFailed for a training that fails.
    """
    from iakd.experiment import gpus
    from iakd.experiment.jobs import group_seeds, plan_experiment
    from iakd.stages import distill, evaluate, export, import_teacher, prepare, report, teach, tune
    from iakd.tracking.follower import ensure_follower

    if not isinstance(params, str | Path | Mapping):
        raise UserError(f"params is a {type(params).__name__}; give the path of a settings file, or a dictionary")
    if isinstance(changes, str):
        raise UserError("changes is a text; give a list of texts such as 'distill.recipe.lr=0.1'")
    if isinstance(params, Mapping):
        if changes:
            raise UserError("changes belong to a settings file; change the dictionary itself")
        settings = parse(dict(params), "params")
    else:
        settings = read_params(Path(params), list(changes))
    if settings.compute.processes > 1:
        raise UserError("compute.processes: iakd.run trains in this process alone; use the command line for more")
    experiment = plan_experiment(settings)
    ensure_follower(settings)
    with gpus.claim(settings.compute):
        prepare.run(experiment)
        for job in experiment.teachers:
            (import_teacher if job.network.imported else teach).run(experiment, job)
        for study in experiment.studies:
            tune.run(experiment, study)
        for group in group_seeds(experiment.students, settings.compute.seeds_together):
            distill.run(experiment, *group)
        evaluate.run(experiment)
        for chosen in experiment.exports:
            export.run(experiment, chosen)
        return report.run(experiment)
