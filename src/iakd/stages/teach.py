"""Train a teacher: reads the data, writes results/<dataset>/teachers/<name>/seed<k>/."""

import logging
from pathlib import Path

import torch

from iakd import models, params, runs
from iakd.data.sets import image_set
from iakd.data.store import Store
from iakd.data.streams import derive
from iakd.files import digest
from iakd.methods import Distillation
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.plan import Plan, TeacherJob
from iakd.training import device as devices
from iakd.training.loop import Training
from iakd.training.parallel import processes
from iakd.training.timeline import Timeline

log = logging.getLogger(__name__)


def run(plan: Plan, job: TeacherJob) -> Path:
    """Train one teacher, or leave it alone if this very training is already finished. Returns its folder."""
    several = processes()
    store = Store.open(plan.data.folder, settings=plan.data.settings)
    device = devices.set_up(plan.params.compute)
    inputs = {"data": store.sha256}
    attempt = runs.Run(
        path=job.path,
        stage=job.stage,
        key=digest([job.key, inputs]),
        params=job.settings,
        seed=job.seed,
        about={"dataset": plan.params.dataset.name, "teacher": job.network.name, "student": None, "method": "teacher"},
        inputs=inputs,
        device=devices.describe(device),
    )
    if several.lead(lambda: attempt.finished):
        log.info("%s: already trained", job.folder)
        return job.folder
    with several.opened(attempt):
        network = models.build(job.network, store.image_shape[0], len(store.classes))
        initialise(network, torch.Generator().manual_seed(derive("initialise", job.seed)))
        adapt_input(network, job.normalisation, store.mean, store.std)
        network.to(device)
        workers = several.workers(plan.params.compute.workers)
        train, validation = (image_set(store, split, device, workers=workers) for split in ("train", "val"))
        timeline = Timeline.of(job.recipe, train.steps(job.recipe.batch_size))
        alone = params.Method(method="scratch")
        method = Distillation(network, None, alone, None, timeline, job.seed, train, job.recipe.label_smoothing)
        compute = plan.params.compute
        training = Training(attempt, network, method, train, validation, job.recipe, compute, processes=several)
        history, metrics = training.fit()
        return several.lead(lambda: attempt.finish(history, metrics, models.save_weights(network)))
