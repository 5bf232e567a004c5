"""The training of one student, be it a row of the comparison or a trial of a study."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from iakd import config, models
from iakd import devices as devices
from iakd.config import Schedule
from iakd.data.file_loader import make_loader
from iakd.data.loader import ImageLoader
from iakd.data.splits import Indices, share_of_each, stratified
from iakd.data.store import PreparedData
from iakd.distillation import Distiller, timeline_of
from iakd.distillation.registry import changes_student, deploy
from iakd.distillation.teacher_cache.policy import cache_dir_for
from iakd.errors import UserError
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, StudentJob, StudyJob, TeacherJob
from iakd.files import digest
from iakd.interactive.hybrid import initialise_from_teacher
from iakd.models import Network
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.seeding import derive
from iakd.training.distributed import processes
from iakd.training.interleaved import fit_interleaved
from iakd.training.trainer import OnValidation, Trainer


def network_of(job: TeacherJob | StudentJob | StudyJob, store: PreparedData) -> Network:
    """The network that the weights of a job fit, without them: what it trains and leaves behind."""
    channels, classes = store.image_shape[0], len(store.classes)
    if isinstance(job, TeacherJob):
        return models.build(job.network, channels, classes)
    student = models.build(job.student, channels, classes)
    if changes_student(job.method):
        deploy(student, models.build(job.teacher.network, channels, classes), job.method, store.image_shape)
    return student


def student_run(
    experiment: Experiment,
    job: StudentJob | StudyJob,
    path: str,
    label: str,
    seed: int,
    schedule: Schedule | None,
    store: PreparedData,
    **about: Any,
) -> run_dir.Run:
    """The run of a student or of a study's trial, with the identity that its settings and inputs give it.

    A student's record has `transfer_indices`: what `transfer_set` gives, where that is not all images.
    """
    inputs = {"data": store.sha256}
    if job.method.needs_teacher:
        inputs["teacher"] = run_dir.read_model(job.teacher.folder)[1]["model_sha256"]
    chosen = schedule.model_dump(mode="json") if schedule else None
    seen = None if isinstance(job, StudyJob) else transfer_set(experiment, store)
    return run_dir.Run(
        path=path,
        stage="trial" if isinstance(job, StudyJob) else job.stage,
        key=digest([job.key, inputs, chosen, seed, path]),
        params={**job.settings, "schedule": chosen},
        seed=seed,
        about={
            "dataset": experiment.params.dataset.name,
            "teacher": job.teacher.network.name,
            "student": job.student.name,
            "method": label,
            **({} if seen is None else {"transfer_indices": seen.tolist()}),
            **about,
        },
        inputs=inputs,
        device=devices.device_name(devices.set_up_device(experiment.params.compute)),
    )


class StudentTask(NamedTuple):
    """A student to be trained: its run, its job, and the schedule of its swaps, where it has one."""

    attempt: run_dir.Run
    job: StudentJob | StudyJob
    schedule: Schedule | None


Trained = tuple[list[run_dir.Row], dict[str, Any], Network]
"""History, final metrics, and the student as it will be deployed."""


def train_student(
    task: StudentTask, experiment: Experiment, store: PreparedData, on_validation: OnValidation | None = None
) -> Trained:
    """Train from wherever the run was left."""
    ((training, student),) = _trainings(experiment, [task], store, on_validation)
    return (*training.fit(), student)


def train_students(
    experiment: Experiment, tasks: Sequence[StudentTask], store: PreparedData
) -> list[Trained | Exception]:
    """The same with several students side by side; of one that fails, what `train_student` would raise."""
    made = _trainings(experiment, tasks, store)
    ended = fit_interleaved([training for training, _ in made])
    return [
        outcome if isinstance(outcome, Exception) else (*outcome, student)
        for outcome, (_, student) in zip(ended, made, strict=True)
    ]


def _trainings(
    experiment: Experiment, tasks: Sequence[StudentTask], store: PreparedData, on_validation: OnValidation | None = None
) -> list[tuple[Trainer, Network]]:
    """The trainings and their students. Teachers, which are frozen, and images that lie on the device are shared."""
    compute, several = experiment.params.compute, processes()
    device = devices.set_up_device(compute)
    chosen = transfer_set(experiment, store)
    images = digest([store.sha256, store.mean, store.std, None if chosen is None else chosen.tolist()])
    teachers: dict[str, Network] = {}
    sets: list[tuple[ImageLoader, ImageLoader]] = []
    methods: list[Distiller] = []
    for attempt, job, schedule in tasks:
        teacher = None
        if job.method.needs_teacher:
            if job.teacher.path not in teachers:
                teachers[job.teacher.path] = read_teacher(job.teacher, store)
            teacher = teachers[job.teacher.path]
        student = _student(attempt, job, store, teacher).to(device)
        if teacher:
            teacher.to(device)
        shared = sets[0] if sets and store.storage == "array" else None  # a pass over files cannot be shared
        sets.append(shared or _image_sets(store, device, chosen, several.workers(compute.workers)))
        train = sets[-1][0]
        recipe: config.Recipe = job.recipe
        timeline = timeline_of(recipe, job.method, len(train))
        cache_dir = cache_dir_for(experiment, job, images) if several.count == 1 else None
        methods.append(
            Distiller(
                student,
                teacher,
                job.method,
                schedule,
                timeline,
                attempt.seed,
                train,
                recipe.label_smoothing,
                cache_dir,
                several.count,
            )
        )
    # Only now: a training brings its teacher into another memory layout, in which what methods find out about it when
    # they are made would round differently.
    return [
        (Trainer(attempt, method.network, method, *both, job.recipe, compute, on_validation, several), method.network)
        for (attempt, job, _), method, both in zip(tasks, methods, sets, strict=True)
    ]


def _student(attempt: run_dir.Run, job: StudentJob | StudyJob, store: PreparedData, teacher: Network | None) -> Network:
    """With its first weights."""
    student = models.build(job.student, store.image_shape[0], len(store.classes))
    initialise(student, torch.Generator().manual_seed(derive("initialise", attempt.seed)))
    adapt_input(student, job.normalisation, store.mean, store.std)
    if job.method.init == "teacher":
        assert teacher is not None
        initialise_from_teacher(student, teacher)
    return student


def _image_sets(
    store: PreparedData, device: torch.device, chosen: Indices | None, workers: int | None
) -> tuple[ImageLoader, ImageLoader]:
    """For training and for validation."""
    return make_loader(store, "train", device, chosen, workers), make_loader(store, "val", device, workers=workers)


def transfer_set(experiment: Experiment, store: PreparedData) -> Indices | None:
    """Positions, in the training part, of the images that students see; None for all.

    Raises UserError where there are fewer than are asked for.
    """
    wanted, labels = experiment.params.distill.transfer, store.labels("train")
    seed = derive("transfer", experiment.params.dataset.split_seed)
    if isinstance(wanted, float):
        return share_of_each(labels, wanted, seed)
    return stratified(labels, wanted, seed, setting="distill.transfer") if wanted else None


def read_teacher(job: TeacherJob, store: PreparedData) -> Network:
    """A finished teacher, for images as `store` normalises them.

    Raises UserError where it is missing, damaged or of other settings.
    """
    network = network_of(job, store)
    content, record = run_dir.read_model(job.folder)
    if not record["params"].items() >= job.settings.items():
        raise UserError(f"{job.folder} was made with other settings: run `iakd teach --teacher {job.network.name}`")
    models.load_weights(network, content, str(job.folder / run_dir.MODEL))
    adapt_input(network, job.normalisation, store.mean, store.std)
    return network
