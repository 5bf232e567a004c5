"""Whether a training uses the teacher cache: if that is possible, and if enough outputs would be reused."""

import torch

from iakd.config import Method
from iakd.distillation.registry import loss_class
from iakd.distillation.teacher_cache.cache_dir import CacheDir
from iakd.experiment.jobs import STATE, Experiment, StudentJob, StudyJob
from iakd.models.features import FeatureSpec
from iakd.training.cuda_graphs import records_steps

FOLDER = "teacher-views"
MIN_SHARE = 0.1  # of the outputs that have to be reused; a miss costs 1 to 2 % of a step


def cache_dir_for(
    experiment: Experiment, job: StudentJob | StudyJob, data: str, device: torch.device
) -> CacheDir | None:
    """Return the teacher cache of a training, None if it uses none; `data` is a hash of its images.

    Steps that read a cache cannot be recorded as CUDA graphs, which save more.
    """
    compute, augment = experiment.params.compute, job.recipe.augment
    if compute.teacher_cache == "off" or augment.views is None:
        return None
    useful = not records_steps(compute, device) and expected_share(experiment, job) >= MIN_SHARE
    if compute.teacher_cache == "auto" and not useful:
        return None
    folder = STATE / experiment.params.dataset.name / FOLDER
    return CacheDir(folder, data, augment, int(compute.teacher_cache_gib * 2**30))


def expected_share(experiment: Experiment, job: StudentJob | StudyJob) -> float:
    """Return the expected share of reused outputs, over all trainings that share a cache with this one.

    Trainings with the same seed see the same views. Other seeds and epochs draw theirs independently: after k draws,
    (1 − 1/V)^k of an image's V views have not been seen.
    """
    views = job.recipe.augment.views
    assert views is not None
    if isinstance(job, StudyJob):
        draws = job.recipe.epochs * experiment.params.tune.seeds
        return 1 - _distinct(views, draws) / (draws * experiment.params.tune.trials)
    sharing = [
        other
        for other in experiment.students
        if other.teacher.path == job.teacher.path
        and other.recipe.augment == job.recipe.augment
        and other.recipe.batch_size == job.recipe.batch_size
        and other.recipe.precision == job.recipe.precision
        and _reads_outputs_only(other.method)
    ]
    if not sharing:
        return 0.0
    epochs = {other.seed: other.recipe.epochs for other in sharing}
    return 1 - _distinct(views, sum(epochs.values())) / sum(other.recipe.epochs for other in sharing)


def _distinct(views: int, draws: int) -> float:
    """Return the expected number of distinct views among independent draws."""
    return views * (1 - (1 - 1 / views) ** draws)


def _reads_outputs_only(method: Method) -> bool:
    """Return whether a training by `method` reads its teacher's outputs, and no hidden features."""
    losses = [loss_class(name) for name in method.names]
    reads_teacher = any(loss.teacher_features != FeatureSpec() for loss in losses)
    return reads_teacher and not any(loss.uses_hidden_features for loss in losses)
