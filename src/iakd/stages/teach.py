"""Train a teacher: reads the data, writes results/<dataset>/teachers/<name>/seed<k>/."""

import logging
from pathlib import Path

from iakd import devices as devices
from iakd import models
from iakd.data.store import PreparedData
from iakd.experiment import run_dir
from iakd.experiment.jobs import Experiment, TeacherJob
from iakd.files import digest
from iakd.training.distributed import training_processes

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: TeacherJob) -> Path:
    """Train one teacher, unless this very training is finished, and return its folder."""
    several = training_processes()
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
    if several.on_main(lambda: attempt.finished):
        log.info("%s: already trained", job.folder)
        return job.folder
    with several.open_run(attempt):
        from iakd.distillation.assembly import train_teacher

        history, metrics, network = train_teacher(attempt, experiment, job, store)
        return several.on_main(lambda: attempt.finish(history, metrics, models.save_weights(network)))
