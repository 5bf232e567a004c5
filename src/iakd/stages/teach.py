"""Train a teacher: reads the data, writes results/<dataset>/teachers/<name>/seed<k>/."""

import logging
from pathlib import Path

from iakd import devices, models
from iakd.data.store import PreparedData
from iakd.distillation.assembly import check_students, train_teacher
from iakd.experiment.jobs import Experiment, TeacherJob
from iakd.experiment.run_dir import teacher_run
from iakd.training.distributed import training_processes

log = logging.getLogger(__name__)


def run(experiment: Experiment, job: TeacherJob) -> Path:
    """Train one teacher, unless this very training is finished, and return its folder.

    Raises UserError, before the training, if one of its students is impossible.
    """
    several = training_processes()
    store = PreparedData.open(experiment.data.folder, settings=experiment.data.settings)
    device = devices.device_name(devices.set_up_device(experiment.params.compute))
    attempt = teacher_run(experiment, job, store.sha256, device)
    if several.on_main(lambda: attempt.finished):
        log.info("%s: already trained", job.folder)
        return job.folder
    check_students(experiment, job, store)
    with several.open_run(attempt):
        history, metrics, network, _ = train_teacher(attempt, experiment, job, store)
        return several.on_main(lambda: attempt.finish(history, metrics, models.save_weights(network)))
