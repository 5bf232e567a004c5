"""From a job to its training: builds the networks, the loaders, the distiller and the trainer, and runs them.

For teachers, for the students of the comparison and for those of a study's trials.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from iakd import config, devices, models
from iakd.config import Method
from iakd.data.augmentation import check_padding
from iakd.data.file_loader import make_loader
from iakd.data.loader import ImageLoader, steps_per_epoch
from iakd.data.splits import Indices, fraction_per_class, stratified
from iakd.data.store import PreparedData
from iakd.distillation.distiller import Distiller, check_class_weights, make_distiller, weights_of
from iakd.distillation.registry import build_deployed, timeline_of
from iakd.distillation.teacher_cache.policy import cache_dir_for
from iakd.distillation.warm_start import add_warm_start
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, StudyJob, TeacherJob
from iakd.files import digest
from iakd.interactive.pair_table import without_weights
from iakd.models import Network
from iakd.models.flops import step_macs
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.models.pairing import initialise_from_teacher, pair_blocks
from iakd.seeding import derive
from iakd.training.distributed import training_processes
from iakd.training.interleaved import fit_interleaved
from iakd.training.timeline import Timeline
from iakd.training.trainer import OnValidation, Trainer


def network_of(job: TeacherJob | StudentJob | StudyJob, store: PreparedData) -> Network:
    """Build the network whose weights a job saves, without these weights."""
    image, classes = store.image_shape, len(store.classes)
    if isinstance(job, TeacherJob):
        return models.build(job.network, image[0], classes)
    return build_deployed(job.student, job.teacher.network, job.method, image, classes)


def finished_network(job: TeacherJob | StudentJob, content: bytes, store: PreparedData) -> Network:
    """Build the network of a job with the weights `content` of its model, for images as `store` normalises them.

    Raises UserError if they do not fit.
    """
    network = network_of(job, store)
    models.load_weights(network, content, str(job.folder / run_dir.MODEL))
    adapt_input(network, job.normalisation, store.mean, store.std)
    return network


def check_students(experiment: Experiment, teacher: TeacherJob, store: PreparedData) -> None:
    """Raise UserError if a student of this teacher cannot be trained as its settings say; nothing is computed.

    Because it cannot be built, or its blocks not be swapped, or there are no such classes, or the images are too few or
    too small. Otherwise a misspelt architecture would be found only when the teacher has been trained, perhaps for
    hours.
    """
    channels, classes = store.image_shape[0], len(store.classes)
    jobs = [job for job in experiment.students if job.teacher.network == teacher.network]
    transfer_set(experiment, store)
    for job in jobs:
        check_class_weights(job.recipe, store.classes)
        check_padding(job.recipe.augment, store.image_shape[1:])
    # One method that swaps is enough to need pairs, and one job of each kind to find out.
    for job in {(job.student.name, job.method.swaps): job for job in jobs}.values():
        with without_weights(teacher.network, job.student):
            student = models.build(job.student, channels, classes)
            if job.method.swaps:
                pair_blocks(models.build(teacher.network, channels, classes), student, store.image_shape)


def student_run(
    experiment: Experiment,
    job: StudentJob | StudyJob,
    path: str,
    seed: int,
    store: PreparedData,
    **about: Any,
) -> run_dir.Run:
    """The run of a student, or of one seed of a study's trial; its key identifies settings, inputs and sources.

    `job` has the method and the recipe that are really used, also where a study has found them or tries them.
    A student's record has `transfer_indices`, the images it sees, unless it sees all of them.
    """
    inputs = {"data": store.sha256}
    if job.method.needs_teacher:
        inputs["teacher"] = run_dir.read_model(job.teacher.folder)[1]["model_sha256"]
    seen = None if isinstance(job, StudyJob) else transfer_set(experiment, store)
    return run_dir.Run(
        path=path,
        stage="trial_seed" if isinstance(job, StudyJob) else job.stage,
        key=job.training_key(inputs, seed, path),
        params={**job.settings, **job.used},
        seed=seed,
        about={
            "dataset": experiment.params.dataset.name,
            "teacher": job.teacher.network.name,
            "student": job.student.name,
            "method": job.label,
            **({} if seen is None else {"transfer_indices": seen.tolist()}),
            **about,
        },
        inputs=inputs,
        device=devices.device_name(devices.set_up_device(experiment.params.compute)),
    )


class StudentTask(NamedTuple):
    """A student to be trained: its run, and its job with the method and the recipe that are really used."""

    run: run_dir.Run
    job: StudentJob | StudyJob


class Trained(NamedTuple):
    """History, final metrics, the network that was trained, and a second one that was trained with it, if any."""

    history: list[run_dir.Row]
    metrics: dict[str, Any]
    network: Network
    peer: Network | None = None


def train_teacher(run: run_dir.Run, experiment: Experiment, job: TeacherJob, store: PreparedData) -> Trained:
    """Train a teacher by cross-entropy, from wherever its run was left."""
    several, compute = training_processes(), experiment.params.compute
    device = devices.set_up_device(compute)
    network = _initialised(job.network, job, run.seed, store).to(device)
    train, validation = _loaders(store, device, None, several.loader_workers(compute.workers))
    timeline = Timeline.of(job.recipe, steps_per_epoch(len(train), job.recipe.batch_size))
    objective = make_distiller(
        network,
        None,
        Method(method="scratch"),
        data=train,
        timeline=timeline,
        seed=run.seed,
        label_smoothing=job.recipe.label_smoothing,
        class_weights=weights_of(job.recipe, train, store.classes),
    )
    trainer = Trainer(run, objective, train, validation, job.recipe, compute, processes=several)
    return Trained(*trainer.fit(), network)


def train_student(
    task: StudentTask, experiment: Experiment, store: PreparedData, on_validation: OnValidation | None = None
) -> Trained:
    """Train a student, from wherever its run was left."""
    (trainer,) = _student_trainers(experiment, [task], store, on_validation)
    return Trained(*trainer.fit(), trainer.objective.student, trainer.objective.peer)


STEPS_COUNTED = 32


def training_macs(task: StudentTask, experiment: Experiment, store: PreparedData) -> int:
    """Return the multiply–accumulates of all steps of a training, the teacher's included, estimated from some of them.

    `STEPS_COUNTED` steps, spread evenly over the training, are computed with its own batches and draws, and weights as
    initialised. So the result is the same on every machine, unlike seconds. Nothing is read from the teacher cache.
    """
    compute = experiment.params.compute.model_copy(update={"teacher_cache": "off"})
    uncached = replace(experiment, params=experiment.params.model_copy(update={"compute": compute}))
    (trainer,) = _student_trainers(uncached, [task], store)
    total = trainer.timeline.total
    steps = sorted({round(i * (total - 1) / (STEPS_COUNTED - 1)) for i in range(STEPS_COUNTED)})
    return sum(step_macs(partial(trainer.loss_at, step)) for step in steps) * total // len(steps)


def train_students(
    experiment: Experiment, tasks: Sequence[StudentTask], store: PreparedData
) -> list[Trained | Exception]:
    """Train several students side by side; for one that fails, the error that `train_student` would raise."""
    trainers = _student_trainers(experiment, tasks, store)
    return [
        result if isinstance(result, Exception) else Trained(*result, trainer.objective.student, trainer.objective.peer)
        for result, trainer in zip(fit_interleaved(trainers), trainers, strict=True)
    ]


def _student_trainers(
    experiment: Experiment,
    tasks: Sequence[StudentTask],
    store: PreparedData,
    on_validation: OnValidation | None = None,
) -> list[Trainer]:
    """Trainers that share their frozen teachers, and the images that lie on the device."""
    compute, several = experiment.params.compute, training_processes()
    device = devices.set_up_device(compute)
    subset = transfer_set(experiment, store)
    images = digest([store.sha256, store.mean, store.std, None if subset is None else subset.tolist()])
    teachers: dict[str, Network] = {}
    loaders: list[tuple[ImageLoader, ImageLoader]] = []
    distillers: list[Distiller] = []
    for run, job in tasks:
        if job.method.needs_teacher and job.teacher.path not in teachers:
            teachers[job.teacher.path] = read_teacher(job.teacher, store)
        teacher = teachers[job.teacher.path] if job.method.needs_teacher else None
        student = _initialised(job.student, job, run.seed, store)
        if job.method.init == "teacher":
            assert teacher is not None
            initialise_from_teacher(student, teacher)
        student.to(device)
        if teacher:
            teacher.to(device)
        shared = loaders[0] if loaders and store.storage == "array" else None  # a pass over files cannot be shared
        loaders.append(shared or _loaders(store, device, subset, several.loader_workers(compute.workers)))
        train = loaders[-1][0]
        distillers.append(
            make_distiller(
                student,
                teacher,
                job.method,
                data=train,
                timeline=timeline_of(job.recipe, job.method, len(train)),
                seed=run.seed,
                label_smoothing=job.recipe.label_smoothing,
                class_weights=weights_of(job.recipe, train, store.classes),
                cache_dir=cache_dir_for(experiment, job, images, device) if several.count == 1 else None,
                processes=several.count,
            )
        )
    # Only now: a trainer changes the memory layout of its teacher, in which what losses compute of it when they are
    # built would round differently.
    trainers = [
        Trainer(task.run, distiller, *both, task.job.recipe, compute, on_validation, several)
        for task, distiller, both in zip(tasks, distillers, loaders, strict=True)
    ]
    for task, trainer in zip(tasks, trainers, strict=True):
        if task.job.method.init == "blockwise":
            add_warm_start(trainer, task.job.method.blockwise, compute)
    return trainers


def _initialised(
    network: config.Network, job: TeacherJob | StudentJob | StudyJob, seed: int, store: PreparedData
) -> Network:
    """A newly built network with random weights."""
    built = models.build(network, store.image_shape[0], len(store.classes))
    initialise(built, torch.Generator().manual_seed(derive("initialise", seed)))
    adapt_input(built, job.normalisation, store.mean, store.std)
    return built


def _loaders(
    store: PreparedData, device: torch.device, subset: Indices | None, workers: int | None
) -> tuple[ImageLoader, ImageLoader]:
    """For training and for validation."""
    return make_loader(store, "train", device, subset, workers), make_loader(store, "val", device, workers=workers)


def transfer_set(experiment: Experiment, store: PreparedData) -> Indices | None:
    """Positions, in the training part, of the images that students see; None for all.

    Raises UserError where there are fewer than are asked for.
    """
    wanted, labels = experiment.params.distill.transfer, store.labels("train")
    seed = derive("transfer", experiment.params.dataset.split_seed)
    if isinstance(wanted, float):
        return fraction_per_class(labels, wanted, seed)
    return stratified(labels, wanted, seed, setting="distill.transfer") if wanted else None


def read_teacher(job: TeacherJob, store: PreparedData) -> Network:
    """A finished teacher, for images as `store` normalises them.

    Raises UserError where it is missing, damaged or of other settings.
    """
    content, record = run_dir.read_model(job.folder)
    if not record["params"].items() >= job.settings.items():
        raise UserError(f"{job.folder} was made with other settings: run `iakd teach --teacher {job.network.name}`")
    return finished_network(job, content, store)
