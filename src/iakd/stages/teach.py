"""Train a teacher: reads the data, writes results/<dataset>/teachers/<name>/seed<k>/."""

import logging
from pathlib import Path

import torch

from iakd import config, models
from iakd import devices as devices
from iakd.data.file_loader import make_loader
from iakd.data.store import PreparedData
from iakd.distillation import Distiller
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, TeacherJob
from iakd.files import digest
from iakd.models.network import initialise
from iakd.models.normalisation import adapt_input
from iakd.seeding import derive
from iakd.training.distributed import processes
from iakd.training.timeline import Timeline
from iakd.training.trainer import Trainer

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: TeacherJob) -> Path:
    """Train one teacher, or leave it alone if this very training is already finished. Returns its folder."""
    several = processes()
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    device = devices.set_up_device(experiment.params.compute)
    inputs = {"data": store.sha256}
    attempt = run_dir.Run(
        path=job.path,
        stage=job.stage,
        key=digest([job.key, inputs]),
        params=job.settings,
        seed=job.seed,
        about={
            "dataset": experiment.params.dataset.name,
            "teacher": job.network.name,
            "student": None,
            "method": "teacher",
        },
        inputs=inputs,
        device=devices.device_name(device),
    )
    if several.lead(lambda: attempt.finished):
        log.info("%s: already trained", job.folder)
        return job.folder
    with several.opened(attempt):
        network = models.build(job.network, store.image_shape[0], len(store.classes))
        initialise(network, torch.Generator().manual_seed(derive("initialise", job.seed)))
        adapt_input(network, job.normalisation, store.mean, store.std)
        network.to(device)
        workers = several.workers(experiment.params.compute.workers)
        train, validation = (make_loader(store, split, device, workers=workers) for split in ("train", "val"))
        timeline = Timeline.of(job.recipe, train.steps(job.recipe.batch_size))
        alone = config.Method(method="scratch")
        method = Distiller(network, None, alone, None, timeline, job.seed, train, job.recipe.label_smoothing)
        compute = experiment.params.compute
        training = Trainer(attempt, network, method, train, validation, job.recipe, compute, processes=several)
        history, metrics = training.fit()
        return several.lead(lambda: attempt.finish(history, metrics, models.save_weights(network)))
