"""The training of one student, be it a row of the comparison or a trial of a study."""

from typing import Any

import torch

from iakd import models, params, runs
from iakd.data.sets import image_set
from iakd.data.splits import Indices, share_of_each, stratified
from iakd.data.store import Store
from iakd.data.streams import derive
from iakd.errors import UserError
from iakd.files import digest
from iakd.interactive.hybrid import initialise_from_teacher
from iakd.methods import Distillation, timeline_of
from iakd.methods.deployment import changes_student, deploy
from iakd.methods.teacher.policy import shelf_for
from iakd.models import Network
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.params import Schedule
from iakd.plan import Plan, StudentJob, StudyJob, TeacherJob
from iakd.training import device as devices
from iakd.training.loop import OnValidation, Training


def network_of(job: TeacherJob | StudentJob | StudyJob, store: Store) -> Network:
    """The network that the weights of a job fit, without them: what it trains and leaves behind."""
    channels, classes = store.image_shape[0], len(store.classes)
    if isinstance(job, TeacherJob):
        return models.build(job.network, channels, classes)
    student = models.build(job.student, channels, classes)
    if changes_student(job.method):
        deploy(student, models.build(job.teacher.network, channels, classes), job.method, store.image_shape)
    return student


def student_run(
    plan: Plan,
    job: StudentJob | StudyJob,
    path: str,
    label: str,
    seed: int,
    schedule: Schedule | None,
    store: Store,
    **about: Any,
) -> runs.Run:
    """The run of a student or of a study's trial, with the identity that its settings and inputs give it.

    A student's record has `transfer_indices`: what `transfer_set` gives, where that is not all images.
    """
    inputs = {"data": store.sha256}
    if job.method.needs_teacher:
        inputs["teacher"] = runs.read_model(job.teacher.folder)[1]["model_sha256"]
    chosen = schedule.model_dump(mode="json") if schedule else None
    seen = None if isinstance(job, StudyJob) else transfer_set(plan, store)
    return runs.Run(
        path=path,
        stage="trial" if isinstance(job, StudyJob) else job.stage,
        key=digest([job.key, inputs, chosen, seed, path]),
        params={**job.settings, "schedule": chosen},
        seed=seed,
        about={
            "dataset": plan.params.dataset.name,
            "teacher": job.teacher.network.name,
            "student": job.student.name,
            "method": label,
            **({} if seen is None else {"transfer_indices": seen.tolist()}),
            **about,
        },
        inputs=inputs,
        device=devices.describe(devices.set_up(plan.params.compute)),
    )


def train_student(
    attempt: runs.Run,
    plan: Plan,
    job: StudentJob | StudyJob,
    schedule: Schedule | None,
    store: Store,
    on_validation: OnValidation | None = None,
) -> tuple[list[runs.Row], dict[str, Any], Network]:
    """Train from wherever the run was left; returns history, final metrics and the student as it will be deployed."""
    device = devices.set_up(plan.params.compute)
    channels, classes = store.image_shape[0], len(store.classes)
    student = models.build(job.student, channels, classes)
    initialise(student, torch.Generator().manual_seed(derive("initialise", attempt.seed)))
    adapt_input(student, job.normalisation, store.mean, store.std)
    teacher = read_teacher(job.teacher, store) if job.method.needs_teacher else None
    if job.method.init == "teacher":
        assert teacher is not None
        initialise_from_teacher(student, teacher)
    student.to(device)
    if teacher:
        teacher.to(device)
    chosen = transfer_set(plan, store)
    workers = plan.params.compute.workers
    train = image_set(store, "train", device, chosen, workers)
    validation = image_set(store, "val", device, workers=workers)
    recipe: params.Recipe = job.recipe
    timeline = timeline_of(recipe, job.method, len(train))
    images = digest([store.sha256, store.mean, store.std, None if chosen is None else chosen.tolist()])
    shelf = shelf_for(plan, job, images)
    method = Distillation(
        student, teacher, job.method, schedule, timeline, attempt.seed, train, recipe.label_smoothing, shelf
    )
    training = Training(attempt, student, method, train, validation, recipe, plan.params.compute, on_validation)
    history, metrics = training.fit()
    return history, metrics, student


def transfer_set(plan: Plan, store: Store) -> Indices | None:
    """Positions, in the training part, of the images that students see; None for all.

    Raises UserError where there are fewer than are asked for.
    """
    wanted, labels = plan.params.distill.transfer, store.labels("train")
    seed = derive("transfer", plan.params.dataset.split_seed)
    if isinstance(wanted, float):
        return share_of_each(labels, wanted, seed)
    return stratified(labels, wanted, seed, setting="distill.transfer") if wanted else None


def read_teacher(job: TeacherJob, store: Store) -> Network:
    """A finished teacher, for images as `store` normalises them.

    Raises UserError where it is missing, damaged or of other settings.
    """
    network = network_of(job, store)
    content, record = runs.read_model(job.folder)
    if not record["params"].items() >= job.settings.items():
        raise UserError(f"{job.folder} was made with other settings: run `iakd teach --teacher {job.network.name}`")
    models.load_weights(network, content, str(job.folder / runs.MODEL))
    adapt_input(network, job.normalisation, store.mean, store.std)
    return network
